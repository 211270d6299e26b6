//! The writes for one node.

use client::{DeleteParams, Error, Patch};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use reconcile::{Outcome, reference_to};
use serde_json::json;

use super::Controller;
use super::observe::World;
use super::plan::Plan;

impl Controller {
    pub(super) async fn act(&self, world: &World, plan: Plan) -> Result<Outcome, Error> {
        for (pod, kind, reason, message) in plan.events {
            self.recorder.event(&reference_to(&*pod), kind, reason, message);
        }
        if let Some(volumes) = plan.volumes_attached {
            let patch = Patch::Merge(json!({"status": {"volumesAttached": volumes}}));
            client::ignore_not_found(self.client.patch::<Node>(None, &world.name, &patch, "status").await)?;
        }
        for attachment in plan.detach {
            let (name, uid) = (attachment.metadata.name.as_deref(), attachment.metadata.uid.as_deref());
            let params = DeleteParams::of_uid(uid.unwrap_or_default());
            let deleted = self.client.delete::<VolumeAttachment>(None, name.unwrap_or_default(), &params).await;
            client::ignore_not_found(deleted)?;
        }
        for attachment in plan.attach {
            // It may be made by us and not be in the cache yet.
            client::ignore_already_exists(self.client.create(&attachment).await)?;
        }
        Ok(plan.look_again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}
