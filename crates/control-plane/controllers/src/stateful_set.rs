//! StatefulSet: numbered pods, each with its own name, host name and volume claims, made and changed one after the other.
//!
//! Woken by its StatefulSet, by pods that name it as controller, by orphans that its selector matches, and by claims that its pods
//! use. Claims outlive their pods unless the retention policy says otherwise: then they carry an owner reference to the set, or to the
//! pod that a scale-down is about to remove, and the garbage collector does the rest (KEP-1847).

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use reconcile::object::controller_of;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::pod_control::{self, PodControl};
use crate::{history, pods};

mod act;
mod claims;
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
    control: PodControl,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        sets: context.caches.of(),
        pods: context.caches.of(),
        claims: context.caches.of(),
        revisions: context.caches.of(),
        control: PodControl::new(&context, NAME),
    });
    pods::index(&controller.pods);
    history::index(&controller.revisions);
    let queue = Queue::new();
    let by_set = queue.clone();
    controller.sets.on_change(move |old, new| new.or(old).into_iter().for_each(|set| by_set.add(key_of(&set.metadata))));
    pod_control::wake_owners(&controller.pods, &controller.sets, &queue, |set| &set.spec.selector);
    let by_claim = queue.clone();
    controller.claims.on_change(move |old, new| {
        // Only a claim that goes can change what a set does: its pod's next life needs a new one.
        let gone = old.filter(|_| new.is_none_or(|new| new.metadata.deletion_timestamp.is_some()));
        let owner = gone.and_then(|claim| controller_of(&claim.metadata).map(|owner| (claim, owner)));
        owner.filter(|(_, owner)| owner.kind == "StatefulSet").into_iter().for_each(|(claim, owner)| {
            by_claim.add(ObjectKey::new(claim.metadata.namespace.clone().unwrap_or_default(), owner.name.clone()));
        });
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
