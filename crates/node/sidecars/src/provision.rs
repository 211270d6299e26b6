//! Volumes made for claims, and deleted when they are released (upstream: external-provisioner).

use std::collections::BTreeMap;

use client::DeleteParams;
use csi::v1::{self, access_mode};
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, SecretReference, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{EventKind, key_of, reference_to};
use snapshots::restore::{self, DataSource};
use snapshots::{VolumeSnapshot, VolumeSnapshotContent};

use crate::Error;
use crate::driver::{Controller, PROVISIONED_BY, annotation};

pub const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Parameters with this prefix are for the sidecars, the others for the driver.
const PREFIX: &str = "csi.storage.k8s.io/";

impl Controller {
    pub async fn provision(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let class = claim.spec.as_ref().and_then(|spec| self.classes.get("", spec.storage_class_name.as_deref()?));
        let Some(class) = class.filter(|class| class.provisioner == self.name) else { return Ok(()) };
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        let selected = annotation(&claim.metadata, SELECTED_NODE);
        let name = volume_name(claim);
        let able = self.can(v1::controller::CREATE_DELETE_VOLUME);
        if claim.metadata.deletion_timestamp.is_some() || (waits && selected.is_none()) || self.volumes.get("", &name).is_some() || !able {
            return Ok(());
        }
        let about = reference_to(claim);
        if matches!(restore::data_source(claim), Ok(Some(DataSource::Other(_)))) {
            let message = "Assuming an external populator will provision the volume";
            self.recorder.event(&about, EventKind::Normal, "Provisioning", message);
            return Ok(());
        }
        let provisioning = format!("External provisioner is provisioning volume for claim \"{}\"", key_of(&claim.metadata));
        self.recorder.event(&about, EventKind::Normal, "Provisioning", provisioning);
        match self.create(claim, &class, selected).await {
            Ok(()) => {
                let message = format!("Successfully provisioned volume {name}");
                self.recorder.event(&about, EventKind::Normal, "ProvisioningSucceeded", message);
                Ok(())
            }
            Err(error) => {
                let class = class.metadata.name.as_deref().unwrap_or_default();
                let message = format!("failed to provision volume with StorageClass {class:?}: {error}");
                self.recorder.event(&about, EventKind::Warning, "ProvisioningFailed", message);
                self.reschedule(claim, waits, &error).await?;
                Err(error)
            }
        }
    }

    /// What cannot be made on that node may be made on another.
    async fn reschedule(&self, claim: &PersistentVolumeClaim, waits: bool, error: &Error) -> Result<(), Error> {
        let full = matches!(error, Error::Driver(error) if error.code == cri::Code::ResourceExhausted);
        if !waits || !full {
            return Ok(());
        }
        let mut next = claim.clone();
        next.metadata.annotations.get_or_insert_default().remove(SELECTED_NODE);
        self.client.replace(&next).await.map(drop).map_err(Error::from)
    }

    async fn create(&self, claim: &PersistentVolumeClaim, class: &StorageClass, selected: Option<&str>) -> Result<(), Error> {
        let spec = claim.spec.clone().unwrap_or_default();
        let parameters = class.parameters.clone().unwrap_or_default();
        let asked = spec.resources.as_ref().and_then(|resources| bytes(resources.requests.as_ref()?.get("storage")));
        let request = v1::CreateVolumeRequest {
            name: volume_name(claim),
            capacity_range: Some(v1::CapacityRange { required_bytes: asked.unwrap_or(0), limit_bytes: 0 }),
            volume_capabilities: self.volume_capabilities(claim, class),
            parameters: for_driver(&parameters),
            secrets: self.secret(secret_of(&parameters, "provisioner", claim)).await?,
            accessibility_requirements: self.topology(selected),
            volume_content_source: self.content_source(claim, class).await?,
            ..Default::default()
        };
        let made = self.driver.create_volume(&request).await?.volume.unwrap_or_default();
        if made.volume_id.is_empty() {
            return Err(Error::Refused("the driver made a volume without an id".into()));
        }
        let volume = self.volume(claim, class, &made, asked.unwrap_or(0));
        Ok(client::ignore_already_exists(self.client.create(&volume).await)?)
    }

    /// What the volume begins as a copy of.
    async fn content_source(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<Option<v1::VolumeContentSource>, Error> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let lacks = |what: &str, capability: &str| {
            Error::Refused(format!("CSI driver does not support {what}: controller {capability} capability is not reported"))
        };
        let failed = |kind: &str, name: &str, why: String| {
            Error::Refused(format!("error getting handle for DataSource Type {kind} by Name {name}: {why}"))
        };
        let source = match restore::data_source(claim).map_err(Error::Refused)? {
            None | Some(DataSource::Other(_)) => return Ok(None),
            Some(DataSource::Snapshot(name)) => {
                if !self.can(v1::controller::CREATE_DELETE_SNAPSHOT) {
                    return Err(lacks("snapshot restore", "CREATE_DELETE_SNAPSHOT"));
                }
                let snapshot = client::found(self.client.get::<VolumeSnapshot>(Some(namespace), &name).await)?;
                let content = match snapshot.as_ref().and_then(VolumeSnapshot::bound_content) {
                    Some(content) => client::found(self.client.get::<VolumeSnapshotContent>(None, content).await)?,
                    None => None,
                };
                let handle = restore::from_snapshot(claim, class, &name, snapshot.as_ref(), content.as_ref());
                let snapshot_id = handle.map_err(|why| failed("VolumeSnapshot", &name, why))?.to_owned();
                v1::ContentSource::Snapshot(v1::SnapshotSource { snapshot_id })
            }
            Some(DataSource::Claim(name)) => {
                if !self.can(v1::controller::CLONE_VOLUME) {
                    return Err(lacks("clone operations", "CLONE_VOLUME"));
                }
                let source = self.claims.get(namespace, &name);
                let volume = source.as_ref().and_then(|source| self.volumes.get("", source.spec.as_ref()?.volume_name.as_deref()?));
                let same = volume.as_ref().is_some_and(|volume| crate::driver::driver_of(volume) == Some(self.name.as_str()));
                let fits = restore::from_claim(claim, &name, source.as_deref(), volume.as_deref(), same);
                fits.map_err(|why| failed("PersistentVolumeClaim", &name, why))?;
                let csi = volume.and_then(|volume| volume.spec.as_ref()?.csi.clone()).unwrap_or_default();
                v1::ContentSource::Volume(v1::VolumeSource { volume_id: csi.volume_handle })
            }
        };
        Ok(Some(v1::VolumeContentSource { kind: Some(source) }))
    }

    fn volume_capabilities(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Vec<v1::VolumeCapability> {
        let spec = claim.spec.clone().unwrap_or_default();
        let single = self.can(v1::controller::SINGLE_NODE_MULTI_WRITER);
        let modes = spec.access_modes.unwrap_or_default();
        let access = match spec.volume_mode.as_deref() {
            Some("Block") => v1::AccessType::Block(v1::BlockVolume {}),
            _ => v1::AccessType::Mount(v1::MountVolume {
                fs_type: file_system(class),
                mount_flags: class.mount_options.clone().unwrap_or_default(),
                ..Default::default()
            }),
        };
        let of = |mode: &String| v1::VolumeCapability {
            access_type: Some(access.clone()),
            access_mode: Some(v1::AccessMode { mode: access_mode_of(mode, single) }),
        };
        modes.iter().map(of).collect()
    }

    /// Where the volume must be reachable: on the chosen node, or anywhere that the driver runs.
    fn topology(&self, selected: Option<&str>) -> Option<v1::TopologyRequirement> {
        if !self.plugin.has(v1::plugin::VOLUME_ACCESSIBILITY_CONSTRAINTS) {
            return None;
        }
        let mut all: Vec<v1::Topology> = Vec::new();
        for node in self.nodes.list().iter().filter(|node| selected.is_none_or(|name| node.metadata.name.as_deref() == Some(name))) {
            let segments = self.segments(node);
            let topology = v1::Topology { segments };
            if !topology.segments.is_empty() && !all.contains(&topology) {
                all.push(topology);
            }
        }
        (!all.is_empty()).then(|| v1::TopologyRequirement { requisite: all.clone(), preferred: all })
    }

    pub fn segments(&self, node: &Node) -> BTreeMap<String, String> {
        let csi_node = self.csi_nodes.get("", node.metadata.name.as_deref().unwrap_or_default());
        let driver = csi_node.and_then(|found| found.spec.drivers.iter().find(|driver| driver.name == self.name).cloned());
        let keys = driver.and_then(|driver| driver.topology_keys).unwrap_or_default();
        let labels = node.metadata.labels.clone().unwrap_or_default();
        keys.into_iter().filter_map(|key| labels.get(&key).cloned().map(|value| (key, value))).collect()
    }

    fn volume(&self, claim: &PersistentVolumeClaim, class: &StorageClass, made: &v1::Volume, asked: i64) -> PersistentVolume {
        let spec = claim.spec.clone().unwrap_or_default();
        let parameters = class.parameters.clone().unwrap_or_default();
        let reference = |kind: &str| {
            secret_of(&parameters, kind, claim).map(|(namespace, name)| SecretReference { namespace: Some(namespace), name: Some(name) })
        };
        let size = if made.capacity_bytes > 0 { made.capacity_bytes } else { asked };
        let size = meta::Quantity::new(size, meta::quantity::Format::BinarySi).to_string();
        let block = spec.volume_mode.as_deref() == Some("Block");
        let terms: Vec<NodeSelectorTerm> = made.accessible_topology.iter().map(term).collect();
        let claim_ref = ObjectReference { resource_version: claim.metadata.resource_version.clone(), ..reference_to(claim) };
        PersistentVolume {
            metadata: ObjectMeta {
                name: Some(volume_name(claim)),
                annotations: Some(BTreeMap::from([(PROVISIONED_BY.to_owned(), self.name.clone())])),
                finalizers: Some(vec![FINALIZER.to_owned()]),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeSpec {
                access_modes: spec.access_modes,
                capacity: Some(BTreeMap::from([("storage".to_owned(), Quantity(size))])),
                claim_ref: Some(claim_ref),
                csi: Some(CSIPersistentVolumeSource {
                    driver: self.name.clone(),
                    volume_handle: made.volume_id.clone(),
                    fs_type: Some(file_system(class)).filter(|kind| !kind.is_empty() && !block),
                    volume_attributes: Some(made.volume_context.clone()).filter(|context| !context.is_empty()),
                    controller_publish_secret_ref: reference("controller-publish"),
                    controller_expand_secret_ref: reference("controller-expand"),
                    node_stage_secret_ref: reference("node-stage"),
                    node_publish_secret_ref: reference("node-publish"),
                    node_expand_secret_ref: reference("node-expand"),
                    ..CSIPersistentVolumeSource::default()
                }),
                mount_options: class.mount_options.clone(),
                node_affinity: (!terms.is_empty())
                    .then(|| VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: terms }) }),
                persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into())),
                storage_class_name: class.metadata.name.clone(),
                volume_mode: spec.volume_mode,
                ..PersistentVolumeSpec::default()
            }),
            status: None,
        }
    }

    /// Deletes a released volume, first in the driver, then its object.
    pub async fn remove(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let spec = volume.spec.clone().unwrap_or_default();
        let name = volume.metadata.name.clone().unwrap_or_default();
        let ours = annotation(&volume.metadata, PROVISIONED_BY) == Some(self.name.as_str());
        let released = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Released");
        let deletes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
        let attached = self.attachments.list().iter().any(|one| one.spec.source.persistent_volume_name.as_deref() == Some(name.as_str()));
        if !ours || !released || !deletes || attached {
            return Ok(());
        }
        let handle = spec.csi.map(|csi| csi.volume_handle).unwrap_or_default();
        let class = spec.storage_class_name.and_then(|class| self.classes.get("", &class));
        let parameters = class.and_then(|class| class.parameters.clone()).unwrap_or_default();
        let reference = plain_secret(&parameters, "provisioner");
        let request = v1::DeleteVolumeRequest { volume_id: handle, secrets: self.secret(reference).await? };
        if let Err(error) = self.driver.delete_volume(&request).await {
            let message = format!("rpc error: {error}");
            self.recorder.event(&reference_to(volume), EventKind::Warning, "VolumeFailedDelete", message);
            return Err(error.into());
        }
        let mut next = volume.clone();
        next.metadata.finalizers.get_or_insert_default().retain(|known| known != FINALIZER);
        client::ignore_not_found(self.client.replace(&next).await)?;
        let params = DeleteParams::of_uid(volume.metadata.uid.as_deref().unwrap_or_default());
        Ok(client::ignore_not_found(self.client.delete::<PersistentVolume>(None, &name, &params).await)?)
    }
}

fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

/// What of a class's parameters is not for the sidecars.
pub fn for_driver(parameters: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    parameters.iter().filter(|(key, _)| !key.starts_with(PREFIX)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

pub fn bytes(quantity: Option<&Quantity>) -> Option<i64> {
    meta::Quantity::parse(&quantity?.0).ok().map(|quantity| quantity.value())
}

fn file_system(class: &StorageClass) -> String {
    class.parameters.as_ref().and_then(|parameters| parameters.get("csi.storage.k8s.io/fstype")).cloned().unwrap_or_default()
}

pub fn access_mode_of(mode: &str, single: bool) -> i32 {
    match (mode, single) {
        ("ReadOnlyMany", _) => access_mode::MULTI_NODE_READER_ONLY,
        ("ReadWriteMany", _) => access_mode::MULTI_NODE_MULTI_WRITER,
        ("ReadWriteOncePod", true) => access_mode::SINGLE_NODE_SINGLE_WRITER,
        ("ReadWriteOnce", true) => access_mode::SINGLE_NODE_MULTI_WRITER,
        _ => access_mode::SINGLE_NODE_WRITER,
    }
}

fn term(topology: &v1::Topology) -> NodeSelectorTerm {
    let requirement = |(key, value): (&String, &String)| NodeSelectorRequirement {
        key: key.clone(),
        operator: "In".into(),
        values: Some(vec![value.clone()]),
    };
    NodeSelectorTerm { match_expressions: Some(topology.segments.iter().map(requirement).collect()), match_fields: None }
}

fn plain_secret(parameters: &BTreeMap<String, String>, kind: &str) -> Option<(String, String)> {
    let of = |what: &str| parameters.get(&format!("{PREFIX}{kind}-secret-{what}")).cloned();
    of("namespace").zip(of("name"))
}

/// Namespace and name of a secret, in which the claim's own may stand as `${pvc.namespace}`, `${pvc.name}` and `${pv.name}`.
fn secret_of(parameters: &BTreeMap<String, String>, kind: &str, claim: &PersistentVolumeClaim) -> Option<(String, String)> {
    let key = key_of(&claim.metadata);
    let fill = |text: String| {
        text.replace("${pvc.namespace}", &key.namespace).replace("${pvc.name}", &key.name).replace("${pv.name}", &volume_name(claim))
    };
    plain_secret(parameters, kind).map(|(namespace, name)| (fill(namespace), fill(name)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_names_secrets_by_the_claim() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "a", "uid": "u"}})).unwrap();
        let parameters = BTreeMap::from([
            ("csi.storage.k8s.io/node-stage-secret-name".to_owned(), "${pvc.name}-key".to_owned()),
            ("csi.storage.k8s.io/node-stage-secret-namespace".to_owned(), "${pvc.namespace}".to_owned()),
        ]);
        assert_eq!(secret_of(&parameters, "node-stage", &claim), Some(("a".to_owned(), "c-key".to_owned())));
        assert_eq!(secret_of(&parameters, "provisioner", &claim), None);
    }

    #[test]
    fn access_modes_are_the_drivers_finer_ones_where_it_knows_them() {
        assert_eq!(access_mode_of("ReadWriteOnce", false), access_mode::SINGLE_NODE_WRITER);
        assert_eq!(access_mode_of("ReadWriteOnce", true), access_mode::SINGLE_NODE_MULTI_WRITER);
        assert_eq!(access_mode_of("ReadWriteOncePod", true), access_mode::SINGLE_NODE_SINGLE_WRITER);
        assert_eq!(access_mode_of("ReadWriteMany", true), access_mode::MULTI_NODE_MULTI_WRITER);
    }
}
