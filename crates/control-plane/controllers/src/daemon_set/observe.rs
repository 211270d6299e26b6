//! The world of one DaemonSet.

use std::sync::Arc;

use client::Error;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use reconcile::{EventKind, ObjectKey, reference_to};

use super::Controller;
use crate::{history, revisioned, selector};

pub(super) struct World {
    pub own: revisioned::World<DaemonSet>,
    pub nodes: Vec<Arc<Node>>,
    /// The hash of the template as it is now.
    pub hash: String,
}

impl Controller {
    /// `None`: there is nothing to do yet, or never again.
    pub(super) async fn observe(&self, key: &ObjectKey) -> Result<Option<World>, Error> {
        let Some(set) = self.own.find(key) else { return Ok(None) };
        if selector::parse(Some(&set.spec.selector)).is_everything() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.own.control.recorder().event(&reference_to(&*set), EventKind::Warning, "SelectingAll", message);
            return Ok(None);
        }
        let own = self.own.observe(set).await?;
        let hash = history::hash(&own.update);
        Ok(Some(World { own, nodes: self.nodes.list(), hash }))
    }
}
