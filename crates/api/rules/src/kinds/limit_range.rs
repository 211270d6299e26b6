//! v1 LimitRange.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::{Quantity, names, quantity};
use serde_json::{Map, Value};

use crate::checks::{Errors, any, sentences};
use crate::printing::{self, NAME, shown};
use crate::value::{at, entries, items_mut, list, object_at, text};
use crate::{Column, Rules, resources};

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
        let mut seen = BTreeSet::new();
        for (index, item) in list(object, "spec.limits").iter().enumerate() {
            let path = Path::new("spec").child("limits").index(index);
            let kind = text(item, "type");
            errors.extend(type_name(kind, &path.child("type")));
            if !seen.insert(kind) {
                errors.push(Error::duplicate(&path.child("type"), kind));
            }
            errors.extend(resource_names(item, kind, &path));
            let keys: BTreeSet<&String> = FIELDS.iter().flat_map(|field| entries(item, field)).map(|(key, _)| key).collect();
            for key in keys {
                errors.extend(amounts(item, key, kind == "Pod", &path));
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

const FIELDS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

fn type_name(kind: &str, path: &Path) -> Errors {
    let errors = sentences(path, kind, names::qualified_name(kind));
    if errors.is_empty() && !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
        return vec![Error::invalid(path, kind, "must be a standard limit type or fully qualified")];
    }
    errors
}

fn resource_names(item: &Value, kind: &str, path: &Path) -> Errors {
    let check = if matches!(kind, "Pod" | "Container") { resources::container_name } else { resources::name };
    let mut errors = Errors::new();
    for field in FIELDS {
        if kind == "Pod" && field.starts_with("default") {
            if any(at(item, field)) {
                errors.push(Error::forbidden(&path.child(field), "may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        errors.extend(entries(item, field).flat_map(|(name, _)| check(name, &path.child(field).key(name))));
    }
    let storage = |field: &str| at(item, field).get("storage").is_some();
    if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
        let sentence = "either minimum or maximum storage value is required, but neither was provided";
        errors.push(Error::required(&path.child("limits"), sentence));
    }
    errors
}

/// The amounts of one resource against each other. A pod has no defaults.
fn amounts(item: &Value, key: &str, of_pod: bool, path: &Path) -> Errors {
    let amount = |field: &str| at(item, field).get(key).and_then(quantity::from_json).filter(|_| !of_pod || !field.starts_with("default"));
    let [max, min, default, request, ratio] = FIELDS.map(amount);
    let mut errors = Errors::new();
    let mut invalid = |field: &str, value: Quantity, sentence: String| {
        errors.push(Error::invalid(&path.child(field).key(key), value.to_string(), sentence));
    };
    // The field that is blamed, the amount that is shown, the smaller and the larger one with their words.
    let pairs = [
        ("min", min, ("min", min), ("max", max)),
        ("defaultRequest", request, ("min", min), ("default request", request)),
        ("defaultRequest", request, ("default request", request), ("max", max)),
        ("defaultRequest", request, ("default request", request), ("default limit", default)),
        ("default", min, ("min", min), ("default", default)),
        ("default", max, ("default", default), ("max", max)),
    ];
    for (field, shown, (low_word, low), (high_word, high)) in pairs {
        if let (Some(shown), Some(low), Some(high)) = (shown, low, high)
            && low > high
        {
            invalid(field, shown, format!("{low_word} value {low} is greater than {high_word} value {high}"));
        }
    }
    if let Some(ratio) = ratio {
        if ratio < Quantity::new(1, quantity::Format::DecimalSi) {
            invalid("maxLimitRequestRatio", ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (min.filter(|min| !min.is_zero()), max) {
            let limit = max.milli_value() as f64 / min.milli_value() as f64;
            if ratio.milli_value() as f64 / 1000.0 > limit {
                invalid("maxLimitRequestRatio", ratio, format!("ratio {ratio} is greater than max/min = {limit:.6}"));
            }
        }
    }
    if let (Some(default), Some(request)) = (default, request)
        && !resources::allows_overcommit(key)
        && default != request
    {
        invalid("defaultRequest", request, format!("default value {default} must equal to defaultRequest value {request} in {key}"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn broken_limits_are_explained() {
        let cases = [
            (json!({"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "500m"}}), vec![]),
            (
                json!({"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "2"}}),
                vec![
                    "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                    "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
                    "spec.limits[0].default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
                ],
            ),
            (
                json!({"type": "Some"}),
                vec!["spec.limits[0].type: Invalid value: \"Some\": must be a standard limit type or fully qualified"],
            ),
            (
                json!({"type": "Pod", "default": {"cpu": "1"}}),
                vec!["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"],
            ),
            (
                json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "500m"}}),
                vec!["spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1"],
            ),
        ];
        for (item, expected) in cases {
            let mut object = json!({"spec": {"limits": [item]}});
            LimitRange.default(&mut object);
            let found: Vec<String> = LimitRange.validate(&object).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{item}");
        }
    }
}
