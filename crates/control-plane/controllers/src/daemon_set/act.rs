//! The writes of a DaemonSet.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use client::Error;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use reconcile::{EventKind, Outcome, key_of, reference_to};
use stdx::Backoff;
use tokio::time::Instant;

use super::observe::World;
use super::plan::Plan;
use super::{Controller, fit};
use crate::{act, history, pods};

/// The waits between failed pods of one node: 1 s doubling up to 15 minutes, as upstream.
const FAILED_FIRST: Duration = Duration::from_secs(1);
const FAILED_MAX: Duration = Duration::from_secs(15 * 60);

impl Controller {
    pub(super) async fn act(self: &Arc<Self>, world: &World, plan: Plan) -> Result<Outcome, Error> {
        let set = &*world.own.set;
        self.own.control.claim(set, &plan.adopt, &plan.release).await?;
        let made = self.own.control.create(set, plan.create.iter().map(|node| fit::pod(set, node, &world.hash))).await;
        let (ended, wait) = self.may_replace(set, plan.ended);
        ended.iter().for_each(|pod| self.tell_ended(set, pod));
        self.own.control.delete(set, plan.delete.into_iter().chain(ended).collect()).await?;
        if !set.status.as_ref().is_some_and(|current| act::same(current, &plan.status)) {
            act::write_status(&self.own.client, &DaemonSet { status: Some(plan.status), ..set.clone() }).await?;
        }
        made.or_else(|error| if error.is_namespace_terminating() { Ok(()) } else { Err(error) })?;
        let label = |pod: &Arc<Pod>| pod.metadata.labels.as_ref().and_then(|labels| labels.get(history::HASH_LABEL).cloned());
        let used: Vec<String> = world.own.pods.iter().filter_map(label).chain([world.hash.clone()]).collect();
        self.own.prune(&world.own, |revision| used.contains(&history::hash(revision))).await?;
        let next = [plan.look_again, wait].into_iter().flatten().min();
        Ok(next.map_or(Outcome::Done, Outcome::RequeueAfter))
    }

    /// Those of the ended pods whose node has waited long enough, and when the next one has.
    fn may_replace(&self, set: &DaemonSet, ended: Vec<Arc<Pod>>) -> (Vec<Arc<Pod>>, Option<Duration>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        failures.retain(|_, (_, until)| now < *until + FAILED_MAX);
        let (mut ready, mut wait) = (Vec::new(), None::<Duration>);
        for pod in ended {
            let node = fit::node_of(&pod).unwrap_or_default().to_owned();
            let key = (set.metadata.uid.clone().unwrap_or_default(), node);
            let (backoff, until) = failures.entry(key).or_insert_with(|| (Backoff::new(FAILED_FIRST, FAILED_MAX), now));
            if now < *until {
                let left = *until - now;
                wait = Some(wait.map_or(left, |wait| wait.min(left)));
                continue;
            }
            *until = now + backoff.next_wait();
            ready.push(pod);
        }
        (ready, wait)
    }

    fn tell_ended(&self, set: &DaemonSet, pod: &Pod) {
        let node = fit::node_of(pod).unwrap_or_default();
        let key = key_of(&pod.metadata);
        let (kind, reason, message) = match pods::phase(pod) {
            "Failed" => {
                (EventKind::Warning, "FailedDaemonPod", format!("Found failed daemon pod {key} on node {node}, will try to kill it"))
            }
            _ => {
                (EventKind::Normal, "SucceededDaemonPod", format!("Found succeeded daemon pod {key} on node {node}, will try to delete it"))
            }
        };
        self.own.control.recorder().event(&reference_to(set), kind, reason, message);
    }
}
