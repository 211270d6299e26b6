//! What of a pod matters for its placement; pods of one template are of one class and share the work of filtering.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, NodeAffinity, Pod, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::neighbours::Neighbour;

/// Amounts that a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Everything else by name, in its own units (milli for none).
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a `requests`, `limits`, `capacity` or `allocatable` map.
    pub fn of(quantities: &BTreeMap<String, Quantity>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in quantities {
            let Ok(amount) = meta::quantity::Quantity::parse(&quantity.0) else { continue };
            match name.as_str() {
                "cpu" => resources.milli_cpu = amount.milli_value(),
                "memory" => resources.memory = amount.value(),
                "ephemeral-storage" => resources.ephemeral_storage = amount.value(),
                "pods" => {}
                other => drop(resources.extended.insert(other.to_owned(), amount.value())),
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| *mine += theirs);
    }
    pub fn sub(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| *mine -= theirs);
    }
    pub fn max(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| *mine = (*mine).max(theirs));
    }

    fn combine(&mut self, other: &Self, with: impl Fn(&mut i64, i64)) {
        with(&mut self.milli_cpu, other.milli_cpu);
        with(&mut self.memory, other.memory);
        with(&mut self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.extended {
            with(self.extended.entry(name.clone()).or_default(), *amount);
        }
    }
}

/// A host port that a pod occupies: protocol, host address (empty means all), port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    pub address: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |address: &str| address.is_empty() || address == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.address) || any(&other.address) || self.address == other.address)
    }
}

/// A pod's demands on its node. Equal demands are one class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Class {
    pub requests: Resources,
    /// As `requests`, but a container without a request counts for 100m and 200 MiB: what scoring uses (upstream: NonZeroRequested).
    pub scored: Resources,
    pub node_name: Option<String>,
    pub node_selector: BTreeMap<String, String>,
    pub node_affinity: Option<NodeAffinity>,
    pub tolerations: Vec<Toleration>,
    pub host_ports: Vec<HostPort>,
    pub images: Vec<String>,
    /// What other pods see of it, and what it wants of them.
    pub neighbour: Neighbour,
}

/// What scoring assumes of a container that requests nothing.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

impl Class {
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        Self {
            requests: requests(spec, container_requests),
            scored: requests(spec, scored_requests),
            node_name: None,
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone()),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            host_ports: host_ports(spec),
            images: spec.containers.iter().filter_map(|container| container.image.clone()).collect(),
            neighbour: Neighbour::of(pod),
        }
    }
}

/// A pod's requests (KEP-753): the larger of its running containers' sum with its sidecars, and of what it needs at any moment of
/// its initialisation; pod-level requests where given; plus overhead.
fn requests(spec: &PodSpec, of: fn(&Container) -> Resources) -> Resources {
    let mut total = Resources::default();
    spec.containers.iter().for_each(|container| total.add(&of(container)));
    let mut sidecars = Resources::default();
    let mut initialising = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&of(container));
            total.add(&of(container));
            initialising.max(&sidecars);
        } else {
            let mut now = sidecars.clone();
            now.add(&of(container));
            initialising.max(&now);
        }
    }
    total.max(&initialising);
    if let Some(whole) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let whole_pod = Resources::of(whole);
        if whole.contains_key("cpu") {
            total.milli_cpu = whole_pod.milli_cpu;
        }
        if whole.contains_key("memory") {
            total.memory = whole_pod.memory;
        }
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::of(overhead));
    }
    total
}

fn container_requests(container: &Container) -> Resources {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    requests.map(Resources::of).unwrap_or_default()
}

fn scored_requests(container: &Container) -> Resources {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let mut resources = requests.map(Resources::of).unwrap_or_default();
    if !requests.is_some_and(|requests| requests.contains_key("cpu")) {
        resources.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if !requests.is_some_and(|requests| requests.contains_key("memory")) {
        resources.memory = DEFAULT_MEMORY;
    }
    resources
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports: Vec<HostPort> = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some(HostPort { protocol, address: port.host_ip.clone().unwrap_or_default(), port: number })
        })
        .collect();
    ports.sort();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> Resources {
        let pod: Pod = serde_json::from_value(serde_json::json!({ "spec": json })).unwrap();
        Class::of(&pod).requests
    }

    #[test]
    fn an_init_container_counts_only_where_it_needs_more_than_the_pod_that_follows() {
        let container = |cpu: &str| serde_json::json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } });
        let cases = [(vec!["1"], vec!["300m", "300m"], 1000), (vec!["500m"], vec!["300m", "300m"], 600), (vec![], vec!["0.1"], 100)];
        for (init, main, expected) in cases {
            let init: Vec<_> = init.into_iter().map(container).collect();
            let main: Vec<_> = main.into_iter().map(container).collect();
            assert_eq!(spec(serde_json::json!({ "initContainers": init, "containers": main })).milli_cpu, expected);
        }
    }

    #[test]
    fn a_sidecar_counts_with_the_containers_and_under_later_init_containers() {
        let pod = serde_json::json!({
            "initContainers": [
                { "name": "s", "restartPolicy": "Always", "resources": { "requests": { "memory": "100" } } },
                { "name": "i", "resources": { "requests": { "memory": "500" } } },
            ],
            "containers": [{ "name": "c", "resources": { "requests": { "memory": "200" } } }],
        });
        assert_eq!(spec(pod).memory, 600);
    }

    #[test]
    fn host_ports_conflict_on_overlapping_addresses_only() {
        let port = |address: &str, port| HostPort { protocol: "TCP".into(), address: address.into(), port };
        assert!(port("", 80).conflicts(&port("10.0.0.1", 80)));
        assert!(port("10.0.0.1", 80).conflicts(&port("0.0.0.0", 80)));
        assert!(!port("10.0.0.1", 80).conflicts(&port("10.0.0.2", 80)));
        assert!(!port("", 80).conflicts(&port("", 81)));
    }
}
