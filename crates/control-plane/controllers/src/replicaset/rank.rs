//! Which pods go first when there are too many (upstream: `ActivePodsWithRanks`).

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pods;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts `candidates` so that the pods to delete come first: those that serve least.
pub(super) fn sort(candidates: &mut [Arc<Pod>], related_by_node: &HashMap<String, usize>, now: Timestamp) {
    candidates.sort_by(|a, b| compare(a, b, related_by_node, now));
}

fn compare(a: &Pod, b: &Pod, related_by_node: &HashMap<String, usize>, now: Timestamp) -> Ordering {
    let assigned = |pod| pods::node_name(pod).is_some();
    let crowd = |pod| Reverse(related_by_node.get(pods::node_name(pod).unwrap_or_default()).copied().unwrap_or(0));
    let uid = |pod: &Pod| pod.metadata.uid.clone();
    // Younger first, but only by powers of two of the age, so that not always the newest is hit.
    let ready_age = |pod| pods::ready_since(pod).map(|since| age_rank(since, now));
    let born = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    (assigned(a).cmp(&assigned(b)))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| crowd(a).cmp(&crowd(b)))
        .then_with(|| ready_age(a).cmp(&ready_age(b)))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age_rank(born(a), now).cmp(&age_rank(born(b), now)))
        .then_with(|| uid(a).cmp(&uid(b)))
}

fn phase_rank(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        "Unknown" => 1,
        "Running" => 2,
        _ => 0,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let text = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DELETION_COST));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}

/// The logarithm of the age in seconds.
fn age_rank(since: Timestamp, now: Timestamp) -> u32 {
    let age = now.as_second().saturating_sub(since.as_second()).max(0);
    u64::try_from(age).unwrap_or(0).checked_ilog2().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, ready_at: Option<&str>, cost: &str, restarts: i32) -> Arc<Pod> {
        let ready = ready_at.map(|at| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]));
        let value = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {DELETION_COST: cost}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": ready, "containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": restarts}]},
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn the_pods_that_serve_least_go_first() {
        let (early, late) = (Some("2026-01-01T00:00:00Z"), Some("2026-01-01T01:00:00Z"));
        let mut all = vec![
            pod("g-oldest", "n1", "Running", early, "0", 0),
            pod("f-restarted", "n1", "Running", early, "0", 3),
            pod("e-ready-late", "n1", "Running", late, "0", 0),
            pod("d-crowded", "n2", "Running", early, "0", 0),
            pod("h-dear", "n1", "Running", late, "10", 0),
            pod("c-unready", "n1", "Running", None, "0", 0),
            pod("b-pending", "n1", "Pending", None, "0", 0),
            pod("a-unassigned", "", "Pending", None, "0", 0),
        ];
        let related = HashMap::from([("n1".to_owned(), 1), ("n2".to_owned(), 5)]);
        sort(&mut all, &related, "2026-01-01T01:00:10Z".parse().unwrap());
        let names: String = all.iter().filter_map(|pod| pod.metadata.name.as_ref()).map(|name| &name[..1]).collect();
        assert_eq!(names, "abcdefgh");
    }
}
