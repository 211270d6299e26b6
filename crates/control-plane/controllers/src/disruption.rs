//! Disruption: how many pods of a PodDisruptionBudget may be evicted now.
//!
//! Writes only the budget's status; the API server's eviction subresource spends it and notes the pod in `disruptedPods`, which counts as
//! gone until it is, or until two minutes are over. Woken by budgets, by the pods that they select, and by a change of size of what owns
//! pods. Source: upstream `pkg/controller/disruption`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use reconcile::{Cache, Cached, EventRecorder, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::kinds::Kinds;
use crate::selector;

mod act;
mod observe;
mod plan;

pub(crate) const NAME: &str = "disruption-controller";
const WORKERS: usize = 4;

pub(crate) struct Controller {
    client: client::Client,
    budgets: Cache<PodDisruptionBudget>,
    pods: Cache<Pod>,
    replica_sets: Cache<ReplicaSet>,
    deployments: Cache<Deployment>,
    stateful_sets: Cache<StatefulSet>,
    replication_controllers: Cache<ReplicationController>,
    /// Any other owner is asked for its scale.
    kinds: Kinds,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        budgets: context.caches.of(),
        pods: context.caches.of(),
        replica_sets: context.caches.of(),
        deployments: context.caches.of(),
        stateful_sets: context.caches.of(),
        replication_controllers: context.caches.of(),
        kinds: Kinds::new(&context.client),
        recorder: context.recorder("controllermanager"),
    });
    let queue = Queue::new();
    controller.wake(&queue);
    tokio::join!(
        controller.budgets.synced(),
        controller.pods.synced(),
        controller.replica_sets.synced(),
        controller.deployments.synced(),
        controller.stateful_sets.synced(),
        controller.replication_controllers.synced()
    );
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    fn wake(&self, queue: &Queue<ObjectKey>) {
        let own = queue.clone();
        self.budgets.on_change(move |old, new| new.or(old).into_iter().for_each(|budget| own.add(key_of(&budget.metadata))));
        let (by_pod, budgets) = (queue.clone(), self.budgets.clone());
        self.pods.on_change(move |old, new| {
            let namespace = new.or(old).and_then(|pod| pod.metadata.namespace.as_deref()).unwrap_or_default();
            let covers = |budget: &PodDisruptionBudget| [old, new].into_iter().flatten().any(|pod| covers(budget, pod));
            budgets.by_namespace(namespace).iter().filter(|budget| covers(budget)).for_each(|budget| by_pod.add(key_of(&budget.metadata)));
        });
        self.wake_by_size(queue, &self.replica_sets, |set| set.spec.replicas);
        self.wake_by_size(queue, &self.deployments, |set| set.spec.replicas);
        self.wake_by_size(queue, &self.stateful_sets, |set| set.spec.replicas);
        self.wake_by_size(queue, &self.replication_controllers, |set| set.spec.as_ref()?.replicas);
    }

    fn wake_by_size<K: Cached>(&self, queue: &Queue<ObjectKey>, cache: &Cache<K>, size: fn(&K) -> Option<i32>) {
        let (queue, budgets) = (queue.clone(), self.budgets.clone());
        cache.on_change(move |old, new| {
            if old.and_then(|old| size(old)) == new.and_then(|new| size(new)) {
                return;
            }
            let Some(key) = new.or(old).map(|object| object.key()) else { return };
            budgets.by_namespace(&key.namespace).iter().for_each(|budget| queue.add(key_of(&budget.metadata)));
        });
    }

    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(world) = self.observe(&key).await else { return Outcome::Done };
        let plan = plan::plan(&world);
        self.act(&world, plan).await.into()
    }
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let wanted = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector::selects(&selector::parse(wanted), pod.metadata.labels.as_ref())
}

/// How many pods each owner shall have, by its uid.
type Sizes = BTreeMap<String, i32>;
