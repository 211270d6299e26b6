//! What a claim of the built-in provisioner's classes gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeClaimCondition, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use reconcile::reference_to;

use super::{FILLED_FROM, FINALIZER, NODE_LABEL, PROVISIONED_BY, PROVISIONER, annotation, quantity};

pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub(super) const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// One node's disk serves one node.
const MODES: [&str; 2] = ["ReadWriteOnce", "ReadWriteOncePod"];

pub(super) struct World<'a> {
    pub claim: &'a PersistentVolumeClaim,
    /// Of this provisioner.
    pub class: &'a StorageClass,
    pub nodes: &'a [Arc<Node>],
    pub folder: &'a str,
    /// What the volume begins as a copy of.
    pub source: Option<Source>,
}

/// A directory of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub node: String,
    pub path: String,
}

impl Source {
    /// Of a snapshot: its node, a colon, and where it is there.
    pub fn of_handle(handle: &str) -> Result<Self, String> {
        let (node, path) = handle.split_once(':').ok_or_else(|| format!("snapshot handle {handle:?} is not a node and a path"))?;
        Ok(Self { node: node.to_owned(), path: format!("{path}/{SNAPSHOT_DATA}") })
    }
    pub fn of_volume(volume: Option<&PersistentVolume>) -> Result<Self, String> {
        let node = volume.and_then(super::volume::node_of);
        let path = volume.and_then(|volume| volume.spec.as_ref()?.local.as_ref());
        let both = node.zip(path).map(|(node, local)| Self { node: node.to_owned(), path: local.path.clone() });
        both.ok_or_else(|| "claim in dataSource not bound or invalid".into())
    }
}

/// What is kept of a volume, in its snapshot's directory.
const SNAPSHOT_DATA: &str = "data";

pub(super) enum Plan {
    Nothing,
    Make(Box<PersistentVolume>),
    /// The volume is to have that size.
    Enlarge(Arc<PersistentVolume>, String),
    Refuse {
        message: String,
        /// Another node may do.
        reschedule: bool,
    },
}

pub(super) fn plan(world: &World<'_>, volume: impl Fn(&str) -> Option<Arc<PersistentVolume>>) -> Plan {
    let spec = world.claim.spec.clone().unwrap_or_default();
    if world.claim.metadata.deletion_timestamp.is_some() {
        return Plan::Nothing;
    }
    match spec.volume_name.filter(|name| !name.is_empty()) {
        Some(name) => volume(&name).map_or(Plan::Nothing, |volume| enlarge(world.claim, volume)),
        None if volume(&volume_name(world.claim)).is_some() => Plan::Nothing,
        None => make(world),
    }
}

pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

fn asked(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

fn amount(quantity: Option<&Quantity>) -> Option<meta::Quantity> {
    meta::Quantity::parse(&quantity?.0).ok()
}

fn enlarge(claim: &PersistentVolumeClaim, volume: Arc<PersistentVolume>) -> Plan {
    let ours = annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER);
    let bound = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.clone()) == claim.metadata.uid;
    let have = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    match asked(claim) {
        Some(wanted) if ours && bound && amount(Some(wanted)) > amount(have) => Plan::Enlarge(volume.clone(), wanted.0.clone()),
        _ => Plan::Nothing,
    }
}

fn make(world: &World<'_>) -> Plan {
    let refuse = |message: String| Plan::Refuse { message, reschedule: false };
    let spec = world.claim.spec.clone().unwrap_or_default();
    // Where the data is, the volume is: nothing waits for a choice of the node, and pods follow.
    let source = world.source.as_ref().map(|source| source.node.as_str());
    let waits = world.class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") && source.is_none();
    let selected = source.or_else(|| annotation(&world.claim.metadata, SELECTED_NODE));
    if waits && selected.is_none() {
        return Plan::Nothing;
    }
    let modes = spec.access_modes.clone().unwrap_or_default();
    if let Some(mode) = modes.iter().find(|mode| !MODES.contains(&mode.as_str())) {
        return refuse(format!(
            "access mode {mode} is not supported: a volume is on one node's disk; ReadWriteOnce and ReadWriteOncePod are"
        ));
    }
    if spec.selector.is_some() {
        return refuse("claim Selector is not supported".into());
    }
    let node = match selected {
        Some(name) => match world.nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name)) {
            Some(node) => node,
            None => return Plan::Refuse { message: format!("node {name:?} not found"), reschedule: waits },
        },
        None => match any_node(world) {
            Some(node) => node,
            None => return refuse("no node is ready".into()),
        },
    };
    Plan::Make(Box::new(volume_of(world, node)))
}

/// Of the ready nodes the one that the claim's own uid names, so that claims spread.
fn any_node<'a>(world: &World<'a>) -> Option<&'a Arc<Node>> {
    let ready = |node: &&Arc<Node>| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        !unschedulable && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let uid = world.claim.metadata.uid.as_deref().unwrap_or_default();
    let weight = |node: &&Arc<Node>| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        uid.bytes()
            .chain(name.bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    world.nodes.iter().filter(ready).max_by_key(weight)
}

fn volume_of(world: &World<'_>, node: &Node) -> PersistentVolume {
    let (claim, class) = (world.claim, world.class);
    let spec = claim.spec.clone().unwrap_or_default();
    let node_name = node.metadata.name.clone().unwrap_or_default();
    let host = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME)).cloned().unwrap_or_else(|| node_name.clone());
    let name = volume_name(claim);
    let key = reconcile::key_of(&claim.metadata);
    let folder = class.parameters.as_ref().and_then(|parameters| parameters.get("folder")).map_or(world.folder, String::as_str);
    let term = NodeSelectorRequirement { key: HOSTNAME.into(), operator: "In".into(), values: Some(vec![host]) };
    let terms = vec![NodeSelectorTerm { match_expressions: Some(vec![term]), match_fields: None }];
    let reference = ObjectReference { resource_version: claim.metadata.resource_version.clone(), ..reference_to(claim) };
    let size = asked(claim).cloned().unwrap_or_else(|| quantity("0"));
    let mut annotations = BTreeMap::from([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())]);
    annotations.extend(world.source.as_ref().map(|source| (FILLED_FROM.to_owned(), source.path.clone())));
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from([(NODE_LABEL.to_owned(), node_name)])),
            annotations: Some(annotations),
            finalizers: Some(vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(BTreeMap::from([("storage".to_owned(), size)])),
            claim_ref: Some(reference),
            local: Some(LocalVolumeSource {
                path: format!("{}/{name}_{}_{}", folder.trim_end_matches('/'), key.namespace, key.name),
                fs_type: None,
            }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: terms }) }),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into())),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: spec.volume_mode,
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// The claim with the condition that tells its node to go on.
pub(super) fn file_system_resize_pending(claim: &PersistentVolumeClaim) -> PersistentVolumeClaim {
    let mut next = claim.clone();
    let status = next.status.get_or_insert_default();
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| !matches!(condition.type_.as_str(), "Resizing" | "FileSystemResizePending"));
    conditions.push(PersistentVolumeClaimCondition {
        type_: "FileSystemResizePending".into(),
        status: "True".into(),
        message: Some("Waiting for user to (re-)start a pod to finish file system resize of volume on node.".into()),
        last_transition_time: Some(Time(jiff::Timestamp::now())),
        ..PersistentVolumeClaimCondition::default()
    });
    next
}

/// The class that a cluster begins with.
pub(super) fn class(name: &str, default: bool) -> StorageClass {
    StorageClass {
        metadata: ObjectMeta {
            name: Some(name.into()),
            annotations: default.then(|| BTreeMap::from([(DEFAULT_CLASS.to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        provisioner: PROVISIONER.into(),
        reclaim_policy: Some("Delete".into()),
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        allow_volume_expansion: Some(true),
        ..StorageClass::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn words(claim: Value, annotations: Value, mode: &str, volume: Option<Value>) -> String {
        words_from(None, claim, annotations, mode, volume)
    }

    fn words_from(source: Option<Source>, claim: Value, annotations: Value, mode: &str, volume: Option<Value>) -> String {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        claim.as_object().into_iter().flatten().for_each(|(key, value)| spec[key] = value.clone());
        let metadata = json!({"name": "c", "namespace": "a", "uid": "u", "annotations": annotations});
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        let mut class = class("local-path", true);
        class.volume_binding_mode = Some(mode.into());
        let node = |name: &str, ready: &str| {
            let metadata = json!({"name": name, "labels": {HOSTNAME: format!("{name}-host")}});
            Arc::new(
                serde_json::from_value(json!({"metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
                    .unwrap(),
            )
        };
        let nodes = [node("n1", "True"), node("n2", "False")];
        let volume: Option<Arc<PersistentVolume>> = volume.map(|volume| Arc::new(serde_json::from_value(volume).unwrap()));
        let world = World { claim: &claim, class: &class, nodes: &nodes, folder: "/data/local-path", source };
        match plan(&world, |_| volume.clone()) {
            Plan::Nothing => "nothing".into(),
            Plan::Make(volume) => {
                let spec = volume.spec.unwrap();
                let terms = spec.node_affinity.unwrap().required.unwrap().node_selector_terms;
                let host = terms[0].match_expressions.as_ref().unwrap()[0].values.as_ref().unwrap()[0].clone();
                let from = volume.metadata.annotations.unwrap().remove(FILLED_FROM).map(|path| format!(" from {path}")).unwrap_or_default();
                format!("{} on {host} for {}{from}", spec.local.unwrap().path, spec.claim_ref.unwrap().uid.unwrap())
            }
            Plan::Enlarge(_, size) => format!("enlarge to {size}"),
            Plan::Refuse { message, reschedule } => format!("{message} {reschedule}"),
        }
    }

    #[test]
    fn a_claim_gets_a_directory_on_the_node_that_was_selected() {
        let none = json!({});
        let on = |node: &str| json!({SELECTED_NODE: node});
        let late = "WaitForFirstConsumer";
        assert_eq!(words(none.clone(), none.clone(), late, None), "nothing");
        assert_eq!(words(none.clone(), on("n2"), late, None), "/data/local-path/pvc-u_a_c on n2-host for u");
        assert_eq!(words(none.clone(), on("n9"), late, None), "node \"n9\" not found true");
        assert_eq!(words(none.clone(), none.clone(), "Immediate", None), "/data/local-path/pvc-u_a_c on n1-host for u");
        assert!(words(json!({"accessModes": ["ReadWriteMany"]}), on("n1"), late, None).starts_with("access mode ReadWriteMany"));
    }

    #[test]
    fn a_volume_with_a_source_is_made_at_once_where_the_source_is() {
        let source = Source::of_handle("n2:/data/local-path/.snapshots/x").unwrap();
        let made = words_from(Some(source), json!({}), json!({SELECTED_NODE: "n1"}), "WaitForFirstConsumer", None);
        assert_eq!(made, "/data/local-path/pvc-u_a_c on n2-host for u from /data/local-path/.snapshots/x/data");
        let gone = Source { node: "n9".into(), path: "/x".into() };
        assert_eq!(words_from(Some(gone), json!({}), json!({}), "WaitForFirstConsumer", None), "node \"n9\" not found false");
    }

    #[test]
    fn a_bound_claim_that_asks_for_more_enlarges_its_volume() {
        let of = |size: &str, by: &str| {
            let metadata = json!({"name": "pvc-u", "annotations": {PROVISIONED_BY: by}});
            Some(json!({"metadata": metadata, "spec": {"capacity": {"storage": size}, "claimRef": {"uid": "u"}}}))
        };
        let bound = || json!({"volumeName": "pvc-u"});
        assert_eq!(words(bound(), json!({}), "Immediate", of("500Mi", PROVISIONER)), "enlarge to 1Gi");
        assert_eq!(words(bound(), json!({}), "Immediate", of("1024Mi", PROVISIONER)), "nothing");
        assert_eq!(words(bound(), json!({}), "Immediate", of("500Mi", "other")), "nothing");
    }
}
