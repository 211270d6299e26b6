//! Deployment: rolls pods from one template to the next by scaling ReplicaSets against each other.
//!
//! Woken by its Deployment and by ReplicaSets that name it as controller or that its selector matches (and, for the strategy
//! Recreate, by pods that end). `plan` simulates a whole step on copies of the ReplicaSets; `act` writes the differences.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use reconcile::object::controller_of;
use reconcile::{Cache, Expectations, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::{pods, selector};

mod act;
mod annotations;
mod observe;
mod plan;
mod rollout;
mod scale;
mod status;
mod template;

pub(crate) const NAME: &str = "deployment-controller";
const WORKERS: usize = 16;

/// What the loop's three steps share.
pub(crate) struct Controller {
    client: client::Client,
    deployments: Cache<Deployment>,
    replica_sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    expectations: Expectations<ObjectKey>,
    recorder: reconcile::EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        deployments: context.caches.of(),
        replica_sets: context.caches.of(),
        pods: context.caches.of(),
        expectations: Expectations::default(),
        recorder: context.recorder(NAME),
    });
    pods::index(&controller.pods);
    controller.replica_sets.index(pods::BY_CONTROLLER, |set| pods::controller_uid(&set.metadata));
    controller.replica_sets.index(pods::ORPHANS, |set| pods::orphan_namespace(&set.metadata));
    let queue = Queue::new();
    wake(&controller, &queue);
    tokio::join!(controller.deployments.synced(), controller.replica_sets.synced(), controller.pods.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

fn wake(controller: &Controller, queue: &Queue<ObjectKey>) {
    let by_deployment = queue.clone();
    controller.deployments.on_change(move |old, new| {
        new.or(old).into_iter().for_each(|deployment| by_deployment.add(key_of(&deployment.metadata)));
    });
    let (by_set, deployments) = (queue.clone(), controller.deployments.clone());
    controller.replica_sets.on_change(move |old, new| {
        let (before, after) = (old.and_then(|set| owner(set)), new.and_then(|set| owner(set)));
        if before != after {
            before.into_iter().for_each(|key| by_set.add(key));
        }
        after.into_iter().for_each(|key| by_set.add(key));
        new.filter(|set| controller_of(&set.metadata).is_none()).into_iter().for_each(|set| {
            candidates(&deployments, set).for_each(|key| by_set.add(key));
        });
    });
    let (by_pod, sets, deployments) = (queue.clone(), controller.replica_sets.clone(), controller.deployments.clone());
    // Only Recreate waits for pods; the others hear of them through the ReplicaSets' status.
    controller.pods.on_change(move |old, new| {
        let ended = new.is_none_or(|pod| pods::is_terminal(pod));
        let set = old.filter(|_| ended).and_then(|pod| {
            let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")?;
            sets.get(pod.metadata.namespace.as_deref()?, &owner.name)
        });
        let key = set.and_then(|set| owner(&set)).filter(|key| deployments.get_key(key).is_some_and(|found| rollout::is_recreate(&found)));
        key.into_iter().for_each(|key| by_pod.add(key));
    });
}

fn owner(set: &ReplicaSet) -> Option<ObjectKey> {
    let owner = controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment")?;
    Some(ObjectKey::new(set.metadata.namespace.clone()?, owner.name.clone()))
}

/// The Deployments that would adopt this ReplicaSet.
fn candidates(deployments: &Cache<Deployment>, set: &ReplicaSet) -> impl Iterator<Item = ObjectKey> {
    let labels = set.metadata.labels.clone();
    let all = deployments.by_namespace(set.metadata.namespace.as_deref().unwrap_or_default());
    all.into_iter().filter_map(move |deployment| {
        let wanted = selector::parse(Some(&deployment.spec.selector));
        selector::selects(&wanted, labels.as_ref()).then(|| key_of(&deployment.metadata))
    })
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(world) = self.observe(&key) else { return Outcome::Done };
        let plan = plan::plan(&world);
        self.act(&world, plan).await.into()
    }
}
