//! The writes of a ReplicaSet or ReplicationController.

use std::sync::Arc;

use client::Error;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::Outcome;

use super::Controller;
use super::kind::Replicated;
use super::observe::World;
use super::plan::Plan;
use crate::act;

/// Which write failed, for the condition.
struct Failure {
    reason: &'static str,
    error: Error,
}

impl<K: Replicated> Controller<K> {
    pub(super) async fn act(self: &Arc<Self>, world: &World<K>, plan: Plan) -> Result<Outcome, Error> {
        let set = &*world.set;
        self.control.claim(set, &plan.adopt, &plan.release).await?;
        let failure = match plan.create {
            0 => None,
            count => self.control.create_alike(set, &pod(set), count).await.err().map(|error| Failure { reason: "FailedCreate", error }),
        };
        let failure = match failure {
            None => self.control.delete(set, plan.delete).await.err().map(|error| Failure { reason: "FailedDelete", error }),
            failed => failed,
        };
        let status = with_failure(plan.status, failure.as_ref(), world.now);
        let next = set.with_status(status);
        if !act::same(&set.status(), &next.status()) || set.status().is_none() {
            act::write_status(&self.client, &next).await?;
        }
        match (failure, plan.look_again) {
            (Some(failure), _) if failure.error.is_namespace_terminating() => Ok(Outcome::Done),
            (Some(failure), _) => Err(failure.error),
            (None, Some(wait)) => Ok(Outcome::RequeueAfter(wait)),
            (None, None) => Ok(Outcome::Done),
        }
    }
}

/// Sets or clears the `ReplicaFailure` condition.
fn with_failure(mut status: ReplicaSetStatus, failure: Option<&Failure>, now: jiff::Timestamp) -> ReplicaSetStatus {
    let mut conditions = status.conditions.take().unwrap_or_default();
    let known = conditions.iter().position(|condition| condition.type_.as_deref() == Some("ReplicaFailure"));
    match (failure, known) {
        (Some(failure), None) => conditions.push(ReplicaSetCondition {
            type_: Some("ReplicaFailure".into()),
            status: Some("True".into()),
            reason: Some(failure.reason.into()),
            message: Some(failure.error.to_string()),
            last_transition_time: Some(Time(now)),
        }),
        (None, Some(index)) => drop(conditions.remove(index)),
        _ => {}
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
    status
}

fn pod<K: Replicated>(set: &K) -> Pod {
    let template = set.template().cloned().unwrap_or_default();
    let meta = set.metadata();
    act::pod_from(template, meta.namespace.clone(), meta.name.as_deref().unwrap_or_default(), act::controller_ref(set))
}
