//! storagemigration.k8s.io/v1 StorageVersionMigration.

use meta::field::{Error, Path};
use meta::names;

use crate::Part;
use crate::checks::{conditions, formed, immutable, required_formed};
use crate::plain::Plain;
use crate::printing::{NAME, shown};
use crate::value::{at, list, text};

pub const STORAGE_VERSION_MIGRATION: Plain = Plain {
    status_keeps_metadata: true,
    validate: |object| {
        let (resource, path) = (at(object, "spec.resource"), Path::new("spec").child("resource"));
        let mut errors = formed(resource, &path, "group", names::dns1123_subdomain);
        errors.extend(required_formed(resource, &path, "resource", names::dns1035_label));
        errors
    },
    validate_update: |new, old, part| {
        if part == Part::Main {
            return immutable(&Path::new("spec"), at(new, "spec"), at(old, "spec"));
        }
        let path = Path::new("status").child("conditions");
        let mut errors = conditions(list(new, "status.conditions"), &path);
        let is = |object, kind: &str| {
            list(object, "status.conditions").iter().any(|condition| text(condition, "type") == kind && text(condition, "status") == "True")
        };
        if is(new, "Succeeded") && is(new, "Failed") {
            errors.push(Error::invalid_unprinted(&path, "Both success and failed conditions cannot be true"));
        }
        for kind in ["Succeeded", "Failed"].into_iter().filter(|kind| is(old, kind) && !is(new, kind)) {
            errors.push(Error::invalid_unprinted(&path, format!("{kind} condition cannot be set to false once it is true")));
        }
        errors
    },
    unconditional_update: false,
    counts_generation: true,
    ..Plain::new(
        ("storagemigration.k8s.io", "v1", "StorageVersionMigration"),
        &[NAME, shown("Resource", "string", "Resource whose objects are written again."), shown("Status", "string", "How far it is.")],
        |object, _| {
            let resource = at(object, "spec.resource");
            let shown = match text(resource, "group") {
                "" => text(resource, "resource").to_owned(),
                group => format!("{}.{group}", text(resource, "resource")),
            };
            let states = ["Running", "Failed", "Succeeded"];
            let done = list(object, "status.conditions").iter().rev().map(|condition| (text(condition, "type"), text(condition, "status")));
            let state = done.into_iter().find(|(kind, status)| *status == "True" && states.contains(kind));
            vec![shown.into(), state.map_or("Unknown", |(kind, _)| kind).into()]
        },
    )
};
