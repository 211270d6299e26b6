//! The world of one StatefulSet.

use std::sync::Arc;

use client::Error;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use reconcile::ObjectKey;

use super::Controller;
use crate::selector::{self, Claim};
use crate::{history, pods};

pub(super) struct World {
    pub set: Arc<StatefulSet>,
    /// Pods whose controller the set is, and orphans that match its selector.
    pub pods: Vec<Arc<Pod>>,
    /// Oldest first.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Of the template as it is now.
    pub update: ControllerRevision,
    pub now: Timestamp,
}

impl Controller {
    /// `None`: there is nothing to do yet, or never again. Makes the revision of a template that has none.
    pub(super) async fn observe(&self, key: &ObjectKey) -> Result<Option<World>, Error> {
        let Some(set) = self.sets.get_key(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let seen = self.expectations.seen(key, &self.pods, |pod| pod.metadata.deletion_timestamp.is_some());
        if !seen || set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let revisions = history::of(&self.revisions, &set.metadata);
        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let update = history::ensure(&self.client, &*set, &set.spec.template, collisions, &revisions).await?;
        let wanted = selector::parse(Some(&set.spec.selector));
        let mut family = self.pods.by_index(pods::BY_CONTROLLER, set.metadata.uid.as_deref().unwrap_or_default());
        family.extend(self.pods.by_index(pods::ORPHANS, &key.namespace));
        family.retain(|pod| matches!(selector::claim(&set.metadata, &wanted, &pod.metadata), Claim::Keep | Claim::Adopt));
        Ok(Some(World { set, pods: family, revisions, update, now: Timestamp::now() }))
    }
}
