//! What an autoscaler's spec must be: bounds, target, metrics, behaviour (upstream: `pkg/apis/autoscaling/validation`).

use meta::field::{Error, Path};
use meta::{Quantity, names, quantity};
use serde_json::{Value, json};

use crate::checks::{Errors, one_of, required_formed, sentences, supported};
use crate::value::{at, has, int, list, set, set_default, set_default_text, sub, text};

/// The kinds of metrics, with the field that holds each.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

/// What scaling does where a behaviour is given but not whole.
pub fn default_behavior(object: &mut Value) {
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, percent]);
    for (direction, policies) in [("scaleUp", up), ("scaleDown", json!([percent]))] {
        let path = format!("spec.behavior.{direction}");
        if !has(object, &path) {
            set(object, &path, json!({}));
        }
        let Some(rules) = sub(object, &path) else { continue };
        set_default_text(rules, "selectPolicy", "Max");
        if direction == "scaleUp" {
            set_default(rules, "stabilizationWindowSeconds", 0);
        }
        if list(rules, "policies").is_empty() {
            set(rules, "policies", policies);
        }
    }
}

pub fn validate(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (min, max) = (int(spec, "minReplicas"), int(spec, "maxReplicas").unwrap_or(0));
    if let Some(min) = min.filter(|min| *min < 1) {
        errors.push(Error::invalid(&path.child("minReplicas"), min, "must be greater than or equal to 1"));
    }
    if max < 1 {
        errors.push(Error::invalid(&path.child("maxReplicas"), max, "must be greater than 0"));
    }
    if min.is_some_and(|min| max < min) {
        errors.push(Error::invalid(&path.child("maxReplicas"), max, "must be greater than or equal to `minReplicas`"));
    }
    errors.extend(reference(at(spec, "scaleTargetRef"), &path.child("scaleTargetRef")));
    for (index, metric) in list(spec, "metrics").iter().enumerate() {
        errors.extend(metric_errors(metric, &path.child("metrics").index(index)));
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = at(at(spec, "behavior"), direction);
        if !rules.is_null() {
            errors.extend(scaling(rules, &path.child("behavior").child(direction)));
        }
    }
    errors
}

fn reference(reference: &Value, path: &Path) -> Errors {
    let mut errors = required_formed(reference, path, "kind", names::path_segment);
    errors.extend(required_formed(reference, path, "name", names::path_segment));
    errors
}

fn metric_errors(metric: &Value, path: &Path) -> Errors {
    let kind = text(metric, "type");
    let mut errors = Errors::new();
    if kind.is_empty() {
        errors.push(Error::required(&path.child("type"), "must specify a metric source type"));
    }
    let expected = SOURCES.iter().find(|(word, _)| *word == kind).map(|(_, field)| *field);
    if expected.is_none() {
        let words = SOURCES.map(|(word, _)| word);
        errors.push(Error::not_supported(&path.child("type"), kind, &words));
    }
    let given: Vec<&str> = SOURCES.iter().map(|(_, field)| *field).filter(|field| has(metric, field)).collect();
    if let Some(first) = given.first() {
        errors.extend(source(first, at(metric, first), &path.child(first)));
    }
    if let Some(expected) = expected.filter(|expected| !given.contains(expected)) {
        errors.push(Error::required(&path.child(expected), "must populate information for the given metric source"));
    }
    if given.len() != 1 {
        let others = given.into_iter().filter(|field| Some(*field) != expected);
        errors.extend(others.map(|field| Error::forbidden(&path.child(field), "must populate the given metric source only")));
    }
    errors
}

fn source(kind: &str, source: &Value, path: &Path) -> Errors {
    const EITHER: &str = "must set either a target value for metric or a per-pod target";
    let (aim, here) = (at(source, "target"), path.child("target"));
    let mut errors = Errors::new();
    if kind == "object" {
        errors.extend(reference(at(source, "describedObject"), &path.child("describedObject")));
    }
    if matches!(kind, "object" | "external" | "pods") {
        errors.extend(identifier(at(source, "metric"), &path.child("metric")));
    } else {
        if text(source, "name").is_empty() {
            errors.push(Error::required(&path.child("name"), "must specify a resource name"));
        }
        if kind == "containerResource" && text(source, "container").is_empty() {
            errors.push(Error::required(&path.child("container"), "must specify a container"));
        }
    }
    errors.extend(target(aim, &here));
    let [value, average, utilization] = ["value", "averageValue", "averageUtilization"].map(|field| has(aim, field));
    match kind {
        "object" | "external" => {
            if !value && !average {
                errors.push(Error::required(&here.child("averageValue"), EITHER));
            }
            if kind == "external" && value && average {
                let sentence = "may not set both a target value for metric and a per-pod target";
                errors.push(Error::forbidden(&here.child("value"), sentence));
            }
        }
        "pods" if !is_positive(at(aim, "averageValue")) => {
            errors.push(Error::required(&here.child("averageValue"), "must specify a positive target averageValue"));
        }
        "pods" => {}
        _ if !utilization && !average => {
            let sentence = "must set either a target raw value or a target utilization";
            errors.push(Error::required(&here.child("averageUtilization"), sentence));
        }
        _ if utilization && average => {
            let sentence = "may not set both a target raw value and a target utilization";
            errors.push(Error::forbidden(&here.child("averageValue"), sentence));
        }
        _ => {}
    }
    errors
}

fn identifier(metric: &Value, path: &Path) -> Errors {
    let name = text(metric, "name");
    if name.is_empty() {
        return vec![Error::required(&path.child("name"), "must specify a metric name")];
    }
    sentences(&path.child("name"), name, names::path_segment(name))
}

fn is_positive(amount: &Value) -> bool {
    quantity::from_json(amount).is_some_and(|amount| amount > Quantity::default())
}

fn target(target: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let kind = text(target, "type");
    if kind.is_empty() {
        errors.push(Error::required(&path.child("type"), "must specify a metric target type"));
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errors.push(Error::invalid(&path.child("type"), kind, "must be either Utilization, Value, or AverageValue"));
    }
    for field in ["value", "averageValue"].into_iter().filter(|field| has(target, field) && !is_positive(at(target, field))) {
        errors.push(Error::invalid(&path.child(field), at(target, field).clone(), "must be positive"));
    }
    if let Some(percent) = int(target, "averageUtilization").filter(|percent| *percent < 1) {
        errors.push(Error::invalid(&path.child("averageUtilization"), percent, "must be greater than 0"));
    }
    errors
}

fn scaling(rules: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if let Some(window) = int(rules, "stabilizationWindowSeconds") {
        let here = path.child("stabilizationWindowSeconds");
        if window < 0 {
            errors.push(Error::invalid(&here, window, "must be greater than or equal to zero"));
        }
        if window > 3600 {
            errors.push(Error::invalid(&here, window, "must be less than or equal to 3600"));
        }
    }
    errors.extend(supported(rules, path, "selectPolicy", &["Disabled", "Max", "Min"]));
    if let Some(tolerance) = quantity::from_json(at(rules, "tolerance")).filter(|tolerance| tolerance.is_negative()) {
        errors.push(Error::invalid(&path.child("tolerance"), tolerance.to_string(), "must be greater than or equal to 0"));
    }
    let policies = list(rules, "policies");
    if policies.is_empty() {
        errors.push(Error::required(&path.child("policies"), "must specify at least one Policy"));
    }
    for (index, policy) in policies.iter().enumerate() {
        let here = path.child("policies").index(index);
        errors.extend(one_of(policy, &here, "type", &["Percent", "Pods"]));
        for field in ["value", "periodSeconds"] {
            let number = int(policy, field).unwrap_or(0);
            if number <= 0 {
                errors.push(Error::invalid(&here.child(field), number, "must be greater than zero"));
            }
            if field == "periodSeconds" && number > 1800 {
                errors.push(Error::invalid(&here.child(field), number, "must be less than or equal to 1800"));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_metrics_and_behaviours_are_explained() {
        let metric = |metric: Value| json!({"metrics": [metric]});
        let resource = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}});
        let cases = [
            (metric(json!({"type": "Resource", "resource": resource})), vec![]),
            (
                metric(json!({"type": "Resource"})),
                vec!["spec.metrics[0].resource: Required value: must populate information for the given metric source"],
            ),
            (
                metric(json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}})),
                vec![
                    "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target \
                     utilization",
                ],
            ),
            (
                metric(json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "0"}}})),
                vec![
                    "spec.metrics[0].pods.target.averageValue: Invalid value: \"0\": must be positive",
                    "spec.metrics[0].pods.target.averageValue: Required value: must specify a positive target averageValue",
                ],
            ),
            (
                json!({"behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 0, "periodSeconds": 1801}]}}}),
                vec![
                    "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
                    "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
                ],
            ),
        ];
        for (spec, expected) in cases {
            let mut spec = spec;
            set(&mut spec, "scaleTargetRef", json!({"kind": "Deployment", "name": "web"}));
            set(&mut spec, "maxReplicas", 3);
            let found: Vec<String> = validate(&spec, &Path::new("spec")).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{spec}");
        }
    }

    #[test]
    fn a_behaviour_is_made_whole() {
        let mut object = json!({"spec": {"behavior": {"scaleDown": {"selectPolicy": "Min"}}}});
        default_behavior(&mut object);
        let behavior = &object["spec"]["behavior"];
        assert_eq!(
            behavior["scaleDown"],
            json!({"selectPolicy": "Min", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]})
        );
        assert_eq!(behavior["scaleUp"]["policies"][0], json!({"type": "Pods", "value": 4, "periodSeconds": 15}));
    }
}
