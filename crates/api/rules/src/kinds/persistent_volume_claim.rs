//! v1 PersistentVolumeClaim.

use meta::field::{Error, Path};
use meta::{names, quantity};
use serde_json::{Value, json};

use crate::checks::{Errors, label_selector};
use crate::printing::{self, AGE, NAME, shown, wide};
use crate::value::{self, annotation, at, has, keep, list, set, set_default_text, sub, text};
use crate::{Column, Part, Rules};

pub struct PersistentVolumeClaim;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Status", "string", "Whether the claim has its volume."),
    shown("Volume", "string", "Name of the volume."),
    shown("Capacity", "string", "Size of the volume."),
    shown("Access Modes", "string", "How it may be mounted."),
    shown("StorageClass", "string", "Class of the claim."),
    shown("VolumeAttributesClass", "string", "Attributes class of the claim."),
    AGE,
    wide("VolumeMode", "string", "Filesystem or block device."),
];

/// Every access mode and its short form.
const MODES: [(&str, &str); 4] =
    [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];

impl Rules for PersistentVolumeClaim {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "PersistentVolumeClaim")
    }
    fn default(&self, object: &mut Value) {
        if let Some(spec) = sub(object, "spec") {
            set_default_text(spec, "volumeMode", "Filesystem");
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
        if has(spec, "selector") {
            errors.extend(label_selector(at(spec, "selector"), &path.child("selector")));
        }
        let here = path.child("resources");
        match quantity::from_json(at(spec, "resources.requests.storage")) {
            None => errors.push(Error::required(&here.key("storage"), "")),
            Some(size) if size.is_zero() || size.is_negative() => {
                errors.push(Error::invalid(&here.key("storage"), size.to_string(), "must be greater than zero"));
            }
            Some(_) => {}
        }
        let mode = text(spec, "volumeMode");
        if !matches!(mode, "Block" | "Filesystem") {
            errors.push(Error::not_supported(&path.child("volumeMode"), mode, &["Block", "Filesystem"]));
        }
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part == Part::Main { spec_unchanged(new, old) } else { Vec::new() }
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let bound = !text(object, "spec.volumeName").is_empty();
        let word = |path: &str| if bound { text(object, path) } else { "" };
        let phase = if has(object, "metadata.deletionTimestamp") { "Terminating" } else { text(object, "status.phase") };
        vec![
            printing::name(object),
            phase.into(),
            text(object, "spec.volumeName").into(),
            word("status.capacity.storage").into(),
            if bound { short_modes(list(object, "status.accessModes")) } else { String::new() }.into(),
            class_of(object).into(),
            value::text_or(object, "spec.volumeAttributesClassName", "<unset>").into(),
            printing::age(object, now),
            value::text_or(object, "spec.volumeMode", "<unset>").into(),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

/// Required and known.
pub fn access_modes(spec: &Value, path: &Path) -> Errors {
    let here = path.child("accessModes");
    let modes = list(spec, "accessModes");
    if modes.is_empty() {
        return vec![Error::required(&here, "at least 1 access mode is required")];
    }
    let known = MODES.map(|(mode, _)| mode);
    let unknown = modes.iter().filter_map(Value::as_str).filter(|mode| !known.contains(mode));
    let mut errors: Errors = unknown.map(|mode| Error::not_supported(&here, mode, &known)).collect();
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.push(Error::forbidden(&here, "may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

/// `RWO,ROX` in a fixed order.
pub fn short_modes(modes: &[Value]) -> String {
    MODES.iter().filter(|(mode, _)| modes.iter().any(|given| given == mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// The class's name, in the annotation of old or in the spec.
pub fn class_of(object: &Value) -> &str {
    annotation(object, "volume.beta.kubernetes.io/storage-class").unwrap_or_else(|| text(object, "spec.storageClassName"))
}

/// After creation only the requested size may change (and the volume be filled in).
fn spec_unchanged(new: &Value, old: &Value) -> Errors {
    let mut munged = at(new, "spec").clone();
    let before = at(old, "spec");
    if text(before, "volumeName").is_empty() {
        keep(&mut munged, before, "volumeName");
    }
    keep(&mut munged, before, "resources.requests");
    keep(&mut munged, before, "volumeAttributesClassName");
    let (size, least) = ("spec.resources.requests.storage", "status.capacity.storage");
    if !value::same(&munged, before) {
        let sentence = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        return vec![Error::forbidden(&Path::new("spec"), sentence)];
    }
    let sizes = [at(new, size), at(old, size), at(old, least)].map(quantity::from_json);
    match sizes {
        [Some(wanted), Some(before), capacity] if wanted < before && capacity.is_none_or(|capacity| wanted <= capacity) => {
            let path = Path::new("spec").child("resources").child("requests").child("storage");
            vec![Error::forbidden(&path, "field can not be less than status.capacity")]
        }
        _ => Errors::new(),
    }
}
