//! discovery.k8s.io/v1 EndpointSlice.

use std::collections::BTreeSet;
use std::net::IpAddr;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, immutable, non_special_ip, one_of, sentences};
use crate::printing::{self, AGE, NAME, first_three, shown};
use crate::value::{at, has, int, items_mut, list, set_default, set_default_text, text};
use crate::{Column, Part, Rules};

pub struct EndpointSlice;

const COLUMNS: &[Column] = &[
    NAME,
    shown("AddressType", "string", "Kind of the addresses."),
    shown("Ports", "string", "Ports of every endpoint."),
    shown("Endpoints", "string", "Addresses of the endpoints."),
    AGE,
];

const TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];

impl Rules for EndpointSlice {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("discovery.k8s.io", "v1", "EndpointSlice")
    }
    fn default(&self, object: &mut Value) {
        for port in items_mut(object, "ports") {
            set_default(port, "name", "");
            set_default_text(port, "protocol", "TCP");
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let path = Path::root();
        let mut errors = one_of(object, &path, "addressType", &TYPES);
        let kind = text(object, "addressType");
        let all = list(object, "endpoints");
        if all.len() > 1000 {
            errors.push(Error::too_many(&path.child("endpoints"), all.len(), 1000));
        }
        for (index, endpoint) in all.iter().enumerate() {
            errors.extend(endpoint_errors(endpoint, kind, &path.child("endpoints").index(index)));
        }
        errors.extend(ports(object, &path.child("ports")));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Error> {
        immutable(&Path::new("addressType"), at(new, "addressType"), at(old, "addressType"))
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let number = |port: &Value| int(port, "port").map_or_else(|| "*".to_owned(), |port| port.to_string());
        let ports: Vec<String> = list(object, "ports").iter().map(number).collect();
        let endpoints = list(object, "endpoints").iter();
        let addresses: Vec<String> =
            endpoints.flat_map(|endpoint| list(endpoint, "addresses")).filter_map(|address| address.as_str().map(str::to_owned)).collect();
        vec![
            printing::name(object),
            text(object, "addressType").into(),
            first_three(&ports, "<unset>"),
            first_three(&addresses, "<unset>"),
            printing::age(object, now),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

fn endpoint_errors(endpoint: &Value, kind: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let addresses = list(endpoint, "addresses");
    let here = path.child("addresses");
    if addresses.is_empty() {
        errors.push(Error::required(&here, "must contain at least 1 address"));
    }
    if addresses.len() > 100 {
        errors.push(Error::too_many(&here, addresses.len(), 100));
    }
    for (index, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
        let here = here.index(index);
        let parsed = address.parse::<IpAddr>();
        match kind {
            "IPv4" if !matches!(parsed, Ok(IpAddr::V4(_))) => {
                let sentence = if parsed.is_ok() { "must be an IPv4 address" } else { INVALID_IP };
                errors.push(Error::invalid(&here, address, sentence));
            }
            "IPv6" if !matches!(parsed, Ok(IpAddr::V6(_))) => {
                let sentence = if parsed.is_ok() { "must be an IPv6 address" } else { INVALID_IP };
                errors.push(Error::invalid(&here, address, sentence));
            }
            "FQDN" => errors.extend(sentences(&here, address, names::dns1123_subdomain(address))),
            _ => {}
        }
        if parsed.is_ok() && kind != "FQDN" {
            errors.extend(non_special_ip(address, &here));
        }
    }
    if let Some(node) = at(endpoint, "nodeName").as_str() {
        errors.extend(sentences(&path.child("nodeName"), node, names::dns1123_subdomain(node)));
    }
    if has(endpoint, "hostname") {
        let name = text(endpoint, "hostname");
        errors.extend(sentences(&path.child("hostname"), name, names::dns1123_label(name)));
    }
    errors
}

const INVALID_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn ports(object: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut taken = BTreeSet::new();
    for (index, port) in list(object, "ports").iter().enumerate() {
        let here = path.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            errors.extend(sentences(&here.child("name"), name, names::dns1123_label(name)));
        }
        if !taken.insert(name) {
            errors.push(Error::duplicate(&here.child("name"), name));
        }
        errors.extend(crate::checks::protocol(port, &here));
        if let Some(app) = at(port, "appProtocol").as_str() {
            errors.extend(sentences(&here.child("appProtocol"), app, names::qualified_name(app)));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_must_be_of_the_slices_type() {
        let object = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["::1"]}, {"addresses": []}],
            "ports": [{"protocol": "TCP", "name": "a"}, {"protocol": "TCP", "name": "a"}]});
        let found: Vec<String> = EndpointSlice.validate(&object).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "endpoints[1].addresses[0]: Invalid value: \"::1\": must be an IPv4 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "endpoints[2].addresses: Required value: must contain at least 1 address",
                "ports[1].name: Duplicate value: \"a\"",
            ]
        );
    }

    #[test]
    fn rows_show_three_addresses_and_count_the_rest() {
        let addresses = ["a", "b", "c", "d", "e"].map(|address| json!({"addresses": [address]}));
        let object = json!({"addressType": "FQDN", "endpoints": addresses, "ports": [{"port": 80}, {}]});
        assert_eq!(EndpointSlice.cells(&object, 0)[1..4], ["FQDN", "80,*", "a,b,c + 2 more..."].map(Value::from));
        assert_eq!(EndpointSlice.cells(&json!({}), 0)[2..4], ["<unset>", "<unset>"].map(Value::from));
    }
}
