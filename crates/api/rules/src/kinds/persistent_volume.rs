//! v1 PersistentVolume.

use meta::field::{Error, Path};
use meta::{names, quantity};
use serde_json::{Value, json};

use super::persistent_volume_claim::{access_modes, class_of, short_modes};
use crate::checks::{Errors, formed, immutable, one_of, sentences, supported};
use crate::pod_spec::volumes::sources;
use crate::pod_spec::{self, scheduling};
use crate::printing::{self, AGE, NAME, shown, wide};
use crate::value::{self, at, has, list, remove, set, set_default, set_default_text, sub, text, text_or};
use crate::{Column, Part, Rules, resources};

pub struct PersistentVolume;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Capacity", "string", "Size."),
    shown("Access Modes", "string", "How it may be mounted."),
    shown("Reclaim Policy", "string", "What becomes of it without its claim."),
    shown("Status", "string", "Whether it is claimed."),
    shown("Claim", "string", "Namespace and name of the claim."),
    shown("StorageClass", "string", "Class of the volume."),
    shown("VolumeAttributesClass", "string", "Attributes class of the volume."),
    shown("Reason", "string", "Why it is in this state."),
    AGE,
    wide("VolumeMode", "string", "Filesystem or block device."),
];

impl Rules for PersistentVolume {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "PersistentVolume")
    }
    fn default(&self, object: &mut Value) {
        if let Some(spec) = sub(object, "spec") {
            set_default_text(spec, "persistentVolumeReclaimPolicy", "Retain");
            set_default_text(spec, "volumeMode", "Filesystem");
            if let Some(path) = sub(spec, "hostPath") {
                set_default(path, "type", "");
            }
        }
        set_default_text(object, "status.phase", "Pending");
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"phase": "Pending"}));
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        validate_spec(at(object, "spec"), false, &Path::new("spec"))
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part == Part::Main { update(new, old) } else { Vec::new() }
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(at(object, "spec"))
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let claim = at(object, "spec.claimRef");
        let claim = if claim.is_null() { String::new() } else { format!("{}/{}", text(claim, "namespace"), text(claim, "name")) };
        let phase = if has(object, "metadata.deletionTimestamp") { "Terminating" } else { text(object, "status.phase") };
        vec![
            printing::name(object),
            text(object, "spec.capacity.storage").into(),
            short_modes(list(object, "spec.accessModes")).into(),
            text(object, "spec.persistentVolumeReclaimPolicy").into(),
            phase.into(),
            claim.into(),
            class_of(object).into(),
            text_or(object, "spec.volumeAttributesClassName", "<unset>").into(),
            text(object, "status.reason").into(),
            printing::age(object, now),
            text_or(object, "spec.volumeMode", "<unset>").into(),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

/// The order in which upstream looks for the source: the first is taken, others are too many.
const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// A volume's spec, alone or `inline` in a VolumeAttachment.
pub fn validate_spec(spec: &Value, inline: bool, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if inline {
        let sentence = "may not be specified in the context of inline volumes";
        let given = ["claimRef", "capacity"].into_iter().filter(|field| has(spec, field));
        errors.extend(given.map(|field| Error::forbidden(&path.child(field), sentence)));
        if !has(spec, "csi") {
            errors.push(Error::required(&path.child("csi"), "has to be specified in the context of inline volumes"));
        }
    }
    if list(spec, "accessModes").is_empty() {
        errors.push(Error::required(&path.child("accessModes"), ""));
    }
    errors.extend(access_modes(spec, path));
    if !inline {
        errors.extend(capacity(at(spec, "capacity"), &path.child("capacity")));
    }
    let policy = text(spec, "persistentVolumeReclaimPolicy");
    if !policy.is_empty() {
        errors.extend(one_of(spec, path, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"]));
    }
    let (affinity, here) = (at(spec, "nodeAffinity"), path.child("nodeAffinity"));
    if has(affinity, "required") {
        errors.extend(scheduling::node_selector(at(affinity, "required"), &here.child("required")));
    } else if !affinity.is_null() {
        errors.push(Error::required(&here.child("required"), "must specify required node constraints"));
    }
    errors.extend(source(spec, path));
    if policy == "Recycle" && has(spec, "hostPath") && text(spec, "hostPath.path").trim_matches('/').is_empty() {
        let sentence = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(Error::forbidden(&path.child("persistentVolumeReclaimPolicy"), sentence));
    }
    errors.extend(formed(spec, path, "storageClassName", names::dns1123_subdomain));
    errors.extend(supported(spec, path, "volumeMode", &["Block", "Filesystem"]));
    if let Some(class) = at(spec, "volumeAttributesClassName").as_str() {
        let here = path.child("volumeAttributesClassName");
        match class {
            "" => errors.push(Error::required(&here, "an empty string is disallowed")),
            _ => errors.extend(sentences(&here, class, names::dns1123_subdomain(class))),
        }
        if !has(spec, "csi") {
            errors.push(Error::required(&path.child("csi"), "has to be specified when using volumeAttributesClassName"));
        }
    }
    errors
}

fn capacity(capacity: &Value, path: &Path) -> Errors {
    let amounts: Vec<(&String, &Value)> = capacity.as_object().into_iter().flatten().collect();
    let mut errors = Errors::new();
    if amounts.is_empty() {
        errors.push(Error::required(path, ""));
    }
    if capacity.get("storage").is_none() || amounts.len() > 1 {
        errors.push(Error::not_supported(path, capacity.clone(), &["storage"]));
    }
    for (name, amount) in amounts {
        let Some(amount) = quantity::from_json(amount) else { continue };
        let here = path.key(name);
        if amount.is_negative() {
            errors.push(Error::invalid(&here, amount.value(), "must be a valid resource quantity"));
        }
        errors.extend(resources::positive(amount, &here));
    }
    errors
}

fn source(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut given = SOURCES.iter().filter(|kind| has(spec, kind)).peekable();
    if given.peek().is_none() {
        errors.push(Error::required(path, "must specify a volume type"));
    }
    for (position, kind) in given.enumerate() {
        let here = path.child(kind);
        if position > 0 {
            errors.push(Error::forbidden(&here, "may not specify more than 1 volume type"));
            continue;
        }
        let here = if *kind == "gcePersistentDisk" { path.child("persistentDisk") } else { here };
        errors.extend(sources::validate(kind, at(spec, kind), false, &here));
        if *kind == "local" && !has(spec, "nodeAffinity") {
            errors.push(Error::required(&path.child("nodeAffinity"), "Local volume requires node affinity"));
        }
    }
    errors
}

fn update(new: &Value, old: &Value) -> Errors {
    let path = Path::new("spec");
    let sources_of = |object: &Value| -> Value {
        let given = SOURCES.iter().filter(|kind| has(at(object, "spec"), kind));
        given.map(|kind| ((*kind).to_owned(), at(at(object, "spec"), kind).clone())).collect()
    };
    let (mut after, before) = (sources_of(new), sources_of(old));
    if has(&before, "csi") && !has(&before, "csi.controllerExpandSecretRef") {
        drop(remove(&mut after, "csi.controllerExpandSecretRef"));
    }
    let mut errors = Errors::new();
    if !value::same(&after, &before) {
        let sentence = format!("spec.persistentvolumesource is immutable after creation\n- {before}\n+ {after}\n");
        errors.push(Error::forbidden(&path.child("persistentvolumesource"), sentence));
    }
    errors.extend(immutable(&Path::new("volumeMode"), at(new, "spec.volumeMode"), at(old, "spec.volumeMode")));
    let (after, before) = (at(new, "spec.nodeAffinity"), at(old, "spec.nodeAffinity"));
    if !before.is_null() && !value::same(after, before) {
        let sentence = "field is immutable, except for updating from beta label to GA";
        errors.push(Error::invalid(&Path::new("nodeAffinity"), after.clone(), sentence));
    }
    if has(old, "spec.volumeAttributesClassName") && !has(new, "spec.volumeAttributesClassName") {
        let here = path.child("volumeAttributesClassName");
        errors.push(Error::forbidden(&here, "update from non-nil value to nil is forbidden"));
    }
    errors
}

fn warnings(spec: &Value) -> Vec<String> {
    let path = Path::new("spec");
    let mut found = Vec::new();
    if text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        let sentence = "The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.";
        found.push(format!("{}: {sentence}", path.child("persistentVolumeReclaimPolicy")));
    }
    for (index, term) in list(spec, "nodeAffinity.required.nodeSelectorTerms").iter().enumerate() {
        pod_spec::warnings::node_term(term, &path.dotted("nodeAffinity.required.nodeSelectorTerms").index(index), &mut found);
    }
    let old = [
        ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    let old = old.into_iter().filter(|(kind, _)| has(spec, kind));
    found.extend(old.map(|(kind, sentence)| format!("{}: {sentence}", path.child(if kind == "storageos" { "storageOS" } else { kind }))));
    pod_spec::warnings::fractions(at(spec, "capacity"), &path.child("capacity"), &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/data"}}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            set(&mut object, &format!("spec.{key}"), value.clone());
        }
        PersistentVolume.default(&mut object);
        object
    }

    #[test]
    fn broken_volumes_are_explained() {
        let cases = [
            (json!({}), vec![]),
            (json!({"accessModes": []}), vec!["spec.accessModes: Required value"]),
            (
                json!({"capacity": {}}),
                vec!["spec.capacity: Required value", "spec.capacity: Unsupported value: {}: supported values: \"storage\""],
            ),
            (json!({"capacity": {"storage": "0"}}), vec!["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"]),
            (json!({"hostPath": null}), vec!["spec: Required value: must specify a volume type"]),
            (json!({"nfs": {"server": "s", "path": "/p"}}), vec!["spec.nfs: Forbidden: may not specify more than 1 volume type"]),
            (json!({"hostPath": null, "csi": {"driver": "d.example.com"}}), vec!["spec.csi.volumeHandle: Required value"]),
            (
                json!({"hostPath": null, "iscsi": {"targetPortal": "p", "iqn": "eui.x"}}),
                vec!["spec.iscsi.iqn: Invalid value: \"eui.x\": must be valid format"],
            ),
            (
                json!({"hostPath": null, "local": {"path": "/x"}}),
                vec!["spec.nodeAffinity: Required value: Local volume requires node affinity"],
            ),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = PersistentVolume.validate(&volume(spec.clone())).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{spec}");
        }
    }

    #[test]
    fn the_source_of_a_volume_stays() {
        let (old, new) = (volume(json!({})), volume(json!({"hostPath": {"path": "/other"}})));
        let errors = PersistentVolume.validate_update(&new, &old, Part::Main);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().starts_with("spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable"));
        let grown = volume(json!({"capacity": {"storage": "2Gi"}}));
        assert_eq!(PersistentVolume.validate_update(&grown, &old, Part::Main), []);
    }
}
