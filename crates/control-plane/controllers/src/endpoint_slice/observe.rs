//! The world of one Service.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::ObjectKey;

use super::{BY_SERVICE, Controller};
use crate::{pods, service};

const ZONE: &str = "topology.kubernetes.io/zone";

pub(super) struct World {
    pub service: Arc<Service>,
    /// The pods that it selects and that have not ended, in the order of their names.
    pub pods: Vec<Arc<Pod>>,
    pub slices: Vec<Arc<EndpointSlice>>,
    /// The zone of each node that has one.
    pub zones: HashMap<String, String>,
}

impl Controller {
    /// `None`: nothing to do; the garbage collector removes the slices of a Service that is gone.
    pub(super) fn observe(&self, key: &ObjectKey) -> Option<World> {
        let Some(found) = self.services.get_key(key) else {
            self.expectations.forget(key);
            return None;
        };
        if !service::is_selecting(&found) || found.metadata.deletion_timestamp.is_some() {
            return None;
        }
        if !self.expectations.seen(key, &self.slices, |slice| slice.metadata.deletion_timestamp.is_some()) {
            return None;
        }
        let serves = |pod: &Arc<Pod>| service::selects(&found, pod) && !pods::is_terminal(pod);
        let pods: Vec<Arc<Pod>> = self.pods.by_namespace(&key.namespace).into_iter().filter(serves).collect();
        let nodes = self.nodes.list();
        let zone = |node: &Arc<k8s_openapi::api::core::v1::Node>| {
            Some((node.metadata.name.clone()?, node.metadata.labels.as_ref()?.get(ZONE)?.clone()))
        };
        let zones = nodes.iter().filter_map(zone).collect();
        Some(World { slices: self.slices.by_index(BY_SERVICE, &key.to_string()), service: found, pods, zones })
    }
}
