//! v1 PodTemplate.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::printing::{self, NAME, shown};
use crate::value::{at, sub};
use crate::{Column, Rules, pod_spec};

pub struct PodTemplate;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Containers", "string", "Names of the containers in the template."),
    shown("Images", "string", "Images of the containers in the template."),
    shown("Pod Labels", "string", "Labels of the template."),
];

impl Rules for PodTemplate {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "PodTemplate")
    }
    fn default(&self, object: &mut Value) {
        if let Some(template) = sub(object, "template") {
            pod_spec::defaults::template(template);
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        pod_spec::validate_template(at(object, "template"), &Path::new("template"))
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, _now: i64) -> Vec<Value> {
        let [containers, images] = printing::containers_and_images(at(object, "template"));
        vec![printing::name(object), containers, images, printing::labels(at(object, "template.metadata.labels"))]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
