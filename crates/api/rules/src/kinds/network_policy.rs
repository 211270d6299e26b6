//! networking.k8s.io/v1 NetworkPolicy.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{Errors, label_selector, port_number_or_name, sentences, supported};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, int, items_mut, list, set, set_default_text, sub, text};
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
            return errors;
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
        errors.extend(port_errors(port, &path.child("ports").index(index)));
    }
    for (index, peer) in list(rule, peers).iter().enumerate() {
        errors.extend(peer_errors(peer, &path.child(peers).index(index)));
    }
    errors
}

fn port_errors(port: &Value, path: &Path) -> Errors {
    let mut errors = supported(port, path, "protocol", &["TCP", "UDP", "SCTP"]);
    let (end, here) = (int(port, "endPort"), path.child("endPort"));
    let number = int(port, "port");
    if has(port, "port") {
        errors.extend(port_number_or_name(at(port, "port"), &path.child("port")));
    }
    let Some(end) = end else { return errors };
    match number {
        Some(number) => {
            if end < number {
                errors.push(Error::invalid(&here, number, "must be greater than or equal to `port`"));
            }
            errors.extend(sentences(&here, end, names::port_number(end)));
        }
        None if has(port, "port") => errors.push(Error::invalid(&here, end, "may not be specified when `port` is non-numeric")),
        None => errors.push(Error::invalid(&here, end, "may not be specified when `port` is not specified")),
    }
    errors
}

fn peer_errors(peer: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for selector in ["podSelector", "namespaceSelector"].into_iter().filter(|field| has(peer, field)) {
        errors.extend(label_selector(at(peer, selector), &path.child(selector)));
    }
    if has(peer, "ipBlock") {
        errors.extend(ip_block(at(peer, "ipBlock"), &path.child("ipBlock")));
    }
    let selects = has(peer, "podSelector") || has(peer, "namespaceSelector");
    match (selects, has(peer, "ipBlock")) {
        (false, false) => errors.push(Error::required(path, "must specify a peer")),
        (true, true) => errors.push(Error::forbidden(path, "may not specify both ipBlock and another peer")),
        _ => {}
    }
    errors
}

fn ip_block(block: &Value, path: &Path) -> Errors {
    let range = text(block, "cidr");
    if range.is_empty() {
        return vec![Error::required(&path.child("cidr"), "")];
    }
    let mut errors = sentences(&path.child("cidr"), range, names::cidr(range));
    let Some((network, length)) = names::parse_cidr(range) else { return errors };
    for (index, except) in list(block, "except").iter().filter_map(Value::as_str).enumerate() {
        let here = path.child("except").index(index);
        errors.extend(sentences(&here, except, names::cidr(except)));
        let Some((address, inner)) = names::parse_cidr(except) else { continue };
        let inside = address.is_ipv4() == network.is_ipv4() && names::network_of(address, length) == names::network_of(network, length);
        if !inside || length >= inner {
            let shown = format!("{}/{inner}", names::network_of(address, inner));
            errors.push(Error::invalid(&here, shown, "must be a strict subset of `cidr`"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_policies_are_explained() {
        let from = |peer: Value| json!({"podSelector": {}, "ingress": [{"from": [peer]}]});
        let port = |port: Value| json!({"podSelector": {}, "ingress": [{"ports": [port]}]});
        let cases = [
            (json!({"podSelector": {}}), vec![]),
            (from(json!({})), vec!["spec.ingress[0].from[0]: Required value: must specify a peer"]),
            (
                from(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})),
                vec!["spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer"],
            ),
            (
                from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}})),
                vec!["spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"],
            ),
            (
                port(json!({"port": 80, "endPort": 70})),
                vec!["spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`"],
            ),
            (
                port(json!({"port": "http", "endPort": 70})),
                vec!["spec.ingress[0].ports[0].endPort: Invalid value: 70: may not be specified when `port` is non-numeric"],
            ),
        ];
        for (spec, expected) in cases {
            let mut object = json!({"spec": spec});
            NetworkPolicy.default(&mut object);
            let found: Vec<String> = NetworkPolicy.validate(&object).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{spec}");
        }
    }
}
