//! storage.k8s.io/v1 CSIDriver.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use serde_json::{Value, json};

use crate::checks::{Errors, immutable, supported};
use crate::plain::Plain;
use crate::pod_spec::volumes::sources::driver_name;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, flag, has, int, list, name, set, set_default, set_default_text, sub, text};

pub const CSI_DRIVER: Plain = Plain {
    default,
    validate,
    unconditional_update: false,
    validate_update: |new, old, _| {
        let path = Path::new("spec");
        let fields =
            [("attachRequired", "attachedRequired"), ("fsGroupPolicy", "fsGroupPolicy"), ("volumeLifecycleModes", "volumeLifecycleModes")];
        let (new, old) = (at(new, "spec"), at(old, "spec"));
        fields.into_iter().flat_map(|(field, shown)| immutable(&path.child(shown), at(new, field), at(old, field))).collect()
    },
    ..Plain::new(
        ("storage.k8s.io", "v1", "CSIDriver"),
        &[
            NAME,
            shown("AttachRequired", "boolean", "Whether volumes are attached to nodes."),
            shown("PodInfoOnMount", "boolean", "Whether the driver is told about pods."),
            shown("StorageCapacity", "boolean", "Whether free capacity is published."),
            shown("TokenRequests", "string", "Audiences of the tokens that the driver gets."),
            shown("RequiresRepublish", "boolean", "Whether volumes are published again and again."),
            shown("Modes", "string", "Life cycles of the volumes."),
            AGE,
        ],
        |object, now| {
            let audiences: Vec<&str> = list(object, "spec.tokenRequests").iter().map(|request| text(request, "audience")).collect();
            let tokens = if audiences.is_empty() { "<unset>".to_owned() } else { audiences.join(",") };
            let modes = printing::joined(list(object, "spec.volumeLifecycleModes"));
            vec![
                (!has(object, "spec.attachRequired") || flag(object, "spec.attachRequired")).into(),
                flag(object, "spec.podInfoOnMount").into(),
                flag(object, "spec.storageCapacity").into(),
                tokens.into(),
                flag(object, "spec.requiresRepublish").into(),
                if modes == "" { "<none>".into() } else { modes },
                printing::age(object, now),
            ]
        },
    )
};

fn default(object: &mut Value) {
    let Some(spec) = sub(object, "spec") else { return };
    set_default(spec, "attachRequired", true);
    for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        set_default(spec, field, false);
    }
    set_default_text(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if list(spec, "volumeLifecycleModes").is_empty() {
        set(spec, "volumeLifecycleModes", json!(["Persistent"]));
    }
}

fn validate(object: &Value) -> Errors {
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors = driver_name(name(object), &Path::new("name"));
    for field in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if !has(spec, field) {
            errors.push(Error::required(&path.child(field), ""));
        }
    }
    errors.extend(supported(spec, &path, "fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"]));
    errors.extend(tokens(list(spec, "tokenRequests"), &path.child("tokenRequests")));
    for mode in list(spec, "volumeLifecycleModes").iter().filter_map(Value::as_str) {
        if !matches!(mode, "Ephemeral" | "Persistent") {
            errors.push(Error::not_supported(&path.child("volumeLifecycleModes"), mode, &["Ephemeral", "Persistent"]));
        }
    }
    if let Some(seconds) = int(spec, "nodeAllocatableUpdatePeriodSeconds").filter(|seconds| *seconds < 10) {
        let here = path.child("nodeAllocatableUpdatePeriodSeconds");
        errors.push(Error::invalid(&here, seconds, "must be greater than or equal to 10 seconds"));
    }
    errors
}

fn tokens(requests: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, request) in requests.iter().enumerate() {
        let here = path.index(index);
        let audience = text(request, "audience");
        if !seen.insert(audience) {
            errors.push(Error::duplicate(&here.child("audience"), audience));
        }
        let Some(seconds) = int(request, "expirationSeconds") else { continue };
        if seconds < 600 {
            let sentence = "may not specify a duration less than 10 minutes";
            errors.push(Error::invalid(&here.child("expirationSeconds"), seconds, sentence));
        }
        if seconds > 1 << 32 {
            let sentence = "may not specify a duration larger than 2^32 seconds";
            errors.push(Error::invalid(&here.child("expirationSeconds"), seconds, sentence));
        }
    }
    errors
}
