//! apiregistration.k8s.io/v1 APIService.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::Errors;
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, flag, has, int, list, name, set_default, text};

pub const API_SERVICE: Plain = Plain {
    default: |object| {
        if has(object, "spec.service") {
            set_default(object, "spec.service.port", 443);
        }
    },
    name: names::path_segment,
    validate,
    unconditional_update: false,
    ..Plain::new(
        ("apiregistration.k8s.io", "v1", "APIService"),
        &[NAME, shown("Service", "string", "Service that serves the group."), shown("Available", "string", "Whether it answers."), AGE],
        |object, now| {
            let service = match has(object, "spec.service") {
                true => format!("{}/{}", text(object, "spec.service.namespace"), text(object, "spec.service.name")),
                false => "Local".to_owned(),
            };
            let condition = list(object, "status.conditions").iter().find(|condition| text(condition, "type") == "Available");
            let available = condition.map_or_else(
                || "Unknown".to_owned(),
                |condition| match text(condition, "status") {
                    "True" => "True".to_owned(),
                    other => format!("{other} ({})", text(condition, "reason")),
                },
            );
            vec![service.into(), available.into(), printing::age(object, now)]
        },
    )
};

fn validate(object: &Value) -> Errors {
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let (group, version) = (text(spec, "group"), text(spec, "version"));
    let mut errors = Errors::new();
    let wanted = format!("{version}.{group}");
    if name(object) != wanted {
        let sentence = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(Error::invalid(&Path::new("metadata").child("name"), name(object), sentence));
    }
    if group.is_empty() {
        if version != "v1" {
            errors.push(Error::required(&path.child("group"), "only v1 may have an empty group and it better be legacy kube"));
        }
    } else {
        errors.extend(crate::checks::sentences(&path.child("group"), group, names::dns1123_subdomain(group)));
    }
    errors.extend(crate::checks::sentences(&path.child("version"), version, names::dns1035_label(version)));
    for (field, max) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let number = int(spec, field).unwrap_or(0);
        if number <= 0 || number > max {
            let sentence = format!("must be positive and less than {max}");
            errors.push(Error::invalid(&path.child(field), number, sentence));
        }
    }
    let service = at(spec, "service");
    let here = path.child("service");
    if service.is_null() {
        if has(spec, "caBundle") && !text(spec, "caBundle").is_empty() {
            errors.push(Error::invalid(&path.child("caBundle"), text(spec, "caBundle"), "local APIServices may not have a caBundle"));
        }
        if flag(spec, "insecureSkipTLSVerify") {
            let sentence = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(Error::invalid(&path.child("insecureSkipTLSVerify"), true, sentence));
        }
        return errors;
    }
    for field in ["namespace", "name"] {
        if text(service, field).is_empty() {
            errors.push(Error::required(&here.child(field), ""));
        }
    }
    let port = int(service, "port").unwrap_or(443);
    let complaints = names::port_number(port);
    if !complaints.is_empty() {
        errors.push(Error::invalid(&here.child("port"), port, format!("port is not valid: {}", complaints.join(","))));
    }
    if flag(spec, "insecureSkipTLSVerify") && !text(spec, "caBundle").is_empty() {
        let sentence = "may not be true if caBundle is present";
        errors.push(Error::invalid(&path.child("insecureSkipTLSVerify"), true, sentence));
    }
    errors
}
