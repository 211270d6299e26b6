//! One pod's volumes against one node.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use reconcile::{Cached, ObjectKey};

use super::{Volumes, matching};
use crate::filters::{Objection, matches_term};
use crate::profile::Plugin;
use crate::snapshot::Details;

/// The pod cannot be placed anywhere, whatever the nodes.
#[derive(Debug)]
pub struct Refusal {
    pub plugin: Plugin,
    pub why: String,
}

/// What a pod's volumes ask for.
pub struct Needs<'a> {
    world: &'a Volumes,
    bound: Vec<Arc<PersistentVolume>>,
    /// A claim's volume does not exist.
    lost: bool,
    pub waiting: Vec<Waiting>,
    /// By driver and handle.
    attached: Vec<(String, String)>,
    /// Another pod uses a claim that only one pod may use.
    exclusive_taken: bool,
}

/// A claim that gets its volume when the pod gets its node.
#[derive(Clone)]
pub struct Waiting {
    pub claim: Arc<PersistentVolumeClaim>,
    pub class: Arc<StorageClass>,
}

/// The claims that a pod names, and those made for its ephemeral volumes.
pub(super) fn claim_keys(pod: &Pod) -> Vec<ObjectKey> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let name = |volume: &k8s_openapi::api::core::v1::Volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (_, Some(_)) => Some(format!("{pod_name}-{}", volume.name)),
        _ => None,
    };
    volumes.filter_map(name).map(|name| ObjectKey::new(namespace, name)).collect()
}

impl Volumes {
    /// `None`: the pod's volumes may be anywhere.
    pub fn needs(&self, pod: &Pod) -> Result<Option<Needs<'_>>, Refusal> {
        let keys = claim_keys(pod);
        if keys.is_empty() {
            return Ok(None);
        }
        let refuse = |why: String| Err(Refusal { plugin: Plugin::VolumeBinding, why });
        let mut needs =
            Needs { world: self, bound: Vec::new(), lost: false, waiting: Vec::new(), attached: Vec::new(), exclusive_taken: false };
        let mut immediate = false;
        for key in &keys {
            let Some(claim) = self.claims.get_key(key) else { return refuse(missing(pod, key)) };
            if claim.metadata.deletion_timestamp.is_some() {
                return refuse(format!("persistentvolumeclaim {:?} is being deleted", key.name));
            }
            // That of a former pod of this name is on its way out.
            if is_ephemeral(pod, key) && owner_of(&claim) != pod.metadata.uid.as_deref() {
                return refuse(format!("PVC {key} was not created for pod {} (pod is not owner)", pod.key()));
            }
            let spec = claim.spec.clone().unwrap_or_default();
            let modes = spec.access_modes.unwrap_or_default();
            needs.exclusive_taken |= modes.iter().any(|mode| mode == "ReadWriteOncePod") && self.users(key) > 0;
            needs.attached.extend(self.attachment(key));
            let volume = spec.volume_name.filter(|name| !name.is_empty());
            match (volume, self.waits(&claim)) {
                (Some(name), _) if is_bound(&claim) => match self.volumes.get("", &name) {
                    Some(volume) => needs.bound.push(volume),
                    None => needs.lost = true,
                },
                (None, Some(class)) => needs.waiting.push(Waiting { claim, class }),
                _ => immediate = true,
            }
        }
        if immediate {
            return refuse("pod has unbound immediate PersistentVolumeClaims".into());
        }
        Ok(Some(needs))
    }

    /// The claim's class, where it waits for its first consumer.
    fn waits(&self, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
        let class = self.classes.get("", claim.spec.as_ref()?.storage_class_name.as_deref()?)?;
        (class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")).then_some(class)
    }
}

/// Is the claim made for one of the pod's own volumes?
fn is_ephemeral(pod: &Pod, key: &ObjectKey) -> bool {
    let named = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    !named.filter_map(|volume| volume.persistent_volume_claim.as_ref()).any(|claim| claim.claim_name == key.name)
}

/// The uid of what controls it.
fn owner_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}

fn missing(pod: &Pod, key: &ObjectKey) -> String {
    match is_ephemeral(pod, key) {
        true => format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {:?}", key.name),
        false => format!("persistentvolumeclaim {:?} not found", key.name),
    }
}

/// The binder is done with it.
pub(super) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    let completed = annotations.is_some_and(|annotations| annotations.contains_key("pv.kubernetes.io/bind-completed"));
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    completed || phase == Some("Bound")
}

impl Needs<'_> {
    /// Some node may be better or worse than another for the volumes.
    pub fn objection(&self, node: &Details) -> Option<Objection> {
        if self.exclusive_taken {
            let taken = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
            return Some(Objection::resolvable(Plugin::VolumeRestrictions, taken));
        }
        if self.exceeds_limit(node) {
            return Some(Objection::resolvable(Plugin::NodeVolumeLimits, "node(s) exceed max volume count"));
        }
        if self.lost {
            let lost = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
            return Some(Objection::unresolvable(Plugin::VolumeBinding, lost));
        }
        if !self.bound.iter().all(|volume| reaches(volume, node)) {
            let elsewhere = "node(s) didn't match PersistentVolume's node affinity";
            return Some(Objection::unresolvable(Plugin::VolumeBinding, elsewhere));
        }
        if let Some(objection) = self.unfulfilled(node) {
            return Some(objection);
        }
        let zones = self.bound.iter().all(|volume| same_zone(volume, node));
        (!zones).then(|| Objection::unresolvable(Plugin::VolumeZone, "node(s) had no available volume zone"))
    }

    fn exceeds_limit(&self, node: &Details) -> bool {
        let Some(limits) = self.world.csi_nodes.get("", &node.name) else { return false };
        limits.spec.drivers.iter().any(|driver| {
            let Some(limit) = driver.allocatable.as_ref().and_then(|allocatable| allocatable.count) else { return false };
            let wanted: HashSet<&str> =
                self.attached.iter().filter(|(name, _)| *name == driver.name).map(|(_, handle)| handle.as_str()).collect();
            if wanted.is_empty() {
                return false;
            }
            let there: HashSet<&str> = self.world.attached_on(&node.name, &driver.name).collect();
            let new = wanted.difference(&there).count();
            new > 0 && (there.len() + new) as i64 > i64::from(limit)
        })
    }

    /// What stands in the way of a volume for each waiting claim.
    fn unfulfilled(&self, node: &Details) -> Option<Objection> {
        let mut taken = HashSet::new();
        for waiting in &self.waiting {
            if let Some(volume) = matching::find(self.world, waiting, node, &taken) {
                taken.insert(volume.name().to_owned());
                continue;
            }
            match matching::can_provision(self.world, waiting, node) {
                matching::Provision::Here => {}
                matching::Provision::Never => {
                    let none = "node(s) didn't find available persistent volumes to bind";
                    return Some(Objection::unresolvable(Plugin::VolumeBinding, none));
                }
                matching::Provision::NoSpace => {
                    return Some(Objection::unresolvable(Plugin::VolumeBinding, "node(s) did not have enough free storage"));
                }
            }
        }
        None
    }

    /// How each waiting claim gets its volume on the node.
    pub fn decide(&self, node: &Details) -> Vec<super::bind::Decision> {
        let mut taken = HashSet::new();
        let decide = |waiting: &Waiting| match matching::find(self.world, waiting, node, &taken) {
            Some(volume) => {
                taken.insert(volume.name().to_owned());
                super::bind::Decision::Volume { claim: waiting.claim.clone(), volume }
            }
            None => super::bind::Decision::Provision {
                claim: waiting.claim.clone(),
                node: node.name.clone(),
                labels: node.facts.labels.clone(),
            },
        };
        self.waiting.iter().map(decide).collect()
    }
}

/// The volume's own node affinity allows the node.
pub(super) fn reaches(volume: &PersistentVolume, node: &Details) -> bool {
    is_reached(volume, &node.facts.labels, &node.name)
}

/// The same of a node with that name and those labels.
pub(super) fn is_reached(volume: &PersistentVolume, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| matches_term(term, labels, node)))
}

const ZONE_KEYS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// The zone labels of an older kind of volume; several zones are joined by `__`.
fn same_zone(volume: &PersistentVolume, node: &Details) -> bool {
    if !ZONE_KEYS.iter().any(|key| node.label(key).is_some()) {
        return true;
    }
    let labels = volume.metadata.labels.iter().flatten().filter(|(key, _)| ZONE_KEYS.contains(&key.as_str()));
    labels.into_iter().all(|(key, zones)| {
        let is = |key: &str| node.label(key).is_some_and(|own| zones.split("__").any(|zone| zone == own));
        // Volumes with the beta label and nodes with the stable one speak of the same.
        is(key) || is(&key.replace("failure-domain.beta.kubernetes.io", "topology.kubernetes.io"))
    })
}
