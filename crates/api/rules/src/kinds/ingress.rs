//! networking.k8s.io/v1 Ingress.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{Errors, one_of, sentences};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, int, keep, list, set, text};
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
            errors.push(Error::invalid(&path, spec.clone(), "either `defaultBackend` or `rules` must be specified"));
        }
        if has(spec, "defaultBackend") {
            errors.extend(backend(at(spec, "defaultBackend"), &path.child("defaultBackend")));
        }
        for (index, rule) in list(spec, "rules").iter().enumerate() {
            errors.extend(rule_errors(rule, &path.child("rules").index(index)));
        }
        errors
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

fn rule_errors(rule: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let host = text(rule, "host");
    if !host.is_empty() {
        let name = host.strip_prefix("*.").unwrap_or(host);
        errors.extend(sentences(&path.child("host"), host, names::dns1123_subdomain(name)));
    }
    if has(rule, "http") && list(rule, "http.paths").is_empty() {
        errors.push(Error::required(&path.child("http").child("paths"), ""));
    }
    for (index, one) in list(rule, "http.paths").iter().enumerate() {
        let here = path.child("http").child("paths").index(index);
        errors.extend(one_of(one, &here, "pathType", &["Exact", "ImplementationSpecific", "Prefix"]));
        let given = text(one, "path");
        if text(one, "pathType") != "ImplementationSpecific" && !given.starts_with('/') {
            errors.push(Error::invalid(&here.child("path"), given, "must be an absolute path"));
        }
        errors.extend(backend(at(one, "backend"), &here.child("backend")));
    }
    errors
}

fn backend(backend: &Value, path: &Path) -> Errors {
    match (has(backend, "service"), has(backend, "resource")) {
        (true, true) => vec![Error::invalid(path, "", "cannot set both resource and service backends")],
        (false, false) => vec![Error::required(path, "port name or number is required")],
        (false, true) => Errors::new(),
        (true, false) => {
            let (here, service) = (path.child("service"), at(backend, "service"));
            let mut errors = Errors::new();
            match text(service, "name") {
                "" => errors.push(Error::required(&here.child("name"), "")),
                name => errors.extend(sentences(&here.child("name"), name, names::dns1123_label(name))),
            }
            let (name, number) = (text(service, "port.name"), int(service, "port.number").unwrap_or(0));
            match (name.is_empty(), number) {
                (true, 0) => errors.push(Error::required(&here, "port name or number is required")),
                (true, number) => errors.extend(sentences(&here.child("port").child("number"), number, names::port_number(number))),
                (false, 0) => errors.extend(sentences(&here.child("port").child("name"), name, names::port_name(name))),
                (false, _) => errors.push(Error::invalid(&here, "", "cannot set both port name & port number")),
            }
            errors
        }
    }
}
