//! DaemonSet: one pod on every node that fits.
//!
//! Woken by its DaemonSet, by pods that name it as controller, and by Nodes that come, go, or change labels or taints. Its pods are
//! bound by the scheduler: each asks for its node by name (a required affinity on the field `metadata.name`).
//!
//! Not here: maxSurge; a rolling update replaces in place.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::object::controller_of;
use reconcile::{Cache, Expectations, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::{history, pods};

mod act;
mod fit;
mod observe;
mod plan;

pub(crate) const NAME: &str = "daemonset-controller";
const WORKERS: usize = 4;

pub(crate) struct Controller {
    client: client::Client,
    sets: Cache<DaemonSet>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    revisions: Cache<ControllerRevision>,
    expectations: Expectations<ObjectKey>,
    recorder: reconcile::EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        sets: context.caches.of(),
        pods: context.caches.of(),
        nodes: context.caches.of(),
        revisions: context.caches.of(),
        expectations: Expectations::default(),
        recorder: context.recorder(NAME),
    });
    pods::index(&controller.pods);
    history::index(&controller.revisions);
    let queue = Queue::new();
    let (by_set, by_pod, by_node, sets) = (queue.clone(), queue.clone(), queue.clone(), controller.sets.clone());
    controller.sets.on_change(move |old, new| new.or(old).into_iter().for_each(|set| by_set.add(key_of(&set.metadata))));
    controller.pods.on_change(move |old, new| {
        let owner = new.or(old).and_then(|pod| controller_of(&pod.metadata).map(|owner| (pod, owner)));
        let owner = owner.filter(|(_, owner)| owner.kind == "DaemonSet");
        owner
            .into_iter()
            .for_each(|(pod, owner)| by_pod.add(ObjectKey::new(pod.metadata.namespace.clone().unwrap_or_default(), owner.name.clone())));
    });
    controller.nodes.on_change(move |old, new| {
        let facts = |node: &Arc<Node>| (node.metadata.labels.clone(), node.spec.as_ref().and_then(|spec| spec.taints.clone()));
        if old.map(facts) != new.map(facts) {
            sets.list().iter().for_each(|set| by_node.add(key_of(&set.metadata)));
        }
    });
    tokio::join!(controller.sets.synced(), controller.pods.synced(), controller.nodes.synced(), controller.revisions.synced());
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
