//! The Service of cluster DNS, with an endpoint on every node that has a DNS server: pods ask their own node's.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{Cache, ObjectKey, Outcome, Queue};

use crate::node::{DNS_PORT_LABEL, internal_address};
use crate::up::Parts;

const RETRY: Duration = Duration::from_millis(200);

/// Keeps the Service and one slice per node until the daemon stops.
pub async fn keep(parts: Arc<Parts>) {
    let client = parts.client("system:apiserver", &["system:masters"]).named("dns");
    let nodes: Cache<Node> = parts.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let changed = queue.clone();
    nodes.on_change(move |old, new| {
        let facts = |node: &Node| (internal_address(node), dns_port(node));
        if old.map(|node| facts(node)) != new.map(|node| facts(node)) {
            new.or(old).into_iter().for_each(|node| changed.add(ObjectKey::new("", node.metadata.name.clone().unwrap_or_default())));
        }
    });
    nodes.synced().await;
    let (drain, parts) = (parts.drain.clone(), parts.clone());
    reconcile::run("dns-endpoints", queue, 1, drain, move |key| {
        let (client, nodes, parts) = (client.clone(), nodes.clone(), parts.clone());
        async move { reconcile(&client, &nodes, &parts, &key).await }
    })
    .await;
}

async fn reconcile(client: &client::Client, nodes: &Cache<Node>, parts: &Parts, key: &ObjectKey) -> Outcome {
    let Ok(service) = parts.config.dns_service_ip() else { return Outcome::Done };
    let endpoint = nodes
        .get_key(key)
        .and_then(|node| Some(dns::Endpoint { node_name: key.name.clone(), address: internal_address(&node)?, port: dns_port(&node)? }));
    let done = match endpoint {
        Some(endpoint) => dns::ensure_service(client, &[service], &endpoint).await,
        None => {
            let name = format!("kube-dns-{}", key.name);
            match client.delete::<EndpointSlice>(Some("kube-system"), &name, &client::DeleteParams::default()).await {
                Err(error) if error.is_not_found() => Ok(()),
                other => other.map(drop),
            }
        }
    };
    match done {
        Ok(()) => Outcome::Done,
        Err(error) => {
            tracing::debug!(%error, node = key.name, "the endpoint of cluster DNS; will retry");
            Outcome::RequeueAfter(RETRY)
        }
    }
}

fn dns_port(node: &Node) -> Option<u16> {
    node.metadata.labels.as_ref()?.get(DNS_PORT_LABEL)?.parse().ok()
}
