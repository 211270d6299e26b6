//! Objects that `kubectl apply` managed on the client's side: its annotation says what server-side apply may take over.

use serde_json::Value;

use super::compare::compare;
use super::fields;
use super::node::Node;
use super::set::Set;

/// The only field manager for which the annotation counts.
pub(super) const KUBECTL: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Bytes that all annotations of an object may have.
const ANNOTATION_BYTES_MAX: usize = 256 * 1024;

fn annotation(object: &Value) -> Option<&str> {
    let annotation = object.get("metadata")?.get("annotations")?.get(ANNOTATION)?.as_str()?;
    (!annotation.is_empty()).then_some(annotation)
}

/// The configuration in the annotation, if it is of this version.
pub(super) fn configuration(live: &Value, api_version: &str) -> Option<Value> {
    let last: Value = serde_json::from_str(annotation(live)?).ok()?;
    (last.get("apiVersion")?.as_str()? == api_version).then_some(last)
}

/// The fields of `last` that still have in `live` the value that kubectl gave them.
pub(super) fn untouched<'a>(last: &'a Value, live: &'a Value, node: Node<'a>) -> Set<'a> {
    let changes = compare(last, live, node);
    fields::of(last, node).difference(&changes.modified).difference(&changes.added).difference(&changes.removed)
}

/// Keeps the annotation, where there is one, equal to what was applied.
pub(super) fn refresh(object: &mut Value, applied: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut applied = applied.clone();
    if let Some(annotations) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    annotations.insert(ANNOTATION.to_owned(), Value::String(format!("{applied}\n")));
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > ANNOTATION_BYTES_MAX {
        annotations.remove(ANNOTATION);
    }
}
