//! The world of one Job.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use reconcile::ObjectKey;

use super::Controller;
use crate::pods;
use crate::selector::{self, Family};

pub(super) struct World {
    pub job: Arc<Job>,
    /// Pods whose controller the Job is.
    pub pods: Vec<Arc<Pod>>,
    /// Orphans that match its selector.
    pub orphans: Vec<Arc<Pod>>,
    /// Its pods that its selector no longer matches.
    pub strays: Vec<Arc<Pod>>,
    pub now: Timestamp,
}

impl Controller {
    /// `None`: there is nothing to do yet, or never again; whatever changes that wakes the key.
    pub(super) fn observe(&self, key: &ObjectKey) -> Option<World> {
        let Some(job) = self.jobs.get_key(key) else {
            self.control.forget(key);
            return None;
        };
        let managed_elsewhere =
            job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()).is_some_and(|by| by != "kubernetes.io/job-controller");
        if managed_elsewhere || !self.control.seen(key, &self.pods) {
            return None;
        }
        let family = match job.spec.as_ref().and_then(|spec| spec.selector.as_ref()) {
            Some(wanted) => pods::family(&self.pods, &job.metadata, &selector::parse(Some(wanted))),
            // The server gives every Job a selector; without one nothing can be said to have strayed.
            None => {
                let kept = self.pods.by_index(pods::BY_CONTROLLER, job.metadata.uid.as_deref().unwrap_or_default());
                Family { kept, ..Family::default() }
            }
        };
        let Family { kept, orphans, strays } = family;
        Some(World { pods: kept, orphans, strays, job, now: Timestamp::now() })
    }
}
