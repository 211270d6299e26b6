//! What of a pod matters for its placement; pods of one template are of one class and share the work of filtering and scoring.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::{Container, NodeAffinity, NodeSelectorTerm, Pod, PodSpec, Toleration};

use crate::neighbours::{DefaultSpread, Neighbour};
pub use crate::resources::Resources;

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

/// A pod's demands on its node, and what other pods see of it. Never changes; a pod that changes gets another class.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// Different for each class of the process's life.
    pub id: u64,
    pub scheduler_name: String,
    pub priority: i32,
    /// `preemptionPolicy` is not `Never`.
    pub preempts: bool,
    pub requests: Resources,
    /// As `requests`, but a container without a request counts for 100m and 200 MiB: what scoring uses (upstream: NonZeroRequested).
    pub scored: Resources,
    pub node_selector: BTreeMap<String, String>,
    /// Without the name of one wanted node, which is the pod's own ([`target`]).
    pub node_affinity: Option<NodeAffinity>,
    pub tolerations: Vec<Toleration>,
    pub host_ports: Vec<HostPort>,
    /// With their tags, init containers and image volumes included.
    pub images: Vec<String>,
    pub neighbour: Neighbour,
}

/// What scoring assumes of a container that requests nothing.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Class {
    pub fn of(pod: &Pod) -> Self {
        Self::with_spread(pod, &DefaultSpread::default())
    }

    /// `spread` is what holds for a pod without constraints of its own.
    pub fn with_spread(pod: &Pod, spread: &DefaultSpread) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let Some(spec) = &pod.spec else { return Self { id, ..Self::default() } };
        let mut node_affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone());
        if target(pod).is_some() {
            strip_target(&mut node_affinity);
        }
        Self {
            id,
            scheduler_name: spec.scheduler_name.clone().unwrap_or_else(|| "default-scheduler".into()),
            priority: spec.priority.unwrap_or(0),
            preempts: spec.preemption_policy.as_deref() != Some("Never"),
            requests: requests(spec, container_requests),
            scored: requests(spec, scored_requests),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity,
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            host_ports: host_ports(spec),
            images: images(spec),
            neighbour: Neighbour::of(pod, spread),
        }
    }
}

/// The one node that the pod's required affinity names (what the DaemonSet controller writes): every term asks for this name, and of
/// fields for nothing else. Pods that differ in nothing but this share a class.
pub fn target(pod: &Pod) -> Option<&str> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let name = |term: &'_ NodeSelectorTerm| match term.match_fields.as_deref() {
        Some([field]) if field.key == "metadata.name" && field.operator == "In" => match field.values.as_deref() {
            Some([name]) => Some(name.clone()),
            _ => None,
        },
        _ => None,
    };
    let first = terms.first()?.match_fields.as_ref()?.first()?.values.as_ref()?.first()?;
    terms.iter().all(|term| name(term).as_ref() == Some(first)).then_some(first.as_str())
}

fn strip_target(affinity: &mut Option<NodeAffinity>) {
    let Some(affinity) = affinity else { return };
    let Some(required) = &mut affinity.required_during_scheduling_ignored_during_execution else { return };
    required.node_selector_terms.iter_mut().for_each(|term| term.match_fields = None);
    // A term that asked for the name alone now holds on every node.
    if required.node_selector_terms.iter().any(|term| term.match_expressions.as_ref().is_none_or(Vec::is_empty)) {
        affinity.required_during_scheduling_ignored_during_execution = None;
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
        for (name, amount) in whole_pod.extended.iter().filter(|(name, _)| name.starts_with("hugepages-")) {
            total.extended.insert(name.clone(), *amount);
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

fn images(spec: &PodSpec) -> Vec<String> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers).filter_map(|container| container.image.as_ref());
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_ref());
    containers.chain(volumes).map(|image| tagged(image)).collect()
}

/// As container runtimes list it: with its tag.
fn tagged(image: &str) -> String {
    if image.rfind(':') > image.rfind('/') { image.to_owned() } else { format!("{image}:latest") }
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

    #[test]
    fn the_node_that_a_daemon_pod_names_is_not_part_of_its_class() {
        let pod = |fields: serde_json::Value| -> Pod {
            let terms = serde_json::json!({ "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": fields } });
            serde_json::from_value(serde_json::json!({ "spec": { "containers": [], "affinity": { "nodeAffinity": terms } } })).unwrap()
        };
        let named = |name: &str| serde_json::json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] });
        let one = pod(serde_json::json!([named("a")]));
        assert_eq!(target(&one), Some("a"));
        let affinity = Class::of(&one).node_affinity.unwrap();
        assert!(affinity.required_during_scheduling_ignored_during_execution.is_none());
        assert_eq!(target(&pod(serde_json::json!([named("a"), named("b")]))), None);
    }

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        let cases = [("a", "a:latest"), ("r:5000/a", "r:5000/a:latest"), ("r:5000/a:1", "r:5000/a:1")];
        cases.into_iter().for_each(|(given, expected)| assert_eq!(tagged(given), expected));
    }
}
