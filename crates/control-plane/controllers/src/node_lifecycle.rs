//! Node lifecycle: a node that fell silent is marked so, tainted so, and its pods are no longer counted as ready.
//!
//! Silence is measured by our own clock from when we last saw the node's Lease or status change. A node is looked at when it changes,
//! when its grace would end, and every few seconds while it is in trouble. Where the grace is short, a node that is about to be taken for dead
//! is asked first, so that a busy one stays in the cluster: who answers has a longer grace. When every node is silent or not ready, more
//! likely the network between us is down than all of them: then
//! nothing is evicted (upstream: full disruption). Otherwise the nodes of a zone are emptied one after the other; [`zones`] says how fast.
//!
//! Evictions themselves are `taint_eviction`'s.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Cache, ObjectKey, Outcome, Queue, Scope, key_of};
use tokio::time::Instant;

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
    signs: Mutex<observe::Signs>,
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
        leases: context.cache(lease_scope),
        signs: Mutex::default(),
        zones: Mutex::default(),
        recorder: context.recorder(NAME),
    });
    pods::index(&controller.pods);
    let queue: Queue<ObjectKey> = Queue::new();
    controller.wake(&queue);
    tokio::join!(controller.nodes.synced(), controller.pods.synced(), controller.leases.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    /// Changes of Nodes wake; Leases are only noted, of which a large cluster has thousands a second.
    fn wake(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (wake, this) = (queue.clone(), Arc::downgrade(self));
        self.nodes.on_change(move |old, new| {
            let Some(this) = this.upgrade() else { return };
            this.signs().observe_node(old.map(|node| &**node), new.map(|node| &**node), Instant::now());
            this.zones().observe(old.map(|node| &**node), new.map(|node| &**node));
            new.or(old).into_iter().for_each(|node| wake.add(key_of(&node.metadata)));
        });
        let this = Arc::downgrade(self);
        self.leases.on_change(move |old, new| {
            if let (Some(this), Some(new)) = (this.upgrade(), new) {
                this.signs().observe_lease(old.map(|lease| &**lease), new, Instant::now());
            }
        });
    }

    fn signs(&self) -> MutexGuard<'_, observe::Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn zones(&self) -> MutexGuard<'_, zones::Zones> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(mut world) = self.observe(&key.name) else { return Outcome::Done };
        if self.is_asked(&world).await {
            let Some(now) = self.observe(&key.name) else { return Outcome::Done };
            world = now;
        }
        let plan = plan::plan(&world);
        match self.act(&world, plan).await {
            Ok(()) => Outcome::RequeueAfter(world.look_again),
            Err(error) => Outcome::Err(error.into()),
        }
    }
}
