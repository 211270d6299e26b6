//! How controllers make, delete, adopt and release pods, with the events that tell of it and the expectations that keep a stale cache
//! from being acted on (upstream: `RealPodControl` and `PodControllerRefManager`).

use std::sync::Arc;

use bytes::Bytes;
use client::{ApiResource, Client, DeleteParams, Error, Object};
use http::Method;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use reconcile::object::controller_of;
use reconcile::{Cache, EventKind, EventRecorder, Expectations, ObjectKey, PartialObject, Queue, key_of, reference_to};

use crate::context::Context;
use crate::{act, pods, selector};

/// The pods of one controller's owners. Cloning shares it.
#[derive(Clone)]
pub(crate) struct PodControl(Arc<Inner>);

struct Inner {
    client: Client,
    expectations: Expectations<ObjectKey>,
    recorder: EventRecorder,
    /// What an adopted pod gets and a released one loses.
    finalizer: Option<&'static str>,
}

/// Who writes: the owner's key for expectations, and what events are about.
#[derive(Clone)]
struct Owner {
    key: ObjectKey,
    about: Arc<ObjectReference>,
}

impl Owner {
    fn of<K: Object>(owner: &K) -> Self {
        Self { key: key_of(owner.metadata()), about: Arc::new(reference_to(owner)) }
    }
}

impl PodControl {
    pub fn new(context: &Context, component: &str) -> Self {
        Self::of(context, component, None)
    }

    /// For pods that carry this finalizer while they are ours.
    pub fn with_finalizer(context: &Context, component: &str, finalizer: &'static str) -> Self {
        Self::of(context, component, Some(finalizer))
    }

    fn of(context: &Context, component: &str, finalizer: Option<&'static str>) -> Self {
        let (client, recorder) = (context.client.clone(), context.recorder(component));
        Self(Arc::new(Inner { client, expectations: Expectations::default(), recorder, finalizer }))
    }

    pub fn recorder(&self) -> &EventRecorder {
        &self.0.recorder
    }

    /// True once the cache shows all of our writes for this owner; when false, the event that makes it true wakes the owner.
    pub fn seen(&self, owner: &ObjectKey, cache: &Cache<Pod>) -> bool {
        self.0.expectations.seen(owner, cache, |pod| pod.metadata.deletion_timestamp.is_some())
    }

    pub fn forget(&self, owner: &ObjectKey) {
        self.0.expectations.forget(owner);
    }

    /// A pod of the owner was written by other means.
    pub fn wrote(&self, owner: &ObjectKey, revision: Option<&str>) {
        self.0.expectations.wrote(owner, revision);
    }

    /// Takes pods in and lets pods go. An adoption is made only for an owner that the server still has.
    pub async fn claim<K: Object>(&self, owner: &K, adopt: &[Arc<Pod>], release: &[Arc<Pod>]) -> Result<(), Error> {
        let (key, reference) = (key_of(owner.metadata()), act::controller_ref(owner));
        for pod in release {
            match act::release::<Pod>(&self.0.client, &reference.uid, &pod.metadata, self.0.finalizer).await {
                Ok(revision) => self.0.expectations.wrote(&key, Some(&revision)),
                // Gone, or not the pod we saw: either way no longer ours.
                Err(error) if error.is_not_found() || error.is_conflict() || error.is_invalid() => {}
                Err(error) => return Err(error),
            }
        }
        if adopt.is_empty() || !act::may_adopt(&self.0.client, owner).await? {
            return Ok(());
        }
        for pod in adopt {
            match act::adopt::<Pod>(&self.0.client, &reference, &pod.metadata, self.0.finalizer).await {
                Ok(revision) => self.0.expectations.wrote(&key, Some(&revision)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes `count` pods from the same bytes; the server gives them their names.
    pub async fn create_alike<K: Object>(&self, owner: &K, pod: &Pod, count: usize) -> Result<(), Error> {
        let body = encode(pod)?;
        self.create_all(Owner::of(owner), std::iter::repeat_n(body, count)).await
    }

    pub async fn create<K: Object>(&self, owner: &K, pods: impl IntoIterator<Item = Pod>) -> Result<(), Error> {
        let bodies: Vec<Bytes> = pods.into_iter().map(|pod| encode(&pod)).collect::<Result<_, _>>()?;
        self.create_all(Owner::of(owner), bodies).await
    }

    async fn create_all(&self, owner: Owner, bodies: impl IntoIterator<Item = Bytes>) -> Result<(), Error> {
        let path: Arc<str> = ApiResource::of::<Pod>().collection(owner.key.namespace()).into();
        act::each(bodies, |body| {
            let (this, owner, path) = (self.clone(), owner.clone(), path.clone());
            async move { this.create_one(&owner, &path, body).await }
        })
        .await
    }

    async fn create_one(&self, owner: &Owner, path: &str, body: Bytes) -> Result<(), Error> {
        match self.0.client.request_json::<PartialObject>(Method::POST, path, Some(body)).await {
            Ok(pod) => {
                self.0.expectations.wrote(&owner.key, Some(&pod.metadata.resource_version));
                self.tell(owner, EventKind::Normal, "SuccessfulCreate", format!("Created pod: {}", pod.metadata.name));
                Ok(())
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    self.tell(owner, EventKind::Warning, "FailedCreate", format!("Error creating: {error}"));
                }
                Err(error)
            }
        }
    }

    /// Makes one pod and says nothing: for owners with sentences of their own.
    pub async fn create_silently(&self, owner: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let created = self.0.client.create(pod).await?;
        self.0.expectations.wrote(owner, created.metadata.resource_version.as_deref());
        Ok(())
    }

    pub async fn delete<K: Object>(&self, owner: &K, doomed: Vec<Arc<Pod>>) -> Result<(), Error> {
        let owner = Owner::of(owner);
        act::each(doomed, |pod| {
            let (this, owner) = (self.clone(), owner.clone());
            async move { this.delete_one(&owner, &pod).await }
        })
        .await
    }

    async fn delete_one(&self, owner: &Owner, pod: &Pod) -> Result<(), Error> {
        match self.delete_silently(&owner.key, pod).await {
            Ok(true) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                self.tell(owner, EventKind::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                self.tell(owner, EventKind::Warning, "FailedDelete", format!("Error deleting: {error}"));
                Err(error)
            }
        }
    }

    /// False where the pod was gone already, or is another of that name.
    pub async fn delete_silently(&self, owner: &ObjectKey, pod: &Pod) -> Result<bool, Error> {
        let key = key_of(&pod.metadata);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        match self.0.client.delete::<Pod>(key.namespace(), &key.name, &DeleteParams::of_uid(uid)).await {
            Ok(_) => {
                self.0.expectations.deleted(owner, key, uid);
                Ok(true)
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn tell(&self, owner: &Owner, kind: EventKind, reason: &str, message: String) {
        self.0.recorder.event(&owner.about, kind, reason, message);
    }
}

fn encode(pod: &Pod) -> Result<Bytes, Error> {
    serde_json::to_vec(pod).map(Bytes::from).map_err(|error| Error::Request(error.to_string()))
}

/// Whether a change of a pod can change what its owner does or says: heartbeats and probes' details cannot.
pub(crate) fn matters(old: &Pod, new: &Pod) -> bool {
    let facts = |pod: &Pod| {
        let meta = &pod.metadata;
        (
            (pods::phase(pod).to_owned(), pods::ready_since(pod), meta.deletion_timestamp.is_some()),
            (meta.labels.clone(), controller_of(meta).cloned(), meta.finalizers.clone(), pods::node_name(pod).is_some()),
        )
    };
    facts(old) != facts(new)
}

/// Wakes the owner of each pod that changes, and those that would adopt it where it has none.
pub(crate) fn wake_owners<K: Object>(pods: &Cache<Pod>, owners: &Cache<K>, queue: &Queue<ObjectKey>, selector: fn(&K) -> &LabelSelector) {
    let (queue, owners) = (queue.clone(), owners.clone());
    pods.on_change(move |old, new| {
        if old.zip(new).is_some_and(|(old, new)| !matters(old, new)) {
            return;
        }
        let owner = |pod: &Arc<Pod>| {
            let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == K::KIND)?;
            Some(ObjectKey::new(pod.metadata.namespace.clone()?, owner.name.clone()))
        };
        let (before, after) = (old.and_then(owner), new.and_then(owner));
        before.filter(|before| Some(before) != after.as_ref()).into_iter().for_each(|key| queue.add(key));
        after.into_iter().for_each(|key| queue.add(key));
        if let Some(orphan) = new.filter(|pod| controller_of(&pod.metadata).is_none()) {
            let all = owners.by_namespace(orphan.metadata.namespace.as_deref().unwrap_or_default());
            let adopts = |owner: &&Arc<K>| selector::selects(&selector::parse(Some(selector(owner))), orphan.metadata.labels.as_ref());
            all.iter().filter(adopts).for_each(|owner| queue.add(key_of(owner.metadata())));
        }
    });
}
