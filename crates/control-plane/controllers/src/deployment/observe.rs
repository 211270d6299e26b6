//! The world of one Deployment.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use reconcile::ObjectKey;

use super::{Controller, rollout};
use crate::pods;

pub(super) struct World {
    pub deployment: Arc<Deployment>,
    /// ReplicaSets whose controller the Deployment is, and orphans of its namespace.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Uids of ReplicaSets that still have pods running; only looked up for the strategy Recreate.
    pub sets_with_running_pods: Vec<String>,
    pub now: Timestamp,
}

impl Controller {
    /// `None`: there is nothing to do yet, or never again; whatever changes that wakes the key.
    pub(super) fn observe(&self, key: &ObjectKey) -> Option<World> {
        let Some(deployment) = self.deployments.get_key(key) else {
            self.expectations.forget(key);
            return None;
        };
        if !self.expectations.seen(key, &self.replica_sets, |set| set.metadata.deletion_timestamp.is_some()) {
            return None;
        }
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let mut sets = self.replica_sets.by_index(pods::BY_CONTROLLER, uid);
        let sets_with_running_pods = match rollout::is_recreate(&deployment) {
            true => sets.iter().filter_map(|set| set.metadata.uid.clone()).filter(|uid| self.has_running_pods(uid)).collect(),
            false => Vec::new(),
        };
        sets.extend(self.replica_sets.by_index(pods::ORPHANS, &key.namespace));
        Some(World { deployment, sets, sets_with_running_pods, now: Timestamp::now() })
    }

    fn has_running_pods(&self, set_uid: &str) -> bool {
        self.pods.by_index(pods::BY_CONTROLLER, set_uid).iter().any(|pod: &Arc<Pod>| !pods::is_terminal(pod))
    }
}
