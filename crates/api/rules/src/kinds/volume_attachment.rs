//! storage.k8s.io/v1 VolumeAttachment.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use super::persistent_volume;
use crate::Column;
use crate::checks::{Errors, immutable, required, sentences};
use crate::plain::Plain;
use crate::pod_spec::volumes::sources::driver_name;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, flag, has, text};

pub const VOLUME_ATTACHMENT: Plain = Plain {
    status_keeps_metadata: true,
    validate,
    validate_create: |object| {
        let path = Path::new("spec");
        let mut errors = driver_name(text(object, "spec.attacher"), &path.child("attacher"));
        if let Some(name) = at(object, "spec.source.persistentVolumeName").as_str().filter(|name| !name.is_empty()) {
            errors.extend(sentences(&path.dotted("source.persistentVolumeName"), name, names::dns1123_subdomain(name)));
        }
        errors
    },
    validate_update: |new, old, _| immutable(&Path::new("spec"), at(new, "spec"), at(old, "spec")),
    unconditional_update: false,
    ..Plain::new(
        ("storage.k8s.io", "v1", "VolumeAttachment"),
        &[
            NAME,
            Column { format: "name", ..shown("Attacher", "string", "Driver that attaches.") },
            shown("PV", "string", "Volume."),
            shown("Node", "string", "Node that gets it."),
            shown("Attached", "boolean", "Whether the node has it."),
            AGE,
        ],
        |object, now| {
            vec![
                text(object, "spec.attacher").into(),
                text(object, "spec.source.persistentVolumeName").into(),
                text(object, "spec.nodeName").into(),
                flag(object, "status.attached").into(),
                printing::age(object, now),
            ]
        },
    )
};

fn validate(object: &Value) -> Errors {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors = required(spec, &path, "attacher");
    let (source, here) = (at(spec, "source"), path.child("source"));
    match (has(source, "inlineVolumeSpec"), at(source, "persistentVolumeName").as_str()) {
        (false, None) => errors.push(Error::required(&here, ONE)),
        (true, Some(_)) => errors.push(Error::forbidden(&here, ONE)),
        (false, Some("")) => {
            errors.push(Error::required(&here.child("persistentVolumeName"), "must specify non empty persistentVolumeName"));
        }
        (false, Some(_)) => {}
        (true, None) => {
            errors.extend(persistent_volume::validate_spec(at(source, "inlineVolumeSpec"), true, &here.child("inlineVolumeSpec")));
        }
    }
    let node = text(spec, "nodeName");
    errors.extend(sentences(&path.child("nodeName"), node, names::dns1123_subdomain(node)));
    errors
}
