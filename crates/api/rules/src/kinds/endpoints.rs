//! v1 Endpoints.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, formed, non_special_ip, protocol, sentences};
use crate::printing::{self, AGE, NAME, first_three, shown};
use crate::value::{at, int, items_mut, list, set_default_text, text};
use crate::{Column, Rules};

pub struct Endpoints;

const COLUMNS: &[Column] = &[NAME, shown("Endpoints", "string", "Addresses and ports."), AGE];

impl Rules for Endpoints {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "Endpoints")
    }
    fn default(&self, object: &mut Value) {
        for subset in items_mut(object, "subsets") {
            for port in items_mut(subset, "ports") {
                set_default_text(port, "protocol", "TCP");
            }
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let mut errors = Errors::new();
        for (index, subset) in list(object, "subsets").iter().enumerate() {
            errors.extend(subset_errors(subset, &Path::new("subsets").index(index)));
        }
        errors
    }
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into()]
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let words: Vec<String> = list(object, "subsets").iter().flat_map(endpoints_of).collect();
        vec![printing::name(object), first_three(&words, "<none>"), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}

fn subset_errors(subset: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
        errors.push(Error::required(path, "must specify `addresses` or `notReadyAddresses`"));
    }
    for field in ["addresses", "notReadyAddresses"] {
        for (index, address) in list(subset, field).iter().enumerate() {
            let ip = text(address, "ip");
            let here = path.child(field).index(index);
            errors.extend(sentences(&here.child("ip"), ip, names::ip(ip)));
            errors.extend(formed(address, &here, "hostname", names::dns1123_label));
            if let Some(node) = at(address, "nodeName").as_str() {
                errors.extend(sentences(&here.child("nodeName"), node, names::dns1123_subdomain(node)));
            }
            if ip.parse::<std::net::IpAddr>().is_ok() {
                errors.extend(non_special_ip(ip, &here.child("ip")));
            }
        }
    }
    let ports = list(subset, "ports");
    for (index, port) in ports.iter().enumerate() {
        let here = path.child("ports").index(index);
        let (name, number) = (text(port, "name"), int(port, "port").unwrap_or(0));
        if name.is_empty() && ports.len() > 1 {
            errors.push(Error::required(&here.child("name"), ""));
        } else if !name.is_empty() {
            errors.extend(sentences(&here.child("name"), name, names::dns1123_label(name)));
        }
        errors.extend(sentences(&here.child("port"), number, names::port_number(number)));
        errors.extend(protocol(port, &here));
        if let Some(app) = at(port, "appProtocol").as_str() {
            errors.extend(sentences(&here.child("appProtocol"), app, names::qualified_name(app)));
        }
    }
    errors
}

fn endpoints_of(subset: &Value) -> Vec<String> {
    let addresses = || list(subset, "addresses").iter().map(|address| text(address, "ip"));
    let ports = list(subset, "ports");
    if ports.is_empty() {
        return addresses().map(str::to_owned).collect();
    }
    let join = |ip: &str, port: i64| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
    ports.iter().flat_map(|port| addresses().map(move |ip| join(ip, int(port, "port").unwrap_or(0)))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_join_addresses_and_ports() {
        let object = json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "ports": [{"port": 80}, {"port": 81}]}]});
        assert_eq!(Endpoints.cells(&object, 0)[1], "10.0.0.1:80,[fd00::1]:80,10.0.0.1:81 + 1 more...");
        assert_eq!(Endpoints.cells(&json!({}), 0)[1], "<none>");
    }
}
