//! The world of one DaemonSet.

use std::sync::Arc;

use client::Error;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::ObjectKey;

use super::Controller;
use crate::selector::{self, Claim};
use crate::{history, pods};

pub(super) struct World {
    pub set: Arc<DaemonSet>,
    /// Pods whose controller the set is, and orphans that match its selector.
    pub pods: Vec<Arc<Pod>>,
    pub nodes: Vec<Arc<Node>>,
    /// Oldest first.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// The hash of the template as it is now.
    pub hash: String,
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
        let wanted = selector::parse(Some(&set.spec.selector));
        if !seen || set.metadata.deletion_timestamp.is_some() || wanted.is_everything() {
            return Ok(None);
        }
        let revisions = history::of(&self.revisions, &set.metadata);
        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let update = history::ensure(&self.client, &*set, &set.spec.template, collisions, &revisions).await?;
        let mut family = self.pods.by_index(pods::BY_CONTROLLER, set.metadata.uid.as_deref().unwrap_or_default());
        family.extend(self.pods.by_index(pods::ORPHANS, &key.namespace));
        family.retain(|pod| matches!(selector::claim(&set.metadata, &wanted, &pod.metadata), Claim::Keep | Claim::Adopt));
        let (nodes, hash) = (self.nodes.list(), history::hash(&update));
        Ok(Some(World { set, pods: family, nodes, revisions, hash, now: Timestamp::now() }))
    }
}
