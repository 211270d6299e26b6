//! Node lifecycle: a node that fell silent is marked so, tainted so, and its pods are no longer counted as ready.
//!
//! Silence is measured by our own clock from when we last saw the node's Lease or status change. Looked at every few seconds and
//! when a Node changes. Where the grace is short, a node that is about to be taken for dead is asked first, so that a busy one stays in the
//! cluster: who answers has a longer grace. When every node is silent or not ready, more likely the network between us is down than all of them: then
//! nothing is evicted (upstream: full disruption). Otherwise the nodes of a zone are emptied one after the other; [`zones`] says how fast.
//!
//! Evictions themselves are `taint_eviction`'s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Cache, ObjectKey, Outcome, Queue, Scope, key_of};

use crate::context::{Config, Context};
use crate::pods;

mod act;
mod observe;
mod plan;
mod zones;

pub(crate) const NAME: &str = "node-lifecycle-controller";
const WORKERS: usize = 8;
const LEASE_NAMESPACE: &str = "kube-node-lease";

pub(crate) struct Controller {
    client: client::Client,
    config: Arc<Config>,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    leases: Cache<Lease>,
    /// What was last known of each node's life.
    seen: Mutex<HashMap<String, observe::Seen>>,
    zones: Mutex<zones::Zones>,
    recorder: reconcile::EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let lease_scope = Scope { namespace: Some(LEASE_NAMESPACE.into()), ..Scope::default() };
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        config: context.config.clone(),
        nodes: context.caches.of(),
        pods: context.caches.of(),
        leases: Cache::start(&context.reader, lease_scope, context.drain.clone()),
        seen: Mutex::default(),
        zones: Mutex::default(),
        recorder: context.recorder(NAME),
    });
    pods::index(&controller.pods);
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    controller.nodes.on_change(move |old, new| new.or(old).into_iter().for_each(|node| wake.add(key_of(&node.metadata))));
    tokio::join!(controller.nodes.synced(), controller.pods.synced(), controller.leases.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(mut world) = self.observe(&key.name) else { return Outcome::Done };
        if self.is_asked(&world).await {
            let Some(now) = self.observe(&key.name) else { return Outcome::Done };
            world = now;
        }
        let plan = plan::plan(&world);
        match self.act(&world, plan).await {
            Ok(()) => Outcome::RequeueAfter(self.config.node_monitor_period),
            Err(error) => Outcome::Err(error.into()),
        }
    }
}
