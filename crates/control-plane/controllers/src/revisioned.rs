//! What DaemonSets and StatefulSets have in common: they keep the templates that they had, and number or place their pods themselves.

use std::sync::Arc;

use client::{Client, Error, Object};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use reconcile::{Cache, ObjectKey};

use crate::context::Context;
use crate::pod_control::PodControl;
use crate::selector::{self, Family};
use crate::{history, pods};

/// A kind whose revisions are kept.
pub(crate) trait Revisioned: Object {
    fn selector(&self) -> &LabelSelector;
    fn template(&self) -> &PodTemplateSpec;
    fn collisions(&self) -> i32;
    fn history_limit(&self) -> i32;
}

impl Revisioned for DaemonSet {
    fn selector(&self) -> &LabelSelector {
        &self.spec.selector
    }
    fn template(&self) -> &PodTemplateSpec {
        &self.spec.template
    }
    fn collisions(&self) -> i32 {
        self.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0)
    }
    fn history_limit(&self) -> i32 {
        self.spec.revision_history_limit.unwrap_or(10)
    }
}

impl Revisioned for StatefulSet {
    fn selector(&self) -> &LabelSelector {
        &self.spec.selector
    }
    fn template(&self) -> &PodTemplateSpec {
        &self.spec.template
    }
    fn collisions(&self) -> i32 {
        self.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0)
    }
    fn history_limit(&self) -> i32 {
        self.spec.revision_history_limit.unwrap_or(10)
    }
}

/// Where such a kind is seen, and how its pods are written.
pub(crate) struct Sources<K> {
    pub client: Client,
    pub sets: Cache<K>,
    pub pods: Cache<Pod>,
    pub revisions: Cache<ControllerRevision>,
    pub control: PodControl,
}

/// The world of one owner.
pub(crate) struct World<K> {
    pub set: Arc<K>,
    /// Pods whose controller the set is.
    pub pods: Vec<Arc<Pod>>,
    /// Orphans that match its selector.
    pub orphans: Vec<Arc<Pod>>,
    /// Its pods that its selector no longer matches.
    pub strays: Vec<Arc<Pod>>,
    /// Oldest first.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Of the template as it is now.
    pub update: ControllerRevision,
    pub now: Timestamp,
}

impl<K: Revisioned> Sources<K> {
    pub fn new(context: &Context, component: &str) -> Self {
        let sources = Self {
            client: context.client.clone(),
            sets: context.caches.of(),
            pods: context.caches.of(),
            revisions: context.caches.of(),
            control: PodControl::new(context, component),
        };
        pods::index(&sources.pods);
        history::index(&sources.revisions);
        sources
    }

    pub async fn synced(&self) {
        tokio::join!(self.sets.synced(), self.pods.synced(), self.revisions.synced());
    }

    /// The set, where there is something to do about it now.
    pub fn find(&self, key: &ObjectKey) -> Option<Arc<K>> {
        let Some(set) = self.sets.get_key(key) else {
            self.control.forget(key);
            return None;
        };
        (self.control.seen(key, &self.pods) && set.metadata().deletion_timestamp.is_none()).then_some(set)
    }

    /// Makes the revision of a template that has none.
    pub async fn observe(&self, set: Arc<K>) -> Result<World<K>, Error> {
        let revisions = history::of(&self.revisions, set.metadata());
        let update = history::ensure(&self.client, &*set, set.template(), set.collisions(), &revisions).await?;
        let Family { kept, orphans, strays } = pods::family(&self.pods, set.metadata(), &selector::parse(Some(set.selector())));
        Ok(World { set, pods: kept, orphans, strays, revisions, update, now: Timestamp::now() })
    }

    /// Drops the oldest revisions beyond the limit that are not in use.
    pub async fn prune(&self, world: &World<K>, used: impl Fn(&ControllerRevision) -> bool) -> Result<(), Error> {
        history::prune(&self.client, &world.revisions, world.set.history_limit(), used).await
    }
}
