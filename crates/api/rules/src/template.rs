//! What the workload kinds share: defaults, a selector, a pod template, replicas, the columns of their pods.

use meta::LabelSelector;
use meta::field::{Error, Path};
use serde_json::Value;

use crate::checks::{Errors, any, immutable, label_selector, nonnegative};
use crate::pod_spec::{self, defaults};
use crate::printing::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, shown};
use crate::value::{at, has, int, list, sub, text};
use crate::{Column, printing};

/// Names and images of the containers, the last columns of `-o wide` before the selector.
pub const POD_COLUMNS: [Column; 2] = [CONTAINERS, IMAGES];

/// How a kind is named in complaints.
pub struct Words {
    /// `deployment`.
    pub selector: &'static str,
    /// `ReplicaSet`: upstream checks a Deployment's template with that of its ReplicaSets.
    pub kind: &'static str,
}

pub const DEPLOYMENT: Words = Words { selector: "deployment", kind: "ReplicaSet" };
pub const DAEMON_SET: Words = Words { selector: "daemonset", kind: "DaemonSet" };
pub const STATEFUL_SET: Words = Words { selector: "statefulset", kind: "StatefulSet" };

/// What ReplicaSets and ReplicationControllers show.
pub const REPLICAS: &[Column] = &[
    NAME,
    shown("Desired", "integer", "Pods wanted."),
    shown("Current", "integer", "Pods that exist."),
    shown("Ready", "integer", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The cells of [`REPLICAS`].
pub fn replicas_cells(object: &Value, now: i64, selector: Value) -> Vec<Value> {
    let [containers, images] = cells(at(object, "spec.template"));
    vec![
        printing::name(object),
        printing::number(object, "spec.replicas"),
        printing::number(object, "status.replicas"),
        printing::number(object, "status.readyReplicas"),
        printing::age(object, now),
        containers,
        images,
        selector,
    ]
}

/// Their selectable field.
pub const REPLICAS_FIELDS: &[&str] = &["status.replicas"];

pub fn replicas_fields(object: &Value) -> Vec<(&'static str, String)> {
    REPLICAS_FIELDS.iter().map(|field| (*field, int(object, field).unwrap_or(0).to_string())).collect()
}

/// Their counts.
pub fn replicas_status(object: &Value) -> Errors {
    let mut errors = status_counts(object, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"], "replicas");
    errors.extend(available_are_ready(object));
    errors
}

/// Fills in the template at `spec.template`.
pub fn default(spec: &mut Value) {
    if let Some(template) = sub(spec, "template") {
        defaults::template(template);
    }
}

/// The selector: given, wellformed, not empty. `None` where it is unusable.
pub fn selector(spec: &Value, words: &Words, errors: &mut Errors) -> Option<LabelSelector> {
    let selector = at(spec, "selector");
    let here = Path::new("spec").child("selector");
    if selector.is_null() {
        errors.push(Error::required(&here, ""));
        return Some(LabelSelector::nothing());
    }
    errors.extend(label_selector(selector, &here));
    if !any(at(selector, "matchLabels")) && !any(at(selector, "matchExpressions")) {
        errors.push(Error::invalid(&here, selector.clone(), format!("empty selector is invalid for {}", words.selector)));
    }
    let parsed = LabelSelector::from_object(selector).ok();
    if parsed.is_none() {
        errors.push(Error::invalid(&here, selector.clone(), "invalid label selector"));
    }
    parsed
}

/// The template against its selector: the pods must be the workload's own and run for ever.
pub fn validate(spec: &Value, selector: &LabelSelector, words: &Words) -> Errors {
    let path = Path::new("spec").child("template");
    let template = at(spec, "template");
    let labels = at(template, "metadata.labels");
    let mut errors = Errors::new();
    if !selector.is_everything() && !selector.matches_object(labels) {
        errors.push(does_not_match(labels, &path));
    }
    errors.extend(pod_spec::validate_template(template, &path));
    errors.extend(runs_forever(template, words.kind, &path));
    errors
}

pub fn does_not_match(labels: &Value, template: &Path) -> Error {
    let here = template.child("metadata").child("labels");
    Error::invalid(&here, labels.clone(), "`selector` does not match template `labels`")
}

pub fn runs_forever(template: &Value, kind: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let restart = text(template, "spec.restartPolicy");
    if restart != "Always" {
        errors.push(Error::not_supported(&path.dotted("spec.restartPolicy"), restart, &["Always"]));
    }
    if has(template, "spec.activeDeadlineSeconds") {
        let sentence = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(Error::forbidden(&path.dotted("spec.activeDeadlineSeconds"), sentence));
    }
    errors
}

/// Replicas, selector and template of a kind that has all three.
pub fn validate_spec(object: &Value, words: &Words) -> Errors {
    let spec = at(object, "spec");
    let mut errors = nonnegative(spec, &Path::new("spec"), "replicas");
    if let Some(selector) = selector(spec, words, &mut errors) {
        errors.extend(validate(spec, &selector, words));
    }
    errors
}

pub fn selector_unchanged(new: &Value, old: &Value) -> Errors {
    immutable(&Path::new("spec").child("selector"), at(new, "spec.selector"), at(old, "spec.selector"))
}

/// Counts in `status`: none negative, and none of `parts` above `whole`.
pub fn status_counts(object: &Value, parts: &[&str], whole: &str) -> Errors {
    let (status, path) = (at(object, "status"), Path::new("status"));
    let count = |field: &str| int(status, field).unwrap_or(0);
    let all = std::iter::once(&whole).chain(parts).chain(&["observedGeneration"]);
    let mut errors: Errors = all.flat_map(|field| nonnegative(status, &path, field)).collect();
    for field in parts.iter().filter(|field| count(field) > count(whole)) {
        errors.push(Error::invalid(&path.child(field), count(field), format!("cannot be greater than status.{whole}")));
    }
    errors
}

/// Available pods are ready ones.
pub fn available_are_ready(object: &Value) -> Option<Error> {
    let count = |field: &str| int(at(object, "status"), field).unwrap_or(0);
    let (available, ready) = (count("availableReplicas"), count("readyReplicas"));
    let here = Path::new("status").child("availableReplicas");
    (available > ready).then(|| Error::invalid(&here, available, "cannot be greater than readyReplicas"))
}

/// `status.collisionCount` counts up.
pub fn collisions_counted(new: &Value, old: &Value) -> Option<Error> {
    let count = |object: &Value| int(object, "status.collisionCount");
    let fewer = match (count(new), count(old)) {
        (None, Some(_)) => true,
        (Some(new), Some(old)) => new < old,
        (_, None) => false,
    };
    let here = Path::new("status").child("collisionCount");
    fewer.then(|| Error::invalid(&here, count(new).unwrap_or(0), "cannot be decremented"))
}

/// Sentences about the template at `spec.template`, where it is new or changed.
pub fn warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let template = at(object, "spec.template");
    if old.is_some_and(|old| at(old, "spec.template") == template) {
        return Vec::new();
    }
    pod_spec::warnings::of(template, &Path::new("spec").child("template"))
}

/// The names and the images of the containers.
pub fn cells(template: &Value) -> [Value; 2] {
    let join = |field: &str| {
        let words: Vec<&str> = list(template, "spec.containers").iter().map(|container| text(container, field)).collect();
        Value::from(words.join(","))
    };
    [join("name"), join("image")]
}

/// `2/3`: ready pods of those wanted.
pub fn ready_cell(object: &Value) -> Value {
    let count = |path: &str| int(object, path).unwrap_or(0);
    format!("{}/{}", count("status.readyReplicas"), count("spec.replicas")).into()
}

/// The selector as text.
pub fn selector_cell(object: &Value) -> Value {
    printing::selector(at(object, "spec.selector"))
}
