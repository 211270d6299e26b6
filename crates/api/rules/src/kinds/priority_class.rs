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
        let builtin = match name {
            "system-cluster-critical" => Some(2_000_000_000),
            "system-node-critical" => Some(2_000_001_000),
            _ => None,
        };
        let mut errors = Errors::new();
        if name.starts_with("system-") {
            let why = match builtin {
                None => Some(format!("{name} is not a known system priority class")),
                Some(wanted) if wanted != value => Some(format!("value of {name} PriorityClass must be {wanted}")),
                Some(_) if flag(object, "globalDefault") => Some(format!("globalDefault of {name} PriorityClass must be false")),
                Some(_) => None,
            };
            if let Some(why) = why {
                let sentence = format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}");
                errors.push(Error::forbidden(&Path::new("metadata").child("name"), sentence));
            }
        } else if value > VALUE_MAX {
            let sentence = format!("maximum allowed value of a user defined priority is {VALUE_MAX}");
            errors.push(Error::forbidden(&Path::new("value"), sentence));
        }
        let policy = text(object, "preemptionPolicy");
        if !matches!(policy, "" | "Never" | "PreemptLowerPriority") {
            errors.push(Error::not_supported(&Path::new("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]));
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
    fn counts_generation(&self) -> bool {
        true
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
}
