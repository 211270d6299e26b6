//! Services on one node: what kube-proxy does, as one nftables program that changes by elements.
//!
//! Way in: [`run`], one task. It observes Services, EndpointSlices and this node's pods (for host ports) through shared caches, plans
//! each Service on its own ([`plan`]), compares with what is programmed ([`program`]) and acts with one netlink batch per
//! wake-up ([`table`]). Keys of changed Services flow through one queue; many changes that come while a batch is under way share the
//! next one.
//!
//! The program has two maps per IP family: *(address, protocol, port) → chain for k endpoints*, and *(address, protocol, port, random
//! number below k) → endpoint*. A Service is one element of the first and k of the second, whatever its size the rules stay the
//! same, and a changed endpoint is one or two elements. A chain per endpoint, upstream's layout, takes seconds where this takes
//! milliseconds.
//!
//! Every start is the recovery path: once the caches are complete, the chains and maps of a previous run are replaced in one
//! transaction; until then they keep serving.
//!
//! Invariants of absence: no `nft` or `conntrack` binary, no chain per Service, no rule outside our table.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::FutureExt;
use k8s_openapi::api::core::v1::{Node as KubeNode, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{Cache, ObjectKey, Outcome, Queue};
use stdx::Drain;

mod health;
mod metrics;
pub mod plan;
pub mod program;
pub mod table;

pub use plan::{Cidr, Node, Owner};
pub use table::Proxier;

#[derive(Clone, Debug)]
pub struct Config {
    pub node: Node,
    /// The nftables table, shared with the pod network.
    pub table: String,
    /// Node ports answer on the node's addresses in these networks; empty: on all but loopback.
    pub nodeport_addresses: Vec<Cidr>,
}

impl Config {
    /// `pod_cidrs` are those of the whole cluster: traffic from elsewhere to a ClusterIP is masqueraded.
    pub fn new(node_name: &str, pod_cidrs: Vec<Cidr>) -> Self {
        let node = Node { name: node_name.to_owned(), zone: None, pod_cidrs };
        Self { node, table: "sternpost".to_owned(), nodeport_addresses: Vec::new() }
    }

    /// With the zone that the Node has now.
    fn in_zone(&self, caches: &Caches) -> Self {
        let Some(nodes) = &caches.nodes else { return self.clone() };
        let zone = nodes.get("", &self.node.name).and_then(|node| zone_of(&node));
        Self { node: Node { zone, ..self.node.clone() }, ..self.clone() }
    }
}

fn zone_of(node: &KubeNode) -> Option<String> {
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned()
}

/// What the proxy reads; all shared with others in the process.
#[derive(Clone)]
pub struct Caches {
    pub services: Cache<Service>,
    pub slices: Cache<EndpointSlice>,
    /// At least this node's pods; `None`: no host ports.
    pub pods: Option<Cache<Pod>>,
    /// Where this node's zone stands; `None`: it has the one of the configuration.
    pub nodes: Option<Cache<KubeNode>>,
}

/// Name of the index on EndpointSlices that [`run`] registers.
pub const SLICES_BY_SERVICE: &str = "service";

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Wake-ups taken together into one batch at most.
const KEYS_PER_BATCH_MAX: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open a netfilter socket")]
    Socket(#[source] std::io::Error),
    #[error("program the services")]
    Nft(#[from] nft::Error),
    #[error("the thread that programs the services ended")]
    Thread,
}

/// Runs the proxy until `drain`. `Err` only where the kernel cannot be spoken to at all; refused batches are retried from scratch.
/// What is programmed stays when it ends.
pub async fn run(config: Config, caches: Caches, drain: Drain) -> Result<(), Error> {
    let queue = wake_on_changes(&caches, &config.node.name);
    let proxier = Arc::new(Mutex::new(Proxier::open(config.clone())?));
    let work = async {
        caches.services.synced().await;
        caches.slices.synced().await;
        if let Some(pods) = &caches.pods {
            pods.synced().await;
        }
        if let Some(nodes) = &caches.nodes {
            nodes.synced().await;
        }
        let mut health = health::Servers::default();
        loop {
            let keys = take_all(&queue).await;
            let outcome = match sync(&proxier, &config.in_zone(&caches), &caches, keys.clone()).await {
                Ok((retries, healths)) => {
                    healths.iter().for_each(|(owner, now)| health.set(owner, *now));
                    retries.into_iter().for_each(|owner| queue.add(owner));
                    Outcome::Done
                }
                Err(error) => {
                    tracing::warn!(error = error_text(&error), "programming the services failed; all will be programmed anew");
                    Outcome::Err(Box::new(error))
                }
            };
            keys.into_iter().for_each(|key| queue.finish(key, &outcome));
        }
    };
    drain.run(work).await;
    Ok(())
}

/// Every key that waits, at least one.
async fn take_all(queue: &Queue<Owner>) -> Vec<Owner> {
    let mut keys = vec![queue.next().await];
    while keys.len() < KEYS_PER_BATCH_MAX
        && let Some(key) = queue.next().now_or_never()
    {
        keys.push(key);
    }
    keys
}

/// Who is to be planned again, and what load balancers are told.
type Synced = (BTreeSet<Owner>, Vec<(Owner, Option<plan::Health>)>);

async fn sync(proxier: &Arc<Mutex<Proxier>>, config: &Config, caches: &Caches, keys: Vec<Owner>) -> Result<Synced, Error> {
    let (proxier, config, caches) = (proxier.clone(), config.clone(), caches.clone());
    let task = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let mut proxier = proxier.lock().unwrap_or_else(PoisonError::into_inner);
        let all = proxier.needs_full_sync();
        // Where all is planned, what is not there any more has no plan.
        let gone = if all { keys.clone() } else { Vec::new() };
        let plans = if all {
            plan_all(&config, &caches)
        } else {
            keys.into_iter().map(|key| (key.clone(), plan_one(&config, &caches, &key))).collect::<Vec<_>>()
        };
        let healths =
            gone.into_iter().map(|owner| (owner, None)).chain(plans.iter().map(|(owner, plan)| (owner.clone(), plan.health))).collect();
        let result = if all { proxier.replace(plans) } else { proxier.update(plans) };
        metrics::observe_sync(started.elapsed(), result.is_ok());
        result.map(|()| (proxier.take_retries(), healths))
    });
    task.await.map_err(|_| Error::Thread)?
}

fn plan_all(config: &Config, caches: &Caches) -> Vec<(Owner, plan::Plan)> {
    let services = caches.services.list().into_iter().map(|service| service_owner(&service));
    let pods = caches.pods.iter().flat_map(Cache::list).map(|pod| pod_owner(&pod));
    let owners: Vec<Owner> = services.chain(pods).collect();
    owners
        .into_iter()
        .map(|owner| {
            let plan = plan_one(config, caches, &owner);
            (owner, plan)
        })
        .collect()
}

/// The plan of what has that key now; empty where it is gone.
fn plan_one(config: &Config, caches: &Caches, owner: &Owner) -> plan::Plan {
    match owner {
        Owner::Service(namespace, name) => {
            let Some(service) = caches.services.get(namespace, name) else { return plan::Plan::default() };
            let slices = caches.slices.by_index(SLICES_BY_SERVICE, &format!("{namespace}/{name}"));
            plan::plan(&service, slices.iter().map(|slice| &**slice), &config.node)
        }
        Owner::Pod(namespace, name) => {
            let pod = caches.pods.as_ref().and_then(|pods| pods.get(namespace, name));
            pod.map(|pod| plan::plan_host_ports(&pod, &config.node)).unwrap_or_default()
        }
    }
}

fn wake_on_changes(caches: &Caches, node_name: &str) -> Queue<Owner> {
    let queue = Queue::new();
    caches.slices.index(SLICES_BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
    let on_service = queue.clone();
    caches.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            on_service.add(service_owner(service));
        }
    });
    let on_slice = queue.clone();
    caches.slices.on_change(move |old, new| {
        // A slice whose label changed concerns both.
        for key in [old, new].into_iter().flatten().filter_map(|slice| service_of(slice)) {
            on_slice.add(Owner::Service(key.namespace, key.name));
        }
    });
    if let Some(pods) = &caches.pods {
        let on_pod = queue.clone();
        pods.on_change(move |old, new| {
            let with_host_ports = |pod: &&Arc<Pod>| plan::has_host_ports(pod);
            if let Some(pod) = new.filter(with_host_ports).or(old.filter(with_host_ports)) {
                on_pod.add(pod_owner(pod));
            }
        });
    }
    if let Some(nodes) = &caches.nodes {
        let (on_zone, services, name) = (queue.clone(), caches.services.clone(), node_name.to_owned());
        nodes.on_change(move |old, new| {
            let zone = |node: Option<&Arc<KubeNode>>| node.and_then(|node| zone_of(node));
            let ours = new.or(old).is_some_and(|node| node.metadata.name.as_deref() == Some(&name));
            if ours && zone(old) != zone(new) {
                services.list().iter().for_each(|service| on_zone.add(service_owner(service)));
            }
        });
    }
    queue
}

fn service_owner(service: &Service) -> Owner {
    let meta = &service.metadata;
    Owner::Service(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone()?, name.clone()))
}

fn pod_owner(pod: &Pod) -> Owner {
    Owner::Pod(pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

fn error_text(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
