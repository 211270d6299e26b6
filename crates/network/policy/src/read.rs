//! Objects of the API → [`crate::model`]. What cannot be read selects and accepts nothing: validation keeps it out of the API.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use meta::LabelSelector;
use serde_json::Value;

use crate::model::{Action, Cidr, Namespaces, Peer, Pod, Pods, Policy, Port, Rule, SCTP, TCP, Tier, UDP, protocol_number};

/// `networking.k8s.io/v1` NetworkPolicy.
pub fn network_policy(object: &Value) -> Option<Policy> {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let namespace = metadata["namespace"].as_str()?;
    let subject = Pods { namespaces: Namespaces::Named(namespace.to_owned()), pods: selector(&spec["podSelector"]) };
    let types: Vec<&str> = spec["policyTypes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // Nobody named: ingress always, egress where there are rules for it.
    let says = |wanted: &str, otherwise: bool| if types.is_empty() { otherwise } else { types.contains(&wanted) };
    let list = |rules: &Value, peers: &str| rules.as_array().into_iter().flatten().map(|rule| accepting(rule, peers, namespace)).collect();
    let has_egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
    Some(Policy {
        tier: Tier::Developer,
        priority: 0,
        name: format!("{namespace}/{}", metadata["name"].as_str().unwrap_or_default()),
        subject,
        ingress: says("Ingress", true).then(|| list(&spec["ingress"], "from")),
        egress: says("Egress", has_egress).then(|| list(&spec["egress"], "to")),
    })
}

fn accepting(rule: &Value, peers: &str, namespace: &str) -> Rule {
    let listed = |name: &str| rule[name].as_array().filter(|list| !list.is_empty());
    Rule {
        action: Action::Accept,
        peers: listed(peers).map(|list| list.iter().filter_map(|peer| network_policy_peer(peer, namespace)).collect()),
        ports: listed("ports").map(|list| list.iter().filter_map(network_policy_port).collect()),
    }
}

fn network_policy_peer(peer: &Value, namespace: &str) -> Option<Peer> {
    let block = &peer["ipBlock"];
    if !block.is_null() {
        let except = block["except"].as_array().into_iter().flatten().filter_map(|text| cidr(text.as_str()?)).collect();
        return Some(Peer::Block { network: cidr(block["cidr"].as_str()?)?, except });
    }
    let namespaces = match &peer["namespaceSelector"] {
        Value::Null => Namespaces::Named(namespace.to_owned()),
        chosen => Namespaces::Matching(selector(chosen)),
    };
    let pods = if peer["podSelector"].is_null() { LabelSelector::everything() } else { selector(&peer["podSelector"]) };
    Some(Peer::Pods(Pods { namespaces, pods }))
}

fn network_policy_port(port: &Value) -> Option<Port> {
    let protocol = protocol_number(port["protocol"].as_str().unwrap_or("TCP"))?;
    match &port["port"] {
        Value::Null => Some(Port::Between { protocol, first: 0, last: u16::MAX }),
        Value::String(name) => Some(Port::Named { protocol: Some(protocol), name: name.clone() }),
        number => {
            let first = port_number(number)?;
            let last = if port["endPort"].is_null() { first } else { port_number(&port["endPort"])? };
            Some(Port::Between { protocol, first, last })
        }
    }
}

/// `policy.networking.k8s.io` ClusterNetworkPolicy (v1alpha2), AdminNetworkPolicy and BaselineAdminNetworkPolicy (v1alpha1).
pub fn cluster_policy(object: &Value) -> Option<Policy> {
    let spec = &object["spec"];
    let tier = match (object["kind"].as_str()?, spec["tier"].as_str()) {
        ("ClusterNetworkPolicy", Some("Admin")) | ("AdminNetworkPolicy", _) => Tier::Admin,
        ("ClusterNetworkPolicy", Some("Baseline")) | ("BaselineAdminNetworkPolicy", _) => Tier::Baseline,
        _ => return None,
    };
    let list = |name: &str, peers: &str| {
        let rules = spec[name].as_array().filter(|rules| !rules.is_empty())?;
        Some(rules.iter().filter_map(|rule| deciding(rule, peers)).collect())
    };
    Some(Policy {
        tier,
        priority: spec["priority"].as_i64().unwrap_or(0),
        name: object["metadata"]["name"].as_str()?.to_owned(),
        subject: namespaced(&spec["subject"])?,
        ingress: list("ingress", "from"),
        egress: list("egress", "to"),
    })
}

fn deciding(rule: &Value, peers: &str) -> Option<Rule> {
    let action = match rule["action"].as_str()? {
        "Accept" | "Allow" => Action::Accept,
        "Deny" => Action::Deny,
        "Pass" => Action::Pass,
        _ => return None,
    };
    let ports = rule["protocols"].as_array().or(rule["ports"].as_array()).filter(|ports| !ports.is_empty());
    Some(Rule {
        action,
        peers: Some(rule[peers].as_array().into_iter().flatten().flat_map(cluster_peers).collect()),
        ports: ports.map(|ports| ports.iter().flat_map(cluster_ports).collect()),
    })
}

/// One entry may name several networks. Names of domains need a resolver and are no part of the standard channel: they match nobody.
fn cluster_peers(peer: &Value) -> Vec<Peer> {
    if let Some(networks) = peer["networks"].as_array() {
        let block = |text: &Value| Some(Peer::Block { network: cidr(text.as_str()?)?, except: Vec::new() });
        return networks.iter().filter_map(block).collect();
    }
    if !peer["nodes"].is_null() {
        return vec![Peer::Nodes(selector(&peer["nodes"]))];
    }
    namespaced(peer).map(Peer::Pods).into_iter().collect()
}

/// `namespaces`, or `pods` with both selectors.
fn namespaced(value: &Value) -> Option<Pods> {
    if !value["namespaces"].is_null() {
        return Some(Pods { namespaces: Namespaces::Matching(selector(&value["namespaces"])), pods: LabelSelector::everything() });
    }
    let pods = value.get("pods").filter(|pods| !pods.is_null())?;
    let namespaces = Namespaces::Matching(selector(&pods["namespaceSelector"]));
    Some(Pods { namespaces, pods: selector(&pods["podSelector"]) })
}

fn cluster_ports(port: &Value) -> Vec<Port> {
    let between =
        |protocol, first: &Value, last: &Value| Some(Port::Between { protocol, first: port_number(first)?, last: port_number(last)? });
    for (name, protocol) in [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)] {
        let Some(chosen) = port.get(name).filter(|chosen| !chosen.is_null()) else { continue };
        let found = match &chosen["destinationPort"] {
            Value::Null => Some(Port::Between { protocol, first: 0, last: u16::MAX }),
            wanted if wanted["range"].is_object() => between(protocol, &wanted["range"]["start"], &wanted["range"]["end"]),
            wanted => between(protocol, &wanted["number"], &wanted["number"]),
        };
        return found.into_iter().collect();
    }
    if let Some(name) = port["destinationNamedPort"].as_str().or(port["namedPort"].as_str()) {
        return vec![Port::Named { protocol: None, name: name.to_owned() }];
    }
    let (one, range) = (&port["portNumber"], &port["portRange"]);
    let protocol = |value: &Value| protocol_number(value["protocol"].as_str().unwrap_or("TCP"));
    let found = if one.is_object() {
        protocol(one).and_then(|protocol| between(protocol, &one["port"], &one["port"]))
    } else {
        protocol(range).and_then(|protocol| between(protocol, &range["start"], &range["end"]))
    };
    found.into_iter().collect()
}

fn selector(value: &Value) -> LabelSelector {
    LabelSelector::from_object(value).unwrap_or_else(|_| LabelSelector::nothing())
}

fn port_number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok())
}

pub fn cidr(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.trim().split_once('/')?;
    let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

/// A pod with an address of its own: not on the host's network, not ended.
pub fn pod(pod: &core::Pod) -> Option<Pod> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    if spec.host_network == Some(true) || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let mut addresses: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(status.pod_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    if addresses.is_empty() {
        return None;
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        let protocol = protocol_number(port.protocol.as_deref().unwrap_or("TCP"))?;
        Some((port.name.clone()?, protocol, u16::try_from(port.container_port).ok()?))
    });
    Some(Pod {
        namespace: pod.metadata.namespace.clone()?,
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        addresses,
        node: spec.node_name.clone()?,
        ports: ports.collect(),
    })
}

/// Drops what [`pod`] does not read, for a cache of all pods of a cluster.
pub fn trim(pod: &mut core::Pod) {
    pod.metadata.annotations = None;
    pod.metadata.owner_references = None;
    if let Some(status) = &mut pod.status {
        let core::PodStatus { phase, pod_ip, pod_ips, .. } = std::mem::take(status);
        *status = core::PodStatus { phase, pod_ip, pod_ips, ..core::PodStatus::default() };
    }
    let Some(spec) = &mut pod.spec else { return };
    let core::PodSpec { host_network, node_name, containers, init_containers, .. } = std::mem::take(spec);
    let ports = |container: core::Container| core::Container {
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..core::Container::default()
    };
    *spec = core::PodSpec {
        host_network,
        node_name,
        containers: containers.into_iter().map(ports).collect(),
        init_containers: init_containers.map(|containers| containers.into_iter().map(ports).collect()),
        ..core::PodSpec::default()
    };
}
