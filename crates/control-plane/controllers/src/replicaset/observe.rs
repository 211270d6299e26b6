//! The world of one ReplicaSet.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use reconcile::ObjectKey;
use reconcile::object::controller_of;

use super::Controller;
use super::kind::Replicated;
use crate::pods;

pub(super) struct World<K> {
    pub set: Arc<K>,
    /// Pods whose controller the set is, and orphans of its namespace.
    pub pods: Vec<Arc<Pod>>,
    /// Active pods per node of all ReplicaSets with the same owner (a Deployment): where many are, one can be spared first.
    pub related_by_node: HashMap<String, usize>,
    pub now: Timestamp,
}

impl<K: Replicated> Controller<K> {
    /// `None`: there is nothing to do yet, or never again; whatever changes that wakes the key.
    pub(super) fn observe(&self, key: &ObjectKey) -> Option<World<K>> {
        let Some(set) = self.sets.get_key(key) else {
            self.control.forget(key);
            return None;
        };
        if !self.control.seen(key, &self.pods) {
            return None;
        }
        let uid = set.metadata().uid.as_deref().unwrap_or_default();
        let mut owned = self.pods.by_index(pods::BY_CONTROLLER, uid);
        owned.extend(self.pods.by_index(pods::ORPHANS, &key.namespace));
        Some(World { related_by_node: self.related(&set, owned.len()), set, pods: owned, now: Timestamp::now() })
    }

    fn related(&self, set: &K, owned: usize) -> HashMap<String, usize> {
        // Only a scale-down ranks, so only then is the count worth taking.
        if usize::try_from(set.replicas()).unwrap_or(0) >= owned {
            return HashMap::new();
        }
        let owner = controller_of(set.metadata()).map(|owner| owner.uid.clone());
        let siblings = self.sets.by_namespace(set.metadata().namespace.as_deref().unwrap_or_default());
        let is_sibling = |other: &&Arc<K>| {
            other.metadata().uid == set.metadata().uid
                || (owner.is_some() && controller_of(other.metadata()).map(|other| &other.uid) == owner.as_ref())
        };
        let mut by_node = HashMap::new();
        for sibling in siblings.iter().filter(is_sibling) {
            let uid = sibling.metadata().uid.as_deref().unwrap_or_default();
            for pod in self.pods.by_index(pods::BY_CONTROLLER, uid).iter().filter(|pod| pods::is_active(pod)) {
                *by_node.entry(pods::node_name(pod).unwrap_or_default().to_owned()).or_insert(0) += 1;
            }
        }
        by_node
    }
}
