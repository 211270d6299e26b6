//! The writes of a DaemonSet.

use std::sync::Arc;

use client::{DeleteParams, Error};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Pod;
use reconcile::{EventKind, ObjectKey, Outcome, key_of, reference_to};

use super::observe::World;
use super::plan::Plan;
use super::{Controller, fit};
use crate::{act, history, pods};

impl Controller {
    pub(super) async fn act(self: &Arc<Self>, world: &World, plan: Plan) -> Result<Outcome, Error> {
        let set = &world.set;
        let key = key_of(&set.metadata);
        if !plan.adopt.is_empty() && act::may_adopt(&self.client, &**set).await? {
            for pod in &plan.adopt {
                let revision = act::adopt::<Pod>(&self.client, &act::controller_ref(&**set), &pod.metadata).await?;
                self.expectations.wrote(&key, Some(&revision));
            }
        }
        act::each(plan.create, |node| {
            let (this, set, key, hash) = (self.clone(), set.clone(), key.clone(), world.hash.clone());
            async move { this.create(&set, &key, &node, &hash).await }
        })
        .await?;
        act::each(plan.delete, |pod| {
            let (this, set, key) = (self.clone(), set.clone(), key.clone());
            async move { this.delete(&set, &key, &pod).await }
        })
        .await?;
        self.write_status(set, &plan.status).await?;
        let label = |pod: &Arc<Pod>| pod.metadata.labels.as_ref().and_then(|labels| labels.get(history::HASH_LABEL).cloned());
        let used: Vec<String> = world.pods.iter().filter_map(label).chain([world.hash.clone()]).collect();
        let limit = set.spec.revision_history_limit.unwrap_or(10);
        history::prune(&self.client, &world.revisions, limit, |revision| used.contains(&history::hash(revision))).await?;
        Ok(plan.look_again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }

    async fn create(&self, set: &DaemonSet, key: &ObjectKey, node: &str, hash: &str) -> Result<(), Error> {
        let about = reference_to(set);
        match self.client.create(&fit::pod(set, node, hash)).await {
            Ok(created) => {
                self.expectations.wrote(key, created.metadata.resource_version.as_deref());
                let name = created.metadata.name.unwrap_or_default();
                self.recorder.event(&about, EventKind::Normal, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                self.recorder.event(&about, EventKind::Warning, "FailedCreate", format!("Error creating: {error}"));
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &DaemonSet, key: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let pod_key = key_of(&pod.metadata);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if pods::phase(pod) == "Failed" {
            let message =
                format!("Found failed daemon pod {pod_key} on node {}, will try to kill it", fit::node_of(pod).unwrap_or_default());
            self.recorder.event(&reference_to(set), EventKind::Warning, "FailedDaemonPod", message);
        }
        let deleted = self.client.delete::<Pod>(pod_key.namespace(), &pod_key.name, &DeleteParams::of_uid(uid)).await;
        act::ignore_not_found(deleted.map(drop))?;
        self.recorder.event(&reference_to(set), EventKind::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod_key.name));
        self.expectations.deleted(key, pod_key, uid);
        Ok(())
    }

    async fn write_status(&self, set: &DaemonSet, next: &DaemonSetStatus) -> Result<(), Error> {
        if set.status.as_ref().is_some_and(|current| same(current, next)) {
            return Ok(());
        }
        let next = DaemonSet { status: Some(next.clone()), ..set.clone() };
        act::ignore_not_found(self.client.replace_status(&next).await.map(drop))
    }
}

/// Equal for a reader: absent counts are zero.
fn same(a: &DaemonSetStatus, b: &DaemonSetStatus) -> bool {
    let normal = |status: &DaemonSetStatus| {
        let mut status = status.clone();
        let counts = [&mut status.number_available, &mut status.number_unavailable, &mut status.updated_number_scheduled];
        counts.into_iter().for_each(|count| *count = Some(count.unwrap_or(0)));
        status
    };
    normal(a) == normal(b)
}
