//! resource.k8s.io/v1 ResourceSlice.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, any, immutable, required_formed, sentences};
use crate::devices::{self, each_once};
use crate::plain::Plain;
use crate::pod_spec::scheduling::node_selector;
use crate::pod_spec::volumes::sources::driver_name;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, entries, flag, has, int, list, text};

mod capacity;

pub const RESOURCE_SLICE: Plain = Plain {
    validate: |object| validate(at(object, "spec")),
    validate_update: |new, old, _| {
        let path = Path::new("spec");
        let fixed = ["pool.name", "driver", "nodeName"];
        fixed.iter().flat_map(|field| immutable(&path.dotted(field), at(at(new, "spec"), field), at(at(old, "spec"), field))).collect()
    },
    counts_generation: true,
    fields: &["spec.nodeName", "spec.driver"],
    ..Plain::new(
        ("resource.k8s.io", "v1", "ResourceSlice"),
        &[
            NAME,
            shown("Node", "string", "Node that the devices belong to."),
            shown("Driver", "string", "Driver that offers them."),
            shown("Pool", "string", "Pool that they are part of."),
            AGE,
        ],
        |object, now| {
            let mut cells: Vec<Value> =
                ["spec.nodeName", "spec.driver", "spec.pool.name"].iter().map(|field| text(object, field).into()).collect();
            cells.push(printing::age(object, now));
            cells
        },
    )
};

fn validate(spec: &Value) -> Errors {
    let path = Path::new("spec");
    let mut errors = driver_name(text(spec, "driver"), &path.child("driver"));
    errors.extend(devices::pool_name(at(spec, "pool"), &path.child("pool"), "name"));
    let number = |field: &str| int(spec, field).unwrap_or(0);
    if number("pool.resourceSliceCount") <= 0 {
        let here = path.dotted("pool.resourceSliceCount");
        errors.push(Error::invalid(&here, number("pool.resourceSliceCount"), "must be greater than zero"));
    }
    if number("pool.generation") < 0 {
        let here = path.dotted("pool.generation");
        errors.push(Error::invalid(&here, number("pool.generation"), "must be greater than or equal to zero"));
    }

    let mut given = Vec::new();
    errors.extend(place(spec, "must be either unset or set to a non-empty string", &mut given, &path));
    let terms = list(spec, "nodeSelector.nodeSelectorTerms");
    if has(spec, "nodeSelector") && terms.len() != 1 {
        let here = path.dotted("nodeSelector.nodeSelectorTerms");
        errors.push(Error::invalid(&here, terms.to_vec(), "must have exactly one node selector term"));
    }
    errors.extend(only_true(spec, "perDeviceNodeSelection", &mut given, &path));
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match given.len() {
        0 => errors.push(Error::required(&path, ONE)),
        1 => {}
        _ => {
            let fields = format!("{{{}}}", given.join(", "));
            errors.push(Error::invalid(&path, fields, format!("{ONE}, but multiple fields are set")));
        }
    }

    if has(spec, "sharedCounters") && has(spec, "devices") {
        errors.push(Error::invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed"));
    }
    let per_device = flag(spec, "perDeviceNodeSelection");
    let max = if list(spec, "devices").iter().any(is_advanced) { 64 } else { 128 };
    errors.extend(each_once(spec, &path, "devices", max, "name", |one, path| device(one, per_device, path)));
    errors.extend(each_once(spec, &path, "sharedCounters", 8, "name", |set, path| {
        let mut errors = required_formed(set, path, "name", names::dns1123_label);
        errors.extend(counters(set, path));
        errors
    }));
    errors
}

/// Devices with taints, shared counters or lists as attributes take more room.
fn is_advanced(device: &Value) -> bool {
    let lists = |attribute: &Value| LISTS.iter().any(|field| has(attribute, field));
    any(at(device, "taints")) || any(at(device, "consumesCounters")) || entries(device, "attributes").any(|(_, one)| lists(one))
}

const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

/// `nodeName`, `nodeSelector` and `allNodes`: the ones that are set are added to `given`.
fn place(object: &Value, empty: &str, given: &mut Vec<String>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let here = path.child("nodeName");
    match at(object, "nodeName").as_str() {
        None => {}
        Some("") => errors.push(Error::invalid(&here, "", empty)),
        Some(name) => {
            given.push("`nodeName`".into());
            errors.extend(sentences(&here, name, names::dns1123_subdomain(name)));
        }
    }
    if has(object, "nodeSelector") {
        given.push("`nodeSelector`".into());
        errors.extend(node_selector(at(object, "nodeSelector"), &path.child("nodeSelector")));
    }
    errors.extend(only_true(object, "allNodes", given, path));
    errors
}

fn only_true(object: &Value, field: &str, given: &mut Vec<String>, path: &Path) -> Option<Error> {
    match at(object, field).as_bool()? {
        true => {
            given.push(format!("`{field}`"));
            None
        }
        false => Some(Error::invalid(&path.child(field), false, "must be either unset or set to true")),
    }
}

fn device(device: &Value, per_device: bool, path: &Path) -> Errors {
    let mut errors = devices::device_name(device, path, "name");
    let count = entries(device, "attributes").count() + entries(device, "capacity").count();
    if count > 32 {
        errors.push(Error::invalid(path, count, "the total number of attributes and capacities must not exceed 32"));
    }
    let values = |attribute: &Value| LISTS.iter().map(|field| list(attribute, field).len()).sum::<usize>().max(1);
    let count: usize = entries(device, "attributes").map(|(_, attribute)| values(attribute)).sum();
    if count > 48 {
        errors.push(Error::invalid(path, count, "the total number of attribute values must not exceed 48"));
    }
    for (name, attribute) in entries(device, "attributes") {
        let here = path.child("attributes");
        errors.extend(devices::qualified(name, &here));
        errors.extend(attribute_errors(attribute, &here.key(name)));
    }
    for (name, one) in entries(device, "capacity") {
        let here = path.child("capacity");
        errors.extend(devices::qualified(name, &here));
        errors.extend(capacity::validate(one, flag(device, "allowMultipleAllocations"), &here.key(name)));
    }
    errors.extend(devices::each(device, path, "taints", 16, |taint, path| devices::taint(taint, None, path)));
    errors.extend(each_once(device, path, "consumesCounters", 2, "counterSet", |set, path| {
        let mut errors = required_formed(set, path, "counterSet", names::dns1123_label);
        errors.extend(counters(set, path));
        errors
    }));
    errors.extend(device_place(device, per_device, path));
    errors.extend(devices::binding_conditions(device, path));
    errors
}

fn device_place(device: &Value, per_device: bool, path: &Path) -> Errors {
    if !per_device {
        let placed = ["nodeName", "nodeSelector", "allNodes"].iter().any(|field| has(device, field));
        let sentence = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true \
                        in the ResourceSlice spec";
        return if placed { vec![Error::invalid(path, Value::Null, sentence)] } else { Errors::new() };
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to \
                       true in the ResourceSlice spec";
    let mut given = Vec::new();
    let mut errors = place(device, "must not be empty", &mut given, path);
    match given.len() {
        0 => errors.push(Error::required(path, ONE)),
        1 => {}
        _ => errors.push(Error::invalid(path, format!("{{{}}}", given.join(", ")), ONE)),
    }
    errors
}

fn counters(set: &Value, path: &Path) -> Errors {
    let (names_of, here) = (entries(set, "counters"), path.child("counters"));
    match names_of.len() {
        0 => vec![Error::required(&here, "")],
        count if count > 32 => vec![Error::too_many(&here, count, 32)],
        _ => names_of.flat_map(|(name, _)| sentences(&here, name.as_str(), names::dns1123_label(name))).collect(),
    }
}

fn attribute_errors(attribute: &Value, path: &Path) -> Errors {
    const FIELDS: [&str; 8] = ["bool", "int", "string", "version", "bools", "ints", "strings", "versions"];
    let mut errors = Errors::new();
    let word = |text: &str, is_version: bool, path: &Path, errors: &mut Errors| {
        if is_version && !is_semver(text) {
            errors.push(Error::invalid(path, text, "must be a string compatible with semver.org spec 2.0.0"));
        }
        if text.len() > 64 {
            errors.push(Error::too_long(path, 64));
        }
    };
    for field in ["string", "version"] {
        if let Some(text) = at(attribute, field).as_str() {
            word(text, field == "version", &path.child(field), &mut errors);
        }
    }
    for field in LISTS.into_iter().filter(|field| has(attribute, field)) {
        let (items, here) = (list(attribute, field), path.child(field));
        if items.is_empty() {
            errors.push(Error::invalid(&here, items.to_vec(), "must not be empty if specified"));
        }
        for (index, text) in items.iter().enumerate().filter_map(|(index, item)| Some((index, item.as_str()?))) {
            word(text, field == "versions", &here.index(index), &mut errors);
        }
    }
    match FIELDS.iter().filter(|field| has(attribute, field)).count() {
        0 => errors.push(Error::invalid(path, "", "exactly one value must be specified")),
        1 => {}
        _ => errors.push(Error::invalid(path, attribute.clone(), "exactly one value must be specified")),
    }
    errors
}

fn is_semver(text: &str) -> bool {
    let is_number = |part: &str| part == "0" || (!part.starts_with('0') && !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let pre_word = |part: &str| is_word(part) && (is_number(part) || !part.bytes().all(|b| b.is_ascii_digit()));
    core.split('.').count() == 3
        && core.split('.').all(is_number)
        && pre.is_none_or(|pre| pre.split('.').all(pre_word))
        && build.is_none_or(|build| build.split('.').all(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rules;
    use serde_json::json;

    #[test]
    fn versions_follow_semver() {
        for good in ["1.2.3", "0.0.0", "1.2.3-alpha.1", "1.2.3-0a+build.007", "1.0.0+x"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["1.2", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "v1.2.3"] {
            assert!(!is_semver(bad), "{bad}");
        }
    }

    #[test]
    fn a_slice_is_somewhere_and_its_devices_are_described() {
        let plain = json!({"spec": {"driver": "example.com", "nodeName": "n", "pool": {"name": "p", "resourceSliceCount": 1},
            "devices": [{"name": "d", "attributes": {"model": {"string": "x"}},
                "capacity": {"memory": {"value": "1Gi"}}}]}});
        assert_eq!(RESOURCE_SLICE.validate(&plain), []);
        for (pointer, value, message) in [
            (
                "/spec/nodeName",
                json!(null),
                "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
            ),
            ("/spec/pool/resourceSliceCount", json!(0), "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero"),
            (
                "/spec/devices/0/attributes/model",
                json!({}),
                "spec.devices[0].attributes[model]: Invalid value: \"\": exactly one value must be specified",
            ),
            (
                "/spec/devices/0/attributes/model",
                json!({"version": "1"}),
                "spec.devices[0].attributes[model].version: Invalid value: \"1\": must be a string compatible with semver.org spec 2.0.0",
            ),
            (
                "/spec/devices/0/capacity/memory",
                json!({"value": "1Gi", "requestPolicy": {}}),
                "spec.devices[0].capacity[memory].requestPolicy: Forbidden: allowMultipleAllocations must be true",
            ),
        ] {
            let mut changed = plain.clone();
            *changed.pointer_mut(pointer).expect(pointer) = value;
            let errors: Vec<_> = RESOURCE_SLICE.validate(&changed).iter().map(ToString::to_string).collect();
            assert_eq!(errors, [message]);
        }
    }
}
