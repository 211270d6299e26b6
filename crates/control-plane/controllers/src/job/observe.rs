//! The world of one Job.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use reconcile::ObjectKey;

use super::Controller;
use crate::pods;

pub(super) struct World {
    pub job: Arc<Job>,
    /// Pods whose controller the Job is.
    pub pods: Vec<Arc<Pod>>,
    pub now: Timestamp,
}

impl Controller {
    /// `None`: there is nothing to do yet, or never again; whatever changes that wakes the key.
    pub(super) fn observe(&self, key: &ObjectKey) -> Option<World> {
        let Some(job) = self.jobs.get_key(key) else {
            self.expectations.forget(key);
            return None;
        };
        let managed_elsewhere =
            job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()).is_some_and(|by| by != "kubernetes.io/job-controller");
        if managed_elsewhere || !self.expectations.seen(key, &self.pods, |pod| pod.metadata.deletion_timestamp.is_some()) {
            return None;
        }
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        Some(World { pods: self.pods.by_index(pods::BY_CONTROLLER, uid), job, now: Timestamp::now() })
    }
}
