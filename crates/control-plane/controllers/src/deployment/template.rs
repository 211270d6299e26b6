//! Which ReplicaSet has the Deployment's template, and the name of one that has not been made yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{act, hash};

pub(super) const HASH_LABEL: &str = "pod-template-hash";

/// Equal but for the label that we add ourselves.
pub(super) fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    without_hash(a) == without_hash(b)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
    template
}

/// The oldest ReplicaSet with the Deployment's template: should there be several, always the same one.
pub(super) fn find_new<'a>(deployment: &Deployment, sets: &'a [Arc<ReplicaSet>]) -> Option<&'a Arc<ReplicaSet>> {
    let wanted = without_hash(&deployment.spec.template);
    let has_it = |set: &&Arc<ReplicaSet>| {
        let template = set.spec.template.as_ref();
        template.is_some_and(|template| without_hash(template) == wanted)
    };
    sets.iter().filter(has_it).min_by_key(|set| (created(set), set.metadata.name.clone()))
}

pub(super) fn created(set: &ReplicaSet) -> Option<jiff::Timestamp> {
    set.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// A ReplicaSet of the Deployment's template, with no replicas and no annotations yet.
pub(super) fn new_set(deployment: &Deployment) -> ReplicaSet {
    let spec = &deployment.spec;
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    // Any stable hash will do: a ReplicaSet is found by its template, never by its name.
    let hash = hash::of(&spec.template, collisions);
    let with_hash = |labels: &Option<BTreeMap<String, String>>| {
        let mut labels = labels.clone().unwrap_or_default();
        labels.insert(HASH_LABEL.into(), hash.clone());
        Some(labels)
    };
    let mut template = spec.template.clone();
    let template_meta = template.metadata.get_or_insert_default();
    template_meta.labels = with_hash(&template_meta.labels);
    let mut selector = spec.selector.clone();
    selector.match_labels = with_hash(&selector.match_labels);
    let metadata = ObjectMeta {
        namespace: deployment.metadata.namespace.clone(),
        name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
        labels: template_meta.labels.clone(),
        owner_references: Some(vec![act::controller_ref(deployment)]),
        ..ObjectMeta::default()
    };
    let set = ReplicaSetSpec { replicas: Some(0), min_ready_seconds: spec.min_ready_seconds, selector, template: Some(template) };
    ReplicaSet { metadata, spec: set, status: None }
}
