//! What every object's metadata must be, at creation and at an update (upstream: apimachinery `objectmeta.go`).

use meta::field::{Error, Path};
use meta::gvk::GroupVersion;
use meta::names;
use serde_json::Value;

use crate::checks::{self, Errors, sentences};
use crate::value::{self, at, entries, flag, list, text};

/// Complaints about `metadata` of a new object. `check_name` is the kind's [`Rules::validate_name`](crate::Rules::validate_name).
pub fn validate(object: &Value, namespaced: bool, check_name: impl Fn(&str) -> Vec<String>) -> Errors {
    let path = Path::new("metadata");
    let mut errors = Errors::new();
    let base = text(object, "metadata.generateName");
    if !base.is_empty() {
        // The trailing dash of `web-` is masked: the generated suffix will follow it.
        let masked = base.strip_suffix('-').filter(|stem| !stem.is_empty()).map_or_else(|| base.to_owned(), |stem| format!("{stem}a"));
        errors.extend(sentences(&path.child("generateName"), base, check_name(&masked)));
    }
    match value::name(object) {
        "" => errors.push(Error::required(&path.child("name"), "name or generateName is required")),
        name => errors.extend(sentences(&path.child("name"), name, check_name(name))),
    }
    match (namespaced, text(object, "metadata.namespace")) {
        (true, "") => errors.push(Error::required(&path.child("namespace"), "")),
        (true, namespace) => errors.extend(sentences(&path.child("namespace"), namespace, names::dns1123_label(namespace))),
        (false, "") => {}
        (false, _) => errors.push(Error::forbidden(&path.child("namespace"), "not allowed on this type")),
    }
    errors.extend(common(object, &path));
    errors
}

fn common(object: &Value, path: &Path) -> Errors {
    let meta = at(object, "metadata");
    let mut errors = checks::nonnegative(meta, path, "generation");
    errors.extend(checks::labels(at(meta, "labels"), &path.child("labels")));
    errors.extend(annotations(meta, &path.child("annotations")));
    errors.extend(owner_references(list(meta, "ownerReferences"), &path.child("ownerReferences")));
    errors.extend(finalizers(list(meta, "finalizers"), &path.child("finalizers")));
    errors.extend(managed_fields(list(meta, "managedFields"), &path.child("managedFields")));
    errors
}

/// A built-in kind's finalizers are the three old words or have a domain. Custom resources only get a warning for others.
pub fn standard_finalizers(object: &Value) -> Errors {
    let path = Path::new("metadata").child("finalizers");
    let words = list(object, "metadata.finalizers").iter().filter_map(Value::as_str).enumerate();
    words.filter_map(|(index, word)| standard_finalizer(word, &path.index(index))).collect()
}

/// The complaint about one finalizer without a domain.
pub fn standard_finalizer(word: &str, path: &Path) -> Option<Error> {
    if word.contains('/') || matches!(word, "kubernetes" | "orphan" | "foregroundDeletion") {
        return None;
    }
    Some(Error::invalid(path, word, "name is neither a standard finalizer name nor is it fully qualified"))
}

fn managed_fields(entries: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, entry) in entries.iter().enumerate() {
        let here = path.index(index);
        match text(entry, "operation") {
            "" => errors.push(Error::required(&here.child("operation"), "must not be empty")),
            "Apply" | "Update" => {}
            other => errors.push(Error::not_supported(&here.child("operation"), other, &["Apply", "Update"])),
        }
        if !matches!(text(entry, "fieldsType"), "" | "FieldsV1") {
            errors.push(Error::invalid(&here.child("fieldsType"), text(entry, "fieldsType"), "must be `FieldsV1`"));
        }
        for (field, max) in [("manager", 128), ("subresource", 256)] {
            if text(entry, field).len() > max {
                errors.push(Error::too_long(&here.child(field), max));
            }
        }
    }
    errors
}

pub fn annotations(meta: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut size = 0;
    for (key, value) in entries(meta, "annotations") {
        // Upper case is allowed in an annotation's prefix.
        errors.extend(sentences(path, key.clone(), names::qualified_name(&key.to_lowercase())));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > names::ANNOTATIONS_SIZE_MAX {
        errors.push(Error::too_long(path, names::ANNOTATIONS_SIZE_MAX));
    }
    errors
}

fn owner_references(owners: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut controller: Option<String> = None;
    for (index, owner) in owners.iter().enumerate() {
        let at = path.index(index);
        let version = text(owner, "apiVersion");
        if !version.is_empty() && GroupVersion::parse(version).is_none_or(|parsed| parsed.version.is_empty()) {
            errors.push(Error::invalid(&at.child("apiVersion"), version, "must be <group>/<version> or <version>"));
        }
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                errors.push(Error::required(&at.child(field), "must not be empty"));
            }
        }
        if (version, text(owner, "kind")) == ("v1", "Event") {
            errors.push(Error::invalid(&at, owner.clone(), "/v1, Kind=Event is disallowed from being an owner"));
        }
        if flag(owner, "controller") {
            let this = format!("{}/{}", text(owner, "kind"), text(owner, "name"));
            if let Some(first) = &controller {
                let sentence =
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}");
                errors.push(Error::invalid(path, owners.to_vec(), sentence));
            } else {
                controller = Some(this);
            }
        }
    }
    errors
}

fn finalizers(finalizers: &[Value], path: &Path) -> Errors {
    let words: Vec<&str> = finalizers.iter().filter_map(Value::as_str).collect();
    let mut errors: Errors = words.iter().flat_map(|word| sentences(path, *word, names::qualified_name(word))).collect();
    if words.contains(&"orphan") && words.contains(&"foregroundDeletion") {
        errors.push(Error::invalid(path, finalizers.to_vec(), "finalizer orphan and foregroundDeletion cannot be both set"));
    }
    errors
}

/// Complaints about `metadata` of an update.
pub fn validate_update(new: &Value, old: &Value) -> Errors {
    let path = Path::new("metadata");
    let mut errors = Errors::new();
    if value::has(old, "metadata.deletionTimestamp") {
        let before = list(old, "metadata.finalizers");
        let added: Vec<String> =
            list(new, "metadata.finalizers").iter().filter(|word| !before.contains(word)).map(ToString::to_string).collect();
        if !added.is_empty() {
            let sentence = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.push(Error::forbidden(&path.child("finalizers"), sentence));
        }
    }
    let (generation, before) = (value::int(new, "metadata.generation"), value::int(old, "metadata.generation"));
    if generation.unwrap_or(0) < before.unwrap_or(0) {
        errors.push(Error::invalid(&path.child("generation"), generation.unwrap_or(0), "must not be decremented"));
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let dotted = format!("metadata.{field}");
        errors.extend(checks::immutable(&path.child(field), at(new, &dotted), at(old, &dotted)));
    }
    errors.extend(common(new, &path));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(errors: &[Error]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn new_objects_need_a_name_and_their_scope() {
        let check = names::dns1123_label;
        assert_eq!(lines(&validate(&json!({"metadata": {"name": "a", "namespace": "b"}}), true, check)), Vec::<String>::new());
        assert_eq!(
            lines(&validate(&json!({"metadata": {"namespace": "b"}}), false, check)),
            ["metadata.name: Required value: name or generateName is required", "metadata.namespace: Forbidden: not allowed on this type"]
        );
        let object = json!({"metadata": {"name": "a", "generateName": "a-", "labels": {"x y": "1"}, "annotations": {"B.c/D": "1"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}], "finalizers": ["a.b/c"]}});
        let errors = lines(&validate(&object, false, check));
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].starts_with("metadata.labels: Invalid value: \"x y\": name part must consist of"), "{}", errors[0]);
        assert_eq!(errors[1], "metadata.ownerReferences[0].uid: Required value: must not be empty");
    }

    #[test]
    fn updates_keep_the_identity_and_add_no_finalizers_while_deleting() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}});
        let new = json!({"metadata": {"name": "a", "uid": "2", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b", "c/d"]}});
        assert_eq!(
            lines(&validate_update(&new, &old)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers \
                 []string{\"c/d\"}",
                "metadata.uid: Invalid value: \"2\": field is immutable",
            ]
        );
    }
}
