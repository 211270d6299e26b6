//! What a pod's volumes ask of its node (upstream's VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone).
//!
//! [`Volumes::needs`] looks at a pod's claims once; [`Needs::objection`] judges a node; [`bind`] writes what the choice of the node decides:
//! which volume a waiting claim gets, or where a new one is to be made.

pub mod bind;
mod matching;
mod needs;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use reconcile::{Cache, Cached, ObjectKey};

pub use needs::{Needs, Refusal};

/// The objects that decide, and who uses which of them.
pub struct Volumes {
    pub(crate) claims: Cache<PersistentVolumeClaim>,
    pub(crate) volumes: Cache<PersistentVolume>,
    pub(crate) classes: Cache<StorageClass>,
    pub(crate) csi_nodes: Cache<CSINode>,
    pub(crate) drivers: Cache<CSIDriver>,
    pub(crate) capacities: Cache<CSIStorageCapacity>,
    /// Volumes given to claims whose binding is on its way.
    pub(crate) assumed: Assumed,
    placed: HashMap<ObjectKey, Placed>,
    /// How many pods use a claim.
    users: HashMap<ObjectKey, usize>,
    /// How many pods of a node use a volume: by node, driver and handle.
    attached: HashMap<String, HashMap<(String, String), usize>>,
}

/// Names of volumes by claim, shared with the bindings on their way.
pub(crate) type Assumed = Arc<Mutex<HashMap<String, ObjectKey>>>;

/// What a placed pod uses.
struct Placed {
    node: String,
    claims: Vec<ObjectKey>,
    attached: Vec<(String, String)>,
}

/// What [`Volumes`] reads, as lists of one moment.
#[derive(Default)]
pub struct Lists {
    pub claims: Vec<PersistentVolumeClaim>,
    pub volumes: Vec<PersistentVolume>,
    pub classes: Vec<StorageClass>,
    pub csi_nodes: Vec<CSINode>,
    pub drivers: Vec<CSIDriver>,
    pub capacities: Vec<CSIStorageCapacity>,
}

/// A cache of these objects that nobody feeds.
pub(crate) fn fixed<K: client::Object>(objects: Vec<K>) -> Cache<K> {
    let cache = Cache::detached();
    objects.into_iter().for_each(|object| cache.apply(object));
    cache
}

impl Volumes {
    pub fn of(lists: Lists) -> Self {
        Self {
            claims: fixed(lists.claims),
            volumes: fixed(lists.volumes),
            classes: fixed(lists.classes),
            csi_nodes: fixed(lists.csi_nodes),
            drivers: fixed(lists.drivers),
            capacities: fixed(lists.capacities),
            assumed: Assumed::default(),
            placed: HashMap::new(),
            users: HashMap::new(),
            attached: HashMap::new(),
        }
    }

    pub fn new(caches: &reconcile::Caches) -> Self {
        Self {
            claims: caches.of(),
            volumes: caches.of(),
            classes: caches.of(),
            csi_nodes: caches.of(),
            drivers: caches.of(),
            capacities: caches.of(),
            assumed: Assumed::default(),
            placed: HashMap::new(),
            users: HashMap::new(),
            attached: HashMap::new(),
        }
    }

    pub async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
    }

    /// A pod occupies the node.
    pub fn place(&mut self, pod: &Pod, node: &str) {
        let claims = needs::claim_keys(pod);
        if claims.is_empty() {
            return;
        }
        self.remove(&pod.key());
        let attached = claims.iter().filter_map(|claim| self.attachment(claim)).collect::<Vec<_>>();
        for claim in &claims {
            *self.users.entry(claim.clone()).or_default() += 1;
        }
        let on_node = self.attached.entry(node.to_owned()).or_default();
        for volume in &attached {
            *on_node.entry(volume.clone()).or_default() += 1;
        }
        self.placed.insert(pod.key(), Placed { node: node.to_owned(), claims, attached });
    }

    /// It no longer does.
    pub fn remove(&mut self, pod: &ObjectKey) {
        let Some(gone) = self.placed.remove(pod) else { return };
        for claim in &gone.claims {
            lower(&mut self.users, claim);
        }
        if let Some(on_node) = self.attached.get_mut(&gone.node) {
            gone.attached.iter().for_each(|volume| lower(on_node, volume));
            if on_node.is_empty() {
                self.attached.remove(&gone.node);
            }
        }
    }

    pub(crate) fn users(&self, claim: &ObjectKey) -> usize {
        self.users.get(claim).copied().unwrap_or(0)
    }

    /// The volumes of a driver on a node, and whether it is among them.
    pub(crate) fn attached_on(&self, node: &str, driver: &str) -> impl Iterator<Item = &str> {
        let driver = driver.to_owned();
        let on_node = self.attached.get(node).into_iter().flat_map(HashMap::keys);
        on_node.filter(move |(other, _)| *other == driver).map(|(_, handle)| handle.as_str())
    }

    /// The driver and handle that a claim's volume is attached by; a claim without a volume stands for the one it will get.
    pub(crate) fn attachment(&self, claim: &ObjectKey) -> Option<(String, String)> {
        let object = self.claims.get_key(claim)?;
        let spec = object.spec.as_ref()?;
        if let Some(volume) = spec.volume_name.as_ref().filter(|name| !name.is_empty()).and_then(|name| self.volumes.get("", name)) {
            return attached_by(volume.spec.as_ref()?);
        }
        let class = self.classes.get("", spec.storage_class_name.as_deref()?)?;
        Some((class.provisioner.clone(), format!("claim {claim}")))
    }

    /// The claim that a volume is promised to while its binding is on its way.
    pub(crate) fn promised(&self, volume: &str) -> Option<ObjectKey> {
        self.assumed.lock().unwrap_or_else(PoisonError::into_inner).get(volume).cloned()
    }
}

/// The CSI driver of a volume, and its handle there. In-tree volumes of clouds are served by the drivers that took their place (upstream:
/// `csi-translation-lib`), so that they count against those drivers' limits.
fn attached_by(spec: &PersistentVolumeSpec) -> Option<(String, String)> {
    let (driver, handle) = match spec {
        PersistentVolumeSpec { csi: Some(csi), .. } => (csi.driver.as_str(), &csi.volume_handle),
        PersistentVolumeSpec { aws_elastic_block_store: Some(volume), .. } => ("ebs.csi.aws.com", &volume.volume_id),
        PersistentVolumeSpec { gce_persistent_disk: Some(volume), .. } => ("pd.csi.storage.gke.io", &volume.pd_name),
        PersistentVolumeSpec { azure_disk: Some(volume), .. } => ("disk.csi.azure.com", &volume.disk_name),
        PersistentVolumeSpec { cinder: Some(volume), .. } => ("cinder.csi.openstack.org", &volume.volume_id),
        PersistentVolumeSpec { vsphere_volume: Some(volume), .. } => ("csi.vsphere.vmware.com", &volume.volume_path),
        PersistentVolumeSpec { portworx_volume: Some(volume), .. } => ("pxd.portworx.com", &volume.volume_id),
        _ => return None,
    };
    Some((driver.to_owned(), handle.clone()))
}

fn lower<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::snapshot::Details;

    fn read<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_migrated_in_tree_volume_counts_against_its_drivers_limit_like_the_drivers_own() {
        let driver = json!([{ "name": "ebs.csi.aws.com", "nodeID": "n", "allocatable": { "count": 1 } }]);
        let in_tree = json!({ "awsElasticBlockStore": { "volumeID": "v-1" } });
        let own = json!({ "csi": { "driver": "ebs.csi.aws.com", "volumeHandle": "v-2" } });
        let other = json!({ "csi": { "driver": "else", "volumeHandle": "v-3" } });
        let claim = |name: &str| {
            let annotations = json!({ "pv.kubernetes.io/bind-completed": "yes" });
            read(json!({ "metadata": { "namespace": "a", "name": name, "annotations": annotations }, "spec": { "volumeName": name } }))
        };
        let volume = |name: &str, spec: &Value| read(json!({ "metadata": { "name": name }, "spec": spec }));
        let mut volumes = Volumes::of(Lists {
            claims: ["in-tree", "own", "other"].map(claim).into(),
            volumes: vec![volume("in-tree", &in_tree), volume("own", &own), volume("other", &other)],
            csi_nodes: vec![read(json!({ "metadata": { "name": "full" }, "spec": { "drivers": driver } }))],
            ..Lists::default()
        });
        let pod = |name: &str| -> Pod {
            let volume = json!({ "name": "v", "persistentVolumeClaim": { "claimName": name } });
            read(
                json!({ "metadata": { "namespace": "a", "name": format!("of-{name}") }, "spec": { "containers": [], "volumes": [volume] } }),
            )
        };
        volumes.place(&pod("in-tree"), "full");
        for (node, claim, refused) in
            [("full", "own", true), ("full", "in-tree", false), ("full", "other", false), ("without-limit", "own", false)]
        {
            let pod = pod(claim);
            let needs = volumes.needs(&pod).unwrap().unwrap();
            let said = needs.objection(&Details { name: node.into(), ..Details::default() });
            assert_eq!(said.is_some_and(|said| said.reasons == ["node(s) exceed max volume count"]), refused, "{claim} on {node}");
        }
    }
}
