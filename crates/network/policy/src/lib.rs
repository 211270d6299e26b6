//! NetworkPolicy on one node: who may speak with this node's pods, and with whom they may.
//!
//! Way in: [`run`], one task. It observes policies, namespaces, pods and nodes through shared caches, plans the whole node ([`plan`]) and acts
//! with one netlink batch ([`Enforcer`]). Pods and what else only policies need is first asked for when there is a policy. The kinds of
//! `policy.networking.k8s.io` (ClusterNetworkPolicy; AdminNetworkPolicy and BaselineAdminNetworkPolicy of its first version) are read as
//! soon as their CustomResourceDefinitions are there ([`cluster`]).
//!
//! Every start is the recovery path: what a previous run programmed holds until the caches are complete, then it is replaced in one
//! transaction.
//!
//! Invariants of absence: no rule outside our table, no chain per pod, no packet of a pod that no policy selects passes more than one
//! lookup; nothing at all is installed where there is no policy.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use reconcile::Cache;
use stdx::Drain;
use tokio::sync::Notify;

pub mod cluster;
mod metrics;
pub mod model;
pub mod plan;
pub mod read;
mod table;

pub use table::Enforcer;

/// A refused batch is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Changes that come together are planned together.
const GATHER: Duration = Duration::from_millis(2);
const GATHER_MAX: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// The nftables table, shared with the pod network.
    pub table: String,
}

/// What is read. The last two are asked for once there is a policy: a cluster without any does not pay for all pods on every node.
#[derive(Clone)]
pub struct Caches {
    pub policies: Cache<NetworkPolicy>,
    pub namespaces: Cache<Namespace>,
    pub nodes: Cache<Node>,
    /// All pods of the cluster.
    pub pods: Arc<dyn Fn() -> Cache<Pod> + Send + Sync>,
    pub cluster: cluster::Policies,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open a netfilter socket")]
    Socket(#[source] std::io::Error),
    #[error("program the network policies")]
    Nft(#[from] nft::Error),
    #[error("the thread that programs the network policies ended")]
    Thread,
}

/// Enforces until `drain`. What is programmed stays when it ends.
pub async fn run(config: Config, caches: Caches, drain: Drain) -> Result<(), Error> {
    let enforcer = Arc::new(Mutex::new(Enforcer::open(&config.table)?));
    drain.run(enforce(config, caches, enforcer)).await;
    Ok(())
}

async fn enforce(config: Config, caches: Caches, enforcer: Arc<Mutex<Enforcer>>) {
    let wake = Arc::new(Notify::new());
    let on_policy = wake.clone();
    caches.policies.on_change(move |_, _| on_policy.notify_one());
    caches.cluster.on_change(&wake);
    caches.policies.synced().await;
    caches.cluster.synced().await;
    let mut pods: Option<Cache<Pod>> = None;
    loop {
        let any = !caches.policies.is_empty() || !caches.cluster.is_empty();
        if any && pods.is_none() {
            pods = Some(start_pods(&caches, &wake).await);
        }
        let world = match &pods {
            Some(pods) if any => observe(&config, &caches, pods),
            _ => model::World::default(),
        };
        let started = Instant::now();
        if let Err(error) = apply(&enforcer, world).await {
            tracing::warn!(error = error_text(&error), "programming the network policies failed; will retry");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let took = started.elapsed();
        wake.notified().await;
        // In a storm half of the time at most goes into planning.
        tokio::time::sleep(took.clamp(GATHER, GATHER_MAX)).await;
    }
}

/// The first policy: from now on everything that policies can speak of matters.
async fn start_pods(caches: &Caches, wake: &Arc<Notify>) -> Cache<Pod> {
    let pods = (caches.pods)();
    let on_pod = wake.clone();
    pods.on_change(move |old, new| {
        let read = |pod: Option<&Arc<Pod>>| pod.and_then(|pod| read::pod(pod));
        if read(old) != read(new) {
            on_pod.notify_one();
        }
    });
    let on_namespace = wake.clone();
    caches.namespaces.on_change(move |old, new| {
        let labels = |namespace: Option<&Arc<Namespace>>| namespace.map(|namespace| namespace.metadata.labels.clone());
        if labels(old) != labels(new) {
            on_namespace.notify_one();
        }
    });
    let on_node = wake.clone();
    caches.nodes.on_change(move |old, new| {
        let facts = |node: Option<&Arc<Node>>| node.map(|node| node_facts(node));
        if facts(old) != facts(new) {
            on_node.notify_one();
        }
    });
    pods.synced().await;
    caches.namespaces.synced().await;
    caches.nodes.synced().await;
    pods
}

fn node_facts(node: &Node) -> (model::Labels, Vec<std::net::IpAddr>) {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let addresses = addresses.filter_map(|address| address.address.parse().ok()).collect();
    (node.metadata.labels.clone().unwrap_or_default(), addresses)
}

fn observe(config: &Config, caches: &Caches, pods: &Cache<Pod>) -> model::World {
    let namespace = |namespace: &Arc<Namespace>| {
        let meta = &namespace.metadata;
        Some((meta.name.clone()?, meta.labels.clone().unwrap_or_default()))
    };
    let policy = |policy: &Arc<NetworkPolicy>| read::network_policy(&serde_json::to_value(&**policy).ok()?);
    let mut policies: Vec<model::Policy> = caches.policies.list().iter().filter_map(policy).collect();
    policies.extend(caches.cluster.list());
    model::World {
        node: config.node_name.clone(),
        namespaces: caches.namespaces.list().iter().filter_map(namespace).collect(),
        pods: pods.list().iter().filter_map(|pod| read::pod(pod)).collect(),
        nodes: caches.nodes.list().iter().map(|node| node_facts(node)).collect(),
        policies,
    }
}

async fn apply(enforcer: &Arc<Mutex<Enforcer>>, world: model::World) -> Result<(), Error> {
    let enforcer = enforcer.clone();
    let task = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let plan = plan::plan(&world);
        let result = enforcer.lock().unwrap_or_else(PoisonError::into_inner).apply(plan);
        metrics::observe(started.elapsed(), result.is_ok());
        result
    });
    task.await.map_err(|_| Error::Thread)?
}

fn error_text(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
