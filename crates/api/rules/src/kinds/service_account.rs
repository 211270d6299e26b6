//! v1 ServiceAccount.

use meta::names;
use serde_json::Value;

use crate::printing::{self, AGE, NAME};
use crate::{Column, Rules};

pub struct ServiceAccount;

const COLUMNS: &[Column] = &[NAME, AGE];

impl Rules for ServiceAccount {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "ServiceAccount")
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![printing::name(object), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}
