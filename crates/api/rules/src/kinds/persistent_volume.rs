//! v1 PersistentVolume.

use meta::field::{Error, Path};
use meta::{names, quantity};
use serde_json::{Value, json};

use super::persistent_volume_claim::{access_modes, class_of, short_modes};
use crate::checks::{Errors, immutable, one_of};
use crate::printing::{self, AGE, NAME, shown, wide};
use crate::value::{at, has, keep, set, set_default, set_default_text, sub, text, text_or};
use crate::{Column, Part, Rules};

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

/// The fields of a volume's spec that are not its source.
const NOT_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeMode",
    "volumeAttributesClassName",
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
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = access_modes(spec, &path);
        let here = path.child("capacity");
        match quantity::from_json(at(spec, "capacity.storage")) {
            None => errors.push(Error::required(&here, "")),
            Some(size) if size.is_zero() || size.is_negative() => {
                errors.push(Error::invalid(&here.key("storage"), size.to_string(), "must be greater than zero"));
            }
            Some(_) => {}
        }
        errors.extend(one_of(spec, &path, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"]));
        let sources = sources(spec);
        if sources.is_empty() {
            errors.push(Error::required(&path, "must specify a volume type"));
        }
        errors.extend(sources.iter().skip(1).map(|kind| Error::forbidden(&path.child(kind), "may not specify more than 1 volume type")));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part != Part::Main {
            return Vec::new();
        }
        let path = Path::new("spec");
        let source =
            |object: &Value| -> Value { sources(at(object, "spec")).iter().map(|kind| at(at(object, "spec"), kind).clone()).collect() };
        let mut errors = Errors::new();
        if source(new) != source(old) {
            errors.push(Error::forbidden(&path.child("persistentvolumesource"), "spec.persistentvolumesource is immutable after creation"));
        }
        errors.extend(immutable(&path.child("volumeMode"), at(new, "spec.volumeMode"), at(old, "spec.volumeMode")));
        errors
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
            short_modes(crate::value::list(object, "spec.accessModes")).into(),
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

fn sources(spec: &Value) -> Vec<&str> {
    let fields = spec.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    fields.map(|(key, _)| key.as_str()).filter(|key| !NOT_SOURCES.contains(key)).collect()
}
