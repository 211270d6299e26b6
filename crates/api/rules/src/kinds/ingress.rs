//! networking.k8s.io/v1 Ingress.

use std::net::IpAddr;

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use super::ingress_class::typed_reference;
use crate::checks::{Errors, formed, required_formed, sentences};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{annotation, at, has, int, keep, list, set, text};
use crate::{Column, Part, Rules};

pub struct Ingress;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Class", "string", "Who serves it."),
    shown("Hosts", "string", "Hosts of its rules."),
    shown("Address", "string", "Where it is served."),
    shown("Ports", "string", "Ports that are open."),
    AGE,
];

impl Rules for Ingress {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("networking.k8s.io", "v1", "Ingress")
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"loadBalancer": {}}));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = Errors::new();
        if list(spec, "rules").is_empty() && !has(spec, "defaultBackend") {
            let sentence = "either `defaultBackend` or `rules` must be specified";
            errors.push(Error::invalid(&path, at(spec, "rules").clone(), sentence));
        }
        if has(spec, "defaultBackend") {
            errors.extend(backend(at(spec, "defaultBackend"), &path.child("defaultBackend")));
        }
        for (index, rule) in list(spec, "rules").iter().enumerate() {
            errors.extend(rule_errors(rule, &path.child("rules").index(index)));
        }
        for (index, tls) in list(spec, "tls").iter().enumerate() {
            let here = path.child("tls").index(index);
            for (index, name) in list(tls, "hosts").iter().filter_map(Value::as_str).enumerate() {
                errors.extend(host(name, &here.child("hosts").index(index)));
            }
            errors.extend(formed(tls, &here, "secretName", names::dns1123_subdomain));
        }
        if let Some(class) = at(spec, "ingressClassName").as_str() {
            errors.extend(sentences(&path.child("ingressClassName"), class, names::dns1123_subdomain(class)));
        }
        errors
    }
    fn validate_create(&self, object: &Value) -> Vec<Error> {
        let given = (annotation(object, CLASS_ANNOTATION), at(object, "spec.ingressClassName").as_str());
        match given {
            (Some(old), Some(new)) if old != new => {
                let path = Path::new("annotations").child(CLASS_ANNOTATION);
                vec![Error::invalid(&path, old, "must match `ingressClassName` when both are specified")]
            }
            _ => Vec::new(),
        }
    }
    fn validate_update(&self, new: &Value, _old: &Value, part: Part) -> Vec<Error> {
        if part == Part::Status { status(new) } else { Vec::new() }
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let sentence = format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead");
        annotation(object, CLASS_ANNOTATION).map(|_| sentence).into_iter().collect()
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let addresses = list(object, "status.loadBalancer.ingress").iter().map(|one| match text(one, "ip") {
            "" => text(one, "hostname"),
            ip => ip,
        });
        vec![
            printing::name(object),
            printing::or_none(object, "spec.ingressClassName"),
            hosts(object).into(),
            addresses.collect::<Vec<_>>().join(",").into(),
            if list(object, "spec.tls").is_empty() { "80" } else { "80, 443" }.into(),
            printing::age(object, now),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

fn hosts(object: &Value) -> String {
    let words: Vec<&str> = list(object, "spec.rules").iter().map(|rule| text(rule, "host")).filter(|host| !host.is_empty()).collect();
    match words.len() {
        0 => "*".to_owned(),
        count if count > 3 => format!("{} + {} more...", words[..3].join(","), count - 3),
        _ => words.join(","),
    }
}

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// A name, or one with a star in the place of its first label.
fn host(name: &str, path: &Path) -> Errors {
    let complaints = if name.contains('*') { names::wildcard_dns1123_subdomain(name) } else { names::dns1123_subdomain(name) };
    sentences(path, name, complaints)
}

fn rule_errors(rule: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let name = text(rule, "host");
    if !name.is_empty() {
        if name.parse::<IpAddr>().is_ok() {
            errors.push(Error::invalid(&path.child("host"), name, "must be a DNS name, not an IP address"));
        }
        errors.extend(host(name, &path.child("host")));
    }
    let paths = path.child("http").child("paths");
    if has(rule, "http") && list(rule, "http.paths").is_empty() {
        errors.push(Error::required(&paths, ""));
    }
    for (index, one) in list(rule, "http.paths").iter().enumerate() {
        errors.extend(path_errors(one, &paths.index(index)));
    }
    errors
}

/// What would mean another path to some servers.
const AMBIGUOUS: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];

fn path_errors(one: &Value, path: &Path) -> Errors {
    if !has(one, "pathType") {
        return vec![Error::required(&path.child("pathType"), "pathType must be specified")];
    }
    let (given, here) = (text(one, "path"), path.child("path"));
    let mut errors = Errors::new();
    match text(one, "pathType") {
        "Exact" | "Prefix" => {
            if !given.starts_with('/') {
                errors.push(Error::invalid(&here, given, "must be an absolute path"));
            }
            let inner = AMBIGUOUS.iter().filter(|part| given.contains(**part));
            errors.extend(inner.map(|part| Error::invalid(&here, given, format!("must not contain '{part}'"))));
            let ends = ["/..", "/."].into_iter().filter(|end| given.ends_with(end));
            errors.extend(ends.map(|end| Error::invalid(&here, given, format!("cannot end with '{end}'"))));
        }
        "ImplementationSpecific" if !given.is_empty() && !given.starts_with('/') => {
            errors.push(Error::invalid(&here, given, "must be an absolute path"));
        }
        "ImplementationSpecific" => {}
        other => {
            let types = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.push(Error::not_supported(&path.child("pathType"), other, &types));
        }
    }
    errors.extend(backend(at(one, "backend"), &path.child("backend")));
    errors
}

fn backend(backend: &Value, path: &Path) -> Errors {
    match (has(backend, "service"), has(backend, "resource")) {
        (true, true) => return vec![Error::invalid(path, "", "cannot set both resource and service backends")],
        (false, false) => return vec![Error::invalid(path, "", "resource or service backend is required")],
        (false, true) => return typed_reference(at(backend, "resource"), &path.child("resource")),
        (true, false) => {}
    }
    let (here, service) = (path.child("service"), at(backend, "service"));
    let mut errors = required_formed(service, &here, "name", names::dns1123_label);
    let (name, number) = (text(service, "port.name"), int(service, "port.number").unwrap_or(0));
    match (name.is_empty(), number) {
        (true, 0) => errors.push(Error::required(path, "port name or number is required")),
        (true, number) => errors.extend(sentences(&here.dotted("port.number"), number, names::port_number(number))),
        (false, 0) => errors.extend(sentences(&here.dotted("port.name"), name, names::port_name(name))),
        (false, _) => errors.push(Error::invalid(path, "", "cannot set both port name & port number")),
    }
    errors
}

fn status(object: &Value) -> Errors {
    let path = Path::new("status").dotted("loadBalancer.ingress");
    let mut errors = Errors::new();
    for (index, one) in list(object, "status.loadBalancer.ingress").iter().enumerate() {
        let here = path.index(index);
        errors.extend(formed(one, &here, "ip", names::ip));
        errors.extend(formed(one, &here, "hostname", names::dns1123_subdomain));
        if text(one, "hostname").parse::<IpAddr>().is_ok() {
            let name = text(one, "hostname");
            errors.push(Error::invalid(&here.child("hostname"), name, "must be a DNS name, not an IP address"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_ingresses_are_explained() {
        let service = json!({"service": {"name": "web", "port": {"number": 80}}});
        let path = |path: Value| json!({"rules": [{"http": {"paths": [path]}}]});
        let cases = [
            (json!({"defaultBackend": service}), vec![]),
            (json!({}), vec!["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]),
            (json!({"defaultBackend": {}}), vec!["spec.defaultBackend: Invalid value: \"\": resource or service backend is required"]),
            (
                json!({"defaultBackend": {"service": {"name": "web"}}}),
                vec!["spec.defaultBackend: Required value: port name or number is required"],
            ),
            (
                path(json!({"path": "/", "backend": service})),
                vec!["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
            ),
            (
                path(json!({"path": "a//b", "pathType": "Prefix", "backend": service})),
                vec![
                    "spec.rules[0].http.paths[0].path: Invalid value: \"a//b\": must be an absolute path",
                    "spec.rules[0].http.paths[0].path: Invalid value: \"a//b\": must not contain '//'",
                ],
            ),
            (
                json!({"rules": [{"host": "10.0.0.1"}]}),
                vec!["spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address"],
            ),
            (json!({"defaultBackend": {"resource": {"kind": "Bucket"}}}), vec!["spec.defaultBackend.resource.name: Required value"]),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = Ingress.validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{spec}");
        }
    }
}
