//! What every object goes through at creation and update, whatever its kind: identity, generation, ownership of its metadata.
//!
//! Source: apiserver `pkg/registry/rest/create.go`, `update.go`, apimachinery `pkg/api/validation/objectmeta.go`.

use meta::field::{self, Path};
use meta::{Status, names};
use rules::Part;
use serde_json::{Map, Value, json};

use super::Target;
use super::catalog::Kind;
use crate::object::{meta, metadata_mut};

/// Top-level members that a status write leaves alone, and the other way round.
const STATUS: &str = "status";

/// Places the object in its namespace and takes from it what only the server may say.
pub fn begin_create(kind: &Kind, namespace: &str, object: &mut Value) -> Result<(), Status> {
    let given = meta(object, "namespace").to_owned();
    match (kind.facts.namespaced, given.is_empty()) {
        (true, false) if given != namespace => {
            let why = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Status::bad_request(why));
        }
        (true, _) => {
            metadata_mut(object).insert("namespace".into(), namespace.into());
        }
        (false, false) => {
            let error = field::Error::forbidden(&Path::new("metadata").child("namespace"), "not allowed on this type");
            return Err(kind.invalid(meta(object, "name"), &[error]));
        }
        (false, true) => {}
    }
    let metadata = metadata_mut(object);
    for name in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "uid", "creationTimestamp", "generation"] {
        metadata.remove(name);
    }
    Ok(())
}

/// The last thing before a new object is stored: what admission and validation have to say about it comes first, as upstream.
pub fn check_unversioned(object: &Value) -> Result<(), Status> {
    match meta(object, "resourceVersion") {
        "" | "0" => Ok(()),
        _ => Err(Status::bad_request("resourceVersion should not be set on objects to be created")),
    }
}

/// Gives the object its identity.
pub fn finish_create(kind: &Kind, object: &mut Value) -> Result<(), Status> {
    if meta(object, "name").is_empty() {
        let base = meta(object, "generateName").to_owned();
        if base.is_empty() {
            let error = field::Error::required(&Path::new("metadata").child("name"), "name or generateName is required");
            return Err(kind.invalid("", &[error]));
        }
        metadata_mut(object).insert("name".into(), names::generate_name(&base).into());
    }
    let metadata = metadata_mut(object);
    metadata.insert("uid".into(), names::uid().into());
    metadata.insert("creationTimestamp".into(), meta::time::now().into());
    if kind.storage.rules.counts_generation() {
        metadata.insert("generation".into(), 1.into());
    }
    Ok(())
}

/// What the status says at creation is not the client's to tell, but for the few kinds whose first writer knows it (a kubelet its node).
pub fn drop_status(kind: &Kind, object: &mut Value) {
    if kind.has_status()
        && !kind.storage.rules.keeps_status_at_creation()
        && let Some(members) = object.as_object_mut()
    {
        members.remove(STATUS);
    }
}

/// Writes the empty status that Go writes for the kinds whose struct has one.
pub fn complete_status(kind: &Kind, object: &mut Value) {
    let Some(field) = kind.storage.schema.field(STATUS).filter(|field| !kind.is_custom() && !field.omit_empty) else { return };
    if object.get(STATUS).is_some_and(|status| !status.is_null()) {
        return;
    }
    if let Ok((empty, _)) = schema::decode::decode(json!({}), &field.schema, schema::decode::Mode::Ignore) {
        object[STATUS] = empty;
    }
}

pub fn validate_create(kind: &Kind, object: &Value) -> Result<(), Status> {
    let rules = &kind.storage.rules;
    let mut errors = rules::metadata::validate(object, kind.facts.namespaced, |name| check_name(kind, name));
    if has_standard_finalizers(kind) {
        errors.extend(rules::metadata::standard_finalizers(object));
    }
    errors.extend(rules.validate(object));
    errors.extend(rules.validate_create(object));
    errors.extend(crate::flow::schema::fixed(kind, object));
    if errors.is_empty() { Ok(()) } else { Err(kind.invalid(meta(object, "name"), &errors)) }
}

/// Upstream's extension servers take any qualified name.
fn has_standard_finalizers(kind: &Kind) -> bool {
    !kind.is_custom() && !matches!(kind.facts.group, "apiextensions.k8s.io" | "apiregistration.k8s.io")
}

/// The kind's own rule, which is stricter for most; else what a path segment allows.
fn check_name(kind: &Kind, name: &str) -> Vec<String> {
    let sentences = kind.storage.rules.validate_name(name);
    if sentences.is_empty() { names::path_segment(name) } else { sentences }
}

/// uid and resourceVersion of the new object must be the old one's where they are given. Returns whether the write may be repeated on a
/// newer version.
pub fn check_preconditions(target: Target<'_>, new: &Value, old: &Value) -> Result<bool, Status> {
    super::deletion::check_stored(target, old, Some(meta(new, "uid")).filter(|uid| !uid.is_empty()), None)?;
    let version = meta(new, "resourceVersion");
    if version.is_empty() || version == "0" {
        return Ok(true);
    }
    if version.parse::<u64>().is_err() {
        let error = field::Error::invalid(&Path::new("metadata").child("resourceVersion"), version, "must be an integer");
        return Err(target.kind.invalid(target.name, &[error]));
    }
    if version != meta(old, "resourceVersion") {
        return Err(target.stale());
    }
    Ok(false)
}

/// Keeps what an update may not change.
pub fn begin_update(kind: &Kind, new: &mut Value, old: &Value, part: Part) {
    let kept = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "generateName"];
    kept.iter().for_each(|name| keep_metadata(new, old, name));
    metadata_mut(new).remove("selfLink");
    match part {
        Part::Main if kind.has_status() => keep_member(new, old, STATUS),
        Part::Status => {
            keep_all_but_status(new, old);
            if kind.storage.rules.status_keeps_metadata() {
                ["labels", "annotations", "finalizers", "ownerReferences"].iter().for_each(|name| keep_metadata(new, old, name));
            }
        }
        Part::Subresource(name) => keep_all_but_subresource(new, old, name),
        Part::Main => {}
    }
    crate::handlers::certificate::keep(kind, new, old, part);
}

fn keep_metadata(new: &mut Value, old: &Value, name: &str) {
    match old["metadata"].get(name) {
        Some(value) => drop(metadata_mut(new).insert(name.into(), value.clone())),
        None => drop(metadata_mut(new).remove(name)),
    }
}

/// The fields that a subresource writes; everything else stays.
fn keep_all_but_subresource(new: &mut Value, old: &Value, name: &str) {
    let written: &[&str] = match name {
        "ephemeralcontainers" => &["/spec/ephemeralContainers"],
        "finalize" => &["/spec/finalizers"],
        "resize" => &["/spec/containers", "/spec/initContainers", "/spec/resources"],
        "approval" => &["/status/conditions"],
        _ => return,
    };
    let wanted: Vec<Option<Value>> = written.iter().map(|path| new.pointer(path).cloned()).collect();
    let metadata = new["metadata"].take();
    *new = old.clone();
    match name {
        // These leave metadata to the client: who decides about a request may label it too.
        "approval" | "finalize" => new["metadata"] = metadata,
        _ => drop(metadata_mut(new).insert("resourceVersion".into(), metadata["resourceVersion"].as_str().unwrap_or_default().into())),
    }
    for (path, value) in written.iter().zip(wanted) {
        let Some((parent, field)) = path.trim_start_matches('/').split_once('/') else { continue };
        match value {
            Some(value) => new[parent][field] = value,
            None => {
                new.get_mut(parent).and_then(Value::as_object_mut).map(|members| members.remove(field));
            }
        }
    }
}

fn keep_member(new: &mut Value, old: &Value, name: &str) {
    if let Some(members) = new.as_object_mut() {
        match old.get(name) {
            Some(value) => members.insert(name.into(), value.clone()),
            None => members.remove(name),
        };
    }
}

fn keep_all_but_status(new: &mut Value, old: &Value) {
    let Some(members) = new.as_object_mut() else { return };
    let status = members.remove(STATUS);
    let metadata = members.remove("metadata").unwrap_or_else(|| json!({}));
    *members = old.as_object().cloned().unwrap_or_else(Map::new);
    members.insert("metadata".into(), metadata);
    match status {
        Some(status) => members.insert(STATUS.into(), status),
        None => members.remove(STATUS),
    };
}

/// Counts the generation where the kind does so.
pub fn finish_update(kind: &Kind, new: &mut Value, old: &Value, part: Part) {
    if kind.storage.rules.counts_generation() && part != Part::Status && !same_intent(new, old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        metadata_mut(new).insert("generation".into(), generation.into());
    }
}

/// Equal outside metadata and status.
fn same_intent(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let relevant = |name: &String| !matches!(name.as_str(), "metadata" | STATUS | "kind" | "apiVersion");
    let count = |map: &Map<String, Value>| map.keys().filter(|name| relevant(name)).count();
    count(a) == count(b) && a.iter().filter(|(name, _)| relevant(name)).all(|(name, value)| b.get(name) == Some(value))
}

pub fn validate_update(target: Target<'_>, new: &Value, old: &Value, part: Part) -> Result<(), Status> {
    let mut errors = rules::metadata::validate_update(new, old);
    let custom = target.kind.is_custom();
    if has_standard_finalizers(target.kind) {
        errors.extend(rules::metadata::standard_finalizers(new));
    }
    // A write of the status does not judge the spec again: what was stored once stays writable. A custom resource's schema covers both.
    if custom || part != Part::Status {
        errors.extend(target.kind.storage.rules.validate(new));
    }
    errors.extend(target.kind.storage.rules.validate_update(new, old, part));
    if part == Part::Main {
        errors.extend(crate::flow::schema::fixed(target.kind, new));
    }
    if errors.is_empty() { Ok(()) } else { Err(target.kind.invalid(target.name, &errors)) }
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}
