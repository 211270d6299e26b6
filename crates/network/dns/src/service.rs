//! The Service through which pods reach us, and this node's part of its endpoints.

use std::net::IpAddr;

use client::{Client, Object};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

const NAMESPACE: &str = "kube-system";
/// Upstream's name since before CoreDNS; what looks for cluster DNS looks for this.
const NAME: &str = "kube-dns";

/// Where this node's DNS listens. Not loopback or link-local: the API refuses those in EndpointSlices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub node_name: String,
    pub address: IpAddr,
    /// UDP and TCP.
    pub port: u16,
}

/// Makes `kube-dns` with these cluster IPs, and an EndpointSlice for this node, unless they are as they should be. The Service has no
/// selector: no controller touches its endpoints. The namespace must exist.
pub async fn ensure_service(client: &Client, cluster_ips: &[IpAddr], endpoint: &Endpoint) -> Result<(), client::Error> {
    // An existing Service is the user's to change: its cluster IP is immutable and the rest may be tuned.
    if find::<Service>(client, NAME).await?.is_none() {
        client::ignore_already_exists(client.create(&service(cluster_ips)).await)?;
    }
    let wanted = slice(endpoint);
    match find::<EndpointSlice>(client, &name(&wanted)).await? {
        None => client::ignore_already_exists(client.create(&wanted).await),
        Some(found) if same(&found, &wanted) => Ok(()),
        // addressType is immutable: a node that changed family gets a new slice.
        Some(found) if found.address_type != wanted.address_type => {
            client.delete::<EndpointSlice>(Some(NAMESPACE), &name(&wanted), &client::DeleteParams::default()).await?;
            client::ignore_already_exists(client.create(&wanted).await)
        }
        Some(found) => {
            let metadata = ObjectMeta { labels: wanted.metadata.labels, ..found.metadata };
            client.replace(&EndpointSlice { metadata, ..wanted }).await.map(drop)
        }
    }
}

async fn find<K: Object>(client: &Client, name: &str) -> Result<Option<K>, client::Error> {
    match client.get::<K>(Some(NAMESPACE), name).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn same(found: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    found.address_type == wanted.address_type
        && found.endpoints == wanted.endpoints
        && found.ports == wanted.ports
        && found.metadata.labels == wanted.metadata.labels
}

fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

fn service(cluster_ips: &[IpAddr]) -> Service {
    let labels = [("k8s-app", NAME), ("kubernetes.io/cluster-service", "true"), ("kubernetes.io/name", "CoreDNS")];
    let ips: Vec<String> = cluster_ips.iter().map(ToString::to_string).collect();
    let families: Vec<String> = cluster_ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned()).collect();
    let policy = if ips.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    let port = |name: &str, protocol: &str| ServicePort {
        name: Some(name.into()),
        port: 53,
        protocol: Some(protocol.into()),
        target_port: Some(IntOrString::Int(53)),
        ..ServicePort::default()
    };
    Service {
        metadata: metadata(NAME.to_owned(), &labels),
        spec: Some(ServiceSpec {
            cluster_ip: ips.first().cloned(),
            ip_family_policy: Some(policy.into()),
            ip_families: Some(families),
            cluster_ips: Some(ips),
            traffic_distribution: Some("PreferSameNode".into()),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn slice(endpoint: &Endpoint) -> EndpointSlice {
    let labels = [("k8s-app", NAME), ("kubernetes.io/service-name", NAME), ("endpointslice.kubernetes.io/managed-by", "dns.sternpost.io")];
    let port = |name: &str, protocol: &str| EndpointPort {
        name: Some(name.into()),
        port: Some(endpoint.port.into()),
        protocol: Some(protocol.into()),
        ..EndpointPort::default()
    };
    EndpointSlice {
        metadata: metadata(format!("{NAME}-{}", endpoint.node_name), &labels),
        address_type: if endpoint.address.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        endpoints: Some(vec![SliceEndpoint {
            addresses: vec![endpoint.address.to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), serving: Some(true), terminating: Some(false) }),
            node_name: Some(endpoint.node_name.clone()),
            // A pod asks its own node's server while that is there.
            hints: Some(EndpointHints { for_nodes: Some(vec![ForNode { name: endpoint.node_name.clone() }]), for_zones: None }),
            ..SliceEndpoint::default()
        }]),
        ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
    }
}

fn metadata(name: String, labels: &[(&str, &str)]) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(NAMESPACE.into()),
        labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        ..ObjectMeta::default()
    }
}
