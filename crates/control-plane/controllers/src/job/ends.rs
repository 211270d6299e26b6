//! Ends of pods, each counted once (KEP-2307): first its uid is noted in the status, then its finalizer goes, then the note becomes a
//! count. Of an Indexed Job the completed indexes themselves are the count of successes.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::failure_policy::{self, Action};
use super::{INDEX, TRACKING, World, indexes};
use crate::pods;

/// Notes in one status: the rest follows when these are counted, so that the object stays small.
const NOTES_MAX: usize = 500;

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|name| name == TRACKING)
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// Only a pod that has really failed makes room for its successor; one that is still on its way out does not.
pub(super) fn waits_for_ends(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// A pod that is deleted before it ended counts as failed at once, unless the Job waits for ends; one that never had a node will not
/// end otherwise.
pub(super) fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod.metadata.deletion_timestamp.is_some() && (!waits_for_ends(spec) || pods::node_name(pod).is_none()),
    }
}

/// When the last container of a pod ended, or else when the pod's deletion or life began.
pub(super) fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let ends = statuses.into_iter().flatten().filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let last = ends.map(|time| time.0).max();
    last.or_else(|| pod.metadata.deletion_timestamp.as_ref().or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0))
}

/// What the ends seen so far amount to.
pub(super) struct Ends {
    /// With what is noted but not counted.
    pub succeeded: i32,
    pub failed: i32,
    pub succeeded_indexes: BTreeSet<i32>,
    /// Nothing waits to become a count.
    pub settled: bool,
    /// Pods whose finalizer may go once the status is on the server.
    pub untrack: Vec<Arc<Pod>>,
}

/// Notes new ends in `status` and turns notes whose pod let go of its finalizer into counts. `kept` are pods that must keep it for now;
/// `all` lets every pod go, because the Job is ending.
pub(super) fn count(world: &World, spec: &JobSpec, status: &mut JobStatus, kept: &BTreeSet<String>, all: bool) -> Ends {
    let notes = status.uncounted_terminated_pods.take().unwrap_or_default();
    let (mut succeeded, mut failed) = (notes.succeeded.unwrap_or_default(), notes.failed.unwrap_or_default());
    let held: BTreeSet<&str> = world.pods.iter().filter(|pod| is_tracked(pod)).filter_map(|pod| pod.metadata.uid.as_deref()).collect();
    settle(&mut status.succeeded, &mut succeeded, &held);
    settle(&mut status.failed, &mut failed, &held);
    let total = spec.completions.unwrap_or(0);
    let mut done = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), total);
    let mut untrack = Vec::new();
    for pod in world.pods.iter().filter(|pod| is_tracked(pod)) {
        let Some(uid) = pod.metadata.uid.clone() else { continue };
        let noted = succeeded.contains(&uid) || failed.contains(&uid);
        let has_failed = is_failed(pod, spec);
        let ended = pods::phase(pod) == "Succeeded" || has_failed;
        if !noted && ended && !kept.contains(&uid) {
            if succeeded.len() + failed.len() >= NOTES_MAX {
                continue;
            }
            let valid_index = index_of(pod).filter(|index| *index < total);
            match (is_indexed(spec), has_failed) {
                (true, false) => done.extend(valid_index),
                (false, false) => succeeded.push(uid),
                (indexed, true) if indexed && valid_index.is_none() => {}
                (_, true) if failure_policy::judge(world, pod) == Action::Ignore => {}
                (_, true) => failed.push(uid),
            }
            untrack.push(pod.clone());
        } else if noted || all {
            untrack.push(pod.clone());
        }
    }
    if is_indexed(spec) {
        status.succeeded = Some(done.len() as i32);
        status.completed_indexes = Some(indexes::format(&done)).filter(|text| !text.is_empty());
    }
    let ends = Ends {
        succeeded: status.succeeded.unwrap_or(0) + succeeded.len() as i32,
        failed: status.failed.unwrap_or(0) + failed.len() as i32,
        settled: succeeded.is_empty() && failed.is_empty(),
        succeeded_indexes: done,
        untrack,
    };
    let listed = |uids: Vec<String>| (!uids.is_empty()).then_some(uids);
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods { succeeded: listed(succeeded), failed: listed(failed) });
    ends
}

fn settle(total: &mut Option<i32>, notes: &mut Vec<String>, held: &BTreeSet<&str>) {
    let before = notes.len();
    notes.retain(|uid| held.contains(uid.as_str()));
    *total = Some(total.unwrap_or(0) + (before - notes.len()) as i32);
}
