//! v1 PodTemplate.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::printing::{self, NAME, shown};
use crate::value::at;
use crate::{Column, Rules, pod_spec, template};

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
        template::default(object);
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
        let [containers, images] = template::cells(at(object, "template"));
        vec![printing::name(object), containers, images, printing::labels(at(object, "template.metadata.labels"))]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
