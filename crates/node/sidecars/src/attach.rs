//! VolumeAttachments carried out (upstream: external-attacher).

use csi::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentStatus, VolumeError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::Error;
use crate::driver::Controller;
use crate::provision::access_mode_of;

impl Controller {
    pub async fn attachment(&self, attachment: &VolumeAttachment) -> Result<(), Error> {
        if attachment.spec.attacher != self.name {
            return Ok(());
        }
        let finalizer = format!("external-attacher/{}", self.name.replace('.', "-"));
        let held = attachment.metadata.finalizers.iter().flatten().any(|known| *known == finalizer);
        let attached = attachment.status.as_ref().is_some_and(|status| status.attached);
        match (attachment.metadata.deletion_timestamp.is_some(), held, attached) {
            (false, _, true) | (true, false, _) => Ok(()),
            // From here on it is detached before it goes.
            (false, false, false) if self.publishes() => {
                let mut next = attachment.clone();
                next.metadata.finalizers.get_or_insert_default().push(finalizer);
                self.client.replace(&next).await.map(drop).map_err(Error::from)
            }
            (false, ..) => self.attach(attachment).await,
            (true, true, _) => self.detach(attachment, &finalizer).await,
        }
    }

    fn publishes(&self) -> bool {
        self.can(v1::controller::PUBLISH_UNPUBLISH_VOLUME)
    }

    async fn attach(&self, attachment: &VolumeAttachment) -> Result<(), Error> {
        // A driver that attaches nothing has nothing to say.
        let tried = if self.publishes() { self.publish(attachment).await } else { Ok(v1::ControllerPublishVolumeResponse::default()) };
        let mut next = attachment.clone();
        match tried {
            Ok(answer) => {
                let metadata = Some(answer.publish_context).filter(|context| !context.is_empty());
                next.status =
                    Some(VolumeAttachmentStatus { attached: true, attachment_metadata: metadata, ..VolumeAttachmentStatus::default() });
                self.client.replace_status(&next).await.map(drop).map_err(Error::from)
            }
            Err(error) => {
                let said = VolumeError { message: Some(error.to_string()), time: Some(Time(Timestamp::now())), ..VolumeError::default() };
                next.status =
                    Some(VolumeAttachmentStatus { attached: false, attach_error: Some(said), ..VolumeAttachmentStatus::default() });
                client::ignore_not_found(self.client.replace_status(&next).await)?;
                Err(error)
            }
        }
    }

    async fn publish(&self, attachment: &VolumeAttachment) -> Result<v1::ControllerPublishVolumeResponse, Error> {
        let volume = self.volume_of(attachment)?;
        let spec = volume.spec.unwrap_or_default();
        let source = spec.csi.unwrap_or_default();
        let mode = spec.access_modes.iter().flatten().next().map_or("", String::as_str);
        let access = match spec.volume_mode.as_deref() {
            Some("Block") => v1::AccessType::Block(v1::BlockVolume {}),
            _ => v1::AccessType::Mount(v1::MountVolume {
                fs_type: source.fs_type.clone().unwrap_or_default(),
                mount_flags: spec.mount_options.unwrap_or_default(),
                ..Default::default()
            }),
        };
        let mode = access_mode_of(mode, self.can(v1::controller::SINGLE_NODE_MULTI_WRITER));
        let secret = source.controller_publish_secret_ref.and_then(|reference| reference.namespace.zip(reference.name));
        let request = v1::ControllerPublishVolumeRequest {
            volume_id: source.volume_handle,
            node_id: self.node_id(&attachment.spec.node_name)?,
            volume_capability: Some(v1::VolumeCapability { access_type: Some(access), access_mode: Some(v1::AccessMode { mode }) }),
            readonly: false,
            secrets: self.secret(secret).await?,
            volume_context: source.volume_attributes.unwrap_or_default(),
        };
        Ok(self.driver.controller_publish(&request).await?)
    }

    async fn detach(&self, attachment: &VolumeAttachment, finalizer: &str) -> Result<(), Error> {
        if self.publishes()
            && let (Ok(volume), Ok(node_id)) = (self.volume_of(attachment), self.node_id(&attachment.spec.node_name))
        {
            let source = volume.spec.and_then(|spec| spec.csi).unwrap_or_default();
            let secret = source.controller_publish_secret_ref.and_then(|reference| reference.namespace.zip(reference.name));
            let request =
                v1::ControllerUnpublishVolumeRequest { volume_id: source.volume_handle, node_id, secrets: self.secret(secret).await? };
            match self.driver.controller_unpublish(&request).await {
                // Volume or node are gone: so is the attachment.
                Err(error) if error.code != cri::Code::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let mut next = attachment.clone();
        next.metadata.finalizers.get_or_insert_default().retain(|known| known != finalizer);
        Ok(client::ignore_not_found(self.client.replace(&next).await)?)
    }

    fn volume_of(&self, attachment: &VolumeAttachment) -> Result<PersistentVolume, Error> {
        let name = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        let found = self.volumes.get("", name);
        found.map(|volume| PersistentVolume::clone(&volume)).ok_or_else(|| Error::Refused(format!("persistentvolume {name:?} not found")))
    }

    fn node_id(&self, node: &str) -> Result<String, Error> {
        let found = self.csi_nodes.get("", node);
        let driver = found.and_then(|found| found.spec.drivers.iter().find(|driver| driver.name == self.name).cloned());
        let missing = || Error::Refused(format!("CSINode {node} does not contain driver {}", self.name));
        driver.map(|driver| driver.node_id).ok_or_else(missing)
    }
}
