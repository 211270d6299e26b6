//! coordination.k8s.io/v1 Lease.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::nonnegative;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, int, text};
use crate::{Column, Rules};

pub struct Lease;

const COLUMNS: &[Column] = &[NAME, shown("Holder", "string", "Who holds the lease."), AGE];

impl Rules for Lease {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("coordination.k8s.io", "v1", "Lease")
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = nonnegative(spec, &path, "leaseTransitions");
        if let Some(seconds) = int(spec, "leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
            errors.push(Error::invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
        }
        errors
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![printing::name(object), text(object, "spec.holderIdentity").into(), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
    fn unconditional_update(&self) -> bool {
        false
    }
}
