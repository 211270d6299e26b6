//! apps/v1 ControllerRevision.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{immutable, nonnegative};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, flag, list, text};
use crate::{Column, Part, Rules};

pub struct ControllerRevision;

const COLUMNS: &[Column] =
    &[NAME, shown("Controller", "string", "Object whose state it holds."), shown("Revision", "string", "Number of the state."), AGE];

impl Rules for ControllerRevision {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("apps", "v1", "ControllerRevision")
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let mut errors = nonnegative(object, &Path::root(), "revision");
        if !at(object, "data").is_object() {
            errors.push(Error::required(&Path::new("data"), "data is mandatory"));
        }
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Error> {
        immutable(&Path::new("data"), at(new, "data"), at(old, "data"))
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let owner = list(object, "metadata.ownerReferences").iter().find(|owner| flag(owner, "controller"));
        let controller = owner.map_or("<none>".into(), |owner| {
            let kind = text(owner, "kind").to_lowercase();
            match text(owner, "apiVersion").split_once('/') {
                Some((group, _)) => format!("{kind}.{group}/{}", text(owner, "name")),
                None => format!("{kind}/{}", text(owner, "name")),
            }
        });
        vec![printing::name(object), controller.into(), printing::number(object, "revision"), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
