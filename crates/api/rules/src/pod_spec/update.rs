//! Which fields of a pod's spec may change once it exists (upstream: `ValidatePodUpdate`).

use meta::field::{Error, Path};
use serde_json::Value;

use crate::checks::Errors;
use crate::value::{self, at, int, items_mut, list, text};

const ALLOWED: [&str; 5] = [
    "`spec.containers[*].image`",
    "`spec.initContainers[*].image`",
    "`spec.activeDeadlineSeconds`",
    "`spec.tolerations` (only additions to existing tolerations)",
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
];

/// `new` and `old` are whole pods.
pub fn validate(new: &Value, old: &Value) -> Errors {
    let path = Path::new("spec");
    for list_name in ["containers", "initContainers"] {
        if list(at(new, "spec"), list_name).len() != list(at(old, "spec"), list_name).len() {
            return vec![Error::forbidden(&path.child(list_name), "pod updates may not add or remove containers")];
        }
    }
    let mut errors = deadline(new, old, &path);
    errors.extend(tolerations(new, old, &path));
    errors.extend(gates(new, old, &path));
    if errors.is_empty() {
        errors.extend(the_rest(new, old, &path));
    }
    errors
}

fn deadline(new: &Value, old: &Value, path: &Path) -> Errors {
    let path = path.child("activeDeadlineSeconds");
    match (int(new, "spec.activeDeadlineSeconds"), int(old, "spec.activeDeadlineSeconds")) {
        (Some(new), Some(old)) if new > old => vec![Error::invalid(&path, new, "must be less than or equal to previous value")],
        (None, Some(_)) => vec![Error::invalid(&path, Value::Null, "must not update from a positive integer to nil value")],
        _ => Errors::new(),
    }
}

/// Tolerations may be added; of those that exist only the seconds may change.
fn tolerations(new: &Value, old: &Value, path: &Path) -> Errors {
    let without_seconds = |toleration: &Value| {
        let mut copy = toleration.clone();
        value::remove(&mut copy, "tolerationSeconds");
        copy
    };
    let after: Vec<Value> = list(new, "spec.tolerations").iter().map(without_seconds).collect();
    let all_kept = list(old, "spec.tolerations").iter().all(|toleration| after.contains(&without_seconds(toleration)));
    let sentence = "existing toleration can not be modified except its tolerationSeconds";
    if all_kept { Errors::new() } else { vec![Error::forbidden(&path.child("tolerations"), sentence)] }
}

fn gates(new: &Value, old: &Value, path: &Path) -> Errors {
    let before: Vec<&str> = list(old, "spec.schedulingGates").iter().map(|gate| text(gate, "name")).collect();
    let added = list(new, "spec.schedulingGates").iter().map(|gate| text(gate, "name")).find(|name| !before.contains(name));
    let sentence = |name: &str| format!("only deletion is allowed, but found new scheduling gate '{name}'");
    added.map(|name| Error::forbidden(&path.child("schedulingGates").index(0), sentence(name))).into_iter().collect()
}

/// Everything else must be as before: the allowed fields are made equal, then the specs compared.
fn the_rest(new: &Value, old: &Value, path: &Path) -> Option<Error> {
    let mut munged = at(new, "spec").clone();
    let before = at(old, "spec");
    for list_name in ["containers", "initContainers"] {
        for (container, old) in items_mut(&mut munged, list_name).zip(list(before, list_name)) {
            value::keep(container, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        value::keep(&mut munged, before, field);
    }
    if !list(before, "schedulingGates").is_empty() {
        // A gated pod may still be narrowed down: the scheduler has not looked at it.
        for field in ["nodeSelector", "affinity"] {
            value::keep(&mut munged, before, field);
        }
    }
    let grace = "terminationGracePeriodSeconds";
    if int(before, grace).is_some_and(|seconds| seconds < 0) && int(&munged, grace) == Some(1) {
        value::keep(&mut munged, before, grace);
    }
    if value::same(&munged, before) {
        return None;
    }
    let detail = format!("pod updates may not change fields other than {}\n{}", ALLOWED.join(","), difference(before, &munged));
    Some(Error::forbidden(path, detail))
}

/// The fields that differ, as lines of `-` and `+`.
fn difference(old: &Value, new: &Value) -> String {
    let keys = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut fields: Vec<String> = keys(old);
    fields.extend(keys(new));
    fields.sort();
    fields.dedup();
    let changed = fields.iter().filter(|field| !value::same(at(old, field), at(new, field)));
    let lines = changed.flat_map(|field| [format!("- \t{field}: {}", at(old, field)), format!("+ \t{field}: {}", at(new, field))]);
    lines.collect::<Vec<_>>().join("\n") + "\n"
}
