//! DaemonSet: one pod on every node that fits.
//!
//! Woken by its DaemonSet, by pods that name it as controller or that it would adopt, and by Nodes that come, go, or change labels or
//! taints. Its pods are bound by the scheduler: each asks for its node by name (a required affinity on the field `metadata.name`). A
//! rolling update replaces in place, or with `maxSurge` starts the new pod beside the old one. A daemon that keeps failing on a node is
//! made anew ever more slowly there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};
use stdx::Backoff;
use tokio::time::Instant;

use crate::context::Context;
use crate::pod_control;
use crate::revisioned::Sources;

mod act;
mod fit;
mod observe;
mod plan;

pub(crate) const NAME: &str = "daemonset-controller";
const WORKERS: usize = 4;

pub(crate) struct Controller {
    own: Sources<DaemonSet>,
    nodes: Cache<Node>,
    /// Per set (by uid) and node: how long a failed pod stays before its successor may come, and until when. Entries go once they are
    /// twice as old as their wait.
    failures: Mutex<HashMap<(String, String), (Backoff, Instant)>>,
}

pub(crate) async fn run(context: Context) {
    let own = Sources::new(&context, NAME);
    let controller = Arc::new(Controller { own, nodes: context.caches.of(), failures: Mutex::default() });
    let queue = Queue::new();
    let (by_set, by_node, sets) = (queue.clone(), queue.clone(), controller.own.sets.clone());
    controller.own.sets.on_change(move |old, new| new.or(old).into_iter().for_each(|set| by_set.add(key_of(&set.metadata))));
    pod_control::wake_owners(&controller.own.pods, &controller.own.sets, &queue, |set| &set.spec.selector);
    controller.nodes.on_change(move |old, new| {
        let facts = |node: &Arc<Node>| (node.metadata.labels.clone(), node.spec.as_ref().and_then(|spec| spec.taints.clone()));
        if old.map(facts) != new.map(facts) {
            sets.list().iter().for_each(|set| by_node.add(key_of(&set.metadata)));
        }
    });
    tokio::join!(controller.own.synced(), controller.nodes.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        match self.observe(&key).await {
            Ok(Some(world)) => {
                let plan = plan::plan(&world);
                self.act(&world, plan).await.into()
            }
            Ok(None) => Outcome::Done,
            Err(error) => Outcome::Err(error.into()),
        }
    }
}
