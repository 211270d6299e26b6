//! v1 ReplicationController.

use meta::LabelSelector;
use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{any, nonnegative};
use crate::value::{at, has, set, set_default, sub};
use crate::{Column, Part, Rules, pod_spec, printing, template};

pub struct ReplicationController;

impl Rules for ReplicationController {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "ReplicationController")
    }
    /// The template's labels are the selector and the labels of a controller that has none.
    fn default(&self, object: &mut Value) {
        let labels = at(object, "spec.template.metadata.labels").clone();
        if any(&labels) {
            for path in ["spec.selector", "metadata.labels"] {
                if !any(at(object, path)) {
                    set(object, path, labels.clone());
                }
            }
        }
        let Some(spec) = sub(object, "spec") else { return };
        set_default(spec, "replicas", 1);
        template::default(spec);
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"replicas": 0}));
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = nonnegative(spec, &path, "minReadySeconds");
        let selector = at(spec, "selector");
        if !any(selector) {
            errors.push(Error::required(&path.child("selector"), ""));
        }
        errors.extend(nonnegative(spec, &path, "replicas"));
        let here = path.child("template");
        if !has(spec, "template") {
            errors.push(Error::required(&here, ""));
            return errors;
        }
        let (template, labels) = (at(spec, "template"), at(spec, "template.metadata.labels"));
        if any(selector) && LabelSelector::from_set(selector).is_ok_and(|selector| !selector.matches_object(labels)) {
            errors.push(template::does_not_match(labels, &here));
        }
        errors.extend(pod_spec::validate_template(template, &here));
        errors.extend(template::runs_forever(template, "ReplicationController", &here));
        errors
    }
    fn validate_update(&self, new: &Value, _old: &Value, part: Part) -> Vec<Error> {
        if part != Part::Status {
            return Vec::new();
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
        template::replicas_cells(object, now, printing::labels(at(object, "spec.selector")))
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
