//! One driver: what it can, its objects, and the queue of those that need something.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::Client;
use csi::{Driver, v1};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cache, Caches, EventRecorder, ObjectKey, Outcome, Queue, key_of};
use snapshots::VolumeSnapshotContent;
use stdx::{Backoff, Drain};

use crate::Error;

pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const WORKERS: usize = 8;

/// What may need something. One volume's claim, object and attachment may be worked on at once: drivers must bear that.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Claim(ObjectKey),
    Volume(String),
    Attachment(String),
    Snapshot(String),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Claim(key) => write!(f, "claim {key}"),
            Self::Volume(name) => write!(f, "volume {name}"),
            Self::Attachment(name) => write!(f, "attachment {name}"),
            Self::Snapshot(name) => write!(f, "snapshot content {name}"),
        }
    }
}

/// A driver and what is known of its cluster.
pub struct Controller {
    pub name: String,
    pub driver: Driver,
    pub plugin: v1::GetPluginCapabilitiesResponse,
    pub capabilities: v1::ControllerGetCapabilitiesResponse,
    pub client: Client,
    pub claims: Cache<PersistentVolumeClaim>,
    pub volumes: Cache<PersistentVolume>,
    pub classes: Cache<StorageClass>,
    pub attachments: Cache<VolumeAttachment>,
    pub nodes: Cache<Node>,
    pub csi_nodes: Cache<CSINode>,
    pub drivers: Cache<CSIDriver>,
    /// Empty where nobody brought the kind.
    pub contents: Cache<VolumeSnapshotContent>,
    pub recorder: EventRecorder,
}

pub async fn serve(socket: PathBuf, client: Client, caches: Caches, drain: Drain) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    let controller = loop {
        match meet(&socket, &client, &caches, &drain).await {
            Ok(controller) => break Arc::new(controller),
            Err(error) => tracing::warn!(%error, socket = %socket.display(), "meet a CSI controller; will retry"),
        }
        if drain.run(tokio::time::sleep(backoff.next_wait())).await.is_none() {
            return;
        }
    };
    tracing::info!(driver = controller.name, socket = %socket.display(), "serving a CSI controller");
    let queue = Queue::new();
    controller.wake(&queue);
    tokio::join!(controller.claims.synced(), controller.volumes.synced(), controller.classes.synced());
    tokio::join!(controller.attachments.synced(), controller.nodes.synced(), controller.csi_nodes.synced());
    let capacities = crate::capacity::publish(controller.clone(), drain.clone());
    let objects = reconcile::run("csi-sidecars", queue, WORKERS, drain, move |key| controller.clone().reconcile(key));
    tokio::join!(capacities, objects);
}

async fn meet(socket: &std::path::Path, client: &Client, caches: &Caches, drain: &Drain) -> Result<Controller, Error> {
    let driver = Driver::new(socket);
    let name = driver.plugin_info(&v1::GetPluginInfoRequest {}).await?.name;
    let plugin = driver.plugin_capabilities(&v1::GetPluginCapabilitiesRequest {}).await?;
    if !plugin.has(v1::plugin::CONTROLLER_SERVICE) {
        return Err(Error::Refused(format!("the driver {name} has no controller")));
    }
    let capabilities = driver.controller_capabilities(&v1::ControllerGetCapabilitiesRequest {}).await?;
    Ok(Controller {
        recorder: EventRecorder::start(client, &name, None, drain.clone()),
        driver,
        plugin,
        capabilities,
        client: client.clone(),
        claims: caches.of(),
        volumes: caches.of(),
        classes: caches.of(),
        attachments: caches.of(),
        nodes: caches.of(),
        csi_nodes: caches.of(),
        drivers: caches.of(),
        contents: caches.of(),
        name,
    })
}

impl Controller {
    fn wake(&self, queue: &Queue<Key>) {
        let by_claim = queue.clone();
        self.claims.on_change(move |_, new| new.into_iter().for_each(|claim| by_claim.add(Key::Claim(key_of(&claim.metadata)))));
        let (by_volume, name) = (queue.clone(), self.name.clone());
        self.volumes.on_change(move |_, new| {
            let ours = new.filter(|volume| driver_of(volume) == Some(name.as_str()));
            ours.into_iter().for_each(|volume| by_volume.add(Key::Volume(volume.metadata.name.clone().unwrap_or_default())));
        });
        let (by_class, claims) = (queue.clone(), self.claims.clone());
        self.classes.on_change(move |_, _| claims.list().iter().for_each(|claim| by_class.add(Key::Claim(key_of(&claim.metadata)))));
        let (by_attachment, name) = (queue.clone(), self.name.clone());
        self.attachments.on_change(move |old, new| {
            let Some(attachment) = new.or(old).filter(|attachment| attachment.spec.attacher == name) else { return };
            by_attachment.add(Key::Attachment(attachment.metadata.name.clone().unwrap_or_default()));
            // A volume may have waited to be let go.
            let volume = attachment.spec.source.persistent_volume_name.clone();
            volume.into_iter().for_each(|volume| by_attachment.add(Key::Volume(volume)));
        });
        let (by_content, name) = (queue.clone(), self.name.clone());
        self.contents.on_change(move |_, new| {
            let ours = new.filter(|content| content.spec.driver == name);
            ours.into_iter().for_each(|content| by_content.add(Key::Snapshot(content.metadata.name.clone().unwrap_or_default())));
        });
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Outcome {
        let done = match &key {
            Key::Claim(key) => match self.claims.get_key(key) {
                Some(claim) => self.claim(&claim).await,
                None => Ok(()),
            },
            Key::Volume(name) => match self.volumes.get("", name) {
                Some(volume) => self.remove(&volume).await,
                None => Ok(()),
            },
            Key::Attachment(name) => match self.attachments.get("", name) {
                Some(attachment) => self.attachment(&attachment).await,
                None => Ok(()),
            },
            Key::Snapshot(name) => match self.contents.get("", name) {
                Some(content) => return self.content(&content).await.into(),
                None => Ok(()),
            },
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Err(error.into()),
        }
    }

    async fn claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
        match bound.map(|name| self.volumes.get("", name)) {
            None => self.provision(claim).await,
            Some(Some(volume)) if driver_of(&volume) == Some(self.name.as_str()) => self.resize(claim, &volume).await,
            Some(_) => Ok(()),
        }
    }

    pub fn can(&self, kind: i32) -> bool {
        self.capabilities.has(kind)
    }

    /// A secret's words; none without a reference.
    pub async fn secret(&self, reference: Option<(String, String)>) -> Result<std::collections::BTreeMap<String, String>, Error> {
        let Some((namespace, name)) = reference else { return Ok(Default::default()) };
        let data = self.client.get::<Secret>(Some(&namespace), &name).await?.data.unwrap_or_default();
        Ok(data.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
    }
}

pub fn driver_of(volume: &PersistentVolume) -> Option<&str> {
    Some(volume.spec.as_ref()?.csi.as_ref()?.driver.as_str())
}

pub fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}
