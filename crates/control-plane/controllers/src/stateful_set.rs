//! StatefulSet: numbered pods, each with its own name, host name and volume claims, made and changed one after the other.
//!
//! Woken by its StatefulSet, by pods that name it as controller, and by ControllerRevisions. Claims outlive their pods.
//!
//! Not here: retention policies of claims other than Retain, and more than one unavailable pod in a rolling update.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use reconcile::object::controller_of;
use reconcile::{Cache, Expectations, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::{history, pods};

mod act;
mod identity;
mod observe;
mod plan;

pub(crate) const NAME: &str = "statefulset-controller";
const WORKERS: usize = 8;

pub(crate) struct Controller {
    client: client::Client,
    sets: Cache<StatefulSet>,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    revisions: Cache<ControllerRevision>,
    expectations: Expectations<ObjectKey>,
    recorder: reconcile::EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        sets: context.caches.of(),
        pods: context.caches.of(),
        claims: context.caches.of(),
        revisions: context.caches.of(),
        expectations: Expectations::default(),
        recorder: context.recorder(NAME),
    });
    pods::index(&controller.pods);
    history::index(&controller.revisions);
    let queue = Queue::new();
    let (by_set, by_pod) = (queue.clone(), queue.clone());
    controller.sets.on_change(move |old, new| new.or(old).into_iter().for_each(|set| by_set.add(key_of(&set.metadata))));
    controller.pods.on_change(move |old, new| {
        let owner = new.or(old).and_then(|pod| controller_of(&pod.metadata).map(|owner| (pod, owner)));
        let owner = owner.filter(|(_, owner)| owner.kind == "StatefulSet");
        owner
            .into_iter()
            .for_each(|(pod, owner)| by_pod.add(ObjectKey::new(pod.metadata.namespace.clone().unwrap_or_default(), owner.name.clone())));
    });
    tokio::join!(controller.sets.synced(), controller.pods.synced(), controller.claims.synced(), controller.revisions.synced());
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
