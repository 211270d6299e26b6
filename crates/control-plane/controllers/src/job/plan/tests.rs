use serde_json::{Value, json};

use super::*;
use crate::job::{INDEX, TRACKING};

const NOW: &str = "2026-01-01T01:00:00Z";

fn world(spec: Value, status: Value, pods: &[Value]) -> World {
    let mut full = json!({"template": {}, "completions": 3, "parallelism": 2, "backoffLimit": 1});
    spec.as_object().into_iter().flatten().for_each(|(key, value)| full[key] = value.clone());
    let job = json!({"metadata": {"name": "j", "uid": "j"}, "spec": full, "status": status});
    World {
        job: Arc::new(serde_json::from_value(job).unwrap()),
        pods: pods.iter().map(|pod| Arc::new(serde_json::from_value(pod.clone()).unwrap())).collect(),
        orphans: vec![],
        strays: vec![],
        now: NOW.parse().unwrap(),
    }
}

fn pod(uid: &str, phase: &str, tracked: bool, index: Option<i32>) -> Value {
    let annotations = index.map(|index| json!({INDEX: index.to_string()}));
    let state = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}});
    json!({
        "metadata": {"name": uid, "namespace": "a", "uid": uid, "finalizers": if tracked { json!([TRACKING]) } else { json!([]) }, "annotations": annotations},
        "status": {"phase": phase, "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]},
    })
}

fn kinds(plan: &Plan) -> Vec<&str> {
    plan.status.iter().flat_map(|status| status.conditions.iter().flatten()).map(|condition| condition.type_.as_str()).collect()
}

fn notes(status: &JobStatus) -> (usize, usize) {
    let notes = status.uncounted_terminated_pods.clone().unwrap_or_default();
    (notes.succeeded.unwrap_or_default().len(), notes.failed.unwrap_or_default().len())
}

#[test]
fn an_end_is_noted_then_untracked_then_counted_once() {
    let noted = plan(&world(json!({}), json!({}), &[pod("a", "Succeeded", true, None)]));
    let status = noted.status.unwrap();
    assert_eq!((status.succeeded, notes(&status), noted.untrack.len(), noted.create.len()), (Some(0), (1, 0), 1, 2));
    let status = serde_json::to_value(status).unwrap();
    let still_there = plan(&world(json!({}), status.clone(), &[pod("a", "Succeeded", true, None)]));
    assert_eq!((still_there.untrack.len(), still_there.status.map(|status| notes(&status))), (1, None));
    let counted = plan(&world(json!({}), status, &[pod("a", "Succeeded", false, None)]));
    let status = counted.status.unwrap();
    assert_eq!((status.succeeded, notes(&status)), (Some(1), (0, 0)));
}

#[test]
fn a_job_completes_when_enough_pods_succeeded_and_all_are_counted() {
    let done = plan(&world(json!({}), json!({"succeeded": 3}), &[]));
    assert_eq!(kinds(&done), ["SuccessCriteriaMet", "Complete"]);
    assert!(done.status.as_ref().unwrap().completion_time.is_some() && done.create.is_empty());
    let waiting = plan(&world(json!({}), json!({"succeeded": 2}), &[pod("c", "Succeeded", true, None)]));
    assert_eq!(kinds(&waiting), ["SuccessCriteriaMet"]);
}

#[test]
fn a_job_fails_beyond_its_limit_or_deadline_after_its_pods_have_ended() {
    let running = pod("r", "Running", true, None);
    let failing = plan(&world(json!({}), json!({"failed": 2}), &[running]));
    assert_eq!((kinds(&failing), failing.delete.len()), (vec!["FailureTarget"], 1));
    let failed = plan(&world(json!({}), json!({"failed": 2}), &[]));
    assert_eq!(kinds(&failed), ["FailureTarget", "Failed"]);
    let late = plan(&world(json!({"activeDeadlineSeconds": 60}), json!({"startTime": "2026-01-01T00:58:00Z"}), &[]));
    assert_eq!(late.event.unwrap().1, "DeadlineExceeded");
    let never = plan(&world(json!({"activeDeadlineSeconds": i64::MAX}), json!({"startTime": "2026-01-01T00:58:00Z"}), &[]));
    assert_eq!(never.event, None, "a deadline beyond all time is none");
}

#[test]
fn an_indexed_job_fills_free_indexes_and_a_failed_one_waits_before_its_successor() {
    let pods = [pod("a", "Running", true, Some(1))];
    let filled =
        plan(&world(json!({"completionMode": "Indexed", "parallelism": 3}), json!({"completedIndexes": "0", "succeeded": 1}), &pods));
    assert_eq!(filled.create, [NewPod { index: Some(2), failures: None }]);
    let mut world = world(json!({}), json!({}), &[pod("f", "Failed", true, None)]);
    world.now = "2026-01-01T00:00:04Z".parse().unwrap();
    let waiting = plan(&world);
    assert_eq!((waiting.create.len(), waiting.look_again), (0, Some(Duration::from_secs(6))));
}

#[test]
fn a_suspended_job_stops_its_pods_and_a_finished_one_goes_after_its_time() {
    let suspended = plan(&world(json!({"suspend": true}), json!({"startTime": NOW}), &[pod("a", "Running", true, None)]));
    assert_eq!((suspended.dismiss.len(), suspended.delete.len(), kinds(&suspended)), (1, 0, vec!["Suspended"]));
    let finished = json!({"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:59:00Z"}]});
    assert!(plan(&world(json!({"ttlSecondsAfterFinished": 60}), finished.clone(), &[])).remove_job);
    let later = plan(&world(json!({"ttlSecondsAfterFinished": 100}), finished, &[]));
    assert_eq!((later.remove_job, later.look_again), (false, Some(Duration::from_secs(40))));
}

fn leaving(mut pod: Value) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z");
    pod["spec"] = json!({"nodeName": "n", "containers": []});
    pod
}

#[test]
fn a_pod_on_its_way_out_is_a_failure_at_once_unless_the_job_waits_for_ends() {
    let pods = [leaving(pod("a", "Running", true, None))];
    let replaced = plan(&world(json!({}), json!({}), &pods));
    let status = replaced.status.unwrap();
    assert_eq!((notes(&status), status.terminating, replaced.untrack.len()), ((0, 1), Some(1), 1));
    let patient = plan(&world(json!({"podReplacementPolicy": "Failed", "parallelism": 1}), json!({}), &pods));
    assert_eq!((notes(&patient.status.unwrap()), patient.create.len()), ((0, 0), 0));
}

#[test]
fn the_first_rule_of_a_failure_policy_that_matches_decides() {
    let rule = |action: &str, codes: Value| json!({"action": action, "onExitCodes": {"operator": "In", "values": codes}});
    let failed = [pod("a", "Failed", true, None)];
    let with = |rules: Value| plan(&world(json!({"backoffLimit": 0, "podFailurePolicy": {"rules": rules}}), json!({}), &failed));
    let failing = with(json!([rule("FailJob", json!([1]))]));
    let status = failing.status.unwrap();
    let condition = &status.conditions.as_ref().unwrap()[0];
    assert_eq!((condition.type_.as_str(), condition.reason.as_deref()), ("FailureTarget", Some("PodFailurePolicy")));
    let message = "Container c for pod a/a failed with exit code 1 matching FailJob rule at index 0";
    assert_eq!(condition.message.as_deref(), Some(message));
    let ignored = with(json!([rule("Ignore", json!([1])), rule("FailJob", json!([1]))]));
    assert_eq!((kinds(&ignored).len(), ignored.untrack.len(), ignored.create.len()), (0, 1, 2), "not counted, and replaced at once");
    let counted = with(json!([rule("FailJob", json!([2]))]));
    assert_eq!(counted.status.unwrap().conditions.unwrap()[0].reason.as_deref(), Some("BackoffLimitExceeded"));
    let disrupted = json!([{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]);
    let mut evicted = pod("a", "Failed", true, None);
    evicted["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True"}]);
    let spared = plan(&world(json!({"backoffLimit": 0, "podFailurePolicy": {"rules": disrupted}}), json!({}), &[evicted]));
    assert!(kinds(&spared).is_empty());
}

fn of_index(uid: &str, phase: &str, index: i32, failures: i32) -> Value {
    let mut pod = pod(uid, phase, true, Some(index));
    pod["metadata"]["annotations"][per_index::FAILURES] = json!(failures.to_string());
    pod
}

#[test]
fn each_index_has_a_back_off_limit_of_its_own() {
    let spec = |more: Value| {
        let mut spec =
            json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimit": null, "backoffLimitPerIndex": 1});
        more.as_object().into_iter().flatten().for_each(|(key, value)| spec[key] = value.clone());
        spec
    };
    let pods = [of_index("a", "Failed", 0, 0), of_index("b", "Running", 1, 0), of_index("c", "Failed", 2, 1)];
    let next = plan(&world(spec(json!({})), json!({}), &pods));
    assert_eq!(next.create, [NewPod { index: Some(0), failures: Some((1, 0)) }], "index 2 has no second chance left");
    let untracked: Vec<_> = next.untrack.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    assert_eq!(untracked, ["c"], "the last failed pod of index 0 holds the count until its successor is there");
    let status = next.status.unwrap();
    assert_eq!((status.failed_indexes.as_deref(), status.failed), (Some("2"), Some(0)));
    let too_many = plan(&world(spec(json!({"maxFailedIndexes": 0})), json!({}), &pods));
    assert_eq!(too_many.status.unwrap().conditions.unwrap()[0].reason.as_deref(), Some("MaxFailedIndexesExceeded"));
    let over = plan(&world(spec(json!({})), json!({"completedIndexes": "0,1", "failedIndexes": "2"}), &[]));
    let reasons: Vec<_> =
        over.status.iter().flat_map(|status| status.conditions.iter().flatten()).filter_map(|it| it.reason.clone()).collect();
    assert_eq!(reasons, ["FailedIndexes", "FailedIndexes"]);
}

#[test]
fn a_success_policy_ends_the_job_early_and_stops_what_still_runs() {
    let policy = json!({"rules": [{"succeededIndexes": "0,2"}, {"succeededIndexes": "0-2", "succeededCount": 2}]});
    let spec = json!({"completionMode": "Indexed", "successPolicy": policy});
    let cases = [("0", None), ("0,1", Some("Matched rules at index 1")), ("0,2", Some("Matched rules at index 0"))];
    for (done, message) in cases {
        let next = plan(&world(spec.clone(), json!({"completedIndexes": done}), &[pod("a", "Running", true, Some(5))]));
        let met = next.status.as_ref().and_then(|status| verdict::condition(status, "SuccessCriteriaMet"));
        assert_eq!(met.and_then(|met| met.message.as_deref()), message, "{done}");
    }
}

#[test]
fn doubles_and_indexes_out_of_range_go_first() {
    let pods = [of_index("a", "Running", 0, 0), of_index("b", "Pending", 0, 0), of_index("c", "Running", 7, 0)];
    let next = plan(&world(json!({"completionMode": "Indexed", "parallelism": 3}), json!({}), &pods));
    let mut names: Vec<_> = next.dismiss.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    names.sort_unstable();
    assert_eq!(names, ["b", "c"]);
}
