//! v1 LimitRange.

use meta::field::{Error, Path};
use meta::{names, quantity};
use serde_json::{Map, Value};

use crate::checks::Errors;
use crate::printing::{self, NAME, shown};
use crate::value::{at, entries, items_mut, list, object_at, text};
use crate::{Column, Rules};

pub struct LimitRange;

const COLUMNS: &[Column] = &[NAME, shown("Created At", "date", "When the object was created.")];

impl Rules for LimitRange {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "LimitRange")
    }
    /// A container's default limit is its maximum, its default request the default limit or else the minimum.
    fn default(&self, object: &mut Value) {
        for item in items_mut(object, "spec.limits").filter(|item| text(item, "type") == "Container") {
            fill(item, "default", "max");
            fill(item, "defaultRequest", "default");
            fill(item, "defaultRequest", "min");
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let mut errors = Errors::new();
        let mut seen = std::collections::BTreeSet::new();
        for (index, item) in list(object, "spec.limits").iter().enumerate() {
            let path = Path::new("spec").child("limits").index(index);
            let kind = text(item, "type");
            if kind.is_empty() {
                errors.push(Error::required(&path.child("type"), ""));
            } else if !seen.insert(kind) {
                errors.push(Error::duplicate(&path.child("type"), kind));
            }
            for (lower, upper) in [
                ("min", "max"),
                ("min", "default"),
                ("min", "defaultRequest"),
                ("defaultRequest", "default"),
                ("default", "max"),
                ("defaultRequest", "max"),
            ] {
                errors.extend(ordered(item, lower, upper, &path));
            }
        }
        errors
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, _now: i64) -> Vec<Value> {
        vec![printing::name(object), printing::created_at(object)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}

fn fill(item: &mut Value, field: &str, from: &str) {
    let source: Map<String, Value> = at(item, from).as_object().cloned().unwrap_or_default();
    if source.is_empty() {
        return;
    }
    if let Some(target) = object_at(item, field) {
        for (name, amount) in source {
            target.entry(name).or_insert(amount);
        }
    }
}

fn ordered(item: &Value, lower: &str, upper: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (name, low) in entries(item, lower) {
        let high = at(item, upper).get(name).and_then(quantity::from_json);
        if let (Some(low), Some(high)) = (quantity::from_json(low), high)
            && low > high
        {
            let sentence = format!("{} value {low} is greater than {} value {high}", words(lower), words(upper));
            errors.push(Error::invalid(&path.child(lower).key(name), low.to_string(), sentence));
        }
    }
    errors
}

fn words(field: &str) -> &str {
    match field {
        "defaultRequest" => "default request",
        other => other,
    }
}
