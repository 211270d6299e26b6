//! The world of one DaemonSet.

use std::sync::Arc;

use client::Error;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{EventKind, ObjectKey, reference_to};

use super::Controller;
use crate::selector::{self, Family};
use crate::{history, pods};

pub(super) struct World {
    pub set: Arc<DaemonSet>,
    /// Pods whose controller the set is.
    pub pods: Vec<Arc<Pod>>,
    /// Orphans that match its selector.
    pub orphans: Vec<Arc<Pod>>,
    /// Its pods that its selector no longer matches.
    pub strays: Vec<Arc<Pod>>,
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
            self.control.forget(key);
            return Ok(None);
        };
        if !self.control.seen(key, &self.pods) || set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let wanted = selector::parse(Some(&set.spec.selector));
        if wanted.is_everything() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.control.recorder().event(&reference_to(&*set), EventKind::Warning, "SelectingAll", message);
            return Ok(None);
        }
        let revisions = history::of(&self.revisions, &set.metadata);
        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let update = history::ensure(&self.client, &*set, &set.spec.template, collisions, &revisions).await?;
        let Family { kept, orphans, strays } = pods::family(&self.pods, &set.metadata, &wanted);
        let (nodes, hash) = (self.nodes.list(), history::hash(&update));
        Ok(Some(World { set, pods: kept, orphans, strays, nodes, revisions, hash, now: Timestamp::now() }))
    }
}
