//! scheduling.k8s.io/v1 PriorityClass.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, immutable};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, flag, int, keep, name, set_default, set_default_text, text};
use crate::{Column, Part, Rules};

pub struct PriorityClass;

/// The highest value that users may give.
const VALUE_MAX: i64 = 1_000_000_000;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Value", "integer", "Priority of the class's pods."),
    shown("Global-Default", "boolean", "Whether pods without a class get this one."),
    AGE,
    shown("PreemptionPolicy", "string", "Whether its pods may push out others."),
];

impl Rules for PriorityClass {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("scheduling.k8s.io", "v1", "PriorityClass")
    }
    fn default(&self, object: &mut Value) {
        set_default_text(object, "preemptionPolicy", "PreemptLowerPriority");
        set_default(object, "value", 0);
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, _part: Part) {
        if text(new, "preemptionPolicy").is_empty() {
            keep(new, old, "preemptionPolicy");
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (name, value) = (name(object), int(object, "value").unwrap_or(0));
        let builtin = matches!((name, value), ("system-cluster-critical", 2_000_000_000) | ("system-node-critical", 2_000_001_000));
        let mut errors = Errors::new();
        if name.starts_with("system-") && !builtin {
            let sentence =
                "priority class names with 'system-' prefix are reserved for system use only. error: only system classes may use it";
            errors.push(Error::forbidden(&Path::new("metadata").child("name"), sentence));
        }
        if value > VALUE_MAX && !builtin {
            let sentence = format!("maximum allowed value of a user defined priority is {VALUE_MAX}");
            errors.push(Error::forbidden(&Path::new("value"), sentence));
        }
        let policy = text(object, "preemptionPolicy");
        if !matches!(policy, "" | "Never" | "PreemptLowerPriority") {
            errors.push(Error::not_supported(&Path::new("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]));
        }
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Error> {
        let mut errors = Errors::new();
        if int(new, "value") != int(old, "value") {
            errors.push(Error::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
        errors.extend(immutable(&Path::new("preemptionPolicy"), at(new, "preemptionPolicy"), at(old, "preemptionPolicy")));
        errors
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![
            printing::name(object),
            printing::number(object, "value"),
            flag(object, "globalDefault").into(),
            printing::age(object, now),
            text(object, "preemptionPolicy").into(),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}
