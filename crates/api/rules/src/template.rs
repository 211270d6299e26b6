//! What Deployment, ReplicaSet, DaemonSet and StatefulSet share: a selector, a pod template, a count of replicas.

use meta::LabelSelector;
use meta::field::{Error, Path};
use serde_json::Value;

use crate::checks::{Errors, immutable, label_selector, nonnegative};
use crate::pod_spec;
use crate::value::{at, has, text};

/// Replicas, selector and template. `kind` is named in sentences (`deployment`, `statefulset`).
pub fn validate(object: &Value, kind: &str) -> Errors {
    let path = Path::new("spec");
    let (spec, selector) = (at(object, "spec"), at(object, "spec.selector"));
    let mut errors = nonnegative(spec, &path, "replicas");
    let here = path.child("selector");
    if selector.is_null() {
        errors.push(Error::required(&here, ""));
    } else {
        errors.extend(label_selector(selector, &here));
        let empty = ["matchLabels", "matchExpressions"].iter().all(|field| match at(selector, field) {
            Value::Object(map) => map.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => true,
        });
        if empty {
            errors.push(Error::invalid(&here, selector.clone(), format!("empty selector is invalid for {kind}")));
        }
    }
    match LabelSelector::from_object(selector) {
        Err(_) if !selector.is_null() => errors.push(Error::invalid(&here, selector.clone(), "invalid label selector")),
        Err(_) => {}
        Ok(parsed) => errors.extend(template(spec, &parsed, &path.child("template"))),
    }
    errors
}

fn template(spec: &Value, selector: &LabelSelector, path: &Path) -> Errors {
    let template = at(spec, "template");
    let labels = at(template, "metadata.labels");
    let mut errors = Errors::new();
    if !selector.requirements.is_empty() && !selector.matches_object(labels) {
        let sentence = "`selector` does not match template `labels`";
        errors.push(Error::invalid(&path.child("metadata").child("labels"), labels.clone(), sentence));
    }
    errors.extend(pod_spec::validate_template(template, path));
    let here = path.child("spec");
    let restart = text(template, "spec.restartPolicy");
    if restart != "Always" && !restart.is_empty() {
        errors.push(Error::not_supported(&here.child("restartPolicy"), restart, &["Always"]));
    }
    if has(template, "spec.activeDeadlineSeconds") {
        errors.push(Error::forbidden(&here.child("activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicaSet is not Supported"));
    }
    errors
}

/// Where the pods' spec stands.
pub fn spec_path() -> Path {
    Path::new("spec").child("template").child("spec")
}

pub fn selector_unchanged(new: &Value, old: &Value) -> Errors {
    immutable(&Path::new("spec").child("selector"), at(new, "spec.selector"), at(old, "spec.selector"))
}
