//! A container's environment: `env` and `envFrom`.

use meta::field::{Error, Path};
use meta::{Quantity, names, quantity};
use serde_json::Value;

use crate::checks::{Errors, required_formed, sentences};
use crate::pod_spec::volumes;
use crate::value::{at, has, list, text};

/// The fields of a pod that the downward API offers to the environment.
const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Those that upstream's conversion of field labels knows at all.
const KNOWN_FIELDS: [&str; 13] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
];

const RESOURCES: [&str; 6] =
    ["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];

const DIVISORS: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub fn validate(container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let parent = path.child("env");
    for (index, variable) in list(container, "env").iter().enumerate() {
        let here = parent.index(index);
        errors.extend(required_formed(variable, &here, "name", names::env_var_name));
        if has(variable, "valueFrom") {
            errors.extend(value_from(variable, &here.child("valueFrom")));
        }
    }
    let parent = path.child("envFrom");
    for (index, source) in list(container, "envFrom").iter().enumerate() {
        errors.extend(from_source(source, &parent, index));
    }
    errors
}

fn value_from(variable: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let source = at(variable, "valueFrom");
    let kinds: Vec<&str> = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]
        .into_iter()
        .filter(|kind| has(source, kind))
        .collect();
    for kind in &kinds {
        let (reference, here) = (at(source, kind), path.child(kind));
        errors.extend(match *kind {
            "fieldRef" => field_reference(reference, &FIELDS, &here),
            "resourceFieldRef" => resource_reference(reference, false, &here),
            "fileKeyRef" => file_key(reference, &here),
            _ => key_reference(reference, &here),
        });
    }
    let sentence = if kinds.is_empty() {
        "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
    } else if !text(variable, "value").is_empty() {
        "may not be specified when `value` is not empty"
    } else if kinds.len() > 1 {
        "may not have more than one field specified at a time"
    } else {
        return errors;
    };
    errors.push(Error::invalid(path, "", sentence));
    errors
}

/// A key of a ConfigMap or Secret.
fn key_reference(reference: &Value, path: &Path) -> Errors {
    let name = text(reference, "name");
    let mut errors = sentences(&path.child("name"), name, names::dns1123_subdomain(name));
    errors.extend(required_formed(reference, path, "key", names::config_map_key));
    errors
}

/// A key of an environment file in a volume (KEP-5307).
fn file_key(reference: &Value, path: &Path) -> Errors {
    let mut errors = required_formed(reference, path, "key", names::env_var_name);
    errors.extend(required_formed(reference, path, "volumeName", names::dns1123_label));
    match text(reference, "path") {
        "" => errors.push(Error::required(&path.child("path"), "")),
        given => errors.extend(volumes::local_path(given, &path.child("path"))),
    }
    errors
}

/// A field of the pod out of `fields`, or one label or annotation: `metadata.labels['key']`.
pub fn field_reference(reference: &Value, fields: &[&str], path: &Path) -> Errors {
    if text(reference, "apiVersion").is_empty() {
        return vec![Error::required(&path.child("apiVersion"), "")];
    }
    let field = text(reference, "fieldPath");
    if field.is_empty() {
        return vec![Error::required(&path.child("fieldPath"), "")];
    }
    if let Some((map, key)) = subscript(field) {
        return match map {
            "metadata.annotations" => sentences(path, key.to_lowercase(), names::qualified_name(&key.to_lowercase())),
            "metadata.labels" => sentences(path, key, names::qualified_name(key)),
            _ if KNOWN_FIELDS.contains(&map) => vec![Error::invalid(path, map, "does not support subscript")],
            _ => vec![unknown_field(field, path)],
        };
    }
    if fields.contains(&field) {
        return Errors::new();
    }
    if KNOWN_FIELDS.contains(&field) || FIELDS.contains(&field) {
        return vec![Error::not_supported(&path.child("fieldPath"), field, fields)];
    }
    vec![unknown_field(field, path)]
}

fn unknown_field(field: &str, path: &Path) -> Error {
    let sentence = format!("error converting fieldPath: field label not supported: {field}");
    Error::invalid(&path.child("fieldPath"), field, sentence)
}

/// `metadata.labels['key']` in its two parts.
fn subscript(field: &str) -> Option<(&str, &str)> {
    field.strip_suffix("']")?.split_once("['")
}

/// A request or limit of a container. In a volume (`of_volume`) the container must be named.
pub fn resource_reference(reference: &Value, of_volume: bool, path: &Path) -> Errors {
    let resource = text(reference, "resource");
    let huge_pages = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    let mut errors = Errors::new();
    if of_volume && text(reference, "containerName").is_empty() {
        errors.push(Error::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(Error::required(&path.child("resource"), ""));
    } else if !RESOURCES.contains(&resource) && !huge_pages {
        errors.push(Error::not_supported(&path.child("resource"), resource, &RESOURCES));
    }
    let divisor = quantity::from_json(at(reference, "divisor")).unwrap_or_default();
    errors.extend(divisor_errors(resource, huge_pages, divisor, path));
    errors
}

fn divisor_errors(resource: &str, huge_pages: bool, divisor: Quantity, path: &Path) -> Option<Error> {
    if divisor.is_zero() {
        return None;
    }
    let printed = divisor.to_string();
    let (allowed, words) = match resource {
        "limits.cpu" | "requests.cpu" => {
            let sentence = "only divisor's values 1m and 1 are supported with the cpu resource";
            let fine = matches!(printed.as_str(), "1m" | "1");
            return (!fine).then(|| Error::invalid(&path.child("divisor"), resource, sentence));
        }
        "limits.memory" | "requests.memory" => (&DIVISORS, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (&DIVISORS, "local ephemeral storage"),
        _ if huge_pages => (&DIVISORS, "hugepages"),
        _ => return None,
    };
    let sentence = format!("only divisor's values {} are supported with the {words} resource", DIVISORS.join(", "));
    (!allowed.contains(&printed.as_str())).then(|| Error::invalid(&path.child("divisor"), resource, sentence))
}

fn from_source(source: &Value, parent: &Path, index: usize) -> Errors {
    let path = parent.index(index);
    let prefix = text(source, "prefix");
    let mut errors = Errors::new();
    if !prefix.is_empty() {
        errors.extend(sentences(&path.child("prefix"), prefix, names::env_var_name(prefix)));
    }
    let kinds: Vec<&str> = ["configMapRef", "secretRef"].into_iter().filter(|kind| has(source, kind)).collect();
    for kind in &kinds {
        errors.extend(required_formed(at(source, kind), &path.child(kind), "name", names::dns1123_subdomain));
    }
    match kinds.len() {
        0 => errors.push(Error::invalid(parent, "", "must specify one of: `configMapRef` or `secretRef`")),
        1 => {}
        _ => errors.push(Error::invalid(parent, "", "may not have more than one field specified at a time")),
    }
    errors
}
