//! Keeps the routes to other nodes' pods equal to the Node objects.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use reconcile::Cache;
use tokio::task::JoinSet;

use super::Surroundings;
use super::tunnel::{self, End};
use crate::components::Components;

/// Changes that come together are programmed together.
const GATHER: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(2);

/// What makes a node reachable: its address and its pods' ranges.
type Peers = BTreeMap<String, (IpAddr, Vec<cni::Cidr>)>;

pub fn start(around: &Surroundings, components: &mut Components) -> anyhow::Result<()> {
    let cluster = super::pairs(around.config.pods()?);
    let nodes: Cache<Node> = around.caches.of();
    let (name, prefix, drain) = (around.config.node_name.clone(), around.config.link_prefix.clone(), around.drain.clone());
    let port = around.config.kubelet_port;
    let work = async move {
        let mut changes = nodes.subscribe();
        nodes.synced().await;
        let (mut programmed, mut routes): (Peers, Option<cni::Peers>) = Default::default();
        let (mut checks, mut checked) = (JoinSet::new(), HashSet::new());
        loop {
            let wanted = peers(&nodes);
            if wanted != programmed || routes.is_none() {
                match program(routes.take(), &name, &prefix, &cluster, wanted.clone()).await {
                    Ok(Some(open)) => {
                        check_new(&open, &mut checked, &mut checks, port);
                        (routes, programmed) = (Some(open), wanted);
                    }
                    // This node has no range yet: its own change wakes us.
                    Ok(None) => programmed = wanted,
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "routes to other nodes; will retry");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            changes.next().await;
            tokio::time::sleep(GATHER).await;
            while changes.try_next().is_some() {}
        }
    };
    components.spawn("routes to other nodes", async move {
        drain.run(work).await;
    });
    Ok(())
}

/// Each node behind the tunnel is tried once.
fn check_new(routes: &cni::Peers, checked: &mut HashSet<End>, checks: &mut JoinSet<()>, port: u16) {
    while checks.try_join_next().is_some() {}
    let (link, behind) = routes.tunnelled();
    for end in behind.map(|(node, tunnel)| End { node, tunnel }) {
        if checked.insert(end) {
            checks.spawn(tunnel::check(link.to_owned(), end, port));
        }
    }
}

async fn program(
    routes: Option<cni::Peers>,
    name: &str,
    prefix: &str,
    cluster: &[cni::Cidr],
    mut peers: Peers,
) -> anyhow::Result<Option<cni::Peers>> {
    let Some((address, own)) = peers.remove(name) else { return Ok(None) };
    if own.is_empty() {
        return Ok(None);
    }
    let peers: Vec<cni::Peer> = peers
        .into_values()
        .filter_map(|(address, ranges)| Some((address, *ranges.first()?, ranges)))
        .flat_map(|(address, primary, ranges)| ranges.into_iter().map(move |pod_cidr| cni::Peer { address, pod_cidr, primary }))
        .collect();
    let (prefix, cluster) = (prefix.to_owned(), cluster.to_vec());
    let work = move || {
        let mut routes = routes.map_or_else(|| cni::Peers::open(&prefix, address, own, cluster), Ok)?;
        routes.sync(&peers)?;
        Ok::<_, cni::Error>(Some(routes))
    };
    tokio::task::spawn_blocking(work).await?.context("program")
}

fn peers(nodes: &Cache<Node>) -> Peers {
    let of = |node: &Node| {
        let address = internal_address(node)?;
        let ranges = node.spec.as_ref()?.pod_cidrs.iter().flatten().filter_map(|text| cni::parse_cidr(text)).collect();
        Some((node.metadata.name.clone()?, (address, ranges)))
    };
    nodes.list().iter().filter_map(|node| of(node)).collect()
}

/// Where the node is reached.
pub fn internal_address(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_deref()?;
    addresses.iter().find(|address| address.type_ == "InternalIP")?.address.parse().ok()
}
