//! ReplicaSet and ReplicationController: as many pods of a template as asked for.
//!
//! One loop for both kinds (upstream's ReplicationManager is its ReplicaSetController behind a conversion, too); [`kind`] says where
//! they differ. Woken by the owner, by pods that name it as controller, and by orphaned pods that its selector matches. It acts on
//! what the cache shows only once that includes its own last writes. Changes of pods are gathered for a time that grows with their
//! number, because each look counts all of them.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use reconcile::object::controller_of;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::pod_control::{PodControl, matters};
use crate::{pods, selector};

mod act;
mod kind;
mod observe;
mod plan;
mod rank;

use kind::Replicated;

pub(crate) const NAME: &str = "replicaset-controller";
const WORKERS: usize = 16;
/// A look at this many pods is put off by a millisecond.
const PODS_PER_MILLISECOND: usize = 10;
const GATHER_MAX: Duration = Duration::from_millis(100);

/// What the loop's three steps share.
pub(crate) struct Controller<K> {
    client: client::Client,
    sets: Cache<K>,
    pods: Cache<Pod>,
    control: PodControl,
}

pub(crate) async fn run(context: Context) {
    run_of::<ReplicaSet>(context).await;
}

/// The same loop for the older kind.
pub(crate) mod replication_controller {
    use super::*;

    pub(crate) const NAME: &str = "replicationcontroller-controller";

    pub(crate) async fn run(context: Context) {
        run_of::<ReplicationController>(context).await;
    }
}

async fn run_of<K: Replicated>(context: Context) {
    let controller = Arc::new(Controller::<K> {
        client: context.client.clone(),
        sets: context.caches.of(),
        pods: context.caches.of(),
        control: PodControl::new(&context, K::COMPONENT),
    });
    pods::index(&controller.pods);
    let queue = Queue::new();
    wake(&controller, &queue);
    tokio::join!(controller.sets.synced(), controller.pods.synced());
    reconcile::run(K::COMPONENT, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

fn wake<K: Replicated>(controller: &Controller<K>, queue: &Queue<ObjectKey>) {
    let by_set = queue.clone();
    controller.sets.on_change(move |old, new| {
        new.or(old).into_iter().for_each(|set| by_set.add(key_of(set.metadata())));
    });
    let (by_pod, sets, all) = (queue.clone(), controller.sets.clone(), controller.pods.clone());
    controller.pods.on_change(move |old, new| {
        if old.zip(new).is_some_and(|(old, new)| !matters(old, new)) {
            return;
        }
        let owner = |pod: &Arc<Pod>| {
            let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == K::KIND)?;
            Some((ObjectKey::new(pod.metadata.namespace.clone()?, owner.name.clone()), owner.uid.clone()))
        };
        let (before, after) = (old.and_then(owner), new.and_then(owner));
        let wake = |(key, uid): (ObjectKey, String)| by_pod.add_after(key, gather(all.count_by_index(pods::BY_CONTROLLER, &uid)));
        if before != after {
            before.into_iter().for_each(wake);
        }
        after.into_iter().for_each(wake);
        new.filter(|pod| controller_of(&pod.metadata).is_none()).into_iter().for_each(|pod| {
            candidates(&sets, pod).for_each(|key| by_pod.add(key));
        });
    });
}

fn gather(pods: usize) -> Duration {
    Duration::from_millis((pods / PODS_PER_MILLISECOND) as u64).min(GATHER_MAX)
}

/// The owners that would adopt this pod.
fn candidates<K: Replicated>(sets: &Cache<K>, pod: &Pod) -> impl Iterator<Item = ObjectKey> {
    let labels = pod.metadata.labels.clone();
    let all = sets.by_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
    all.into_iter().filter_map(move |set| selector::selects(&set.selector(), labels.as_ref()).then(|| key_of(set.metadata())))
}

impl<K: Replicated> Controller<K> {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(world) = self.observe(&key) else { return Outcome::Done };
        let plan = plan::plan(&world);
        self.act(&world, plan).await.into()
    }
}

/// Sorts pods so that those that serve least come first, where nothing is known of the nodes' crowds.
pub(crate) fn sort_for_deletion(pods: &mut [Arc<Pod>], now: jiff::Timestamp) {
    rank::sort(pods, &std::collections::HashMap::new(), now);
}
