//! The writes of a ReplicaSet.

use std::sync::Arc;

use bytes::Bytes;
use client::{ApiResource, DeleteParams, Error};
use http::Method;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::{EventKind, ObjectKey, Outcome, PartialObject, key_of, reference_to};

use super::Controller;
use super::observe::World;
use super::plan::Plan;
use crate::act;

/// Which write failed, for the condition.
struct Failure {
    reason: &'static str,
    error: Error,
}

impl Controller {
    pub(super) async fn act(self: &Arc<Self>, world: &World, plan: Plan) -> Result<Outcome, Error> {
        let set = &world.set;
        let key = key_of(&set.metadata);
        self.claim(set, &key, &plan).await?;
        let failure = match self.create(set, &key, plan.create).await {
            Ok(()) => self.delete(set, &key, plan.delete).await.err(),
            Err(failure) => Some(failure),
        };
        let status = with_failure(plan.status, failure.as_ref(), world.now);
        self.write_status(set, status).await?;
        match (failure, plan.look_again) {
            (Some(failure), _) if failure.error.is_namespace_terminating() => Ok(Outcome::Done),
            (Some(failure), _) => Err(failure.error),
            (None, Some(wait)) => Ok(Outcome::RequeueAfter(wait)),
            (None, None) => Ok(Outcome::Done),
        }
    }

    async fn claim(&self, set: &ReplicaSet, key: &ObjectKey, plan: &Plan) -> Result<(), Error> {
        let owner = act::controller_ref(set);
        for pod in &plan.release {
            match act::release::<Pod>(&self.client, &owner.uid, &pod.metadata).await {
                Ok(revision) => self.expectations.wrote(key, Some(&revision)),
                // Gone, or not the pod we saw: either way no longer ours.
                Err(error) if error.is_not_found() || error.is_conflict() || error.is_invalid() => {}
                Err(error) => return Err(error),
            }
        }
        if plan.adopt.is_empty() || !act::may_adopt(&self.client, set).await? {
            return Ok(());
        }
        for pod in &plan.adopt {
            let revision = act::adopt::<Pod>(&self.client, &owner, &pod.metadata).await?;
            self.expectations.wrote(key, Some(&revision));
        }
        Ok(())
    }

    async fn create(self: &Arc<Self>, set: &Arc<ReplicaSet>, key: &ObjectKey, count: usize) -> Result<(), Failure> {
        if count == 0 {
            return Ok(());
        }
        // All pods of a set are made from the same bytes; the server gives them their names.
        let body = pod_body(set).map_err(|error| Failure { reason: "FailedCreate", error })?;
        let path: Arc<str> = ApiResource::of::<Pod>().collection(key.namespace()).into();
        let created = act::each(std::iter::repeat_n((), count), |()| {
            let (this, set, key, body, path) = (self.clone(), set.clone(), key.clone(), body.clone(), path.clone());
            async move { this.create_one(&set, &key, &path, body).await }
        });
        created.await.map_err(|error| Failure { reason: "FailedCreate", error })
    }

    async fn create_one(&self, set: &ReplicaSet, key: &ObjectKey, path: &str, body: Bytes) -> Result<(), Error> {
        let about = reference_to(set);
        match self.client.request_json::<PartialObject>(Method::POST, path, Some(body)).await {
            Ok(pod) => {
                self.expectations.wrote(key, Some(&pod.metadata.resource_version));
                self.recorder.event(&about, EventKind::Normal, "SuccessfulCreate", format!("Created pod: {}", pod.metadata.name));
                Ok(())
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    self.recorder.event(&about, EventKind::Warning, "FailedCreate", format!("Error creating: {error}"));
                }
                Err(error)
            }
        }
    }

    async fn delete(self: &Arc<Self>, set: &Arc<ReplicaSet>, key: &ObjectKey, surplus: Vec<Arc<Pod>>) -> Result<(), Failure> {
        let deleted = act::each(surplus, |pod| {
            let (this, set, key) = (self.clone(), set.clone(), key.clone());
            async move { this.delete_one(&set, &key, &pod).await }
        });
        deleted.await.map_err(|error| Failure { reason: "FailedDelete", error })
    }

    async fn delete_one(&self, set: &ReplicaSet, key: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let pod_key = key_of(&pod.metadata);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let about = reference_to(set);
        match self.client.delete::<Pod>(pod_key.namespace(), &pod_key.name, &DeleteParams::of_uid(uid)).await {
            Ok(_) => {
                self.recorder.event(&about, EventKind::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod_key.name));
                self.expectations.deleted(key, pod_key, uid);
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                self.recorder.event(&about, EventKind::Warning, "FailedDelete", format!("Error deleting: {error}"));
                Err(error)
            }
        }
    }

    async fn write_status(&self, set: &ReplicaSet, status: ReplicaSetStatus) -> Result<(), Error> {
        if set.status.as_ref().is_some_and(|current| same(current, &status)) {
            return Ok(());
        }
        let next = ReplicaSet { metadata: set.metadata.clone(), status: Some(status), spec: set.spec.clone() };
        act::ignore_not_found(self.client.replace_status(&next).await.map(drop))
    }
}

/// Equal for a reader: a count that is absent is zero.
fn same(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let counts = |status: &ReplicaSetStatus| {
        let optional = [status.fully_labeled_replicas, status.ready_replicas, status.available_replicas, status.terminating_replicas];
        (status.replicas, optional.map(Option::unwrap_or_default), status.observed_generation)
    };
    let conditions = |status: &ReplicaSetStatus| status.conditions.clone().unwrap_or_default();
    counts(a) == counts(b) && conditions(a) == conditions(b)
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

fn pod_body(set: &ReplicaSet) -> Result<Bytes, Error> {
    let template = set.spec.template.clone().unwrap_or_default();
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let pod = act::pod_from(template, set.metadata.namespace.clone(), name, act::controller_ref(set));
    serde_json::to_vec(&pod).map(Bytes::from).map_err(|error| Error::Request(error.to_string()))
}
