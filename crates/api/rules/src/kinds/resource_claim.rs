//! resource.k8s.io/v1 ResourceClaim and ResourceClaimTemplate.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, conditions, immutable, one_of, required, sentences};
use crate::devices::{self, Requests};
use crate::plain::Plain;
use crate::pod_spec::scheduling::node_selector;
use crate::pod_spec::volumes::sources::driver_name;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, list, sub, text};
use crate::{Part, metadata};

pub const RESOURCE_CLAIM: Plain = Plain {
    status_keeps_metadata: true,
    default: |object| {
        if let Some(spec) = sub(object, "spec") {
            devices::default_claim(spec);
        }
    },
    validate_create: |object| devices::claim(at(object, "spec"), &Path::new("spec")),
    validate_update: |new, old, part| match part {
        Part::Main => immutable(&Path::new("spec"), at(new, "spec"), at(old, "spec")),
        _ => status(new, old),
    },
    ..Plain::new(
        ("resource.k8s.io", "v1", "ResourceClaim"),
        &[NAME, shown("State", "string", "How far its allocation is."), AGE],
        |object, now| vec![state(object).into(), printing::age(object, now)],
    )
};

pub const RESOURCE_CLAIM_TEMPLATE: Plain = Plain {
    default: |object| {
        if let Some(spec) = sub(object, "spec.spec") {
            devices::default_claim(spec);
        }
    },
    validate_create: |object| {
        let path = Path::new("spec");
        let meta = at(object, "spec.metadata");
        let mut errors = crate::checks::labels(at(meta, "labels"), &path.dotted("metadata.labels"));
        errors.extend(metadata::annotations(meta, &path.child("metadata")));
        errors.extend(devices::claim(at(object, "spec.spec"), &path.child("spec")));
        errors
    },
    validate_update: |new, old, _| immutable(&Path::new("spec"), at(new, "spec"), at(old, "spec")),
    ..Plain::new(("resource.k8s.io", "v1", "ResourceClaimTemplate"), &[NAME, AGE], |object, now| vec![printing::age(object, now)])
};

fn state(object: &Value) -> String {
    let deleted = has(object, "metadata.deletionTimestamp");
    let mut states = Vec::new();
    if deleted {
        states.push("deleted");
    }
    match (has(object, "status.allocation"), list(object, "status.reservedFor").is_empty()) {
        (false, _) if !deleted => states.push("pending"),
        (false, _) => {}
        (true, false) => states.extend(["allocated", "reserved"]),
        (true, true) => states.push("allocated"),
    }
    states.join(",")
}

fn status(new: &Value, old: &Value) -> Errors {
    let (path, status) = (Path::new("status"), at(new, "status"));
    let mut errors = devices::each_once(status, &path, "reservedFor", 256, "uid", |user, path| {
        ["resource", "name", "uid"].iter().flat_map(|field| required(user, path, field)).collect()
    });
    let results = list(status, "allocation.devices.results");
    let allocated: BTreeSet<_> = results.iter().map(device_id).collect();
    let mut seen = BTreeSet::new();
    for (index, device) in list(status, "devices").iter().enumerate() {
        let here = path.child("devices").index(index);
        errors.extend(device_status(device, &allocated, &here));
        if !seen.insert(device_id(device)) {
            errors.push(Error::duplicate(&here, device_id(device)));
        }
    }
    let (users, here) = (list(status, "reservedFor"), path.child("reservedFor"));
    let before = list(old, "status.reservedFor");
    if !users.is_empty() && !has(status, "allocation") {
        errors.push(Error::forbidden(&here, "may not be specified when `allocated` is not set"));
    } else if has(new, "metadata.deletionTimestamp") && users.iter().any(|user| !before.contains(user)) {
        let sentence = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errors.push(Error::forbidden(&here, sentence));
    }
    let (allocation, here) = (at(status, "allocation"), path.child("allocation"));
    match (allocation.is_null(), at(old, "status.allocation")) {
        (true, _) => {}
        (false, Value::Null) => errors.extend(allocation_errors(allocation, &devices::requests(at(new, "spec")), &here)),
        (false, before) => errors.extend(immutable(&here, allocation, before)),
    }
    errors
}

fn device_id(device: &Value) -> String {
    let id = format!("{}/{}/{}", text(device, "driver"), text(device, "pool"), text(device, "device"));
    match text(device, "shareID") {
        "" => id,
        share => format!("{id}/{share}"),
    }
}

fn device_status(device: &Value, allocated: &BTreeSet<String>, path: &Path) -> Errors {
    let mut errors = device_place(device, path);
    if !allocated.contains(&device_id(device)) {
        errors.push(Error::invalid(path, device_id(device), "must be an allocated device in the claim"));
    }
    let given = list(device, "conditions");
    if given.len() > 8 {
        errors.push(Error::too_many(&path.child("conditions"), given.len(), 8));
    }
    errors.extend(conditions(given, &path.child("conditions")));
    if has(device, "data") {
        errors.extend(devices::raw(at(device, "data"), &path.child("data"), devices::PARAMETERS_BYTES_MAX));
    }
    let (network, here) = (at(device, "networkData"), path.child("networkData"));
    for (field, max) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if text(network, field).len() > max {
            errors.push(Error::too_long(&here.child(field), max));
        }
    }
    errors.extend(devices::each(network, &here, "ips", 16, |address, path| {
        let address = address.as_str().unwrap_or_default();
        match names::parse_cidr(address) {
            Some(_) => Errors::new(),
            None => sentences(path, address, names::cidr(address)),
        }
    }));
    errors
}

fn device_place(device: &Value, path: &Path) -> Errors {
    let mut errors = driver_name(text(device, "driver"), &path.child("driver"));
    errors.extend(devices::pool_name(device, path, "pool"));
    errors.extend(devices::device_name(device, path, "device"));
    errors
}

fn allocation_errors(allocation: &Value, known: &Requests<'_>, path: &Path) -> Errors {
    let (given, here) = (at(allocation, "devices"), path.child("devices"));
    let mut errors = devices::each(given, &here, "results", 32, |result, path| {
        let mut errors = devices::request_reference(text(result, "request"), &path.child("request"), known);
        errors.extend(device_place(result, path));
        errors.extend(devices::binding_conditions(result, path));
        errors.extend(devices::each(result, path, "tolerations", 16, devices::toleration));
        errors
    });
    errors.extend(devices::each(given, &here, "config", 64, |config, path| {
        let mut errors = one_of(config, path, "source", &["FromClaim", "FromClass"]);
        errors.extend(devices::request_references(config, path, known));
        errors.extend(devices::configuration(config, path));
        errors
    }));
    if has(allocation, "nodeSelector") {
        errors.extend(node_selector(at(allocation, "nodeSelector"), &path.child("nodeSelector")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rules;
    use serde_json::json;

    fn claim() -> Value {
        let mut claim = json!({"metadata": {"name": "c"}, "spec": {"devices": {
            "requests": [
                {"name": "r", "exactly": {"deviceClassName": "gpu"}},
                {"name": "s", "firstAvailable": [{"name": "big", "deviceClassName": "gpu"}]}],
            "constraints": [{"requests": ["r", "s/big"], "matchAttribute": "example.com/numa"}]}}});
        RESOURCE_CLAIM.default(&mut claim);
        claim
    }

    #[test]
    fn requests_are_counted_and_named() {
        let plain = claim();
        assert_eq!(plain["spec"]["devices"]["requests"][0]["exactly"]["count"], 1);
        assert_eq!(RESOURCE_CLAIM.validate_create(&plain), []);
        for (pointer, value, message) in [
            ("/requests/0/name", json!("s"), "spec.devices.requests[1]: Duplicate value: \"s\""),
            (
                "/requests/0/exactly",
                json!(null),
                "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
            ),
            (
                "/requests/0/exactly/count",
                json!(-1),
                "spec.devices.requests[0].exactly.count: Invalid value: -1: must be greater than zero",
            ),
            (
                "/requests/0/exactly/allocationMode",
                json!("All"),
                "spec.devices.requests[0].exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'",
            ),
            ("/requests/0/exactly/deviceClassName", json!(""), "spec.devices.requests[0].exactly.deviceClassName: Required value"),
            (
                "/constraints/0/requests/1",
                json!("s/small"),
                "spec.devices.constraints[0].requests[1]: Invalid value: \"s/small\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
            ),
            (
                "/constraints/0/matchAttribute",
                json!("numa"),
                "spec.devices.constraints[0].matchAttribute: Invalid value: \"numa\": a fully qualified name must be a domain and a name separated by a slash",
            ),
        ] {
            let mut changed = plain.clone();
            *changed["spec"]["devices"].pointer_mut(pointer).unwrap_or(&mut Value::Null) = value;
            let errors: Vec<_> = RESOURCE_CLAIM.validate_create(&changed).iter().map(ToString::to_string).collect();
            assert!(errors.iter().any(|error| error == message), "{pointer}: {errors:?}");
        }
    }

    #[test]
    fn an_allocation_stays() {
        let result = json!({"request": "r", "driver": "example.com", "pool": "p", "device": "d"});
        let mut allocated = claim();
        allocated["status"] =
            json!({"allocation": {"devices": {"results": [result]}}, "reservedFor": [{"resource": "pods", "name": "p", "uid": "1"}]});
        assert_eq!(RESOURCE_CLAIM.validate_update(&allocated, &claim(), Part::Status), []);
        assert_eq!(state(&allocated), "allocated,reserved");
        let mut moved = allocated.clone();
        moved["status"]["allocation"]["devices"]["results"][0]["device"] = "e".into();
        let errors = RESOURCE_CLAIM.validate_update(&moved, &allocated, Part::Status);
        assert!(errors[0].to_string().ends_with("field is immutable"), "{errors:?}");
        let mut freed = allocated.clone();
        freed["status"]["allocation"] = Value::Null;
        let errors = RESOURCE_CLAIM.validate_update(&freed, &allocated, Part::Status);
        assert_eq!(errors[0].to_string(), "status.reservedFor: Forbidden: may not be specified when `allocated` is not set");
    }
}
