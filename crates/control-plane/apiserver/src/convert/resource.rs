//! `resource.k8s.io/v1beta1`: a request's fields stand beside its name instead of under `exactly`, a device's under `basic`.
//!
//! Source: `pkg/apis/resource/v1beta1/conversion.go`.

use serde_json::{Map, Value};

/// What v1 keeps under `exactly`.
const EXACTLY: [&str; 8] =
    ["adminAccess", "allocationMode", "capacity", "count", "derivedAttributes", "deviceClassName", "selectors", "tolerations"];

pub fn to_v1(kind: &str, object: &mut Value) {
    each_request(kind, object, |request| {
        let mut exactly = Map::new();
        for name in EXACTLY {
            exactly.extend(request.remove(name).map(|value| (name.to_owned(), value)));
        }
        if !exactly.is_empty() {
            request.insert("exactly".into(), exactly.into());
        }
    });
    each_device(kind, object, |device| {
        if let Some(Value::Object(basic)) = device.remove("basic") {
            device.extend(basic);
        }
    });
}

pub fn to_v1beta1(kind: &str, object: &mut Value) {
    each_request(kind, object, |request| {
        if let Some(Value::Object(exactly)) = request.remove("exactly") {
            request.extend(exactly);
        }
    });
    each_device(kind, object, |device| {
        let name = device.remove("name");
        let basic = std::mem::take(device);
        device.extend(name.map(|name| ("name".to_owned(), name)));
        device.insert("basic".into(), basic.into());
    });
}

fn each_request(kind: &str, object: &mut Value, change: impl Fn(&mut Map<String, Value>)) {
    match kind {
        "ResourceClaim" => each(object, "/spec/devices/requests", change),
        "ResourceClaimTemplate" => each(object, "/spec/spec/devices/requests", change),
        _ => {}
    }
}

fn each_device(kind: &str, object: &mut Value, change: impl Fn(&mut Map<String, Value>)) {
    if kind == "ResourceSlice" {
        each(object, "/spec/devices", change);
    }
}

fn each(object: &mut Value, pointer: &str, change: impl Fn(&mut Map<String, Value>)) {
    let items = object.pointer_mut(pointer).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut).for_each(change);
}
