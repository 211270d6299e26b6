//! What ReplicaSet and ReplicationController have in common, and where they differ: the form of the selector and of the status.

use client::Object;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerSpec, ReplicationControllerStatus,
};

use crate::selector;

/// A kind that keeps a number of pods.
pub(crate) trait Replicated: Object {
    /// The name in logs and the source of its events.
    const COMPONENT: &'static str;

    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selector(&self) -> meta::LabelSelector;
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// In the words of a ReplicaSet.
    fn status(&self) -> Option<ReplicaSetStatus>;
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = super::NAME;

    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }
    fn selector(&self) -> meta::LabelSelector {
        selector::parse(Some(&self.spec.selector))
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.template.as_ref()
    }
    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }
    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { metadata: self.metadata.clone(), spec: self.spec.clone(), status: Some(status) }
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";

    fn replicas(&self) -> i32 {
        spec(self).and_then(|spec| spec.replicas).unwrap_or(1)
    }
    fn min_ready_seconds(&self) -> i32 {
        spec(self).and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }
    fn selector(&self) -> meta::LabelSelector {
        let labels = spec(self).and_then(|spec| spec.selector.as_ref()).filter(|labels| !labels.is_empty());
        let parsed = labels.and_then(|labels| meta::LabelSelector::from_set(&serde_json::json!(labels)).ok());
        parsed.unwrap_or_else(meta::LabelSelector::nothing)
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        spec(self)?.template.as_ref()
    }
    fn status(&self) -> Option<ReplicaSetStatus> {
        let status = self.status.as_ref()?;
        let condition = |condition: &ReplicationControllerCondition| ReplicaSetCondition {
            type_: Some(condition.type_.clone()),
            status: Some(condition.status.clone()),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            last_transition_time: condition.last_transition_time.clone(),
        };
        Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.as_ref().map(|conditions| conditions.iter().map(condition).collect()),
            terminating_replicas: None,
        })
    }
    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let condition = |condition: ReplicaSetCondition| ReplicationControllerCondition {
            type_: condition.type_.unwrap_or_default(),
            status: condition.status.unwrap_or_default(),
            reason: condition.reason,
            message: condition.message,
            last_transition_time: condition.last_transition_time,
        };
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|conditions| conditions.into_iter().map(condition).collect()),
        };
        Self { metadata: self.metadata.clone(), spec: self.spec.clone(), status: Some(status) }
    }
}

fn spec(controller: &ReplicationController) -> Option<&ReplicationControllerSpec> {
    controller.spec.as_ref()
}
