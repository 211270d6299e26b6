//! core/v1 ResourceQuota.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::{names, quantity};
use serde_json::{Value, json};

use crate::checks::Errors;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, entries, list, set, text};
use crate::{Column, Part, Rules, resources};

pub struct ResourceQuota;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Request", "string", "Used and allowed, of what is requested and counted."),
    shown("Limit", "string", "Used and allowed, of limits."),
    AGE,
];

const SCOPES: [&str; 7] =
    ["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating", "VolumeAttributesClass"];

impl Rules for ResourceQuota {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "ResourceQuota")
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = amounts(spec, "hard", &path);
        errors.extend(scopes(spec, &path.child("scopes")));
        errors.extend(selector(spec, &path.child("scopeSelector")));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part != Part::Main {
            let (status, path) = (at(new, "status"), Path::new("status"));
            return [amounts(status, "hard", &path), amounts(status, "used", &path)].concat();
        }
        let set = |object: &Value| -> BTreeSet<String> { list(object, "spec.scopes").iter().map(ToString::to_string).collect() };
        let path = Path::new("spec").child("scopes");
        if set(new) == set(old) { Vec::new() } else { vec![Error::invalid(&path, at(new, "spec.scopes").clone(), "field is immutable")] }
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let used = at(object, "status.used");
        let of = |limits: bool| {
            let names = entries(object, "status.hard").filter(|(name, _)| name.starts_with("limits") == limits);
            let used = |name: &str| used.get(name).and_then(Value::as_str).unwrap_or("0");
            let pairs = names.map(|(name, hard)| format!("{name}: {}/{}", used(name), hard.as_str().unwrap_or_default()));
            Value::from(pairs.collect::<Vec<_>>().join(", "))
        };
        vec![text(object, "metadata.name").into(), of(false), of(true), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

fn amounts(object: &Value, field: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (name, amount) in entries(object, field) {
        let here = path.child(field).key(name);
        errors.extend(resources::quota_name(name, &here));
        if let Some(amount) = quantity::from_json(amount) {
            errors.extend(resources::amount(name, amount, &here));
        }
    }
    errors
}

/// Whether a scope can bound the resource.
fn applies(scope: &str, resource: &str) -> bool {
    let computed = matches!(resource, "cpu" | "memory" | "limits.cpu" | "limits.memory" | "requests.cpu" | "requests.memory");
    match scope {
        "BestEffort" => resource == "pods",
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            resource == "pods" || computed
        }
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

/// Standard resources that are bounded but that the scope does not know.
fn misapplied(scope: &str, spec: &Value) -> usize {
    entries(spec, "hard").filter(|(name, _)| resources::is_quota_name(name) && !applies(scope, name)).count()
}

fn conflict(names: &[&str]) -> bool {
    let both = |one: &str, other: &str| names.contains(&one) && names.contains(&other);
    both("BestEffort", "NotBestEffort") || both("Terminating", "NotTerminating")
}

fn scopes(spec: &Value, path: &Path) -> Errors {
    let names: Vec<&str> = list(spec, "scopes").iter().filter_map(Value::as_str).collect();
    let invalid = |sentence: &str| Error::invalid(path, at(spec, "scopes").clone(), sentence);
    let mut errors = Errors::new();
    for name in &names {
        if !SCOPES.contains(name) {
            errors.push(invalid("unsupported scope"));
        }
        errors.extend((0..misapplied(name, spec)).map(|_| invalid("unsupported scope applied to resource")));
    }
    if conflict(&names) {
        errors.push(invalid("conflicting scopes"));
    }
    errors
}

fn selector(spec: &Value, path: &Path) -> Errors {
    const EXISTS: &str = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                          ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
    let here = path.child("matchExpressions");
    let expressions = list(spec, "scopeSelector.matchExpressions");
    let mut errors = Errors::new();
    for expression in expressions {
        let (scope, operator) = (text(expression, "scopeName"), text(expression, "operator"));
        if !SCOPES.contains(&scope) {
            errors.push(Error::invalid(&here.child("scopeName"), scope, "unsupported scope"));
        }
        let whole = at(spec, "scopeSelector");
        errors.extend((0..misapplied(scope, spec)).map(|_| Error::invalid(&here, whole.clone(), "unsupported scope applied to resource")));
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope) && operator != "Exists" {
            errors.push(Error::invalid(&here.child("operator"), operator, EXISTS));
        }
        let values = list(expression, "values");
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let sentence = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(Error::required(&here.child("values"), sentence));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let sentence = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(Error::invalid(&here.child("values"), values.to_vec(), sentence));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(Error::invalid(&here.child("operator"), other, "not a valid selector operator")),
        }
    }
    let names: Vec<&str> = expressions.iter().map(|expression| text(expression, "scopeName")).collect();
    if conflict(&names) {
        errors.push(Error::invalid(&here, at(spec, "scopes").clone(), "conflicting scopes"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_tell_requests_from_limits_and_bad_bounds_are_named() {
        let object = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "10", "limits.cpu": "2"}, "used": {"pods": "3"}}});
        assert_eq!(ResourceQuota.cells(&object, 0)[1..3], [json!("pods: 3/10"), json!("limits.cpu: 0/2")]);
        let object = json!({"spec": {"hard": {"pods": "-1"}, "scopes": ["Best"]}});
        let found: Vec<String> = ResourceQuota.validate(&object).iter().map(ToString::to_string).collect();
        let expected = [
            "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
            "spec.scopes: Invalid value: [\"Best\"]: unsupported scope",
        ];
        assert_eq!(found, expected);
        let cases = [
            (
                json!({"hard": {"many": "1"}}),
                "spec.hard[many]: Invalid value: \"many\": must be a standard resource type or fully qualified",
            ),
            (json!({"hard": {"pods": "500m"}}), "spec.hard[pods]: Invalid value: \"500m\": must be an integer"),
            (
                json!({"hard": {"pods": "1"}, "scopes": ["Terminating", "NotTerminating"]}),
                "spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes",
            ),
            (
                json!({"hard": {"secrets": "1"}, "scopes": ["BestEffort"]}),
                "spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource",
            ),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = ResourceQuota.validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect();
            assert!(found.contains(&expected.to_owned()), "{spec}: {found:?}");
        }
    }
}
