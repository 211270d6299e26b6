//! v1 Service. Addresses and node ports are given by the API server's allocator; here they are only checked and carried over.

use std::collections::BTreeSet;

use meta::field::Error;
use meta::names;
use serde_json::{Value, json};

use crate::printing::{self, AGE, NAME, SELECTOR, shown};
use crate::value::{at, has, int, items_mut, keep, list, remove, set, set_default, set_default_text, sub, text};
use crate::{Column, Part, Rules};

mod checks;

pub struct Service;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Type", "string", "How the Service is reached."),
    shown("Cluster-IP", "string", "Address inside the cluster."),
    shown("External-IP", "string", "Addresses outside the cluster."),
    shown("Port(s)", "string", "Ports, node ports and protocols."),
    AGE,
    SELECTOR,
];

const FIELDS: &[&str] = &["spec.clusterIP", "spec.type"];

/// Three hours: how long a client keeps its endpoint under `sessionAffinity: ClientIP`.
const CLIENT_IP_SECONDS: i64 = 10800;

impl Rules for Service {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "Service")
    }
    fn default(&self, object: &mut Value) {
        let Some(spec) = sub(object, "spec") else { return };
        set_default_text(spec, "sessionAffinity", "None");
        set_default_text(spec, "type", "ClusterIP");
        if text(spec, "sessionAffinity") == "ClientIP" {
            set_default(spec, "sessionAffinityConfig.clientIP.timeoutSeconds", CLIENT_IP_SECONDS);
        } else {
            drop(remove(spec, "sessionAffinityConfig"));
        }
        for port in items_mut(spec, "ports") {
            set_default_text(port, "protocol", "TCP");
            let target = at(port, "targetPort");
            if target.is_null() || *target == 0 || *target == "" {
                let number = at(port, "port").clone();
                set(port, "targetPort", number);
            }
        }
        let external = matches!(text(spec, "type"), "NodePort" | "LoadBalancer");
        if external || text(spec, "type") == "ClusterIP" && !list(spec, "externalIPs").is_empty() {
            set_default_text(spec, "externalTrafficPolicy", "Cluster");
        }
        if text(spec, "type") != "ExternalName" {
            set_default_text(spec, "internalTrafficPolicy", "Cluster");
        }
        if text(spec, "type") == "LoadBalancer" {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
        }
        same_first_address(spec);
        let balances = text(spec, "type") == "LoadBalancer";
        for ingress in items_mut(object, "status.loadBalancer.ingress").filter(|_| balances) {
            if !text(ingress, "ip").is_empty() {
                set_default(ingress, "ipMode", "VIP");
            }
        }
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"loadBalancer": {}}));
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        if part == Part::Status {
            keep(new, old, "spec");
            return;
        }
        keep(new, old, "status");
        carry_allocations(new, old);
        drop_unused(new, old);
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        checks::validate(object)
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        match part {
            Part::Main => checks::update(new, old),
            Part::Status => checks::status(new),
            Part::Subresource(_) => Vec::new(),
        }
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        checks::warnings(object)
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        FIELDS.iter().map(|field| (*field, text(object, field).to_owned())).collect()
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        FIELDS
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = at(object, "spec");
        vec![
            printing::name(object),
            text(spec, "type").into(),
            printing::or_none(spec, "clusterIP"),
            external_addresses(object),
            printed_ports(spec),
            printing::age(object, now),
            printing::labels(at(spec, "selector")),
        ]
    }
    /// KEP-5311: as relaxed as other names since 1.36 (before, a DNS-1035 label).
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_label(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}

/// `clusterIP` and the first of `clusterIPs` are one value under two names: what is given fills the other.
fn same_first_address(spec: &mut Value) {
    let (one, first) = (text(spec, "clusterIP").to_owned(), list(spec, "clusterIPs").first().cloned());
    match first {
        None if !one.is_empty() => set(spec, "clusterIPs", json!([one])),
        Some(first) if one.is_empty() => set(spec, "clusterIP", first),
        _ => {}
    }
}

fn needs_address(spec: &Value) -> bool {
    text(spec, "type") != "ExternalName"
}

fn needs_node_port(spec: &Value) -> bool {
    matches!(text(spec, "type"), "NodePort" | "LoadBalancer")
}

/// An update may leave out what was allocated (upstream: `patchAllocatedValues`).
fn carry_allocations(new: &mut Value, old: &Value) {
    if needs_address(at(new, "spec")) && needs_address(at(old, "spec")) {
        // A client that knows only `clusterIP` and clears it clears both.
        if text(new, "spec.clusterIP").is_empty() && list(new, "spec.clusterIPs").is_empty() {
            keep(new, old, "spec.clusterIP");
            keep(new, old, "spec.clusterIPs");
        }
        for field in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
            if !has(new, field) {
                keep(new, old, field);
            }
        }
    }
    if needs_node_port(at(new, "spec")) && needs_node_port(at(old, "spec")) {
        let key = |port: &Value| (text(port, "protocol").to_owned(), int(port, "port"));
        let before = list(old, "spec.ports");
        let mut used: BTreeSet<i64> = list(new, "spec.ports").iter().filter_map(|port| int(port, "nodePort")).collect();
        for port in items_mut(new, "spec.ports") {
            if int(port, "nodePort").unwrap_or(0) != 0 {
                continue;
            }
            let given = before.iter().find(|old| key(old) == key(port)).and_then(|old| int(old, "nodePort"));
            if let Some(number) = given.filter(|number| *number != 0 && used.insert(*number)) {
                set(port, "nodePort", number);
            }
        }
        if int(new, "spec.healthCheckNodePort").unwrap_or(0) == 0 {
            keep(new, old, "spec.healthCheckNodePort");
        }
    }
}

/// A changed type drops what belonged to the old one, unless the client changed it as well.
fn drop_unused(new: &mut Value, old: &Value) {
    if !needs_address(at(new, "spec")) && needs_address(at(old, "spec")) {
        for field in ["spec.clusterIP", "spec.clusterIPs", "spec.ipFamilies", "spec.ipFamilyPolicy"] {
            if at(new, field) == at(old, field) {
                drop(remove(new, field));
            }
        }
    }
    if !needs_node_port(at(new, "spec")) && needs_node_port(at(old, "spec")) {
        let before: BTreeSet<i64> = list(old, "spec.ports").iter().filter_map(|port| int(port, "nodePort")).collect();
        for port in items_mut(new, "spec.ports") {
            if int(port, "nodePort").is_some_and(|number| before.contains(&number)) {
                drop(remove(port, "nodePort"));
            }
        }
        for field in ["spec.externalTrafficPolicy", "spec.allocateLoadBalancerNodePorts", "spec.healthCheckNodePort"] {
            if at(new, field) == at(old, field) {
                drop(remove(new, field));
            }
        }
    }
}

fn external_addresses(object: &Value) -> Value {
    let mut words: Vec<&str> = list(object, "spec.externalIPs").iter().filter_map(Value::as_str).collect();
    match text(object, "spec.type") {
        "ExternalName" => text(object, "spec.externalName").into(),
        "LoadBalancer" => {
            let given = list(object, "status.loadBalancer.ingress").iter().map(|ingress| match text(ingress, "ip") {
                "" => text(ingress, "hostname"),
                ip => ip,
            });
            let mut all: Vec<&str> = given.collect();
            all.append(&mut words);
            if all.is_empty() { "<pending>".into() } else { all.join(",").into() }
        }
        _ => printing::none_if_empty(words.join(",")),
    }
}

fn printed_ports(spec: &Value) -> Value {
    let one = |port: &Value| {
        let (number, protocol) = (int(port, "port").unwrap_or(0), text(port, "protocol"));
        match int(port, "nodePort").unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    printing::none_if_empty(list(spec, "ports").iter().map(one).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "web"}, "spec": spec});
        Service.default(&mut object);
        object
    }

    #[test]
    fn a_bare_service_is_filled_in() {
        let object = service(json!({"ports": [{"port": 80}], "clusterIP": "10.96.0.9"}));
        assert_eq!(
            object["spec"],
            json!({"ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}], "type": "ClusterIP", "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]})
        );
        assert_eq!(Service.validate(&object), []);
    }

    #[test]
    fn broken_services_are_explained() {
        let cases = [
            (json!({}), "spec.ports: Required value"),
            (
                json!({"ports": [{"port": 70000, "targetPort": 1}]}),
                "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (json!({"ports": [{"port": 1}, {"port": 2, "name": "b"}]}), "spec.ports[0].name: Required value"),
            (
                json!({"ports": [{"port": 1}], "type": "Ingress"}),
                "spec.type: Unsupported value: \"Ingress\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            (
                json!({"ports": [{"port": 1, "nodePort": 30000}]}),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
            (
                json!({"ports": [{"port": 1}, {"port": 1}]}),
                "spec.ports[0].name: Required value; spec.ports[1].name: Required value; spec.ports[1]: Duplicate value: \
                 {\"AppProtocol\":null,\"Name\":\"\",\"NodePort\":0,\"Port\":1,\"Protocol\":\"TCP\",\"TargetPort\":0}",
            ),
            (
                json!({"ports": [{"port": 1}], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "10.0.0.2"]}),
                "spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for each IP family",
            ),
            (
                json!({"ports": [{"port": 1}], "externalIPs": ["127.0.0.1"]}),
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            (
                json!({"ports": [{"port": 1}], "loadBalancerClass": "a/b"}),
                "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
            ),
            (
                json!({"ports": [{"port": 1}], "trafficDistribution": "PreferFar"}),
                "spec.trafficDistribution: Unsupported value: \"PreferFar\": supported values: \"PreferClose\", \"PreferSameNode\", \
                 \"PreferSameZone\"",
            ),
            (
                json!({"ports": [{"port": 1}], "clusterIP": "x"}),
                "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        ];
        for (spec, expected) in cases {
            let found: Vec<String> = Service.validate(&service(spec.clone())).iter().map(ToString::to_string).collect();
            assert_eq!(found.join("; "), expected, "{spec}");
        }
    }

    #[test]
    fn an_update_keeps_the_address_and_node_ports_and_may_not_change_the_address() {
        let old = service(json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30123}]}));
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        Service.prepare_update(&mut new, &old, Part::Main);
        assert_eq!((&new["spec"]["clusterIP"], &new["spec"]["ports"][0]["nodePort"]), (&json!("10.96.0.9"), &json!(30123)));
        assert_eq!(Service.validate_update(&new, &old, Part::Main), []);
        let other = service(json!({"type": "NodePort", "clusterIP": "10.96.0.8", "ports": [{"port": 80}]}));
        let found: Vec<String> = Service.validate_update(&other, &old, Part::Main).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"]);
        let mut inner = service(json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30123}]}));
        Service.prepare_update(&mut inner, &old, Part::Main);
        assert_eq!(Service.validate(&inner), [], "the node port goes with the type");
    }

    #[test]
    fn rows_show_addresses_and_ports() {
        let cells = |spec: Value| Service.cells(&service(spec), 0)[1..5].to_vec();
        assert_eq!(
            cells(
                json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30123}, {"port": 53, "protocol": "UDP"}]})
            ),
            [json!("NodePort"), json!("10.96.0.9"), json!("<none>"), json!("80:30123/TCP,53/UDP")]
        );
        assert_eq!(cells(json!({"type": "LoadBalancer", "ports": [{"port": 1}]}))[2], "<pending>");
        assert_eq!(cells(json!({"type": "ExternalName", "externalName": "a.b"})), ["ExternalName", "<none>", "a.b", "<none>"]);
    }
}
