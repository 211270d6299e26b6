//! One Service and its EndpointSlices → what packets shall meet on this node. Pure.
//!
//! Choices follow kube-proxy's nftables mode: which endpoints count (ready; if none, serving ones that terminate), traffic policies,
//! topology hints, when the source is masqueraded, what happens without endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

/// A network: address and prefix length.
pub type Cidr = (IpAddr, u8);

/// The node that the plan is for.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub name: String,
    /// Its label topology.kubernetes.io/zone.
    pub zone: Option<String>,
    /// Pods of the whole cluster.
    pub pod_cidrs: Vec<Cidr>,
}

/// Whose object asked for a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Namespace and name.
    Service(String, String),
    Pod(String, String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(namespace, name) => write!(f, "service {namespace}/{name}"),
            Self::Pod(namespace, name) => write!(f, "pod {namespace}/{name}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Where clients knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    pub family: Family,
    /// `None`: every address of the node (node ports, host ports).
    pub address: Option<IpAddr>,
    /// IP protocol number: 6 TCP, 17 UDP, 132 SCTP.
    pub protocol: u8,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
}

/// Whose source address is replaced by the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Masquerade {
    /// Clients that are no pods: a ClusterIP's answers must come back through this node.
    NonPods,
    Always,
    Never,
}

/// What a frontend does with a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Balance(Balance),
    /// No endpoints: ICMP port unreachable, so that clients see "connection refused" at once.
    Reject,
    /// Endpoints elsewhere, but the traffic policy wants them here.
    Drop,
}

/// `endpoints` is never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    pub endpoints: Vec<Endpoint>,
    /// externalTrafficPolicy Local: what clients outside the cluster get, with their own source address; pods and the node get
    /// `endpoints`. May be empty: outside clients are dropped.
    pub local: Option<Vec<Endpoint>>,
    pub masquerade: Masquerade,
    /// sessionAffinity ClientIP.
    pub affinity_seconds: Option<u32>,
}

/// The frontends of one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub frontends: BTreeMap<Frontend, Action>,
    /// Endpoint addresses on this node: one that reaches itself through the Service must see another source.
    pub local_addresses: BTreeSet<IpAddr>,
    /// loadBalancerSourceRanges: others are dropped.
    pub sources: BTreeMap<Frontend, BTreeSet<Cidr>>,
    pub health: Option<Health>,
}

/// healthCheckNodePort, and what it has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub port: u16,
    /// Endpoints on this node that take traffic.
    pub local: usize,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const AFFINITY_SECONDS_DEFAULT: u32 = 10_800;
/// KEP-2447: a Service with this label belongs to another proxy.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// The plan of a Service. `slices` are its own, of any address type.
pub fn plan<'a>(service: &Service, slices: impl IntoIterator<Item = &'a EndpointSlice>, node: &Node) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = service.spec.as_ref().filter(|_| is_ours(service)) else { return plan };
    let slices: Vec<&EndpointSlice> = slices.into_iter().collect();
    let addresses = Addresses::of(service, spec);
    plan.health = health(spec, &slices, node);
    for port in spec.ports.iter().flatten() {
        for family in [Family::V4, Family::V6] {
            if let Some(key) = frontend_key(port, family) {
                let backends = Backends::of(&slices, port, family, node);
                plan.local_addresses.extend(backends.local_addresses.iter().copied());
                addresses.plan_port(spec, port, key, &backends, &mut plan.frontends);
                addresses.plan_sources(spec, key, &mut plan.sources);
            }
        }
    }
    plan
}

/// Only ready endpoints count: a balancer shall send no new clients to those that terminate.
fn health(spec: &ServiceSpec, slices: &[&EndpointSlice], node: &Node) -> Option<Health> {
    let port = u16::try_from(spec.health_check_node_port?).ok().filter(|port| *port > 0)?;
    let balancer = spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    let ready = |endpoint: &&SliceEndpoint| {
        let conditions = endpoint.conditions.as_ref();
        endpoint.node_name.as_deref() == Some(&node.name) && conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
    };
    let local: BTreeSet<&String> = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(ready)
        // One pod has an address of each family.
        .filter_map(|endpoint| endpoint.target_ref.as_ref().and_then(|target| target.uid.as_ref()).or(endpoint.addresses.first()))
        .collect();
    balancer.then_some(Health { port, local: local.len() })
}

fn is_ours(service: &Service) -> bool {
    let labelled = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
    let spec = service.spec.as_ref();
    let external_name = spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    let cluster_ip = spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    !labelled && !external_name && !cluster_ip.is_empty() && cluster_ip != "None"
}

fn frontend_key(port: &ServicePort, family: Family) -> Option<Frontend> {
    let protocol = protocol_number(port.protocol.as_deref())?;
    Some(Frontend { family, address: None, protocol, port: u16::try_from(port.port).ok()? })
}

fn protocol_number(protocol: Option<&str>) -> Option<u8> {
    match protocol.unwrap_or("TCP") {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => None,
    }
}

/// A Service's own addresses.
struct Addresses {
    cluster: Vec<IpAddr>,
    external: Vec<IpAddr>,
    balancer: Vec<IpAddr>,
    families: Vec<Family>,
}

impl Addresses {
    fn of(service: &Service, spec: &ServiceSpec) -> Self {
        let parse = |text: &String| text.parse::<IpAddr>().ok();
        let mut cluster: Vec<IpAddr> = spec.cluster_ips.iter().flatten().filter_map(parse).collect();
        if cluster.is_empty() {
            cluster.extend(spec.cluster_ip.as_ref().and_then(parse));
        }
        let ingress =
            service.status.iter().filter_map(|status| status.load_balancer.as_ref()).flat_map(|status| status.ingress.iter().flatten());
        // KEP-1860: with mode Proxy the load balancer's address is not ours to answer.
        let balancer: Vec<IpAddr> = ingress
            .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|ingress| ingress.ip.as_ref())
            .filter_map(parse)
            .collect();
        let external = spec.external_ips.iter().flatten().filter_map(parse).chain(balancer.iter().copied()).collect();
        let families = cluster.iter().copied().map(Family::of).collect();
        Self { cluster, external, balancer, families }
    }

    fn plan_port(&self, spec: &ServiceSpec, port: &ServicePort, key: Frontend, backends: &Backends, into: &mut BTreeMap<Frontend, Action>) {
        let affinity_seconds = affinity_seconds(spec);
        let internal = backends.internal(spec.internal_traffic_policy.as_deref() == Some("Local"), affinity_seconds);
        for address in self.cluster.iter().filter(|address| Family::of(**address) == key.family) {
            into.insert(Frontend { address: Some(*address), ..key }, internal.clone());
        }
        let external = backends.external(spec.external_traffic_policy.as_deref() == Some("Local"), affinity_seconds);
        for address in self.external.iter().filter(|address| Family::of(**address) == key.family) {
            into.insert(Frontend { address: Some(*address), ..key }, external.clone());
        }
        let node_port = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        if let Some(node_port) = node_port.filter(|_| self.families.contains(&key.family)) {
            into.insert(Frontend { port: node_port, ..key }, external);
        }
    }
}

impl Addresses {
    /// Only the load balancer's addresses are restricted, as upstream does it. A range that cannot be read allows nobody: validation
    /// keeps it out of the API, and letting everybody in would be the worse mistake.
    fn plan_sources(&self, spec: &ServiceSpec, key: Frontend, into: &mut BTreeMap<Frontend, BTreeSet<Cidr>>) {
        let ranges: Vec<&String> = spec.load_balancer_source_ranges.iter().flatten().collect();
        if ranges.is_empty() {
            return;
        }
        let allowed: BTreeSet<Cidr> =
            ranges.into_iter().filter_map(|range| cidr(range)).filter(|range| Family::of(range.0) == key.family).collect();
        // The kernel refuses ranges that overlap; the wider one says it all.
        let wider = |range: &&Cidr| !allowed.iter().any(|other| other.1 < range.1 && masked(range.0, other.1) == other.0);
        let allowed: BTreeSet<Cidr> = allowed.iter().filter(wider).copied().collect();
        for address in self.balancer.iter().filter(|address| Family::of(**address) == key.family) {
            into.insert(Frontend { address: Some(*address), ..key }, allowed.clone());
        }
    }
}

fn cidr(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.trim().split_once('/')?;
    let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((masked(address, prefix), prefix))
}

/// The address without its host bits.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !u32::MAX.checked_shr(prefix.into()).unwrap_or(0)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::MAX.checked_shr(prefix.into()).unwrap_or(0)).into(),
    }
}

fn affinity_seconds(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let configured =
        spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()).and_then(|client| client.timeout_seconds);
    Some(configured.and_then(|seconds| u32::try_from(seconds).ok()).filter(|seconds| *seconds > 0).unwrap_or(AFFINITY_SECONDS_DEFAULT))
}

/// The endpoints of one port and family that take traffic.
struct Backends {
    cluster: Vec<Endpoint>,
    local: Vec<Endpoint>,
    local_addresses: BTreeSet<IpAddr>,
}

/// One endpoint of a slice with what the choice needs.
struct Candidate<'a> {
    endpoint: Endpoint,
    from: &'a SliceEndpoint,
    ready: bool,
    /// Serves although it terminates.
    fallback: bool,
    local: bool,
}

impl Backends {
    fn of(slices: &[&EndpointSlice], port: &ServicePort, family: Family, node: &Node) -> Self {
        let candidates = candidates(slices, port, family, node);
        let all: Vec<&Candidate> = candidates.iter().collect();
        let local: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.local).collect();
        let local = usable(&local);
        let local_addresses = local.iter().map(|candidate| candidate.endpoint.address).collect();
        Self { cluster: endpoints(hinted(usable(&all), node)), local: endpoints(local), local_addresses }
    }
    fn internal(&self, local_only: bool, affinity_seconds: Option<u32>) -> Action {
        let endpoints = if local_only { &self.local } else { &self.cluster };
        if endpoints.is_empty() {
            return if self.cluster.is_empty() { Action::Reject } else { Action::Drop };
        }
        Action::Balance(Balance { endpoints: endpoints.clone(), local: None, masquerade: Masquerade::NonPods, affinity_seconds })
    }
    fn external(&self, local_only: bool, affinity_seconds: Option<u32>) -> Action {
        if self.cluster.is_empty() {
            return Action::Reject;
        }
        let local = local_only.then(|| self.local.clone());
        let masquerade = if local_only { Masquerade::Never } else { Masquerade::Always };
        Action::Balance(Balance { endpoints: self.cluster.clone(), local, masquerade, affinity_seconds })
    }
}

fn candidates<'a>(slices: &[&'a EndpointSlice], port: &ServicePort, family: Family, node: &Node) -> Vec<Candidate<'a>> {
    let address_type = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let wanted = port.name.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == address_type) {
        let named = slice.ports.iter().flatten().find(|candidate| {
            candidate.name.as_deref().unwrap_or_default() == wanted
                && protocol_number(candidate.protocol.as_deref()) == protocol_number(port.protocol.as_deref())
        });
        let Some(port) = named.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
        for from in slice.endpoints.iter().flatten() {
            // Upstream takes the first address; the others have no meaning.
            let Some(address) = from.addresses.first().and_then(|address| address.parse().ok()) else { continue };
            let conditions = from.conditions.as_ref();
            let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
            let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
            let local = from.node_name.as_deref() == Some(&node.name);
            found.push(Candidate { endpoint: Endpoint { address, port }, from, ready, fallback: serving && terminating, local });
        }
    }
    found
}

/// The ready ones, or if there are none those that still serve while they terminate (KEP-1669).
fn usable<'a, 'b>(candidates: &[&'b Candidate<'a>]) -> Vec<&'b Candidate<'a>> {
    let ready: Vec<&Candidate> = candidates.iter().copied().filter(|candidate| candidate.ready).collect();
    if ready.is_empty() { candidates.iter().copied().filter(|candidate| candidate.fallback).collect() } else { ready }
}

/// Those hinted for this node, else for its zone; all of them as soon as one has no hint or none is for us (KEP-2433, KEP-3015).
fn hinted<'a, 'b>(candidates: Vec<&'b Candidate<'a>>, node: &Node) -> Vec<&'b Candidate<'a>> {
    let for_node = |candidate: &Candidate| {
        let hints = candidate.from.hints.as_ref()?.for_nodes.as_ref().filter(|nodes| !nodes.is_empty())?;
        Some(hints.iter().any(|hint| hint.name == node.name))
    };
    let for_zone = |candidate: &Candidate| {
        let hints = candidate.from.hints.as_ref()?.for_zones.as_ref().filter(|zones| !zones.is_empty())?;
        Some(hints.iter().any(|hint| Some(&hint.name) == node.zone.as_ref()))
    };
    for hint in [&for_node as &dyn Fn(&Candidate) -> Option<bool>, &for_zone] {
        if candidates.iter().all(|candidate| hint(candidate).is_some()) {
            let ours: Vec<&Candidate> = candidates.iter().copied().filter(|candidate| hint(candidate) == Some(true)).collect();
            if !ours.is_empty() {
                return ours;
            }
        }
    }
    candidates
}

fn endpoints(candidates: Vec<&Candidate<'_>>) -> Vec<Endpoint> {
    let unique: BTreeSet<Endpoint> = candidates.into_iter().map(|candidate| candidate.endpoint).collect();
    unique.into_iter().collect()
}

/// Whether the proxy has to look at the pod at all.
pub fn has_host_ports(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref().filter(|spec| spec.host_network != Some(true)) else { return false };
    containers(spec).any(|container| container.ports.iter().flatten().any(|port| port.host_port.is_some_and(|port| port > 0)))
}

/// The host ports of a pod on this node.
pub fn plan_host_ports(pod: &Pod, node: &Node) -> Plan {
    let mut plan = Plan::default();
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return plan };
    let here = spec.node_name.as_deref() == Some(&node.name) && spec.host_network != Some(true);
    if !here || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return plan;
    }
    let mut addresses: BTreeSet<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    addresses.extend(status.pod_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    for port in containers(spec).flat_map(|container| container.ports.iter().flatten()) {
        let (Some(protocol), Some(host_port), Ok(container_port)) = (
            protocol_number(port.protocol.as_deref()),
            port.host_port.and_then(|port| u16::try_from(port).ok()),
            u16::try_from(port.container_port),
        ) else {
            continue;
        };
        let host_address: Option<IpAddr> = port.host_ip.as_ref().and_then(|ip| ip.parse().ok()).filter(|ip: &IpAddr| !ip.is_unspecified());
        for address in addresses.iter().filter(|address| host_address.is_none_or(|host| Family::of(host) == Family::of(**address))) {
            if host_port > 0 {
                let frontend = Frontend { family: Family::of(*address), address: host_address, protocol, port: host_port };
                let endpoints = vec![Endpoint { address: *address, port: container_port }];
                let balance = Balance { endpoints, local: None, masquerade: Masquerade::Never, affinity_seconds: None };
                plan.frontends.insert(frontend, Action::Balance(balance));
                plan.local_addresses.insert(*address);
            }
        }
    }
    plan
}

/// Those that live as long as the pod: containers and sidecars.
fn containers(spec: &k8s_openapi::api::core::v1::PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars)
}

#[cfg(test)]
mod tests;
