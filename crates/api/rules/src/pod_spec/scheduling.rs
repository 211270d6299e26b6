//! What tells the scheduler where a pod may run: node selector, affinity, tolerations, spreading, gates.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, label_selector, labels, sentences};
use crate::value::{at, has, int, list, text};

pub fn validate(spec: &Value, path: &Path) -> Errors {
    let mut errors = labels(at(spec, "nodeSelector"), &path.child("nodeSelector"));
    errors.extend(node_affinity(at(spec, "affinity.nodeAffinity"), &path.child("affinity").child("nodeAffinity")));
    for kind in ["podAffinity", "podAntiAffinity"] {
        let term_list = at(at(spec, "affinity"), kind);
        errors.extend(pod_affinity(term_list, &path.child("affinity").child(kind)));
    }
    errors.extend(tolerations(list(spec, "tolerations"), &path.child("tolerations")));
    errors.extend(spread(spec, path));
    for (index, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        errors.extend(sentences(&path.child("schedulingGates").index(index), name, names::qualified_name(name)));
    }
    errors
}

fn node_affinity(affinity: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if has(affinity, "requiredDuringSchedulingIgnoredDuringExecution") {
        let here = path.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
        let terms = list(affinity, "requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(Error::required(&here, "must have at least one node selector term"));
        }
        for (index, term) in terms.iter().enumerate() {
            errors.extend(node_term(term, &here.index(index)));
        }
    }
    for (index, preferred) in list(affinity, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        let here = path.child("preferredDuringSchedulingIgnoredDuringExecution").index(index);
        errors.extend(weight(preferred, &here));
        errors.extend(node_term(at(preferred, "preference"), &here.child("preference")));
    }
    errors
}

fn weight(term: &Value, path: &Path) -> Errors {
    let weight = int(term, "weight").unwrap_or(0);
    if (1..=100).contains(&weight) {
        Errors::new()
    } else {
        vec![Error::invalid(&path.child("weight"), weight, "must be in the range 1-100")]
    }
}

fn node_term(term: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, expression) in list(term, "matchExpressions").iter().enumerate() {
        let here = path.child("matchExpressions").index(index);
        let values = list(expression, "values").len();
        match text(expression, "operator") {
            "In" | "NotIn" if values == 0 => {
                errors.push(Error::required(&here.child("values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                errors.push(Error::forbidden(&here.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "Gt" | "Lt" if values != 1 => {
                errors.push(Error::required(&here.child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(Error::invalid(&here.child("operator"), other, "not a valid selector operator")),
        }
        let key = text(expression, "key");
        errors.extend(sentences(&here.child("key"), key, names::qualified_name(key)));
    }
    for (index, field) in list(term, "matchFields").iter().enumerate() {
        let here = path.child("matchFields").index(index);
        if text(field, "key") != "metadata.name" {
            errors.push(Error::invalid(&here.child("key"), text(field, "key"), "not a valid field selector key"));
        }
        if list(field, "values").len() != 1 {
            let sentence = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(Error::required(&here.child("values"), sentence));
        }
    }
    errors
}

fn pod_affinity(affinity: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, term) in list(affinity, "requiredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        errors.extend(pod_term(term, &path.child("requiredDuringSchedulingIgnoredDuringExecution").index(index)));
    }
    for (index, preferred) in list(affinity, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        let here = path.child("preferredDuringSchedulingIgnoredDuringExecution").index(index);
        errors.extend(weight(preferred, &here));
        errors.extend(pod_term(at(preferred, "podAffinityTerm"), &here.child("podAffinityTerm")));
    }
    errors
}

fn pod_term(term: &Value, path: &Path) -> Errors {
    let mut errors = label_selector(at(term, "labelSelector"), &path.child("labelSelector"));
    match text(term, "topologyKey") {
        "" => errors.push(Error::required(&path.child("topologyKey"), "can not be empty")),
        key => errors.extend(sentences(&path.child("topologyKey"), key, names::qualified_name(key))),
    }
    errors
}

pub fn tolerations(tolerations: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        let here = path.index(index);
        let (key, operator, value) = (text(toleration, "key"), text(toleration, "operator"), text(toleration, "value"));
        if !key.is_empty() {
            errors.extend(sentences(&here.child("key"), key, names::qualified_name(key)));
        } else if operator != "Exists" {
            let sentence = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(Error::invalid(&here.child("operator"), operator, sentence));
        }
        if int(toleration, "tolerationSeconds").is_some() && text(toleration, "effect") != "NoExecute" {
            let sentence = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(Error::invalid(&here.child("effect"), text(toleration, "effect"), sentence));
        }
        match operator {
            "Equal" | "" => errors.extend(sentences(&here.child("operator"), value, names::label_value(value))),
            "Exists" if !value.is_empty() => {
                let sentence = "value must be empty when `operator` is 'Exists'";
                errors.push(Error::invalid(&here.child("operator"), toleration.clone(), sentence));
            }
            "Exists" => {}
            other => errors.push(Error::not_supported(&here.child("operator"), other, &["Equal", "Exists"])),
        }
        let effect = text(toleration, "effect");
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.push(Error::not_supported(&here.child("effect"), effect, &EFFECTS));
        }
    }
    errors
}

/// The effects of a taint.
pub const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

fn spread(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let here = path.child("topologySpreadConstraints").index(index);
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.push(Error::invalid(&here.child("maxSkew"), skew, "must be greater than zero"));
        }
        if text(constraint, "topologyKey").is_empty() {
            errors.push(Error::required(&here.child("topologyKey"), "can not be empty"));
        }
        let when = text(constraint, "whenUnsatisfiable");
        if !matches!(when, "DoNotSchedule" | "ScheduleAnyway") {
            errors.push(Error::not_supported(&here.child("whenUnsatisfiable"), when, &["DoNotSchedule", "ScheduleAnyway"]));
        }
        errors.extend(label_selector(at(constraint, "labelSelector"), &here.child("labelSelector")));
    }
    errors
}
