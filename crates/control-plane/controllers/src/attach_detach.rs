//! Attach/detach: for each volume of a CSI driver that a scheduled pod uses, a VolumeAttachment asks the driver's external attacher to
//! bring it to the pod's node; it is deleted when no pod there uses the volume and the node no longer has it mounted
//! (upstream: `attachdetach`).
//!
//! The key is a node. What a node may mount stands in its `status.volumesAttached`, which is shortened before a detach begins. A node
//! that still has a volume mounted is waited for, but not for ever when it is not healthy, and not at all when somebody has said that
//! it is out of service (KEP-2268). Volumes of drivers whose CSIDriver says `attachRequired: false` are nobody's business here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::Client;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use reconcile::{Cache, EventRecorder, ObjectKey, Outcome, Queue, key_of};
use tokio::time::Instant;

use crate::context::Context;
use crate::pods;

mod act;
mod observe;
mod plan;

pub(crate) const NAME: &str = "persistentvolume-attach-detach-controller";
const WORKERS: usize = 8;
/// Attachments by node, and by volume.
const BY_NODE: &str = "attachments-by-node";
const BY_VOLUME: &str = "attachments-by-volume";
/// After this long a volume is taken from a node that is not healthy though it may have it mounted (upstream: `maxWaitForUnmountDuration`).
const FORCE_AFTER: Duration = Duration::from_secs(360);

struct Controller {
    client: Client,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    drivers: Cache<CSIDriver>,
    attachments: Cache<VolumeAttachment>,
    recorder: EventRecorder,
    /// Attachments that nobody wants any more, by name: since when.
    unwanted: Mutex<HashMap<String, Instant>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        nodes: context.caches.of(),
        pods: context.caches.of(),
        claims: context.caches.of(),
        volumes: context.caches.of(),
        drivers: context.caches.of(),
        attachments: context.caches.of(),
        recorder: context.recorder("attachdetach-controller"),
        unwanted: Mutex::default(),
    });
    pods::index(&controller.pods);
    pods::index_claims(&controller.pods);
    controller.attachments.index(BY_NODE, |attachment| vec![attachment.spec.node_name.clone()]);
    controller.attachments.index(BY_VOLUME, |attachment| attachment.spec.source.persistent_volume_name.clone().into_iter().collect());
    let queue = Queue::new();
    controller.wake(&queue);
    tokio::join!(controller.nodes.synced(), controller.pods.synced(), controller.claims.synced(), controller.volumes.synced());
    tokio::join!(controller.drivers.synced(), controller.attachments.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    fn wake(&self, queue: &Queue<ObjectKey>) {
        let node = |name: &str| ObjectKey::new("", name);
        let by_pod = queue.clone();
        self.pods.on_change(move |old, new| {
            if old.zip(new).is_some_and(|(old, new)| observe::holds_volumes(old) == observe::holds_volumes(new)) {
                return;
            }
            let concerned = [old, new].into_iter().flatten().filter(|pod| pods::claims(pod).next().is_some());
            concerned.filter_map(|pod| pods::node_name(pod)).for_each(|name| by_pod.add(node(name)));
        });
        let (by_node, attachments) = (queue.clone(), self.attachments.clone());
        self.nodes.on_change(move |old, new| {
            if old.map(|node| observe::facts(node)) != new.map(|node| observe::facts(node)) {
                let key = new.or(old).map(|node| key_of(&node.metadata)).unwrap_or_default();
                // A node in peace has nothing to attach, which its pods will say when it has.
                let concerned = attachments.count_by_index(BY_NODE, &key.name) > 0 || new.is_some_and(|node| observe::lists_volumes(node));
                concerned.then_some(key).into_iter().for_each(|key| by_node.add(key));
            }
        });
        let (by_attachment, users) = (queue.clone(), self.users());
        self.attachments.on_change(move |old, new| {
            let Some(attachment) = new.or(old) else { return };
            by_attachment.add(node(&attachment.spec.node_name));
            // Somebody may have waited for the volume to come free.
            let volume = attachment.spec.source.persistent_volume_name.as_deref().filter(|_| new.is_none());
            volume.into_iter().flat_map(|volume| users.nodes_of_volume(volume)).for_each(|name| by_attachment.add(node(&name)));
        });
        let (by_claim, users) = (queue.clone(), self.users());
        self.claims.on_change(move |_, new| {
            let nodes = new.into_iter().flat_map(|claim| users.nodes_of_claim(&key_of(&claim.metadata)));
            nodes.for_each(|name| by_claim.add(node(&name)));
        });
        let (by_volume, users) = (queue.clone(), self.users());
        self.volumes.on_change(move |_, new| {
            let name = new.and_then(|volume| volume.metadata.name.clone());
            name.into_iter().flat_map(|name| users.nodes_of_volume(&name)).for_each(|name| by_volume.add(node(&name)));
        });
        let (by_driver, nodes) = (queue.clone(), self.nodes.clone());
        self.drivers.on_change(move |old, new| {
            let needs = |driver: &Arc<CSIDriver>| driver.spec.attach_required;
            if old.map(needs) != new.map(needs) {
                nodes.list().iter().for_each(|node| by_driver.add(key_of(&node.metadata)));
            }
        });
    }

    fn users(&self) -> observe::Users {
        observe::Users { pods: self.pods.clone(), volumes: self.volumes.clone() }
    }

    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let world = self.observe(&key.name);
        let plan = plan::plan(&world);
        self.remember(&plan);
        self.act(&world, plan).await.into()
    }

    /// Keeps since when each attachment is unwanted, and forgets those that are wanted again or gone.
    fn remember(&self, plan: &plan::Plan) {
        let mut unwanted = self.unwanted.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &plan.wanted {
            unwanted.remove(name);
        }
        for name in &plan.unwanted {
            unwanted.entry(name.clone()).or_insert_with(Instant::now);
        }
        unwanted.retain(|name, _| self.attachments.get("", name).is_some());
    }
}
