//! apps/v1 DaemonSet.

use meta::LabelSelector;
use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{Errors, any, at_most_hundred_percent, int_or_percent, label_selector, nonnegative};
use crate::printing::{self, AGE, NAME, SELECTOR, shown};
use crate::template::{self, DAEMON_SET, POD_COLUMNS};
use crate::value::{at, is_zero, set, set_default, set_default_text, sub, text};
use crate::{Column, Part, Rules, pod_spec};

pub struct DaemonSet;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Desired", "integer", "Nodes that should run the pod."),
    shown("Current", "integer", "Nodes that should and do."),
    shown("Ready", "integer", "Pods that are ready."),
    shown("Up-to-date", "integer", "Pods of the newest template."),
    shown("Available", "integer", "Pods that have been ready long enough."),
    shown("Node Selector", "string", "Labels of the nodes."),
    AGE,
    POD_COLUMNS[0],
    POD_COLUMNS[1],
    SELECTOR,
];

/// Every count of `status` is a number of nodes.
const COUNTS: [&str; 8] = [
    "currentNumberScheduled",
    "numberMisscheduled",
    "desiredNumberScheduled",
    "numberReady",
    "observedGeneration",
    "updatedNumberScheduled",
    "numberAvailable",
    "numberUnavailable",
];

impl Rules for DaemonSet {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("apps", "v1", "DaemonSet")
    }
    fn default(&self, object: &mut Value) {
        let Some(spec) = sub(object, "spec") else { return };
        set_default(spec, "revisionHistoryLimit", 10);
        set_default_text(spec, "updateStrategy.type", "RollingUpdate");
        if text(spec, "updateStrategy.type") == "RollingUpdate" {
            set_default(spec, "updateStrategy.rollingUpdate.maxUnavailable", 1);
            set_default(spec, "updateStrategy.rollingUpdate.maxSurge", 0);
        }
        template::default(spec);
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}));
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = selector_and_template(spec, &path);
        errors.extend(nonnegative(spec, &path, "minReadySeconds"));
        errors.extend(strategy(at(spec, "updateStrategy"), &path.child("updateStrategy")));
        errors.extend(nonnegative(spec, &path, "revisionHistoryLimit"));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part == Part::Main {
            return template::selector_unchanged(new, old);
        }
        let path = Path::new("status");
        let mut errors: Errors = COUNTS.into_iter().flat_map(|field| nonnegative(at(new, "status"), &path, field)).collect();
        errors.extend(template::collisions_counted(new, old));
        errors
    }
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template::warnings(object, old)
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let [containers, images] = template::cells(at(object, "spec.template"));
        vec![
            printing::name(object),
            printing::number(object, "status.desiredNumberScheduled"),
            printing::number(object, "status.currentNumberScheduled"),
            printing::number(object, "status.numberReady"),
            printing::number(object, "status.updatedNumberScheduled"),
            printing::number(object, "status.numberAvailable"),
            printing::labels(at(object, "spec.template.spec.nodeSelector")),
            printing::age(object, now),
            containers,
            images,
            template::selector_cell(object),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

/// As other workloads, but upstream says nothing about a selector that is not there beside that it matches nothing.
fn selector_and_template(spec: &Value, path: &Path) -> Errors {
    let selector = at(spec, "selector");
    let mut errors = label_selector(selector, &path.child("selector"));
    let (template, here) = (at(spec, "template"), path.child("template"));
    let labels = at(template, "metadata.labels");
    let parsed = if selector.is_null() { Ok(LabelSelector::nothing()) } else { LabelSelector::from_object(selector) };
    if parsed.is_ok_and(|parsed| !parsed.matches_object(labels)) {
        errors.push(template::does_not_match(labels, &here));
    }
    if !selector.is_null() && !any(at(selector, "matchLabels")) && !any(at(selector, "matchExpressions")) {
        let sentence = format!("empty selector is invalid for {}", DAEMON_SET.selector);
        errors.push(Error::invalid(&path.child("selector"), selector.clone(), sentence));
    }
    errors.extend(pod_spec::validate_template(template, &here));
    errors.extend(template::runs_forever(template, DAEMON_SET.kind, &here));
    errors
}

fn strategy(strategy: &Value, path: &Path) -> Errors {
    let (rolling, here) = (at(strategy, "rollingUpdate"), path.child("rollingUpdate"));
    match text(strategy, "type") {
        "OnDelete" => Errors::new(),
        "RollingUpdate" if rolling.is_null() => vec![Error::required(&here, "")],
        "RollingUpdate" => rolling_update(rolling, &here),
        _ => vec![Error::not_supported(path, strategy.clone(), &["RollingUpdate", "OnDelete"])],
    }
}

fn rolling_update(rolling: &Value, path: &Path) -> Errors {
    let mut errors = int_or_percent(rolling, path, "maxUnavailable");
    errors.extend(int_or_percent(rolling, path, "maxSurge"));
    errors.extend(at_most_hundred_percent(rolling, path, "maxUnavailable"));
    errors.extend(at_most_hundred_percent(rolling, path, "maxSurge"));
    match (is_zero(at(rolling, "maxUnavailable")), is_zero(at(rolling, "maxSurge"))) {
        (false, false) => {
            let sentence = "may not be set when maxUnavailable is non-zero";
            errors.push(Error::invalid(&path.child("maxSurge"), at(rolling, "maxSurge").clone(), sentence));
        }
        (true, true) => errors.push(Error::required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0")),
        _ => {}
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon_set(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            set(&mut object, &format!("spec.{key}"), value.clone());
        }
        DaemonSet.default(&mut object);
        object
    }

    #[test]
    fn broken_daemon_sets_are_explained() {
        let rolling = |unavailable: Value, surge: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}});
        let cases = [
            (json!({}), vec![]),
            (
                json!({"selector": null}),
                vec!["spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"],
            ),
            (json!({"selector": {}}), vec!["spec.selector: Invalid value: {}: empty selector is invalid for daemonset"]),
            (
                rolling(json!(1), json!("10%")),
                vec!["spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"10%\": may not be set when maxUnavailable is non-zero"],
            ),
            (
                rolling(json!(0), json!("0%")),
                vec!["spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"],
            ),
            (
                rolling(json!("101%"), json!(0)),
                vec!["spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"],
            ),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = DaemonSet.validate(&daemon_set(spec.clone())).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{spec}");
        }
    }
}
