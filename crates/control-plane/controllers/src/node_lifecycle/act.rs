//! The writes for one node.

use client::{Error, Patch};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::{EventKind, key_of, reference_to};
use serde_json::json;

use super::Controller;
use super::observe::World;
use super::plan::Plan;

impl Controller {
    pub(super) async fn act(&self, world: &World, plan: Plan) -> Result<(), Error> {
        let meta = &world.node.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let mut revision = meta.resource_version.clone();
        if let Some(conditions) = plan.conditions {
            tracing::warn!(node = name, silent_seconds = world.silent_for.as_secs(), "no sign of life");
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder.event(&reference_to(&*world.node), EventKind::Normal, "NodeNotReady", message);
            let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": revision}, "status": {"conditions": conditions}});
            let patched: Node = self.client.patch(None, name, &Patch::Merge(patch), "status").await?;
            revision = patched.metadata.resource_version;
        }
        if let Some(taints) = plan.taints {
            // The whole list, guarded by the revision it was read at.
            let taints = (!taints.is_empty()).then_some(taints);
            let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": revision}, "spec": {"taints": taints}});
            self.client.patch::<Node>(None, name, &Patch::Merge(patch), "").await?;
        }
        for pod in &plan.unready {
            self.mark_unready(pod, world).await?;
        }
        Ok(())
    }

    async fn mark_unready(&self, pod: &Pod, world: &World) -> Result<(), Error> {
        let mut conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
            condition.status = "False".into();
            condition.last_transition_time = Some(Time(world.now));
        }
        let key = key_of(&pod.metadata);
        let meta = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
        let patch = json!({"metadata": meta, "status": {"conditions": conditions}});
        let patched = self.client.patch::<Pod>(key.namespace(), &key.name, &Patch::Merge(patch), "status").await;
        self.recorder.event(&reference_to(pod), EventKind::Warning, "NodeNotReady", "Node is not ready");
        match patched {
            // Changed meanwhile: the next look decides.
            Err(error) if error.is_conflict() => Ok(()),
            other => client::ignore_not_found(other),
        }
    }
}
