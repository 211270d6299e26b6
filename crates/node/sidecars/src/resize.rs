//! Volumes that grow with their claims (upstream: external-resizer).

use std::collections::BTreeMap;

use client::Patch;
use csi::v1;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use reconcile::{EventKind, reference_to};
use serde_json::json;

use crate::Error;
use crate::driver::Controller;
use crate::provision::bytes;

impl Controller {
    pub async fn resize(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let spec = volume.spec.clone().unwrap_or_default();
        let asked = claim.spec.as_ref().and_then(|spec| bytes(spec.resources.as_ref()?.requests.as_ref()?.get("storage")));
        let have = spec.capacity.as_ref().and_then(|capacity| bytes(capacity.get("storage")));
        let bound = spec.claim_ref.as_ref().is_some_and(|reference| reference.uid == claim.metadata.uid);
        let Some(asked) = asked.filter(|asked| bound && Some(*asked) > have && self.can(v1::controller::EXPAND_VOLUME)) else {
            return Ok(());
        };
        let about = reference_to(claim);
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.recorder.event(&about, EventKind::Normal, "Resizing", format!("External resizer is resizing volume {name}"));
        let source = spec.csi.unwrap_or_default();
        let secret = source.controller_expand_secret_ref.and_then(|reference| reference.namespace.zip(reference.name));
        let request = v1::ControllerExpandVolumeRequest {
            volume_id: source.volume_handle,
            capacity_range: Some(v1::CapacityRange { required_bytes: asked, limit_bytes: 0 }),
            secrets: self.secret(secret).await?,
            volume_capability: None,
        };
        let grown = match self.driver.controller_expand(&request).await {
            Ok(grown) => grown,
            Err(error) => {
                let message = format!("resize volume {name:?} by resizer {:?} failed: rpc error: {error}", self.name);
                self.recorder.event(&about, EventKind::Warning, "VolumeResizeFailed", message);
                return Err(error.into());
            }
        };
        let size = meta::Quantity::new(grown.capacity_bytes.max(asked), meta::quantity::Format::BinarySi).to_string();
        let mut next = volume.clone();
        next.spec.get_or_insert_default().capacity = Some(BTreeMap::from([("storage".to_owned(), Quantity(size.clone()))]));
        self.client.replace(&next).await?;
        self.say(claim, &size, grown.node_expansion_required).await
    }

    async fn say(&self, claim: &PersistentVolumeClaim, size: &str, on_node: bool) -> Result<(), Error> {
        let about = reference_to(claim);
        let status = if on_node {
            let message = "Require file system resize of volume on node";
            self.recorder.event(&about, EventKind::Normal, "FileSystemResizeRequired", message);
            let said = "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";
            json!({"conditions": [{"type": "FileSystemResizePending", "status": "True", "message": said, "lastTransitionTime": meta::time::seconds(jiff::Timestamp::now())}]})
        } else {
            self.recorder.event(&about, EventKind::Normal, "VolumeResizeSuccessful", "Resize volume succeeded");
            json!({"capacity": {"storage": size}, "conditions": null})
        };
        let (namespace, name) = (claim.metadata.namespace.as_deref(), claim.metadata.name.as_deref().unwrap_or_default());
        let patch = Patch::Merge(json!({ "status": status }));
        self.client.patch::<PersistentVolumeClaim>(namespace, name, &patch, "status").await.map(drop).map_err(Error::from)
    }
}
