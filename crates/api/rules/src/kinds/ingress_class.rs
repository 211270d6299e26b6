//! networking.k8s.io/v1 IngressClass.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, immutable, required_formed, sentences};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, set_default_text, sub, text};

pub const INGRESS_CLASS: Plain = Plain {
    counts_generation: true,
    default: |object| {
        if let Some(parameters) = sub(object, "spec.parameters") {
            set_default_text(parameters, "scope", "Cluster");
        }
    },
    validate,
    validate_update: |new, old, _| {
        immutable(&Path::new("spec").child("controller"), at(new, "spec.controller"), at(old, "spec.controller"))
    },
    ..Plain::new(
        ("networking.k8s.io", "v1", "IngressClass"),
        &[
            NAME,
            shown("Controller", "string", "Controller that serves the class."),
            shown("Parameters", "string", "Object with more settings of the controller."),
            AGE,
        ],
        |object, now| {
            let parameters = at(object, "spec.parameters");
            let kind = match text(parameters, "apiGroup") {
                "" => text(parameters, "kind").to_owned(),
                group => format!("{}.{group}", text(parameters, "kind")),
            };
            let shown = if parameters.is_null() { "<none>".to_owned() } else { format!("{kind}/{}", text(parameters, "name")) };
            vec![text(object, "spec.controller").into(), shown.into(), printing::age(object, now)]
        },
    )
};

fn validate(object: &Value) -> Errors {
    let path = Path::new("spec");
    let (controller, here) = (text(object, "spec.controller"), path.child("controller"));
    let mut errors = Errors::new();
    if controller.len() > 250 {
        errors.push(Error::too_long(&here, 250));
    }
    match controller {
        "" => errors.push(Error::required(&here, "")),
        _ => errors.extend(sentences(&here, controller, names::domain_prefixed_path(controller))),
    }
    if has(object, "spec.parameters") {
        errors.extend(parameters(at(object, "spec.parameters"), &path.child("parameters")));
    }
    errors
}

fn parameters(parameters: &Value, path: &Path) -> Errors {
    let mut errors = typed_reference(parameters, path);
    let here = path.child("namespace");
    match (text(parameters, "scope"), at(parameters, "namespace").as_str()) {
        ("", _) => errors.push(Error::required(&path.child("scope"), "")),
        ("Namespace", None) => errors.push(Error::required(&here, "`parameters.scope` is set to 'Namespace'")),
        ("Namespace", Some(name)) => errors.extend(sentences(&here, name, names::dns1123_label(name))),
        ("Cluster", Some(_)) => errors.push(Error::forbidden(&here, "`parameters.scope` is set to 'Cluster'")),
        ("Cluster", None) => {}
        (other, _) => errors.push(Error::not_supported(&path.child("scope"), other, &["Cluster", "Namespace"])),
    }
    errors
}

/// A reference to an object of any kind: `apiGroup`, `kind`, `name`.
pub fn typed_reference(reference: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if let Some(group) = at(reference, "apiGroup").as_str() {
        errors.extend(sentences(&path.child("apiGroup"), group, names::dns1123_subdomain(group)));
    }
    errors.extend(required_formed(reference, path, "kind", names::path_segment));
    errors.extend(required_formed(reference, path, "name", names::path_segment));
    errors
}
