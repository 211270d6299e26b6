//! resource.k8s.io/v1 DeviceClass and DeviceTaintRule.

use meta::field::{Error, Path};
use serde_json::Value;

use crate::checks::{Errors, conditions};
use crate::plain::Plain;
use crate::pod_spec::volumes::sources::driver_name;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, list, set, text};
use crate::{Part, devices, resources};

pub const DEVICE_CLASS: Plain = Plain {
    validate: |object| {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = devices::selectors(spec, &path);
        errors.extend(devices::each(spec, &path, "config", 32, devices::configuration));
        if let Some(name) = at(spec, "extendedResourceName").as_str().filter(|name| !resources::is_extended(name)) {
            let here = path.child("extendedResourceName");
            errors.push(Error::invalid(&here, name, "must be a valid extended resource name"));
        }
        errors
    },
    counts_generation: true,
    ..Plain::new(("resource.k8s.io", "v1", "DeviceClass"), &[NAME, AGE], |object, now| vec![printing::age(object, now)])
};

pub const DEVICE_TAINT_RULE: Plain = Plain {
    status_keeps_metadata: true,
    prepare_create: stamp,
    prepare_update: |new, old, part| {
        if part != Part::Main {
            return;
        }
        if at(new, "spec.taint.effect") != at(old, "spec.taint.effect")
            && at(new, "spec.taint.timeAdded") == at(old, "spec.taint.timeAdded")
        {
            crate::value::remove(new, "spec.taint.timeAdded");
        }
        stamp(new);
    },
    validate: |object| {
        let (path, selector) = (Path::new("spec").child("deviceSelector"), at(object, "spec.deviceSelector"));
        let mut errors = Errors::new();
        if has(selector, "driver") {
            errors.extend(driver_name(text(selector, "driver"), &path.child("driver")));
        }
        if has(selector, "pool") {
            errors.extend(devices::pool_name(selector, &path, "pool"));
        }
        if has(selector, "device") {
            errors.extend(devices::device_name(selector, &path, "device"));
        }
        errors.extend(devices::taint(at(object, "spec.taint"), None, &Path::new("spec").child("taint")));
        errors
    },
    validate_update: |new, _, part| {
        let (given, path) = (list(new, "status.conditions"), Path::new("status").child("conditions"));
        let mut errors = Errors::new();
        if part == Part::Status {
            errors.extend(conditions(given, &path));
            if given.len() > 8 {
                errors.push(Error::too_many(&path, given.len(), 8));
            }
        }
        errors
    },
    counts_generation: true,
    ..Plain::new(
        ("resource.k8s.io", "v1", "DeviceTaintRule"),
        &[
            NAME,
            shown("Key", "string", "Key of the taint."),
            shown("Value", "string", "Value of the taint."),
            shown("Effect", "string", "What the taint does to pods."),
            shown("TimeAdded", "string", "Since when the taint is there."),
            AGE,
        ],
        |object, now| {
            let taint = at(object, "spec.taint");
            let mut cells: Vec<Value> = ["key", "value", "effect"].iter().map(|field| text(taint, field).into()).collect();
            let added = at(taint, "timeAdded");
            cells.push(if added.is_string() { printing::since(added, now).into() } else { "".into() });
            cells.push(printing::age(object, now));
            cells
        },
    )
};

/// A taint knows since when it is there.
fn stamp(rule: &mut Value) {
    if has(rule, "spec.taint") && !has(rule, "spec.taint.timeAdded") {
        set(rule, "spec.taint.timeAdded", meta::time::now());
    }
}
