//! What a pod's node would do next.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Stage;
use crate::view::Pod;

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Nothing,
    /// Look again then.
    Wait(Duration),
    /// Its grace period is over: take it away.
    Remove,
    /// Say that it is in that phase.
    Enter(String),
}

/// The next step for a pod that has been in its present phase for `since`, as far as we saw.
pub fn plan(pod: &Pod, stages: &[Stage], since: Duration) -> Step {
    if pod.metadata.deletion_timestamp.is_some() {
        return Step::Remove;
    }
    let phase = if pod.status.phase.is_empty() { "Pending" } else { &pod.status.phase };
    // A pod that an outage made unready runs on when its node is back.
    if phase == "Running" && !pod.is_ready() {
        return Step::Enter("Running".into());
    }
    let Some(stage) = stages.iter().find(|stage| matches(stage, phase, pod)) else { return Step::Nothing };
    let after = Duration::try_from_secs_f64(stage.after_seconds).unwrap_or_default();
    match after.checked_sub(since).filter(|left| !left.is_zero()) {
        Some(left) => Step::Wait(left),
        None => Step::Enter(stage.to.clone()),
    }
}

fn matches(stage: &Stage, phase: &str, pod: &Pod) -> bool {
    stage.from == phase
        && stage.labels.iter().all(|(key, value)| pod.metadata.labels.get(key) == Some(value))
        && stage.owner.as_deref().is_none_or(|kind| pod.owner_kind() == Some(kind))
        && share(pod) < u64::from(stage.percent)
}

/// A number below 100 that is always the same for the pod.
fn share(pod: &Pod) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    pod.metadata.uid.hash(&mut hasher);
    hasher.finish() % 100
}

/// The status of a pod that enters the phase; `address` is its IP.
pub fn status(pod: &Pod, phase: &str, address: &str, now: &str) -> Value {
    let runs = phase == "Running";
    let exit_code = if phase == "Failed" { 1 } else { 0 };
    let condition = |kind: &str, holds: bool| {
        let reason = if !holds && phase == "Succeeded" { json!("PodCompleted") } else { Value::Null };
        json!({ "type": kind, "status": if holds { "True" } else { "False" }, "lastProbeTime": null, "lastTransitionTime": now, "reason": reason })
    };
    let started = pod.status.start_time.as_deref().unwrap_or(now);
    let terminated = |code: i32| {
        let reason = if code == 0 { "Completed" } else { "Error" };
        json!({ "terminated": { "exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now } })
    };
    let containers = pod.spec.containers.iter().map(|container| {
        let state = if runs { json!({ "running": { "startedAt": started } }) } else { terminated(exit_code) };
        json!({ "name": container.name, "image": container.image, "imageID": "", "ready": runs, "started": runs, "restartCount": 0, "state": state })
    });
    let before = pod.spec.init_containers.iter().map(|container| {
        json!({ "name": container.name, "image": container.image, "imageID": "", "ready": true, "restartCount": 0, "state": terminated(0) })
    });
    let mut status = json!({
        "phase": phase,
        "startTime": started,
        "podIP": address,
        "podIPs": [{ "ip": address }],
        "conditions": [
            condition("PodReadyToStartContainers", runs),
            condition("Initialized", true),
            condition("Ready", runs),
            condition("ContainersReady", runs),
        ],
        "containerStatuses": containers.collect::<Vec<_>>(),
    });
    if !pod.spec.init_containers.is_empty() {
        status["initContainerStatuses"] = before.collect();
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_goes_through_its_stages_and_leaves_when_it_is_deleted() {
        let job = json!([{ "kind": "Job", "controller": true }]);
        let ready = json!([{ "type": "Ready", "status": "True" }]);
        let second = Duration::from_secs(1);
        let cases = [
            (json!({}), Duration::ZERO, Step::Enter("Running".into())),
            (json!({ "status": { "phase": "Running", "conditions": ready } }), second, Step::Nothing),
            (json!({ "status": { "phase": "Running" } }), second, Step::Enter("Running".into())),
            (
                json!({ "metadata": { "ownerReferences": job }, "status": { "phase": "Running", "conditions": ready } }),
                second / 4,
                Step::Wait(second * 3 / 4),
            ),
            (
                json!({ "metadata": { "ownerReferences": job }, "status": { "phase": "Running", "conditions": ready } }),
                second,
                Step::Enter("Succeeded".into()),
            ),
            (
                json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "status": { "phase": "Running" } }),
                second,
                Step::Remove,
            ),
        ];
        for (given, since, expected) in cases {
            assert_eq!(plan(&pod(given.clone()), &Stage::defaults(), since), expected, "{given}");
        }
    }

    #[test]
    fn a_stage_of_some_percent_takes_some_of_the_pods() {
        let stages = vec![Stage { percent: 30, to: "Failed".into(), ..Stage::defaults()[0].clone() }];
        let fails =
            |number: i32| plan(&pod(json!({ "metadata": { "uid": format!("u{number}") } })), &stages, Duration::ZERO) != Step::Nothing;
        let failed = (0..1000).filter(|number| fails(*number)).count();
        assert!((200..400).contains(&failed), "{failed}");
    }
}
