//! What a Job does next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observe::World;
use super::{INDEX, TRACKING, indexes};
use crate::pods;

/// A failed pod's successor waits 10 s, doubled by each further failure, six minutes at most.
const BACKOFF_FIRST_SECONDS: i64 = 10;
const BACKOFF_MAX_SECONDS: i64 = 360;

#[derive(Default)]
pub(super) struct Plan {
    /// `None` where nothing changed.
    pub status: Option<JobStatus>,
    /// Pods whose end is in the status on the server: their finalizer goes.
    pub untrack: Vec<Arc<Pod>>,
    /// One entry per pod to make; the completion index of an Indexed Job.
    pub create: Vec<Option<i32>>,
    pub delete: Vec<Arc<Pod>>,
    /// The time to live is over.
    pub remove_job: bool,
    /// What the user is told: type, reason, message.
    pub event: Option<(&'static str, String, String)>,
    pub look_again: Option<Duration>,
}

pub(super) fn plan(world: &World) -> Plan {
    let job = &*world.job;
    let mut plan = Plan::default();
    let Some(spec) = &job.spec else { return plan };
    let mut status = job.status.clone().unwrap_or_default();
    if let Some(finished) = finished_at(&status) {
        // Of a finished Job no finalizer may stay behind.
        plan.untrack = world.pods.iter().filter(|pod| is_tracked(pod)).cloned().collect();
        outlive(spec, finished, world.now, &mut plan);
        return plan;
    }
    count_ends(world, &mut status, &mut plan);
    let active: Vec<&Arc<Pod>> = world.pods.iter().filter(|pod| pods::is_active(pod)).collect();
    let terminating = world.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some() && !pods::is_terminal(pod)).count();
    let suspended = spec.suspend == Some(true);
    if status.start_time.is_none() && !suspended {
        status.start_time = Some(Time(world.now));
        plan.event = unsupported(spec);
    }
    let verdict = standing_verdict(&status).or_else(|| verdict(world, spec, &status, active.len()));
    match verdict {
        Some(verdict) => {
            conclude(&mut status, &verdict, active.is_empty() && terminating == 0, world.now, &mut plan);
            plan.delete = active.iter().map(|pod| (*pod).clone()).collect();
        }
        None if job.metadata.deletion_timestamp.is_some() => {}
        None => steer(world, spec, &mut status, &active, terminating, &mut plan),
    }
    status.active = Some(active.len() as i32);
    status.terminating = Some(terminating as i32);
    status.ready = Some(active.iter().filter(|pod| pods::is_ready(pod)).count() as i32);
    plan.status = (!same(job.status.as_ref(), &status)).then_some(status);
    plan
}

/// What the Job asks for and does not get, said once, at its start.
fn unsupported(spec: &JobSpec) -> Option<(&'static str, String, String)> {
    let asked = [
        ("podFailurePolicy", spec.pod_failure_policy.is_some()),
        ("successPolicy", spec.success_policy.is_some()),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.is_some()),
        ("maxFailedIndexes", spec.max_failed_indexes.is_some()),
    ];
    let fields: Vec<&str> = asked.into_iter().filter(|(_, set)| *set).map(|(field, _)| field).collect();
    let message = || format!("The Job runs without what this cluster does not support: spec.{}", fields.join(", spec."));
    (!fields.is_empty()).then(|| ("Warning", "UnsupportedField".into(), message()))
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|name| name == TRACKING)
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// Notes new ends by uid; turns notes whose pod let go of its finalizer into counts.
fn count_ends(world: &World, status: &mut JobStatus, plan: &mut Plan) {
    let noted = world.job.status.as_ref().and_then(|status| status.uncounted_terminated_pods.clone()).unwrap_or_default();
    let (mut succeeded, mut failed) = (noted.succeeded.unwrap_or_default(), noted.failed.unwrap_or_default());
    let is_held = |uid: &String| world.pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid) && is_tracked(pod));
    let count = |total: &mut Option<i32>, list: &mut Vec<String>| {
        let before = list.len();
        list.retain(is_held);
        *total = Some(total.unwrap_or(0) + (before - list.len()) as i32);
    };
    plan.untrack = world
        .pods
        .iter()
        .filter(|pod| pod.metadata.uid.as_ref().is_some_and(|uid| succeeded.contains(uid) || failed.contains(uid)))
        .filter(|pod| is_tracked(pod))
        .cloned()
        .collect();
    count(&mut status.succeeded, &mut succeeded);
    count(&mut status.failed, &mut failed);
    let total = world.job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(0);
    let mut done = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), total);
    for pod in world.pods.iter().filter(|pod| is_tracked(pod)) {
        let Some(uid) = pod.metadata.uid.clone().filter(|uid| !succeeded.contains(uid) && !failed.contains(uid)) else { continue };
        match pods::phase(pod) {
            "Succeeded" => {
                let index = index_of(pod).filter(|_| world.job.spec.as_ref().is_some_and(is_indexed));
                if index.is_none_or(|index| index < total && done.insert(index)) {
                    succeeded.push(uid);
                } else {
                    plan.untrack.push(pod.clone());
                }
            }
            "Failed" => failed.push(uid),
            // Deleted without a node: it never ran, and nothing else will end it.
            _ if pod.metadata.deletion_timestamp.is_some() && pods::node_name(pod).is_none() => failed.push(uid),
            _ => {}
        }
    }
    if world.job.spec.as_ref().is_some_and(is_indexed) {
        status.completed_indexes = Some(indexes::format(&done)).filter(|text| !text.is_empty());
    }
    let notes = k8s_openapi::api::batch::v1::UncountedTerminatedPods {
        succeeded: (!succeeded.is_empty()).then_some(succeeded),
        failed: (!failed.is_empty()).then_some(failed),
    };
    status.uncounted_terminated_pods = Some(notes);
}

fn uncounted(status: &JobStatus) -> (i32, i32) {
    let notes = status.uncounted_terminated_pods.clone().unwrap_or_default();
    (notes.succeeded.map_or(0, |list| list.len() as i32), notes.failed.map_or(0, |list| list.len() as i32))
}

fn succeeded(status: &JobStatus) -> i32 {
    status.succeeded.unwrap_or(0) + uncounted(status).0
}

fn failed(status: &JobStatus) -> i32 {
    status.failed.unwrap_or(0) + uncounted(status).1
}

/// How a Job ends, and why.
#[derive(Clone)]
struct Verdict {
    complete: bool,
    reason: String,
    message: String,
}

fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind && condition.status == "True")
}

fn finished_at(status: &JobStatus) -> Option<Timestamp> {
    let end = condition(status, "Complete").or_else(|| condition(status, "Failed"))?;
    Some(end.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// One that was given while pods still ran.
fn standing_verdict(status: &JobStatus) -> Option<Verdict> {
    let (complete, given) = match (condition(status, "SuccessCriteriaMet"), condition(status, "FailureTarget")) {
        (Some(given), _) => (true, given),
        (None, Some(given)) => (false, given),
        (None, None) => return None,
    };
    Some(Verdict { complete, reason: given.reason.clone().unwrap_or_default(), message: given.message.clone().unwrap_or_default() })
}

fn verdict(world: &World, spec: &JobSpec, status: &JobStatus, active: usize) -> Option<Verdict> {
    let failure = |reason: &str, message: &str| Some(Verdict { complete: false, reason: reason.into(), message: message.into() });
    let restarts = restarts_in_place(world, spec);
    let limit = spec.backoff_limit.unwrap_or(6);
    if failed(status) > limit || (restarts > 0 && restarts >= limit) {
        return failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if spec.suspend != Some(true) && seconds_left(spec, status, world.now).is_some_and(|left| left <= 0) {
        return failure("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let enough = match spec.completions {
        Some(completions) => succeeded(status) >= completions,
        // A work queue: the first success means that there is no more work.
        None => succeeded(status) > 0 && active == 0,
    };
    let message = "Reached expected number of succeeded pods";
    enough.then(|| Verdict { complete: true, reason: "CompletionsReached".into(), message: message.into() })
}

/// Restarts of containers count as failures where the pod itself stays.
fn restarts_in_place(world: &World, spec: &JobSpec) -> i32 {
    let policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return 0;
    }
    let statuses = world.pods.iter().filter(|pod| pods::is_active(pod)).filter_map(|pod| pod.status.as_ref());
    statuses.flat_map(|status| status.container_statuses.iter().flatten()).map(|container| container.restart_count).sum()
}

fn seconds_left(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> Option<i64> {
    let start = status.start_time.as_ref()?.0.as_second();
    Some(start + spec.active_deadline_seconds? - now.as_second())
}

/// Says first that the end is decided and, once no pod is left and every end is counted, that it is reached.
fn conclude(status: &mut JobStatus, verdict: &Verdict, at_rest: bool, now: Timestamp, plan: &mut Plan) {
    let (target, end) = if verdict.complete { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
    let new = |kind: &str| JobCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    if condition(status, target).is_none() {
        status.conditions.get_or_insert_default().push(new(target));
    }
    if !at_rest || uncounted(status) != (0, 0) {
        return;
    }
    status.conditions.get_or_insert_default().push(new(end));
    plan.event = Some(match verdict.complete {
        true => ("Normal", "Completed".into(), "Job completed".into()),
        false => ("Warning", verdict.reason.clone(), verdict.message.clone()),
    });
    if verdict.complete {
        status.completion_time = Some(Time(now));
    }
}

/// Keeps as many pods running as the Job may have now.
fn steer(world: &World, spec: &JobSpec, status: &mut JobStatus, active: &[&Arc<Pod>], terminating: usize, plan: &mut Plan) {
    let suspended = spec.suspend == Some(true);
    note_suspension(status, suspended, world.now, plan);
    let parallelism = spec.parallelism.unwrap_or(1);
    let wanted = match spec.completions {
        _ if suspended => 0,
        Some(completions) => parallelism.min((completions - succeeded(status)).max(0)),
        None if succeeded(status) > 0 => active.len() as i32,
        None => parallelism,
    };
    let wanted = usize::try_from(wanted).unwrap_or(0);
    plan.look_again = seconds_left(spec, status, world.now).and_then(|left| u64::try_from(left).ok()).map(Duration::from_secs);
    if active.len() > wanted {
        let mut surplus: Vec<Arc<Pod>> = active.iter().map(|pod| (*pod).clone()).collect();
        surplus.sort_by_key(|pod| (pods::is_ready(pod), pods::node_name(pod).is_some()));
        surplus.truncate(active.len() - wanted);
        plan.delete = surplus;
        return;
    }
    let waits_for_end = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let missing = wanted - active.len() - if waits_for_end { terminating.min(wanted - active.len()) } else { 0 };
    if missing == 0 {
        return;
    }
    if let Some(wait) = backoff(world, status) {
        plan.look_again = Some(plan.look_again.map_or(wait, |other| other.min(wait)));
        return;
    }
    plan.create = match is_indexed(spec) {
        true => free_indexes(world, spec, status).into_iter().take(missing).map(Some).collect(),
        false => vec![None; missing],
    };
}

fn free_indexes(world: &World, spec: &JobSpec, status: &JobStatus) -> Vec<i32> {
    let total = spec.completions.unwrap_or(0);
    let done = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), total);
    let busy: BTreeSet<i32> = world.pods.iter().filter(|pod| !pods::is_terminal(pod)).filter_map(|pod| index_of(pod)).collect();
    (0..total).filter(|index| !done.contains(index) && !busy.contains(index)).collect()
}

fn note_suspension(status: &mut JobStatus, suspended: bool, now: Timestamp, plan: &mut Plan) {
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter_mut().find(|condition| condition.type_ == "Suspended");
    let (value, reason, message) = match suspended {
        true => ("True", "JobSuspended", "Job suspended"),
        false => ("False", "JobResumed", "Job resumed"),
    };
    let changed = match known {
        Some(known) if known.status == value => false,
        Some(known) => {
            known.status = value.into();
            known.reason = Some(reason.into());
            known.message = Some(message.into());
            known.last_transition_time = Some(Time(now));
            true
        }
        None if suspended => {
            conditions.push(JobCondition {
                type_: "Suspended".into(),
                status: value.into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_probe_time: Some(Time(now)),
                last_transition_time: Some(Time(now)),
            });
            true
        }
        None => false,
    };
    if changed {
        plan.event = Some(("Normal", if suspended { "Suspended".into() } else { "Resumed".into() }, message.into()));
        status.start_time = (!suspended).then_some(Time(now));
    }
    if conditions.is_empty() {
        status.conditions = None;
    }
}

/// How long to wait before the next pod, after failures since the last success.
fn backoff(world: &World, status: &JobStatus) -> Option<Duration> {
    let ended = |pod: &&Arc<Pod>| pods::is_terminal(pod);
    let finish = |pod: &Arc<Pod>| {
        let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        let ends =
            containers.into_iter().flatten().filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
        ends.map(|time| time.0).max().unwrap_or(world.now)
    };
    let last_success = world.pods.iter().filter(ended).filter(|pod| pods::phase(pod) == "Succeeded").map(finish).max();
    let failures: Vec<Timestamp> =
        world.pods.iter().filter(|pod| pods::phase(pod) == "Failed").map(finish).filter(|end| Some(*end) > last_success).collect();
    let last = failures.iter().max()?;
    if failed(status) == 0 {
        return None;
    }
    let doubled = BACKOFF_FIRST_SECONDS
        .checked_shl(u32::try_from(failures.len()).unwrap_or(1).saturating_sub(1).min(20))
        .unwrap_or(BACKOFF_MAX_SECONDS);
    let left = last.as_second() + doubled.min(BACKOFF_MAX_SECONDS) - world.now.as_second();
    u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_secs)
}

fn outlive(spec: &JobSpec, finished: Timestamp, now: Timestamp, plan: &mut Plan) {
    let Some(ttl) = spec.ttl_seconds_after_finished else { return };
    match finished.as_second() + i64::from(ttl) - now.as_second() {
        left if left > 0 => plan.look_again = Some(Duration::from_secs(left.unsigned_abs())),
        _ => plan.remove_job = true,
    }
}

/// Equal for a reader: absent counts are zero.
fn same(a: Option<&JobStatus>, b: &JobStatus) -> bool {
    let normal = |status: &JobStatus| {
        let mut status = status.clone();
        for count in [&mut status.active, &mut status.ready, &mut status.succeeded, &mut status.failed, &mut status.terminating] {
            *count = Some(count.unwrap_or(0));
        }
        status.uncounted_terminated_pods = Some(status.uncounted_terminated_pods.unwrap_or_default());
        status.conditions = status.conditions.filter(|conditions| !conditions.is_empty());
        status
    };
    a.is_some_and(|a| normal(a) == normal(b))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn world(spec: Value, status: Value, pods: &[Value]) -> World {
        let mut full = json!({"template": {}, "completions": 3, "parallelism": 2, "backoffLimit": 1});
        spec.as_object().into_iter().flatten().for_each(|(key, value)| full[key] = value.clone());
        let job = json!({"metadata": {"name": "j", "uid": "j"}, "spec": full, "status": status});
        World {
            job: Arc::new(serde_json::from_value(job).unwrap()),
            pods: pods.iter().map(|pod| Arc::new(serde_json::from_value(pod.clone()).unwrap())).collect(),
            now: NOW.parse().unwrap(),
        }
    }

    fn pod(uid: &str, phase: &str, tracked: bool, index: Option<i32>) -> Value {
        let annotations = index.map(|index| json!({INDEX: index.to_string()}));
        let state = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}});
        json!({
            "metadata": {"name": uid, "uid": uid, "finalizers": if tracked { json!([TRACKING]) } else { json!([]) }, "annotations": annotations},
            "status": {"phase": phase, "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]},
        })
    }

    fn kinds(plan: &Plan) -> Vec<&str> {
        plan.status.iter().flat_map(|status| status.conditions.iter().flatten()).map(|condition| condition.type_.as_str()).collect()
    }

    #[test]
    fn an_end_is_noted_then_untracked_then_counted_once() {
        let noted = plan(&world(json!({}), json!({}), &[pod("a", "Succeeded", true, None)]));
        let status = noted.status.unwrap();
        assert_eq!((status.succeeded, uncounted(&status), noted.untrack.len(), noted.create.len()), (Some(0), (1, 0), 0, 2));
        let status = serde_json::to_value(status).unwrap();
        let untracked = plan(&world(json!({}), status.clone(), &[pod("a", "Succeeded", true, None)]));
        assert_eq!(untracked.untrack.len(), 1);
        let counted = plan(&world(json!({}), status, &[pod("a", "Succeeded", false, None)]));
        let status = counted.status.unwrap();
        assert_eq!((status.succeeded, uncounted(&status)), (Some(1), (0, 0)));
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
    }

    #[test]
    fn an_indexed_job_fills_free_indexes_and_a_failed_one_waits_before_its_successor() {
        let pods = [pod("a", "Running", true, Some(1))];
        let filled =
            plan(&world(json!({"completionMode": "Indexed", "parallelism": 3}), json!({"completedIndexes": "0", "succeeded": 1}), &pods));
        assert_eq!(filled.create, [Some(2)]);
        let mut world = world(json!({}), json!({}), &[pod("f", "Failed", true, None)]);
        world.now = "2026-01-01T00:00:04Z".parse().unwrap();
        let waiting = plan(&world);
        assert_eq!((waiting.create.len(), waiting.look_again), (0, Some(Duration::from_secs(6))));
    }

    #[test]
    fn a_suspended_job_stops_its_pods_and_a_finished_one_goes_after_its_time() {
        let suspended = plan(&world(json!({"suspend": true}), json!({"startTime": NOW}), &[pod("a", "Running", true, None)]));
        assert_eq!((suspended.delete.len(), kinds(&suspended)), (1, vec!["Suspended"]));
        let finished = json!({"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:59:00Z"}]});
        assert!(plan(&world(json!({"ttlSecondsAfterFinished": 60}), finished.clone(), &[])).remove_job);
        let later = plan(&world(json!({"ttlSecondsAfterFinished": 100}), finished, &[]));
        assert_eq!((later.remove_job, later.look_again), (false, Some(Duration::from_secs(40))));
    }
}
