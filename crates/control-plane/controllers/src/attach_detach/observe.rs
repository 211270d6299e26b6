//! The world of one node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use reconcile::{Cache, ObjectKey};
use sha2::{Digest, Sha256};

use super::{BY_NODE, BY_VOLUME, Controller};
use crate::pods;

/// Set by kubelets that leave attaching to us.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(super) struct World {
    /// The node's name; its object may be gone.
    pub name: String,
    pub node: Option<Arc<Node>>,
    /// By the volume's name: what pods here use and a driver has to attach.
    pub wanted: BTreeMap<String, Wanted>,
    /// What is attached here, or about to be, by us.
    pub attachments: Vec<Attached>,
}

pub(super) struct Wanted {
    pub volume: Arc<PersistentVolume>,
    /// The pods of this node that use it.
    pub pods: Vec<Arc<Pod>>,
    /// Attachments of the same volume to other nodes.
    pub elsewhere: usize,
    /// Pods of other nodes that use it, for the message.
    pub other_users: Vec<ObjectKey>,
}

pub(super) struct Attached {
    pub attachment: Arc<VolumeAttachment>,
    /// `None` where the volume's object is gone, which does not keep a detach.
    pub volume: Option<Arc<PersistentVolume>>,
    /// For how long nobody has wanted it.
    pub unwanted_for: Duration,
}

/// Driver and handle of a volume that a CSI driver serves.
pub(super) fn csi(volume: &PersistentVolume) -> Option<(&str, &str)> {
    let source = volume.spec.as_ref()?.csi.as_ref()?;
    Some((&source.driver, &source.volume_handle))
}

/// The name that both sides know a volume by in a node's status.
pub(super) fn unique_name(volume: &PersistentVolume) -> String {
    let (driver, handle) = csi(volume).unwrap_or_default();
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The name that kubelets look for (upstream: `getAttachmentName`).
pub(super) fn attachment_name(volume: &PersistentVolume, node: &str) -> String {
    let (driver, handle) = csi(volume).unwrap_or_default();
    let digest = Sha256::digest(format!("{handle}{driver}{node}").as_bytes());
    digest.iter().fold("csi-".to_owned(), |name, byte| name + &format!("{byte:02x}"))
}

/// Ended pods give their volumes back; those on their way out still hold them.
pub(super) fn holds_volumes(pod: &Pod) -> Option<&str> {
    pods::node_name(pod).filter(|_| !pods::is_terminal(pod))
}

pub(super) fn in_use(node: &Node) -> &[String] {
    node.status.as_ref().and_then(|status| status.volumes_in_use.as_deref()).unwrap_or_default()
}

/// What of a node a plan depends on.
pub(super) fn facts(node: &Node) -> (&[String], bool, bool, Vec<&String>) {
    let attached = node.status.as_ref().and_then(|status| status.volumes_attached.as_ref()).into_iter().flatten();
    (in_use(node), is_healthy(node), is_out_of_service(node), attached.map(|volume| &volume.name).collect())
}

/// It has a volume, or says it has.
pub(super) fn lists_volumes(node: &Node) -> bool {
    let (in_use, _, _, attached) = facts(node);
    !in_use.is_empty() || !attached.is_empty()
}

pub(super) fn is_managed(node: &Node) -> bool {
    node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(MANAGED)).is_some_and(|value| value == "true")
}

pub(super) fn is_healthy(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(super) fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Who uses a volume, for wake-ups.
pub(super) struct Users {
    pub pods: Cache<Pod>,
    pub volumes: Cache<PersistentVolume>,
}

impl Users {
    pub fn nodes_of_claim(&self, claim: &ObjectKey) -> BTreeSet<String> {
        let users = self.pods.by_index(pods::BY_CLAIM, &claim.to_string());
        users.iter().filter_map(|pod| pods::node_name(pod).map(str::to_owned)).collect()
    }

    pub fn nodes_of_volume(&self, volume: &str) -> BTreeSet<String> {
        let claim = self.volumes.get("", volume).and_then(|volume| claim_of(&volume));
        claim.map(|claim| self.nodes_of_claim(&claim)).unwrap_or_default()
    }
}

fn claim_of(volume: &PersistentVolume) -> Option<ObjectKey> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(claim.namespace.clone()?, claim.name.clone()?))
}

impl Controller {
    pub(super) fn observe(&self, name: &str) -> World {
        let node = self.nodes.get("", name);
        let mut wanted = BTreeMap::new();
        if node.as_ref().is_some_and(|node| is_managed(node)) {
            let pods = self.pods.by_index(pods::BY_NODE, name);
            pods.iter().filter(|pod| holds_volumes(pod).is_some()).for_each(|pod| self.gather(pod, name, &mut wanted));
        }
        let attachments = self.attachments.by_index(BY_NODE, name).into_iter().filter_map(|attachment| self.ours(attachment)).collect();
        World { name: name.to_owned(), node, wanted, attachments }
    }

    fn gather(&self, pod: &Arc<Pod>, node: &str, wanted: &mut BTreeMap<String, Wanted>) {
        for claim in pods::claims(pod) {
            let Some(volume) = self.volume_of(&claim).filter(|volume| self.needs_attaching(volume)) else { continue };
            let name = volume.metadata.name.clone().unwrap_or_default();
            let entry = wanted.entry(name).or_insert_with(|| self.wanted(volume, &claim, node));
            entry.pods.push(pod.clone());
        }
    }

    fn wanted(&self, volume: Arc<PersistentVolume>, claim: &ObjectKey, node: &str) -> Wanted {
        let attachments = self.attachments.by_index(BY_VOLUME, volume.metadata.name.as_deref().unwrap_or_default());
        let users = self.pods.by_index(pods::BY_CLAIM, &claim.to_string());
        let others = users.iter().filter(|pod| holds_volumes(pod).is_some_and(|other| other != node));
        let other_users = others.map(|pod| reconcile::key_of(&pod.metadata)).collect();
        let elsewhere = attachments.iter().filter(|attachment| attachment.spec.node_name != node).count();
        Wanted { volume, pods: Vec::new(), elsewhere, other_users }
    }

    /// The volume that a claim is bound to, and that is bound to the claim.
    fn volume_of(&self, claim: &ObjectKey) -> Option<Arc<PersistentVolume>> {
        let claim = self.claims.get_key(claim)?;
        let volume = self.volumes.get("", claim.spec.as_ref()?.volume_name.as_deref()?)?;
        let bound = volume.spec.as_ref()?.claim_ref.as_ref()?.uid == claim.metadata.uid;
        bound.then_some(volume)
    }

    fn needs_attaching(&self, volume: &PersistentVolume) -> bool {
        let Some((driver, _)) = csi(volume) else { return false };
        self.drivers.get("", driver).is_none_or(|driver| driver.spec.attach_required != Some(false))
    }

    /// Attachments under other names are other people's.
    fn ours(&self, attachment: Arc<VolumeAttachment>) -> Option<Attached> {
        let name = attachment.metadata.name.as_deref().unwrap_or_default();
        let volume = self.volumes.get("", attachment.spec.source.persistent_volume_name.as_deref()?);
        let ours = match &volume {
            Some(volume) => attachment_name(volume, &attachment.spec.node_name) == name,
            None => name.strip_prefix("csi-").is_some_and(|digest| digest.len() == 64),
        };
        let unwanted = self.unwanted.lock().unwrap_or_else(PoisonError::into_inner);
        let unwanted_for = unwanted.get(name).map(|since| since.elapsed()).unwrap_or_default();
        ours.then(|| Attached { attachment: attachment.clone(), volume, unwanted_for })
    }
}
