//! ReplicaSet: as many pods of a template as asked for.
//!
//! Woken by its ReplicaSet, by pods that name it as controller, and by orphaned pods that its selector matches. It acts on what the
//! cache shows only once that includes its own last writes.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use reconcile::object::controller_of;
use reconcile::{Cache, Expectations, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::{pods, selector};

mod act;
mod observe;
mod plan;
mod rank;

pub(crate) const NAME: &str = "replicaset-controller";
const WORKERS: usize = 16;

/// What the loop's three steps share.
pub(crate) struct Controller {
    client: client::Client,
    replica_sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    expectations: Expectations<ObjectKey>,
    recorder: reconcile::EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        replica_sets: context.caches.of(),
        pods: context.caches.of(),
        expectations: Expectations::default(),
        recorder: context.recorder(NAME),
    });
    pods::index(&controller.pods);
    let queue = Queue::new();
    wake(&controller, &queue);
    tokio::join!(controller.replica_sets.synced(), controller.pods.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

fn wake(controller: &Controller, queue: &Queue<ObjectKey>) {
    let by_set = queue.clone();
    controller.replica_sets.on_change(move |old, new| {
        new.or(old).into_iter().for_each(|set| by_set.add(key_of(&set.metadata)));
    });
    let (by_pod, sets) = (queue.clone(), controller.replica_sets.clone());
    controller.pods.on_change(move |old, new| {
        let owner = |pod: &Arc<Pod>| {
            let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")?;
            Some(ObjectKey::new(pod.metadata.namespace.clone()?, owner.name.clone()))
        };
        let (before, after) = (old.and_then(owner), new.and_then(owner));
        if before != after {
            before.into_iter().for_each(|key| by_pod.add(key));
        }
        after.into_iter().for_each(|key| by_pod.add(key));
        new.filter(|pod| controller_of(&pod.metadata).is_none()).into_iter().for_each(|pod| {
            candidates(&sets, pod).for_each(|key| by_pod.add(key));
        });
    });
}

/// The ReplicaSets that would adopt this pod.
fn candidates(sets: &Cache<ReplicaSet>, pod: &Pod) -> impl Iterator<Item = ObjectKey> {
    let labels = pod.metadata.labels.clone();
    let all = sets.by_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
    all.into_iter().filter_map(move |set| {
        let wanted = selector::parse(Some(&set.spec.selector));
        selector::selects(&wanted, labels.as_ref()).then(|| key_of(&set.metadata))
    })
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(world) = self.observe(&key) else { return Outcome::Done };
        let plan = plan::plan(&world);
        self.act(&world, plan).await.into()
    }
}
