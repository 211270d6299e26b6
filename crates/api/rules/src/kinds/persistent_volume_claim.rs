//! v1 PersistentVolumeClaim.

use meta::field::{Error, Path};
use meta::{names, quantity};
use serde_json::{Value, json};

use crate::checks::{Errors, formed, immutable, label_selector, one_of, required, sentences};
use crate::printing::{self, AGE, NAME, shown, wide};
use crate::value::{self, annotation, at, entries, has, keep, list, remove, set, set_default_text, sub, text};
use crate::{Column, Part, Rules, resources};

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

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

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
        if let Some(spec) = sub(object, "spec") {
            one_data_source(spec);
        }
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        if part == Part::Status {
            return;
        }
        // A client of old that knows only one of the two fields does not erase the other.
        let same = |field: &str| value::same(at(new, field), at(old, field));
        let (source, reference) = (has(new, "spec.dataSource"), has(new, "spec.dataSourceRef"));
        if source && !reference && same("spec.dataSource") {
            keep(new, old, "spec.dataSourceRef");
        }
        if let Some(spec) = sub(new, "spec") {
            one_data_source(spec);
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        validate_spec(at(object, "spec"), &Path::new("spec"))
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        match part {
            Part::Main => update(new, old),
            Part::Status => status(new),
            Part::Subresource(_) => Vec::new(),
        }
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        spec_warnings(at(object, "spec"), &Path::new("spec"))
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

/// `dataSource` and `dataSourceRef` mean the same, as long as the source lies in the claim's namespace.
fn one_data_source(spec: &mut Value) {
    if has(spec, "dataSource") && !has(spec, "dataSourceRef") {
        let source = at(spec, "dataSource").clone();
        set(spec, "dataSourceRef", source);
    } else if has(spec, "dataSourceRef") && !has(spec, "dataSource") && text(spec, "dataSourceRef.namespace").is_empty() {
        let group = text(spec, "dataSourceRef.apiGroup");
        let simple = matches!(
            (group, text(spec, "dataSourceRef.kind")),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        );
        if simple {
            let mut source = at(spec, "dataSourceRef").clone();
            remove(&mut source, "namespace");
            set(spec, "dataSource", source);
        }
    }
}

/// The spec of a claim, alone or in a template.
pub fn validate_spec(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if list(spec, "accessModes").is_empty() {
        errors.push(Error::required(&path.child("accessModes"), "at least 1 access mode is required"));
    }
    errors.extend(label_selector(at(spec, "selector"), &path.child("selector")));
    errors.extend(access_modes(spec, path));
    let here = path.child("resources").key("storage");
    match quantity::from_json(at(spec, "resources.requests.storage")) {
        None => errors.push(Error::required(&here, "")),
        Some(size) => errors.extend(resources::positive(size, &here)),
    }
    errors.extend(formed(spec, path, "storageClassName", names::dns1123_subdomain));
    if has(spec, "volumeMode") {
        errors.extend(one_of(spec, path, "volumeMode", &["Block", "Filesystem"]));
    }
    for field in ["dataSource", "dataSourceRef"].into_iter().filter(|field| has(spec, field)) {
        errors.extend(data_source(at(spec, field), &path.child(field)));
    }
    let (source, reference) = (at(spec, "dataSource"), at(spec, "dataSourceRef"));
    let printed = path.child("dataSource").to_string();
    if !text(reference, "namespace").is_empty() {
        if !source.is_null() {
            errors.push(Error::invalid(path, printed, "may not be specified when dataSourceRef.namespace is specified"));
        }
    } else if !source.is_null() && !reference.is_null() {
        let differ = ["apiGroup", "kind", "name"].into_iter().any(|field| text(source, field) != text(reference, field));
        if differ {
            errors.push(Error::invalid(path, printed, "must match dataSourceRef"));
        }
    }
    errors.extend(formed(spec, path, "volumeAttributesClassName", names::dns1123_subdomain));
    errors
}

fn data_source(source: &Value, path: &Path) -> Errors {
    let mut errors = required(source, path, "name");
    errors.extend(required(source, path, "kind"));
    let (group, kind) = (text(source, "apiGroup"), text(source, "kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let sentence = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(Error::invalid(path, kind, sentence));
    }
    errors.extend(formed(source, path, "apiGroup", names::dns1123_subdomain));
    errors.extend(formed(source, path, "namespace", names::dns1123_label));
    errors
}

/// Known, and `ReadWriteOncePod` alone.
pub fn access_modes(spec: &Value, path: &Path) -> Errors {
    let here = path.child("accessModes");
    let modes: Vec<&str> = list(spec, "accessModes").iter().filter_map(Value::as_str).collect();
    let known = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let unknown = modes.iter().filter(|mode| !known.contains(mode));
    let mut errors: Errors = unknown.map(|mode| Error::not_supported(&here, *mode, &known)).collect();
    let is_alone = |mode: &str| mode == "ReadWriteOncePod";
    if modes.iter().any(|mode| is_alone(mode)) && modes.iter().any(|mode| !is_alone(mode) && known.contains(mode)) {
        errors.push(Error::forbidden(&here, "may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

/// What is most likely not meant in a claim's spec.
pub fn spec_warnings(spec: &Value, path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for kind in ["requests", "limits"] {
        let Some(amount) = quantity::from_json(at(at(spec, "resources"), kind).get("storage").unwrap_or(&Value::Null)) else { continue };
        if amount.milli_value() % 1000 != 0 {
            let here = path.child("resources").child(kind).key("storage");
            found.push(format!("{here}: fractional byte value {:?} is invalid, must be an integer", amount.to_string()));
        }
    }
    found
}

/// `RWO,ROX` in a fixed order.
pub fn short_modes(modes: &[Value]) -> String {
    MODES.iter().filter(|(mode, _)| modes.iter().any(|given| given == mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// The class's name, in the annotation of old or in the spec.
pub fn class_of(object: &Value) -> &str {
    annotation(object, CLASS_ANNOTATION).unwrap_or_else(|| text(object, "spec.storageClassName"))
}

/// After creation only the requested size and the attributes class may change, and the volume and a missing class be filled in.
fn update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut munged = at(new, "spec").clone();
    let before = at(old, "spec");
    if text(before, "volumeName").is_empty() {
        keep(&mut munged, before, "volumeName");
    }
    let (old_class, new_class) = (annotation(old, CLASS_ANNOTATION), annotation(new, CLASS_ANNOTATION));
    let unset = !has(before, "storageClassName");
    let wanted = at(new, "spec.storageClassName").as_str();
    let upgraded = old_class.is_some() && unset && wanted == old_class && new_class.is_none_or(|class| Some(class) == old_class);
    if !upgraded && old_class.unwrap_or("") != new_class.unwrap_or("") {
        let here = Path::new("metadata").child("annotations").child(CLASS_ANNOTATION);
        errors.push(Error::invalid(&here, new_class.unwrap_or(""), "field is immutable"));
    }
    if upgraded || wanted.is_some() && unset && old_class.is_none_or(|class| wanted == Some(class)) {
        keep(&mut munged, before, "storageClassName");
    }
    if text(new, "status.phase") == "Bound" {
        if has(&munged, "resources.requests") {
            keep(&mut munged, before, "resources.requests.storage");
        }
        if has(&munged, "volumeAttributesClassName") {
            keep(&mut munged, before, "volumeAttributesClassName");
        }
    }
    if !value::same(&munged, before) {
        let sentence = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        let (was, is) = (before.to_string(), munged.to_string());
        errors.push(Error::forbidden(&Path::new("spec"), format!("{sentence}\n- {was}\n+ {is}\n")));
    }
    let size = "spec.resources.requests.storage";
    let [wanted, previous, capacity] = [at(new, size), at(old, size), at(old, "status.capacity.storage")].map(quantity::from_json);
    if let (Some(wanted), Some(previous)) = (wanted, previous)
        && wanted < previous
        && wanted <= capacity.unwrap_or_default()
    {
        errors
            .push(Error::forbidden(&Path::new("spec").dotted("resources.requests.storage"), "field can not be less than status.capacity"));
    }
    errors.extend(immutable(&Path::new("volumeMode"), at(new, "spec.volumeMode"), at(old, "spec.volumeMode")));
    let class = "spec.volumeAttributesClassName";
    if !text(old, class).is_empty() {
        let here = Path::new("spec").child("volumeAttributesClassName");
        match at(new, class).as_str() {
            None => errors.push(Error::forbidden(&here, "update from non-nil value to nil is forbidden")),
            Some("") => errors.push(Error::forbidden(&here, "update from non-nil value to an empty string is forbidden")),
            Some(_) => {}
        }
    }
    errors
}

fn status(new: &Value) -> Errors {
    const STATES: [&str; 5] =
        ["ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInProgress", "NodeResizeInfeasible", "NodeResizePending"];
    let path = Path::new("status");
    let mut errors = Errors::new();
    for (name, amount) in entries(new, "status.capacity") {
        if let Some(amount) = quantity::from_json(amount).filter(|amount| amount.is_negative()) {
            errors.push(Error::invalid(&path.child("capacity").key(name), amount.value(), "must be a valid resource quantity"));
        }
    }
    let here = path.child("allocatedResourceStatus");
    for (name, state) in entries(new, "status.allocatedResourceStatuses") {
        errors.extend(resource_key(name, &here));
        if !state.as_str().is_some_and(|state| STATES.contains(&state)) {
            errors.push(Error::not_supported(&here, name.clone(), &STATES));
        }
    }
    for (name, amount) in entries(new, "status.allocatedResources") {
        let here = path.child("allocatedResources");
        let complaints = resource_key(name, &here);
        if complaints.is_empty()
            && let Some(amount) = quantity::from_json(amount).filter(|amount| amount.is_negative())
        {
            errors.push(Error::invalid(&here.key(name), amount.value(), "must be a valid resource quantity"));
        }
        errors.extend(complaints);
    }
    errors
}

fn resource_key(name: &str, path: &Path) -> Errors {
    let errors = sentences(path, name, names::qualified_name(name));
    if errors.is_empty() && resources::is_native(name) && name != "storage" {
        return vec![Error::not_supported(path, name, &["storage"])];
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            set(&mut object, &format!("spec.{key}"), value.clone());
        }
        PersistentVolumeClaim.default(&mut object);
        object
    }

    #[test]
    fn broken_claims_are_explained() {
        let cases = [
            (json!({}), vec![]),
            (json!({"accessModes": []}), vec!["spec.accessModes: Required value: at least 1 access mode is required"]),
            (
                json!({"accessModes": ["Sometimes"]}),
                vec![
                    "spec.accessModes: Unsupported value: \"Sometimes\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \
                     \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                ],
            ),
            (
                json!({"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}),
                vec!["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"],
            ),
            (json!({"resources": {}}), vec!["spec.resources[storage]: Required value"]),
            (
                json!({"resources": {"requests": {"storage": "0"}}}),
                vec!["spec.resources[storage]: Invalid value: \"0\": must be greater than zero"],
            ),
            (
                json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}),
                vec![
                    "spec.dataSource: Invalid value: \"VolumeSnapshot\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
                ],
            ),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = PersistentVolumeClaim.validate(&claim(spec.clone())).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{spec}");
        }
    }

    #[test]
    fn only_a_bound_claim_grows_and_none_shrinks() {
        let size = |size: &str, phase: &str| {
            let mut object = claim(json!({"resources": {"requests": {"storage": size}}}));
            set(&mut object, "status", json!({"phase": phase, "capacity": {"storage": "1Gi"}}));
            object
        };
        let update = |new: &Value, old: &Value| -> Vec<String> {
            let errors = PersistentVolumeClaim.validate_update(new, old, Part::Main);
            errors.iter().map(|error| error.to_string().lines().next().unwrap_or("").to_owned()).collect()
        };
        assert_eq!(update(&size("2Gi", "Bound"), &size("1Gi", "Bound")), Vec::<String>::new());
        let immutable =
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        assert_eq!(update(&size("2Gi", "Pending"), &size("1Gi", "Pending")), [immutable]);
        let shrunk = "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity";
        assert_eq!(update(&size("1Gi", "Bound"), &size("2Gi", "Bound")), [shrunk]);
    }
}
