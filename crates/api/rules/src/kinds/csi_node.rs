//! storage.k8s.io/v1 CSINode.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, nonnegative, sentences};
use crate::plain::Plain;
use crate::pod_spec::volumes::sources::driver_name;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, list, same, text};

pub const CSI_NODE: Plain = Plain {
    validate,
    validate_update: |new, old, _| {
        let before = list(old, "spec.drivers");
        let changed = list(new, "spec.drivers")
            .iter()
            .filter(|driver| before.iter().any(|other| text(other, "name") == text(driver, "name") && !same(other, driver)));
        changed.map(|driver| Error::invalid(&Path::new("CSINodeDriver"), driver.clone(), "field is immutable")).collect()
    },
    unconditional_update: false,
    ..Plain::new(("storage.k8s.io", "v1", "CSINode"), &[NAME, shown("Drivers", "integer", "Drivers on the node."), AGE], |object, now| {
        vec![list(object, "spec.drivers").len().into(), printing::age(object, now)]
    })
};

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, driver) in list(object, "spec.drivers").iter().enumerate() {
        let path = Path::new("spec").child("drivers").index(index);
        let name = text(driver, "name");
        errors.extend(driver_name(name, &path.child("name")));
        let id = text(driver, "nodeID");
        if id.is_empty() {
            errors.push(Error::required(&path.child("nodeID"), ""));
        }
        if id.len() > 192 {
            errors.push(Error::invalid(&path.child("nodeID"), id, "must be 192 characters or less"));
        }
        errors.extend(nonnegative(at(driver, "allocatable"), &path.child("allocatable"), "count"));
        if !seen.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        errors.extend(topology_keys(list(driver, "topologyKeys"), &path.child("topologyKeys")));
    }
    errors
}

fn topology_keys(keys: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for key in keys.iter().filter_map(Value::as_str) {
        if key.is_empty() {
            errors.push(Error::required(path, ""));
        }
        if !seen.insert(key) {
            errors.push(Error::duplicate(path, key));
        }
        errors.extend(sentences(path, keys.to_vec(), names::qualified_name(key)));
    }
    errors
}
