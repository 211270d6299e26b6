//! StatefulSet: numbered pods, each with its own name, host name and volume claims, made and changed one after the other.
//!
//! Woken by its StatefulSet, by pods that name it as controller, by orphans that its selector matches, and by claims that its pods
//! use. Claims outlive their pods unless the retention policy says otherwise: then they carry an owner reference to the set, or to the
//! pod that a scale-down is about to remove, and the garbage collector does the rest (KEP-1847).

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use reconcile::object::controller_of;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::pod_control;
use crate::revisioned::{self, Sources};

mod act;
mod claims;
mod identity;
mod plan;

pub(crate) const NAME: &str = "statefulset-controller";
const WORKERS: usize = 8;

/// A set, its pods and revisions.
type World = revisioned::World<StatefulSet>;

pub(crate) struct Controller {
    own: Sources<StatefulSet>,
    claims: Cache<PersistentVolumeClaim>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller { own: Sources::new(&context, NAME), claims: context.caches.of() });
    let queue = Queue::new();
    let by_set = queue.clone();
    controller.own.sets.on_change(move |old, new| new.or(old).into_iter().for_each(|set| by_set.add(key_of(&set.metadata))));
    pod_control::wake_owners(&controller.own.pods, &controller.own.sets, &queue, |set| &set.spec.selector);
    let by_claim = queue.clone();
    controller.claims.on_change(move |old, new| {
        // Only a claim that goes can change what a set does: its pod's next life needs a new one.
        let gone = old.filter(|_| new.is_none_or(|new| new.metadata.deletion_timestamp.is_some()));
        let owner = gone.and_then(|claim| controller_of(&claim.metadata).map(|owner| (claim, owner)));
        owner.filter(|(_, owner)| owner.kind == "StatefulSet").into_iter().for_each(|(claim, owner)| {
            by_claim.add(ObjectKey::new(claim.metadata.namespace.clone().unwrap_or_default(), owner.name.clone()));
        });
    });
    tokio::join!(controller.own.synced(), controller.claims.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(set) = self.own.find(&key) else { return Outcome::Done };
        match self.own.observe(set).await {
            Ok(world) => {
                let plan = plan::plan(&world);
                self.act(&world, plan).await.into()
            }
            Err(error) => Outcome::Err(error.into()),
        }
    }
}
