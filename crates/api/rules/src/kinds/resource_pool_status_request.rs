//! resource.k8s.io/v1alpha3 ResourcePoolStatusRequest: how much of a driver's pools is free.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::Part;
use crate::checks::{Errors, at_least, at_most, conditions, fixed, formed};
use crate::devices::{self, each};
use crate::plain::Plain;
use crate::pod_spec::volumes::sources::driver_name;
use crate::printing::{self, AGE, NAME};
use crate::value::{at, has, int, list, text};

const LIMIT_MAX: i64 = 1000;

pub const RESOURCE_POOL_STATUS_REQUEST: Plain = Plain {
    status_keeps_metadata: true,
    validate_create: |object| validate(at(object, "spec"), &Path::new("spec")),
    validate_update: |new, old, part| match part {
        Part::Status => status(at(new, "status"), at(old, "status")),
        _ => fixed(&Path::new("spec"), at(new, "spec"), at(old, "spec")),
    },
    ..Plain::new(("resource.k8s.io", "v1alpha3", "ResourcePoolStatusRequest"), &[NAME, AGE], |object, now| vec![printing::age(object, now)])
};

fn driver_and_pool(object: &Value, path: &Path) -> Errors {
    let mut errors = match text(object, "driver") {
        "" => vec![Error::required(&path.child("driver"), "")],
        name => driver_name(name, &path.child("driver")),
    };
    if has(object, "poolName") {
        errors.extend(devices::pool_name(object, path, "poolName"));
    }
    errors
}

fn validate(spec: &Value, path: &Path) -> Errors {
    let mut errors = driver_and_pool(spec, path);
    errors.extend(at_least(spec, path, "limit", 1));
    errors.extend(at_most(spec, path, "limit", LIMIT_MAX));
    if let Some(attribute) = at(spec, "defaultPartitionTypeAttribute").as_str() {
        errors.extend(devices::fully_qualified(attribute, &path.child("defaultPartitionTypeAttribute")));
    }
    errors
}

/// An answer is given once.
fn status(new: &Value, old: &Value) -> Errors {
    let path = Path::new("status");
    let answered = |status: &Value| {
        let done = |condition: &Value| matches!(text(condition, "type"), "Complete" | "Failed") && text(condition, "status") == "True";
        list(status, "conditions").iter().any(done)
    };
    if answered(old) {
        return fixed(&path, new, old);
    }
    if new.is_null() {
        return Errors::new();
    }
    let mut errors = match int(new, "poolCount") {
        None => vec![Error::required(&path.child("poolCount"), "")],
        Some(_) => at_least(new, &path, "poolCount", 0),
    };
    errors.extend(each(new, &path, "pools", 1000, pool));
    let conditions_path = path.child("conditions");
    match list(new, "conditions") {
        many if many.len() > 10 => errors.push(Error::too_many(&conditions_path, many.len(), 10)),
        few => errors.extend(conditions(few, &conditions_path)),
    }
    errors
}

fn pool(pool: &Value, path: &Path) -> Errors {
    let mut errors = driver_and_pool(pool, path);
    if !has(pool, "poolName") {
        errors.push(Error::required(&path.child("poolName"), ""));
    }
    errors.extend(formed(pool, path, "nodeName", names::dns1123_subdomain));
    for field in ["totalDevices", "allocatedDevices", "availableDevices", "unavailableDevices", "generation"] {
        errors.extend(at_least(pool, path, field, 0));
    }
    errors.extend(at_least(pool, path, "resourceSliceCount", 1));
    let said = text(pool, "validationError").len();
    if said > 256 {
        errors.push(Error::too_long(&path.child("validationError"), 256));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rules;
    use serde_json::json;

    #[test]
    fn requests_are_checked_once_and_answers_stay() {
        for (spec, expected) in [
            (json!({"driver": "example.com", "poolName": "a/b", "limit": 100}), vec![]),
            (json!({"limit": 0}), vec!["spec.driver: Required value", "spec.limit: Invalid value: 0: must be greater than or equal to 1"]),
            (json!({"driver": "d", "limit": 1001}), vec!["spec.limit: Invalid value: 1001: must be less than or equal to 1000"]),
        ] {
            let errors: Vec<_> =
                RESOURCE_POOL_STATUS_REQUEST.validate_create(&json!({"spec": spec})).iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected, "{spec}");
        }
        let complete =
            json!({"type": "Complete", "status": "True", "reason": "Done", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let old = json!({"status": {"poolCount": 0, "conditions": [complete]}});
        let new = json!({"status": {"poolCount": 1, "conditions": [complete]}});
        assert_eq!(RESOURCE_POOL_STATUS_REQUEST.validate_update(&old, &json!({}), Part::Status), []);
        let errors = RESOURCE_POOL_STATUS_REQUEST.validate_update(&new, &old, Part::Status);
        assert_eq!(errors[0].to_string(), "status: Invalid value: null: field is immutable");
    }
}
