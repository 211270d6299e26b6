//! What a Deployment writes on its ReplicaSets, and reads back: revisions and the sizes that proportions are taken of.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// A ReplicaSet that returns often keeps so much of its past (upstream: `maxRevHistoryLengthInChars`).
const HISTORY_CHARS_MAX: usize = 2000;

/// Not copied from a Deployment to its ReplicaSets.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

fn of(meta: &ObjectMeta, name: &str) -> Option<String> {
    meta.annotations.as_ref()?.get(name).cloned()
}

fn number(meta: &ObjectMeta, name: &str) -> Option<i32> {
    of(meta, name)?.parse().ok()
}

pub(super) fn revision(set: &ReplicaSet) -> i64 {
    of(&set.metadata, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(super) fn revision_text(meta: &ObjectMeta) -> Option<String> {
    of(meta, REVISION)
}

/// The Deployment's size when the set was last scaled.
pub(super) fn desired_replicas(set: &ReplicaSet) -> Option<i32> {
    number(&set.metadata, DESIRED_REPLICAS)
}

/// The same with its surge.
pub(super) fn max_replicas(set: &ReplicaSet) -> Option<i32> {
    number(&set.metadata, MAX_REPLICAS)
}

/// Notes the sizes that the next proportional scaling starts from.
pub(super) fn set_sizes(set: &mut ReplicaSet, desired: i32, max: i32) {
    let annotations = annotations(set);
    annotations.insert(DESIRED_REPLICAS.into(), desired.to_string());
    annotations.insert(MAX_REPLICAS.into(), max.to_string());
}

/// Copies the Deployment's annotations and gives the set at least `revision`.
pub(super) fn set_revision(deployment: &Deployment, set: &mut ReplicaSet, revision: i64) {
    let old = revision_text(&set.metadata);
    let annotations = annotations(set);
    let copied = deployment.metadata.annotations.iter().flatten().filter(|(name, _)| !OWN.contains(&name.as_str()));
    copied.for_each(|(name, value)| {
        annotations.insert(name.clone(), value.clone());
    });
    if old.as_deref().and_then(|old| old.parse().ok()).unwrap_or(0) >= revision {
        return;
    }
    annotations.insert(REVISION.into(), revision.to_string());
    if let Some(old) = old.filter(|old| !old.is_empty()) {
        let history = annotations.get(REVISION_HISTORY).filter(|history| !history.is_empty());
        let history = history.map_or_else(|| old.clone(), |history| format!("{history},{old}"));
        annotations.insert(REVISION_HISTORY.into(), shortened(&history).to_owned());
    }
}

/// Drops the oldest entries.
fn shortened(history: &str) -> &str {
    let mut rest = history;
    while rest.len() > HISTORY_CHARS_MAX {
        let Some((_, newer)) = rest.split_once(',') else { break };
        rest = newer;
    }
    rest
}

fn annotations(set: &mut ReplicaSet) -> &mut BTreeMap<String, String> {
    set.metadata.annotations.get_or_insert_default()
}
