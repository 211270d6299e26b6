//! Which pods serve a Service and on which ports: what EndpointSlices and Endpoints have in common.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use reconcile::{Cache, ObjectKey, Queue, key_of};

use crate::pods;

/// A look at this many pods is put off by a millisecond, and any by one: a thousand pods that start within a second are tens of writes,
/// not a thousand.
const PODS_PER_MILLISECOND: usize = 250;
const GATHER_MAX: Duration = Duration::from_millis(20);

/// A port that clients of the Service reach on each endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Port {
    pub name: String,
    pub protocol: String,
    pub number: i32,
    pub app_protocol: Option<String>,
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.publish_not_ready_addresses == Some(true))
}

/// A Service whose endpoints are ours to write: it selects pods and is not a mere name.
pub(crate) fn is_selecting(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()) && spec.type_.as_deref() != Some("ExternalName")
}

pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = pod.metadata.labels.as_ref();
    let carries = |(key, value): (&String, &String)| labels.and_then(|labels| labels.get(key)) == Some(value);
    selector.is_some_and(|selector| !selector.is_empty() && selector.iter().all(carries))
}

/// `IPv4` and `IPv6`, as the Service has them.
pub(crate) fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).filter(|families| !families.is_empty());
    families.unwrap_or_else(|| vec!["IPv4".into()])
}

/// The pod's addresses of a family.
pub(crate) fn addresses(pod: &Pod, family: &str) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|address| address.ip.clone());
    let mut all: Vec<String> = listed.collect();
    if all.is_empty() {
        all.extend(status.pod_ip.clone());
    }
    all.retain(|address| address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6")));
    all
}

/// The ports of the Service on this pod; a named one that the pod lacks is left out.
pub(crate) fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let mut found: Vec<Port> = ports.into_iter().flatten().filter_map(|port| resolve(port, pod)).collect();
    found.sort();
    found
}

fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named(pod, name, &protocol)?,
    };
    Some(Port { name: port.name.clone().unwrap_or_default(), protocol, number, app_protocol: port.app_protocol.clone() })
}

/// The number of a container port by its name; init containers that stay (sidecars) have ports too.
fn named(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let all = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let is_it = |port: &&ContainerPort| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol;
    all.into_iter().find(is_it).map(|port| port.container_port)
}

/// The pod's own host name within the Service, for DNS.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let inside =
        spec.subdomain.is_some() && spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace;
    spec.hostname.clone().filter(|hostname| inside && !hostname.is_empty())
}

pub(crate) fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Wakes a Service's key for its own changes and for those of pods that it selects or selected.
pub(crate) fn wake(services: &Cache<Service>, pods: &Cache<Pod>, queue: &Queue<ObjectKey>) {
    let by_service = queue.clone();
    services.on_change(move |old, new| new.or(old).into_iter().for_each(|service| by_service.add(key_of(&service.metadata))));
    let (by_pod, services, cache) = (queue.clone(), services.clone(), pods.clone());
    pods.on_change(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && !matters(old, new)
        {
            return;
        }
        let namespace = new.or(old).and_then(|pod| pod.metadata.namespace.clone()).unwrap_or_default();
        let concerned = |service: &&Arc<Service>| [old, new].into_iter().flatten().any(|pod| selects(service, pod));
        let all = services.by_namespace(&namespace);
        let gather = gather(cache.len());
        all.iter().filter(concerned).for_each(|service| by_pod.add_after(key_of(&service.metadata), gather));
    });
}

/// Every look at a Service goes through the pods of its namespace; `pods` are all there are.
fn gather(pods: usize) -> Duration {
    Duration::from_millis(1 + (pods / PODS_PER_MILLISECOND) as u64).min(GATHER_MAX)
}

/// Whether a change of a pod can change an endpoint.
fn matters(old: &Pod, new: &Pod) -> bool {
    let facts = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        (
            (
                pods::is_ready(pod),
                pods::is_terminal(pod),
                pod.metadata.deletion_timestamp.is_some(),
                pods::node_name(pod).map(str::to_owned),
            ),
            (
                pod.metadata.labels.clone(),
                status.and_then(|status| status.pod_ips.clone()),
                status.and_then(|status| status.pod_ip.clone()),
            ),
            (spec.and_then(|spec| spec.hostname.clone()), spec.and_then(|spec| spec.subdomain.clone())),
        )
    };
    facts(old) != facts(new)
}
