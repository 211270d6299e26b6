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
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{Cache, ObjectKey, Outcome, Queue};
use stdx::Drain;

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
}

/// What the proxy reads; all shared with others in the process.
#[derive(Clone)]
pub struct Caches {
    pub services: Cache<Service>,
    pub slices: Cache<EndpointSlice>,
    /// At least this node's pods; `None`: no host ports.
    pub pods: Option<Cache<Pod>>,
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
    let queue = wake_on_changes(&caches);
    let proxier = Arc::new(Mutex::new(Proxier::open(config.clone())?));
    let work = async {
        caches.services.synced().await;
        caches.slices.synced().await;
        if let Some(pods) = &caches.pods {
            pods.synced().await;
        }
        loop {
            let keys = take_all(&queue).await;
            let outcome = match sync(&proxier, &config, &caches, keys.clone()).await {
                Ok(retries) => {
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

async fn sync(proxier: &Arc<Mutex<Proxier>>, config: &Config, caches: &Caches, keys: Vec<Owner>) -> Result<BTreeSet<Owner>, Error> {
    let (proxier, config, caches) = (proxier.clone(), config.clone(), caches.clone());
    let task = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let mut proxier = proxier.lock().unwrap_or_else(PoisonError::into_inner);
        let result = if proxier.needs_full_sync() {
            proxier.replace(plan_all(&config, &caches))
        } else {
            proxier.update(keys.into_iter().map(|key| (key.clone(), plan_one(&config, &caches, &key))).collect())
        };
        metrics::observe_sync(started.elapsed(), result.is_ok());
        result.map(|()| proxier.take_retries())
    });
    task.await.map_err(|_| Error::Thread)?
}

fn plan_all(config: &Config, caches: &Caches) -> Vec<(Owner, plan::Plan)> {
    let services = caches.services.list().into_iter().map(|service| {
        let meta = &service.metadata;
        Owner::Service(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    });
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

fn wake_on_changes(caches: &Caches) -> Queue<Owner> {
    let queue = Queue::new();
    caches.slices.index(SLICES_BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
    let on_service = queue.clone();
    caches.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            let meta = &service.metadata;
            on_service.add(Owner::Service(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()));
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
    queue
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
