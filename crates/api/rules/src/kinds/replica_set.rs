//! apps/v1 ReplicaSet.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::nonnegative;
use crate::printing::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, shown};
use crate::value::{at, int, keep, set, set_default, sub};
use crate::{Column, Part, Rules, template};

pub struct ReplicaSet;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Desired", "integer", "Pods wanted."),
    shown("Current", "integer", "Pods that exist."),
    shown("Ready", "integer", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

impl Rules for ReplicaSet {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("apps", "v1", "ReplicaSet")
    }
    fn default(&self, object: &mut Value) {
        let Some(spec) = sub(object, "spec") else { return };
        set_default(spec, "replicas", 1);
        template::default(spec);
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"replicas": 0}));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let mut errors = template::validate_spec(object, &template::DEPLOYMENT);
        errors.extend(nonnegative(at(object, "spec"), &Path::new("spec"), "minReadySeconds"));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        if part == Part::Main {
            return template::selector_unchanged(new, old);
        }
        let mut errors = template::status_counts(new, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"], "replicas");
        errors.extend(template::available_are_ready(new));
        errors
    }
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template::warnings(object, old)
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.replicas", int(object, "status.replicas").unwrap_or(0).to_string())]
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let [containers, images] = template::cells(at(object, "spec.template"));
        vec![
            printing::name(object),
            printing::number(object, "spec.replicas"),
            printing::number(object, "status.replicas"),
            printing::number(object, "status.readyReplicas"),
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
