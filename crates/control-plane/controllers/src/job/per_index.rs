//! Back-off limits per index (KEP-3850): each index counts its own failures, in an annotation that the next pod of the index carries on.
//!
//! The last failed pod of an index keeps its finalizer until its successor is there: it holds the count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::Pod;

use super::failure_policy::{self, Action};
use super::{World, ends};

pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub(super) const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

fn number(pod: &Pod, annotation: &str) -> i32 {
    let text = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(annotation));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Failures of the pod's index before it, counted and ignored ones.
fn before(pod: &Pod) -> (i32, i32) {
    (number(pod, FAILURES), number(pod, IGNORED_FAILURES))
}

/// The same for the pod's successor.
pub(super) fn after(world: &World, pod: &Pod) -> (i32, i32) {
    let (counted, ignored) = before(pod);
    match failure_policy::judge(world, pod) {
        Action::Ignore => (counted, ignored + 1),
        _ => (counted + 1, ignored),
    }
}

/// Of these indexes those that have failed for good because of the pods that are there.
pub(super) fn newly_failed(world: &World, spec: &JobSpec, limit: i32) -> BTreeSet<i32> {
    let failed = world.pods.iter().filter(|pod| ends::is_failed(pod, spec) && ends::is_tracked(pod));
    let for_good = |pod: &&Arc<Pod>| match failure_policy::judge(world, pod) {
        Action::FailIndex => true,
        Action::Ignore => false,
        _ => before(pod).0 >= limit,
    };
    failed.filter(for_good).filter_map(|pod| ends::index_of(pod)).collect()
}

/// The last failed pod of each index that waits for a successor.
pub(super) fn waiting<'a>(world: &'a World, spec: &JobSpec, settled: &BTreeSet<i32>) -> BTreeMap<i32, &'a Arc<Pod>> {
    let busy: BTreeSet<i32> = world.pods.iter().filter(|pod| crate::pods::is_active(pod)).filter_map(|pod| ends::index_of(pod)).collect();
    let mut last: BTreeMap<i32, &Arc<Pod>> = BTreeMap::new();
    for pod in world.pods.iter().filter(|pod| ends::is_failed(pod, spec) && ends::is_tracked(pod)) {
        let Some(index) = ends::index_of(pod).filter(|index| !settled.contains(index) && !busy.contains(index)) else { continue };
        let rank = |pod: &Pod| {
            let (counted, ignored) = before(pod);
            (counted + ignored, ends::finished_at(pod))
        };
        let newer = last.get(&index).is_none_or(|known| rank(known) <= rank(pod));
        if newer {
            last.insert(index, pod);
        }
    }
    last
}
