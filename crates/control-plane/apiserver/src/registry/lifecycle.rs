//! What every object goes through at creation and update, whatever its kind: identity, generation, ownership of its metadata.
//!
//! Source: apiserver `pkg/registry/rest/create.go`, `update.go`, apimachinery `pkg/api/validation/objectmeta.go`.

use meta::field::{self, Path};
use meta::{Status, names};
use rules::Part;
use serde_json::{Map, Value, json};

use super::Target;
use super::catalog::Kind;
use crate::context::WriteOptions;
use crate::object::{meta, metadata_mut};

/// Annotations may have this many bytes together.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;
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
    if !meta(object, "resourceVersion").is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let metadata = metadata_mut(object);
    for name in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "uid", "creationTimestamp", "generation"] {
        metadata.remove(name);
    }
    Ok(())
}

/// Gives the object its identity.
pub fn finish_create(kind: &Kind, object: &mut Value, _options: &WriteOptions) -> Result<(), Status> {
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

pub fn validate_create(kind: &Kind, object: &Value) -> Result<(), Status> {
    let mut errors = validate_metadata(kind, object);
    errors.extend(kind.storage.rules.validate(object));
    if errors.is_empty() { Ok(()) } else { Err(kind.invalid(meta(object, "name"), &errors)) }
}

/// uid and resourceVersion of the new object must be the old one's where they are given. Returns whether the write may be repeated on a
/// newer version.
pub fn check_preconditions(target: Target<'_>, new: &Value, old: &Value) -> Result<bool, Status> {
    let (uid, old_uid) = (meta(new, "uid"), meta(old, "uid"));
    if !uid.is_empty() && uid != old_uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}");
        return Err(Status::conflict(&target.kind.group_resource(), target.name, &why));
    }
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
    let metadata = metadata_mut(new);
    for name in kept {
        match old["metadata"].get(name) {
            Some(value) => metadata.insert(name.into(), value.clone()),
            None => metadata.remove(name),
        };
    }
    metadata.remove("selfLink");
    match part {
        Part::Main if kind.has_status() => keep_member(new, old, STATUS),
        Part::Status => keep_all_but_status(new, old),
        _ => {}
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
pub fn finish_update(kind: &Kind, new: &mut Value, old: &Value, part: Part, _options: &WriteOptions) {
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
    let mut errors = validate_metadata(target.kind, new);
    let metadata = Path::new("metadata");
    for name in ["name", "namespace"] {
        if meta(new, name) != meta(old, name) {
            errors.push(field::Error::invalid(&metadata.child(name), meta(new, name), "field is immutable"));
        }
    }
    if !meta(old, "deletionTimestamp").is_empty() {
        let before: Vec<&str> = finalizers(old).collect();
        let added: Vec<&str> = finalizers(new).filter(|finalizer| !before.contains(finalizer)).collect();
        if !added.is_empty() {
            let detail =
                format!("no new finalizers can be added if the object is being deleted, found new finalizers {}", go_strings(&added));
            errors.push(field::Error::forbidden(&metadata.child("finalizers"), detail));
        }
    }
    errors.extend(target.kind.storage.rules.validate(new));
    errors.extend(target.kind.storage.rules.validate_update(new, old, part));
    if errors.is_empty() { Ok(()) } else { Err(target.kind.invalid(target.name, &errors)) }
}

/// `[]string{"a", "b"}`: Go's `%#v`.
fn go_strings(texts: &[&str]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!("[]string{{{}}}", quoted.join(", "))
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn validate_metadata(kind: &Kind, object: &Value) -> Vec<field::Error> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    let name = meta(object, "name");
    let check = |name: &str, field: &str, errors: &mut Vec<field::Error>| {
        let mut sentences = names::path_segment(name);
        sentences.extend(kind.storage.rules.validate_name(name));
        errors.extend(sentences.into_iter().map(|sentence| field::Error::invalid(&path.child(field), name, sentence)));
    };
    check(name, "name", &mut errors);
    validate_labels(&object["metadata"]["labels"], &path.child("labels"), &mut errors);
    validate_annotations(&object["metadata"]["annotations"], &path.child("annotations"), &mut errors);
    validate_finalizers(object, &path.child("finalizers"), &mut errors);
    validate_owners(&object["metadata"]["ownerReferences"], &path.child("ownerReferences"), &mut errors);
    errors
}

fn validate_labels(labels: &Value, path: &Path, errors: &mut Vec<field::Error>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.extend(names::qualified_name(key).into_iter().map(|sentence| field::Error::invalid(path, key.as_str(), sentence)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::label_value(value).into_iter().map(|sentence| field::Error::invalid(path, value, sentence)));
    }
}

fn validate_annotations(annotations: &Value, path: &Path, errors: &mut Vec<field::Error>) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        let lower = key.to_lowercase();
        errors.extend(names::qualified_name(&lower).into_iter().map(|sentence| field::Error::invalid(path, key.as_str(), sentence)));
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > ANNOTATIONS_BYTES_MAX {
        errors.push(field::Error::too_long(path, ANNOTATIONS_BYTES_MAX));
    }
}

fn validate_finalizers(object: &Value, path: &Path, errors: &mut Vec<field::Error>) {
    let all: Vec<&str> = finalizers(object).collect();
    for finalizer in &all {
        errors.extend(names::qualified_name(finalizer).into_iter().map(|sentence| field::Error::invalid(path, *finalizer, sentence)));
    }
    if all.contains(&"orphan") && all.contains(&"foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(field::Error::invalid(path, json!(all), detail));
    }
}

fn validate_owners(owners: &Value, path: &Path, errors: &mut Vec<field::Error>) {
    let mut controller: Option<&Value> = None;
    for (index, owner) in owners.as_array().into_iter().flatten().enumerate() {
        let path = path.index(index);
        for name in ["apiVersion", "kind", "name", "uid"] {
            if owner[name].as_str().unwrap_or_default().is_empty() {
                errors.push(field::Error::invalid(&path.child(name), owner[name].as_str().unwrap_or_default(), "must not be empty"));
            }
        }
        if owner["controller"] == json!(true) {
            if let Some(first) = controller {
                let text = |owner: &Value, name: &str| owner[name].as_str().unwrap_or_default().to_owned();
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                    text(first, "kind"),
                    text(first, "name"),
                    text(owner, "kind"),
                    text(owner, "name")
                );
                errors.push(field::Error::invalid(&path, owner.clone(), detail));
            }
            controller = Some(owner);
        }
    }
}
