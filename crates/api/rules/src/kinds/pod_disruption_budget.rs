//! policy/v1 PodDisruptionBudget.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{at_most_hundred_percent, conditions, int_or_percent, label_selector, nonnegative, supported};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, list, set};
use crate::{Column, Part, Rules};

pub struct PodDisruptionBudget;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Min Available", "string", "Pods that must stay."),
    shown("Max Unavailable", "string", "Pods that may be missing."),
    shown("Allowed Disruptions", "integer", "Pods that may be evicted now."),
    AGE,
];

impl Rules for PodDisruptionBudget {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("policy", "v1", "PodDisruptionBudget")
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}));
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = Vec::new();
        if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
            errors.push(Error::invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set"));
        }
        for field in ["minAvailable", "maxUnavailable"] {
            errors.extend(int_or_percent(spec, &path, field));
            errors.extend(at_most_hundred_percent(spec, &path, field));
        }
        errors.extend(label_selector(at(spec, "selector"), &path.child("selector")));
        errors.extend(supported(spec, &path, "unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"]));
        errors
    }
    fn validate_update(&self, new: &Value, _old: &Value, part: Part) -> Vec<Error> {
        let (status, path) = (at(new, "status"), Path::new("status"));
        if part != Part::Status {
            return Vec::new();
        }
        let mut errors = conditions(list(status, "conditions"), &path.child("conditions"));
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            errors.extend(nonnegative(status, &path, field));
        }
        errors
    }
    fn unconditional_update(&self) -> bool {
        false
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let amount = |field: &str| match at(at(object, "spec"), field) {
            Value::Null => Value::from("N/A"),
            Value::String(text) => text.as_str().into(),
            number => number.to_string().into(),
        };
        vec![
            printing::name(object),
            amount("minAvailable"),
            amount("maxUnavailable"),
            printing::number(object, "status.disruptionsAllowed"),
            printing::age(object, now),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
