//! networking.k8s.io/v1 NetworkPolicy.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{Errors, label_selector, port_number_or_name};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, items_mut, list, set, set_default_text, sub, text};
use crate::{Column, Rules};

pub struct NetworkPolicy;

const COLUMNS: &[Column] = &[NAME, shown("Pod-Selector", "string", "Pods to which it applies."), AGE];

impl Rules for NetworkPolicy {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("networking.k8s.io", "v1", "NetworkPolicy")
    }
    fn default(&self, object: &mut Value) {
        let Some(spec) = sub(object, "spec") else { return };
        for direction in ["ingress", "egress"] {
            for rule in items_mut(spec, direction) {
                for port in items_mut(rule, "ports") {
                    set_default_text(port, "protocol", "TCP");
                }
            }
        }
        if list(spec, "policyTypes").is_empty() {
            let types = if list(spec, "egress").is_empty() { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
            set(spec, "policyTypes", types);
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (path, spec) = (Path::new("spec"), at(object, "spec"));
        let mut errors = label_selector(at(spec, "podSelector"), &path.child("podSelector"));
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (index, rule) in list(spec, direction).iter().enumerate() {
                errors.extend(rule_errors(rule, peers, &path.child(direction).index(index)));
            }
        }
        let types = list(spec, "policyTypes");
        if types.len() > 2 {
            errors.push(Error::invalid(&path.child("policyTypes"), types.to_vec(), "may not specify more than two policyTypes"));
        }
        for (index, kind) in types.iter().filter_map(Value::as_str).enumerate() {
            if !matches!(kind, "Ingress" | "Egress") {
                errors.push(Error::not_supported(&path.child("policyTypes").index(index), kind, &["Egress", "Ingress"]));
            }
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
        vec![printing::name(object), printing::selector(at(object, "spec.podSelector")), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

fn rule_errors(rule: &Value, peers: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, port) in list(rule, "ports").iter().enumerate() {
        let here = path.child("ports").index(index);
        errors.extend(crate::checks::protocol(port, &here));
        if has(port, "port") {
            errors.extend(port_number_or_name(at(port, "port"), &here.child("port")));
        }
    }
    for (index, peer) in list(rule, peers).iter().enumerate() {
        let here = path.child(peers).index(index);
        for selector in ["podSelector", "namespaceSelector"].into_iter().filter(|field| has(peer, field)) {
            errors.extend(label_selector(at(peer, selector), &here.child(selector)));
        }
        let selects = has(peer, "podSelector") || has(peer, "namespaceSelector");
        match (selects, has(peer, "ipBlock")) {
            (false, false) => errors.push(Error::required(&here, "must specify a peer")),
            (true, true) => {
                let sentence = "may not specify both ipBlock and another peer";
                errors.push(Error::forbidden(&here, sentence));
            }
            (false, true) if text(peer, "ipBlock.cidr").is_empty() => {
                errors.push(Error::required(&here.child("ipBlock").child("cidr"), ""));
            }
            _ => {}
        }
    }
    errors
}
