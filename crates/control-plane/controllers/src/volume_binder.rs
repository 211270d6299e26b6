//! Volume binding: claims and volumes find each other, and a volume whose claim is gone is released (upstream: `PersistentVolumeController`).
//!
//! One queue holds both: a key with a namespace is a claim, one without is a volume. Volumes are made by external provisioners (CSI), which
//! watch the annotation that names them, or by hand. Claims of a class that waits for its first consumer are left to the scheduler, which
//! binds by writing the volume's `claimRef`.

use std::sync::Arc;

use client::{Client, Error};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};

use crate::act;
use crate::context::Context;

mod claim;
mod matching;
mod volume;

pub(crate) const NAME: &str = "persistentvolume-binder-controller";
/// One at a time: two claims that look at the same volumes would choose the same one, and one of them in vain.
const WORKERS: usize = 1;

pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

struct Controller {
    client: Client,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    recorder: EventRecorder,
}

/// What is to be written, in this order; each only where something differs.
#[derive(Default)]
struct Plan {
    volume: Option<PersistentVolume>,
    volume_status: Option<PersistentVolume>,
    claim: Option<PersistentVolumeClaim>,
    claim_status: Option<PersistentVolumeClaim>,
    /// Type, reason, message; about the claim, or the volume where there is none.
    event: Option<(EventKind, &'static str, String)>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        claims: context.caches.of(),
        volumes: context.caches.of(),
        classes: context.caches.of(),
        recorder: context.recorder("persistentvolume-controller"),
    });
    let queue = Queue::new();
    controller.wake(&queue);
    tokio::join!(controller.claims.synced(), controller.volumes.synced(), controller.classes.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    fn wake(&self, queue: &Queue<ObjectKey>) {
        let by_claim = queue.clone();
        self.claims.on_change(move |old, new| {
            let claim = new.or(old);
            claim.into_iter().for_each(|claim| by_claim.add(key_of(&claim.metadata)));
            let volume = claim.and_then(|claim| claim.spec.as_ref()?.volume_name.clone()).filter(|name| !name.is_empty());
            volume.into_iter().for_each(|name| by_claim.add(ObjectKey::new("", name)));
        });
        let (by_volume, claims) = (queue.clone(), self.claims.clone());
        self.volumes.on_change(move |old, new| {
            let Some(volume) = new.or(old) else { return };
            by_volume.add(key_of(&volume.metadata));
            match matching::claim_of(volume) {
                Some(key) => by_volume.add(key),
                // A free volume is what a claim may have waited for.
                None => pending(&claims).for_each(|key| by_volume.add(key)),
            }
        });
        let (by_class, claims) = (queue.clone(), self.claims.clone());
        self.classes.on_change(move |_, new| {
            if new.is_some() {
                pending(&claims).for_each(|key| by_class.add(key));
            }
        });
    }

    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let (plan, about) = match key.namespace() {
            Some(_) => match self.claims.get_key(&key) {
                Some(claim) => (claim::plan(&self.world(claim.clone())), reference_to(&*claim)),
                None => return Outcome::Done,
            },
            None => match self.volumes.get_key(&key) {
                Some(volume) => {
                    let claim = matching::claim_of(&volume).and_then(|key| self.claims.get_key(&key));
                    (volume::plan(&volume, claim.as_deref(), Timestamp::now()), reference_to(&*volume))
                }
                None => return Outcome::Done,
            },
        };
        self.act(plan, about).await.into()
    }

    fn world(&self, claim: Arc<PersistentVolumeClaim>) -> claim::World {
        claim::World { claim, volumes: self.volumes.list(), classes: self.classes.list(), now: Timestamp::now() }
    }

    async fn act(&self, plan: Plan, about: ObjectReference) -> Result<(), Error> {
        if let Some((kind, reason, message)) = plan.event {
            self.recorder.event(&about, kind, reason, message);
        }
        let mut revision = None;
        if let Some(volume) = plan.volume {
            revision = self.client.replace(&volume).await?.metadata.resource_version;
        }
        if let Some(mut volume) = plan.volume_status {
            if revision.is_some() {
                volume.metadata.resource_version = revision;
            }
            act::write_status(&self.client, &volume).await?;
        }
        let mut revision = None;
        if let Some(claim) = plan.claim {
            revision = self.client.replace(&claim).await?.metadata.resource_version;
        }
        if let Some(mut claim) = plan.claim_status {
            if revision.is_some() {
                claim.metadata.resource_version = revision;
            }
            act::write_status(&self.client, &claim).await?;
        }
        Ok(())
    }
}

/// Claims that have no volume yet.
fn pending(claims: &Cache<PersistentVolumeClaim>) -> impl Iterator<Item = ObjectKey> {
    let all = claims.list().into_iter();
    all.filter(|claim| matching::annotation(&claim.metadata, BIND_COMPLETED).is_none()).map(|claim| key_of(&claim.metadata))
}
