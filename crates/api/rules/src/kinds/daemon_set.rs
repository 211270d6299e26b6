//! apps/v1 DaemonSet.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{at_most_hundred_percent, int_or_percent, nonnegative, one_of};
use crate::printing::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, shown};
use crate::value::{at, has, keep, set, set_default, set_default_text, sub, text};
use crate::{Column, Part, Rules, pod_spec, template};

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
    CONTAINERS,
    IMAGES,
    SELECTOR,
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
        if let Some(template) = sub(spec, "template") {
            pod_spec::defaults::template(template);
        }
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = template::validate(object, "daemonset");
        for field in ["minReadySeconds", "revisionHistoryLimit"] {
            errors.extend(nonnegative(spec, &path, field));
        }
        let (strategy, here) = (at(spec, "updateStrategy"), path.child("updateStrategy"));
        errors.extend(one_of(strategy, &here, "type", &["RollingUpdate", "OnDelete"]));
        if has(strategy, "rollingUpdate") {
            for field in ["maxUnavailable", "maxSurge"] {
                errors.extend(int_or_percent(at(strategy, "rollingUpdate"), &here.child("rollingUpdate"), field));
                errors.extend(at_most_hundred_percent(at(strategy, "rollingUpdate"), &here.child("rollingUpdate"), field));
            }
        }
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part == Part::Main { template::selector_unchanged(new, old) } else { Vec::new() }
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        pod_spec::warnings(at(object, "spec.template.spec"), &template::spec_path())
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let [containers, images] = printing::containers_and_images(at(object, "spec.template"));
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
            printing::selector(at(object, "spec.selector")),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
