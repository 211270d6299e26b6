//! The quota controller: counts what the objects of a namespace cost its quotas.
//!
//! Admission charges quotas as objects are created; here what is gone is given back, and bounds that change become the status. It
//! watches quotas, the objects whose cost depends on more than their number (pods, Services, claims), and the metadata of every other
//! resource that some quota counts.
//!
//! Tasks: one queue of quotas; a look at discovery when a quota names a resource that is not watched yet; a recount of everything every
//! five minutes, as upstream, for charges of objects that then were not created.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use client::{Error, Object};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use reconcile::{Cache, ObjectKey, Outcome, PartialObject, Queue, key_of};
use rules::quota::Resource;

use crate::context::Context;
use crate::discovery;

mod plan;

pub(crate) const NAME: &str = "resourcequota-controller";
const WORKERS: usize = 5;
const RESYNC: Duration = Duration::from_secs(300);
/// After this long new bounds are counted once more: what was made just before them may not have been in every cache.
const SETTLED: Duration = Duration::from_secs(1);
/// A pod that appears so soon after we wrote its quota may have been charged for and not been there when we counted.
const DOUBTED: Duration = Duration::from_secs(60);
/// Waiting for a resource that is not served (a CRD about to be made).
const UNKNOWN_RESOURCE_WAIT: Duration = Duration::from_secs(10);

struct Controller {
    context: Context,
    quotas: Cache<ResourceQuota>,
    pods: Cache<Pod>,
    services: Cache<Service>,
    claims: Cache<PersistentVolumeClaim>,
    device_claims: Cache<ResourceClaim>,
    /// By the name that quotas count them with (`count/deployments.apps`).
    counted: Mutex<HashMap<String, Cache<PartialObject>>>,
    /// When we last changed the usage of a quota, for [`DOUBTED`].
    written: Mutex<HashMap<ObjectKey, Instant>>,
    queue: Queue<ObjectKey>,
}

pub(crate) async fn run(context: Context) {
    let queue = Queue::new();
    let controller = Arc::new(Controller {
        quotas: context.caches.of(),
        pods: context.caches.of(),
        services: context.caches.of(),
        claims: context.caches.of(),
        device_claims: context.caches.of(),
        counted: Mutex::default(),
        written: Mutex::default(),
        queue: queue.clone(),
        context: context.clone(),
    });
    controller.clone().wake_by_changes();
    let recount = tokio::spawn(controller.clone().recount());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
    recount.abort();
}

impl Controller {
    fn wake_by_changes(self: Arc<Self>) {
        let (queue, this) = (self.queue.clone(), self.clone());
        self.quotas.on_change(move |old, new| {
            if let (Some(gone), None) = (old, new) {
                this.written.lock().unwrap_or_else(PoisonError::into_inner).remove(&key_of(&gone.metadata));
            }
            let bounds = |quota: &Arc<ResourceQuota>| quota.spec.clone();
            if let Some(quota) = new.filter(|quota| old.map(bounds) != Some(quota.spec.clone())) {
                queue.add(key_of(&quota.metadata));
                queue.add_after(key_of(&quota.metadata), SETTLED);
            }
        });
        let this = self.clone();
        self.pods.on_change(move |old, new| {
            // A pod that ended gives back what it had; one that was made has been charged, before it was there.
            if old.is_none() && new.is_some() {
                this.doubt(new.and_then(|pod| pod.metadata.namespace.as_deref()).unwrap_or_default());
            }
            let ended = |pod: &Arc<Pod>| crate::pods::is_terminal(pod);
            if let Some(old) = old.filter(|old| new.is_none() || (!ended(old) && new.is_some_and(ended))) {
                this.wake(old.metadata.namespace.as_deref().unwrap_or_default());
            }
        });
        self.wake_by_deletions(&self.services);
        self.wake_by_deletions(&self.claims);
        self.wake_by_deletions(&self.device_claims);
    }

    /// Updates of these may give something back as well.
    fn wake_by_deletions<K: Object>(self: &Arc<Self>, cache: &Cache<K>) {
        let this = self.clone();
        cache.on_change(move |old, _| {
            if let Some(old) = old {
                this.wake(old.metadata().namespace.as_deref().unwrap_or_default());
            }
        });
    }

    fn wake(&self, namespace: &str) {
        self.quotas.by_namespace(namespace).iter().for_each(|quota| self.queue.add(key_of(&quota.metadata)));
    }

    /// What we wrote lately is counted again soon.
    fn doubt(&self, namespace: &str) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.is_empty() {
            return;
        }
        written.retain(|_, at| at.elapsed() < DOUBTED);
        let here = written.keys().filter(|key| key.namespace == namespace);
        here.for_each(|key| self.queue.add_after(key.clone(), SETTLED));
    }

    async fn recount(self: Arc<Self>) {
        while self.context.drain.run(tokio::time::sleep(RESYNC)).await.is_some() {
            self.quotas.list().iter().for_each(|quota| self.queue.add(key_of(&quota.metadata)));
        }
    }

    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(quota) = self.quotas.get_key(&key) else { return Outcome::Done };
        match self.count(&quota).await {
            Ok(complete) => {
                if !complete {
                    self.queue.add_after(key, UNKNOWN_RESOURCE_WAIT);
                }
                Outcome::Done
            }
            Err(error) => Outcome::Err(error.into()),
        }
    }

    /// `false` where something that the quota counts is not served.
    async fn count(self: &Arc<Self>, quota: &ResourceQuota) -> Result<bool, Error> {
        tokio::join!(self.pods.synced(), self.services.synced(), self.claims.synced(), self.device_claims.synced());
        let names: Vec<String> = quota.spec.iter().flat_map(|spec| spec.hard.iter().flatten()).map(|(name, _)| name.clone()).collect();
        let mut numbers = HashMap::new();
        let mut complete = true;
        for name in names.iter().filter(|name| is_counted_by_number(name)) {
            match self.number(name, quota.metadata.namespace.as_deref().unwrap_or_default()).await? {
                Some(number) => drop(numbers.insert(name.clone(), number)),
                None => complete = false,
            }
        }
        let namespace = quota.metadata.namespace.as_deref().unwrap_or_default();
        let world = plan::World {
            quota,
            pods: self.pods.by_namespace(namespace),
            services: self.services.by_namespace(namespace),
            claims: self.claims.by_namespace(namespace),
            device_claims: self.device_claims.by_namespace(namespace),
            numbers,
            now: jiff::Timestamp::now().as_second(),
        };
        match plan::plan(&world) {
            Some(next) => match self.context.client.replace_status(&next).await {
                Ok(_) => {
                    self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(key_of(&quota.metadata), Instant::now());
                    Ok(complete)
                }
                Err(error) if error.is_not_found() => Ok(true),
                Err(error) => Err(error),
            },
            None => Ok(complete),
        }
    }

    /// How many objects of a resource there are; `None` where nobody serves it.
    async fn number(self: &Arc<Self>, name: &str, namespace: &str) -> Result<Option<usize>, Error> {
        if (Resource { group: "", plural: "resourcequotas" }).counts(name) {
            // The quota that is being counted is in this cache; in another it might not be yet.
            return Ok(Some(self.quotas.by_namespace(namespace).len()));
        }
        let known = self.counted.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let cache = match known {
            Some(cache) => cache,
            None => match self.watch(name).await? {
                Some(cache) => cache,
                None => return Ok(None),
            },
        };
        cache.synced().await;
        Ok(Some(cache.by_namespace(namespace).len()))
    }

    async fn watch(self: &Arc<Self>, name: &str) -> Result<Option<Cache<PartialObject>>, Error> {
        let found = discovery::discover(&self.context.reader).await?.resources.into_iter().find(|found| {
            let (group, plural) = (found.resource.group.as_ref(), found.resource.plural.as_ref());
            found.preferred && found.can("watch") && Resource { group, plural }.counts(name)
        });
        let Some(found) = found else { return Ok(None) };
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = counted.get(name) {
            return Ok(Some(cache.clone()));
        }
        let cache = self.context.metadata_cache(found.resource);
        let this = self.clone();
        cache.on_change(move |old, new| {
            if let Some(old) = old.filter(|_| new.is_none()) {
                this.wake(&old.metadata.namespace);
            }
        });
        counted.insert(name.to_owned(), cache.clone());
        Ok(Some(cache))
    }
}

/// Whether only the number of objects counts, so that their metadata is enough.
fn is_counted_by_number(name: &str) -> bool {
    let costly = [("", "pods"), ("", "services"), ("", "persistentvolumeclaims"), ("resource.k8s.io", "resourceclaims")];
    let costly = costly.map(|(group, plural)| Resource { group, plural });
    let plain = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"].contains(&name);
    (name.starts_with("count/") || plain) && !costly.iter().any(|resource| resource.counts(name))
}
