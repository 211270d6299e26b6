//! Which fields of a pod's spec may change once it exists (upstream: `ValidatePodUpdate`, `ValidatePodEphemeralContainersUpdate`).

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use super::security::APP_ARMOR_CONTAINER;
use super::{MIRROR, scheduling};
use crate::checks::{Errors, sentences};
use crate::value::{self, at, entries, int, items_mut, keep, list, text};

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
    let mut errors = annotations(new, old);
    for kind in ["containers", "initContainers"] {
        if list(at(new, "spec"), kind).len() != list(at(old, "spec"), kind).len() {
            errors.push(Error::forbidden(&path.child(kind), "pod updates may not add or remove containers"));
            return errors;
        }
    }
    let complaints = deadline(new, old, &path.child("activeDeadlineSeconds"));
    let stop = !complaints.is_empty() && int(new, "spec.activeDeadlineSeconds").is_some();
    errors.extend(complaints);
    if stop {
        return errors;
    }
    errors.extend(tolerations(new, old, &path.child("tolerations")));
    errors.extend(gates(new, old, &path.child("schedulingGates")));
    errors.extend(the_rest(new, old, &path));
    errors
}

/// Annotations that pods keep from their creation.
pub fn annotations(new: &Value, old: &Value) -> Errors {
    let path = Path::new("metadata").child("annotations");
    let (after, before) = (at(new, "metadata.annotations"), at(old, "metadata.annotations"));
    let mut errors = Errors::new();
    for (key, value) in entries(old, "metadata.annotations").filter(|(key, value)| after.get(key.as_str()) != Some(*value)) {
        let _ = value;
        errors.extend(kept_annotation(key, "remove or update", &path));
    }
    for (key, _) in entries(new, "metadata.annotations").filter(|(key, _)| before.get(key.as_str()).is_none()) {
        errors.extend(kept_annotation(key, "add", &path));
    }
    errors
}

fn kept_annotation(key: &str, verb: &str, path: &Path) -> Option<Error> {
    let what = match key {
        MIRROR => "mirror pod annotation",
        _ if key.starts_with(APP_ARMOR_CONTAINER) => "AppArmor annotations",
        _ => return None,
    };
    Some(Error::forbidden(&path.key(key), format!("may not {verb} {what}")))
}

fn deadline(new: &Value, old: &Value, path: &Path) -> Errors {
    let field = "spec.activeDeadlineSeconds";
    match (int(new, field), int(old, field)) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => sentences(path, new, names::in_range(new, 0, i32::MAX.into())),
        (Some(new), Some(old)) if new > old => vec![Error::invalid(path, new, "must be less than or equal to previous value")],
        (None, Some(_)) => vec![Error::invalid(path, Value::Null, "must not update from a positive integer to nil value")],
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
    if !all_kept {
        return vec![Error::forbidden(path, "existing toleration can not be modified except its tolerationSeconds")];
    }
    scheduling::tolerations(list(new, "spec.tolerations"), path)
}

fn gates(new: &Value, old: &Value, path: &Path) -> Errors {
    let before: Vec<&str> = list(old, "spec.schedulingGates").iter().map(|gate| text(gate, "name")).collect();
    let after = list(new, "spec.schedulingGates").iter().map(|gate| text(gate, "name")).enumerate();
    let added = after.filter(|(_, name)| !before.contains(name));
    let sentence = |name: &str| format!("only deletion is allowed, but found new scheduling gate '{name}'");
    added.map(|(index, name)| Error::forbidden(&path.index(index).child("name"), sentence(name))).collect()
}

/// Everything else must be as before: the allowed fields are made equal, then the specs compared.
fn the_rest(new: &Value, old: &Value, path: &Path) -> Errors {
    let before = at(old, "spec");
    if value::same(at(new, "spec"), before) {
        return Errors::new();
    }
    let mut munged = at(new, "spec").clone();
    for kind in ["containers", "initContainers"] {
        for (container, old) in items_mut(&mut munged, kind).zip(list(before, kind)) {
            keep(container, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        keep(&mut munged, before, field);
    }
    let grace = "terminationGracePeriodSeconds";
    if int(before, grace).is_some_and(|seconds| seconds < 0) && int(&munged, grace) == Some(1) {
        keep(&mut munged, before, grace);
    }
    let mut errors = Errors::new();
    if !list(before, "schedulingGates").is_empty() {
        errors.extend(narrowed(&mut munged, before, path));
    }
    if !value::same(&munged, before) {
        let detail = format!("pod updates may not change fields other than {}\n{}", ALLOWED.join(","), difference(before, &munged));
        errors.push(Error::forbidden(path, detail));
    }
    errors
}

/// A gated pod may still be narrowed down: the scheduler has not looked at it (KEP-3838). Makes the fields equal to the old ones.
fn narrowed(spec: &mut Value, before: &Value, path: &Path) -> Errors {
    const NODE: &str = "affinity.nodeAffinity";
    let mut errors = Errors::new();
    let lost = entries(before, "nodeSelector").any(|(key, value)| at(spec, "nodeSelector").get(key) != Some(value));
    if lost {
        let sentence = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(Error::invalid(&path.child("nodeSelector"), at(spec, "nodeSelector").clone(), sentence));
    }
    keep(spec, before, "nodeSelector");
    errors.extend(narrowed_affinity(at(spec, NODE), at(before, NODE), &path.dotted(NODE)));
    keep(spec, before, NODE);
    errors
}

fn narrowed_affinity(new: &Value, old: &Value, path: &Path) -> Errors {
    const TERMS: &str = "requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let (after, before) = (list(new, TERMS), list(old, TERMS));
    let here = path.dotted(TERMS);
    if before.is_empty() {
        return Errors::new();
    }
    if after.len() != before.len() {
        let sentence = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return vec![Error::invalid(&here, after.to_vec(), sentence)];
    }
    let grown = |new: &Value, old: &Value, field: &str| {
        let (new, old) = (list(new, field), list(old, field));
        new.len() >= old.len() && new.iter().zip(old).all(|(new, old)| value::same(new, old))
    };
    let empty = |term: &Value| list(term, "matchExpressions").is_empty() && list(term, "matchFields").is_empty();
    let fine = |new: &Value, old: &Value| {
        if empty(old) { empty(new) } else { grown(new, old, "matchExpressions") && grown(new, old, "matchFields") }
    };
    let bad = after.iter().zip(before).enumerate().filter(|(_, (new, old))| !fine(new, old));
    let sentence = "only additions are allowed (no mutations or deletions)";
    bad.map(|(index, (new, _))| Error::invalid(&here.index(index), new.clone(), sentence)).collect()
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

/// Ephemeral containers may be added, nothing else.
pub fn ephemeral_only_added(new: &Value, old: &Value) -> Errors {
    if at(old, "metadata.annotations").get(MIRROR).is_some() {
        return vec![Error::forbidden(&Path::root(), "static pods do not support ephemeral containers")];
    }
    let path = Path::new("spec").child("ephemeralContainers");
    let after = list(new, "spec.ephemeralContainers");
    let changed = list(old, "spec.ephemeralContainers").iter().filter_map(|before| {
        let name = text(before, "name");
        match after.iter().find(|container| text(container, "name") == name) {
            None => Some(format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(found) if !value::same(found, before) => {
                Some(format!("existing ephemeral containers {name:?} may not be changed\n{}", difference(before, found)))
            }
            Some(_) => None,
        }
    });
    changed.map(|sentence| Error::forbidden(&path, sentence)).collect()
}
