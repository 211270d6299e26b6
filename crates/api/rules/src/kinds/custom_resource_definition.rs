//! `apiextensions.k8s.io/v1` CustomResourceDefinition; what it may say is the business of the `structural` crate.

use meta::{field, names};
use serde_json::Value;

use crate::printing::{self, shown};
use crate::{Column, Part, Rules};

pub struct CustomResourceDefinition;

const COLUMNS: &[Column] = &[printing::NAME, shown("Created At", "date", "When the object was created.")];

impl Rules for CustomResourceDefinition {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition")
    }
    fn default(&self, object: &mut Value) {
        structural::definition::default(object);
    }
    fn prepare_create(&self, object: &mut Value) {
        if object.is_object() {
            structural::definition::prepare_create(object);
        }
    }
    fn prepare_update(&self, new: &mut Value, _old: &Value, part: Part) {
        if part == Part::Main && new["status"].is_object() {
            structural::definition::prepare_update(new);
        }
    }
    fn validate_create(&self, object: &Value) -> Vec<field::Error> {
        structural::definition::validate(object, None)
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<field::Error> {
        let mut errors = match part {
            Part::Main => structural::definition::validate(new, Some(old)),
            _ => structural::definition::validate_status(new),
        };
        errors.extend(structural::definition::validate_update(new, old));
        errors
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn unconditional_update(&self) -> bool {
        false
    }
    fn columns(&self) -> &[Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, _now: i64) -> Vec<Value> {
        vec![printing::name(object), printing::created_at(object)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
