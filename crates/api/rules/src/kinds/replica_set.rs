//! apps/v1 ReplicaSet.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::nonnegative;
use crate::value::{at, keep, set, set_default, sub};
use crate::{Column, Part, Rules, template};

pub struct ReplicaSet;

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
        template::replicas_status(new)
    }
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template::warnings(object, old)
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        template::replicas_fields(object)
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        template::REPLICAS_FIELDS
    }
    fn columns(&self) -> &'static [Column] {
        template::REPLICAS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        template::replicas_cells(object, now, template::selector_cell(object))
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
