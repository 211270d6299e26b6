//! The garbage collector: what lost its last owner goes too; foreground and orphan deletions are completed.
//!
//! It watches the metadata of every resource that can be deleted and keeps a graph of objects by uid. A deletion wakes the
//! dependents at once: there is no sweep. An owner that the graph does not know is asked for at the server before anything is
//! deleted, because the watches of two resources may be at different revisions.
//!
//! Tasks: one cache per resource, a queue of uids, and a look at discovery every half minute for resources that came or went.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::ApiResource;
use reconcile::{Cache, EventRecorder, Outcome, PartialObject, Queue, Scope};
use stdx::Drain;
use tracing::{debug, warn};

use crate::context::Context;
use crate::discovery::{self, Discovered};

mod act;
mod graph;
mod observe;
mod plan;

use graph::Graph;

pub(crate) const NAME: &str = "garbage-collector-controller";
/// Deletions under way at a time.
const WORKERS: usize = crate::act::IN_FLIGHT;
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);

pub(crate) struct Controller {
    client: client::Client,
    graph: Mutex<Graph>,
    /// Every kind by `apiVersion` and name: what an owner reference is looked up with.
    kinds: Mutex<HashMap<(String, String), ApiResource>>,
    queue: Queue<String>,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let queue = Queue::new();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        graph: Mutex::default(),
        kinds: Mutex::default(),
        queue: queue.clone(),
        recorder: context.recorder(NAME),
    });
    let watching = tokio::spawn(controller.clone().follow_discovery(context.drain.clone()));
    let worker = controller.clone();
    reconcile::run(NAME, queue, WORKERS, context.drain, move |uid| worker.clone().reconcile(uid)).await;
    watching.abort();
}

impl Controller {
    async fn reconcile(self: Arc<Self>, uid: String) -> Outcome {
        match self.observe(&uid).await {
            Ok(Some(world)) => self.act(&world, plan::plan(&world)).await.into(),
            Ok(None) => Outcome::Done,
            Err(error) => Outcome::Err(error.into()),
        }
    }

    /// Keeps one cache per resource that can be deleted.
    async fn follow_discovery(self: Arc<Self>, drain: Drain) {
        let mut watched: HashMap<ApiResource, (Cache<PartialObject>, Drain)> = HashMap::new();
        loop {
            match discovery::discover(&self.client).await {
                Ok(found) => self.watch_all(found, &mut watched, &drain).await,
                Err(error) => debug!(%error, "discovery failed"),
            }
            if drain.run(tokio::time::sleep(DISCOVERY_PERIOD)).await.is_none() {
                return;
            }
        }
    }

    async fn watch_all(
        self: &Arc<Self>,
        found: discovery::Discovery,
        watched: &mut HashMap<ApiResource, (Cache<PartialObject>, Drain)>,
        drain: &Drain,
    ) {
        found.failed.iter().for_each(|(version, error)| warn!(%version, %error, "cannot discover; its objects are left alone"));
        let by_kind =
            found.resources.iter().map(|found| ((found.resource.api_version(), found.resource.kind.to_string()), found.resource.clone()));
        *self.kinds.lock().unwrap_or_else(PoisonError::into_inner) = by_kind.collect();
        let wanted: Vec<ApiResource> = found.resources.into_iter().filter(is_collected).map(|found| found.resource).collect();
        if found.failed.is_empty() {
            watched.retain(|resource, (_, drain)| {
                let stays = wanted.contains(resource);
                if !stays {
                    drain.stop();
                    self.graph().drop_resource(resource);
                }
                stays
            });
        }
        let mut new = Vec::new();
        for resource in wanted {
            if !watched.contains_key(&resource) {
                let own = drain.child();
                let cache = self.watch(&resource, own.clone());
                new.push(cache.clone());
                watched.insert(resource, (cache, own));
            }
        }
        if new.is_empty() {
            return;
        }
        // One watch that never comes up (a broken webhook) must not stop the collection of everything else for ever.
        let all = futures_util::future::join_all(new.iter().map(Cache::synced));
        let _ = tokio::time::timeout(DISCOVERY_PERIOD, all).await;
        let suspects = self.graph().suspects();
        suspects.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn watch(self: &Arc<Self>, resource: &ApiResource, drain: Drain) -> Cache<PartialObject> {
        let cache = Cache::start_of(&self.client, resource.clone(), Scope::all(), true, drain);
        let (this, resource) = (self.clone(), Arc::new(resource.clone()));
        cache.on_change(move |old, new| {
            let woken = match (old, new) {
                (_, Some(new)) => this.graph().apply(&resource, new),
                (Some(old), None) => this.graph().remove(&old.metadata.uid),
                (None, None) => Vec::new(),
            };
            woken.into_iter().for_each(|uid| this.queue.add(uid));
        });
        cache
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events live an hour and own nothing; what cannot be listed, watched and deleted cannot be collected.
fn is_collected(found: &Discovered) -> bool {
    found.preferred && found.resource.plural != "events" && ["list", "watch", "delete"].iter().all(|verb| found.can(verb))
}
