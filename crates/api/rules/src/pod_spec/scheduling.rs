//! What tells the scheduler where a pod may run: affinity, tolerations, spreading, gates.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, label_name, label_selector, sentences, supported};
use crate::value::{at, entries, has, int, list, text};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// `spec.affinity`.
pub fn affinity(affinity: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (node, here) = (at(affinity, "nodeAffinity"), path.child("nodeAffinity"));
    if has(node, REQUIRED) {
        errors.extend(node_selector(at(node, REQUIRED), &here.child(REQUIRED)));
    }
    for (index, preferred) in list(node, PREFERRED).iter().enumerate() {
        let here = here.child(PREFERRED).index(index);
        errors.extend(weight(preferred, &here));
        // A preference may hold values that no label can have: it matches nothing.
        errors.extend(node_term(at(preferred, "preference"), true, &here.child("preference")));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        errors.extend(pod_affinity(at(affinity, kind), &path.child(kind)));
    }
    errors
}

/// A `NodeSelector`: of a pod, a volume, a resource slice.
pub fn node_selector(selector: &Value, path: &Path) -> Errors {
    let here = path.child("nodeSelectorTerms");
    let terms = list(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        return vec![Error::required(&here, "must have at least one node selector term")];
    }
    terms.iter().enumerate().flat_map(|(index, term)| node_term(term, false, &here.index(index))).collect()
}

fn weight(term: &Value, path: &Path) -> Option<Error> {
    let weight = int(term, "weight").unwrap_or(0);
    (!(1..=100).contains(&weight)).then(|| Error::invalid(&path.child("weight"), weight, "must be in the range 1-100"))
}

fn node_term(term: &Value, any_value: bool, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, expression) in list(term, "matchExpressions").iter().enumerate() {
        errors.extend(node_expression(expression, any_value, &path.child("matchExpressions").index(index)));
    }
    for (index, field) in list(term, "matchFields").iter().enumerate() {
        errors.extend(node_field(field, &path.child("matchFields").index(index)));
    }
    errors
}

fn node_expression(expression: &Value, any_value: bool, path: &Path) -> Errors {
    let values = list(expression, "values");
    let here = path.child("values");
    let mut errors = Errors::new();
    match text(expression, "operator") {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(Error::required(&here, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.push(Error::forbidden(&here, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.push(Error::required(&here, "must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    errors.extend(label_name(text(expression, "key"), &path.child("key")));
    if !any_value {
        for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
            errors.extend(sentences(&here.index(index), value, names::label_value(value)));
        }
    }
    errors
}

fn node_field(field: &Value, path: &Path) -> Errors {
    let values = list(field, "values");
    let mut errors = Errors::new();
    match text(field, "operator") {
        "In" | "NotIn" if values.len() != 1 => {
            let sentence = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(Error::required(&path.child("values"), sentence));
        }
        "In" | "NotIn" => {}
        other => errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    let key = text(field, "key");
    if key != "metadata.name" {
        errors.push(Error::invalid(&path.child("key"), key, "not a valid field selector key"));
        return errors;
    }
    for (index, name) in values.iter().filter_map(Value::as_str).enumerate() {
        errors.extend(sentences(&path.child("values").index(index), name, names::dns1123_subdomain(name)));
    }
    errors
}

fn pod_affinity(affinity: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, term) in list(affinity, REQUIRED).iter().enumerate() {
        errors.extend(pod_term(term, &path.child(REQUIRED).index(index)));
    }
    for (index, preferred) in list(affinity, PREFERRED).iter().enumerate() {
        let here = path.child(PREFERRED).index(index);
        errors.extend(weight(preferred, &here));
        errors.extend(pod_term(at(preferred, "podAffinityTerm"), &here.child("podAffinityTerm")));
    }
    errors
}

fn pod_term(term: &Value, path: &Path) -> Errors {
    let mut errors = label_selector(at(term, "labelSelector"), &path.child("labelSelector"));
    errors.extend(label_selector(at(term, "namespaceSelector"), &path.child("namespaceSelector")));
    for name in list(term, "namespaces").iter().filter_map(Value::as_str) {
        errors.extend(sentences(&path.child("namespace"), name, names::dns1123_label(name)));
    }
    errors.extend(label_keys(term, path));
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.push(Error::required(&path.child("topologyKey"), "can not be empty"));
    }
    errors.extend(label_name(key, &path.child("topologyKey")));
    errors
}

/// `matchLabelKeys` and `mismatchLabelKeys` of a term of pod affinity.
fn label_keys(term: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = list(term, field);
        if !keys.is_empty() && !has(term, "labelSelector") {
            errors.push(Error::forbidden(&path.child(field), "must not be specified when labelSelector is not set"));
            continue;
        }
        for (index, key) in keys.iter().filter_map(Value::as_str).enumerate() {
            errors.extend(label_name(key, &path.child(field).index(index)));
        }
    }
    // The server itself appends an expression per key, so the second one of a key is the client's.
    let keys: Vec<&str> = list(term, "matchLabelKeys").iter().filter_map(Value::as_str).collect();
    let mut seen: BTreeSet<&str> = entries(term, "labelSelector.matchLabels").map(|(key, _)| key.as_str()).collect();
    for expression in list(term, "labelSelector.matchExpressions") {
        let key = text(expression, "key");
        if let Some(index) = keys.iter().rposition(|given| *given == key).filter(|_| seen.contains(key)) {
            errors.push(Error::invalid(&path.index(index), key, "exists in both matchLabelKeys and labelSelector"));
        }
        seen.insert(key);
    }
    for (index, key) in keys.into_iter().enumerate() {
        if list(term, "mismatchLabelKeys").iter().any(|other| other == key) {
            let here = path.child("matchLabelKeys").index(index);
            errors.push(Error::invalid(&here, key, "exists in both matchLabelKeys and mismatchLabelKeys"));
        }
    }
    errors
}

pub fn tolerations(tolerations: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        let here = path.index(index);
        let (key, operator, value) = (text(toleration, "key"), text(toleration, "operator"), text(toleration, "value"));
        if !key.is_empty() {
            errors.extend(label_name(key, &here.child("key")));
        } else if operator != "Exists" {
            let sentence = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(Error::invalid(&here.child("operator"), operator, sentence));
        }
        if int(toleration, "tolerationSeconds").is_some() && text(toleration, "effect") != "NoExecute" {
            let sentence = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(Error::invalid(&here.child("effect"), text(toleration, "effect"), sentence));
        }
        match operator {
            "Equal" | "" => {
                let complaints = names::label_value(value);
                if !complaints.is_empty() {
                    errors.push(Error::invalid(&here.child("operator"), value, complaints.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                errors.push(Error::invalid(&here.child("operator"), value, "value must be empty when `operator` is 'Exists'"));
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

pub fn spread(constraints: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let here = path.index(index);
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.push(Error::invalid(&here.child("maxSkew"), skew, "must be greater than zero"));
        }
        let (key, when) = (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if key.is_empty() {
            errors.push(Error::required(&here.child("topologyKey"), "can not be empty"));
        }
        if !matches!(when, "DoNotSchedule" | "ScheduleAnyway") {
            errors.push(Error::not_supported(&here.child("whenUnsatisfiable"), when, &["DoNotSchedule", "ScheduleAnyway"]));
        }
        let same = |other: &&Value| (text(other, "topologyKey"), text(other, "whenUnsatisfiable")) == (key, when);
        if constraints.iter().skip(index + 1).any(|other| same(&other)) {
            errors.push(Error::duplicate(&here.child("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {when}}}")));
        }
        errors.extend(min_domains(constraint, when, &here.child("minDomains")));
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            errors.extend(supported(constraint, &here, field, &["Honor", "Ignore"]));
        }
        errors.extend(spread_keys(constraint, &here.child("matchLabelKeys")));
        errors.extend(label_selector(at(constraint, "labelSelector"), &here.child("labelSelector")));
    }
    errors
}

fn min_domains(constraint: &Value, when: &str, path: &Path) -> Errors {
    let Some(domains) = int(constraint, "minDomains") else { return Errors::new() };
    let mut errors = Errors::new();
    if domains <= 0 {
        errors.push(Error::invalid(path, domains, "must be greater than zero"));
    }
    if when != "DoNotSchedule" {
        let sentence = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
        errors.push(Error::invalid(path, domains, sentence));
    }
    errors
}

fn spread_keys(constraint: &Value, path: &Path) -> Errors {
    let keys = list(constraint, "matchLabelKeys");
    let mut errors = Errors::new();
    if keys.is_empty() {
        return errors;
    }
    if !has(constraint, "labelSelector") {
        errors.push(Error::forbidden(path, "must not be specified when labelSelector is not set"));
    }
    for (index, key) in keys.iter().filter_map(Value::as_str).enumerate() {
        let here = path.index(index);
        errors.extend(label_name(key, &here));
        // The server appends one expression per key: what is there beside it is the client's.
        let labels = at(constraint, "labelSelector.matchLabels").get(key).is_some();
        let expressions = list(constraint, "labelSelector.matchExpressions").iter().filter(|expression| text(expression, "key") == key);
        if labels || expressions.count() > 1 {
            errors.push(Error::invalid(&here, key, "exists in both matchLabelKeys and labelSelector"));
        }
    }
    errors
}

/// Readiness gates and scheduling gates.
pub fn gates(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, gate) in list(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        let here = path.child("readinessGates").index(index).child("conditionType");
        errors.extend(sentences(&here, kind, names::qualified_name(kind)));
    }
    let mut seen = BTreeSet::new();
    for (index, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let (name, here) = (text(gate, "name"), path.child("schedulingGates").index(index));
        errors.extend(sentences(&here, name, names::qualified_name(name)));
        if !seen.insert(name) {
            errors.push(Error::duplicate(&here, name));
        }
    }
    errors
}

/// Adds to each label selector what `matchLabelKeys` and `mismatchLabelKeys` mean for a pod with these labels, once at its creation
/// (KEP-3633, KEP-3243).
pub fn apply_label_keys(pod: &mut Value) {
    let labels = at(pod, "metadata.labels").clone();
    for kind in ["podAffinity", "podAntiAffinity"] {
        let base = format!("spec.affinity.{kind}");
        for term in crate::value::items_mut(pod, &format!("{base}.{REQUIRED}")) {
            merge_keys(term, &labels);
        }
        for preferred in crate::value::items_mut(pod, &format!("{base}.{PREFERRED}")) {
            if let Some(term) = crate::value::sub(preferred, "podAffinityTerm") {
                merge_keys(term, &labels);
            }
        }
    }
    for constraint in crate::value::items_mut(pod, "spec.topologySpreadConstraints") {
        merge_keys(constraint, &labels);
    }
}

fn merge_keys(term: &mut Value, labels: &Value) {
    if !has(term, "labelSelector") {
        return;
    }
    let mut added = Vec::new();
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in list(term, field).iter().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key).and_then(Value::as_str) {
                added.push(serde_json::json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if added.is_empty() {
        return;
    }
    if let Some(selector) = crate::value::object_at(term, "labelSelector")
        && let Some(expressions) = selector.entry("matchExpressions").or_insert_with(|| Value::Array(Vec::new())).as_array_mut()
    {
        expressions.extend(added);
    }
}
