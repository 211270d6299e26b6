//! Whether a Job is over, and why.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::ends::{self, Ends};
use super::failure_policy::{self, Action};
use super::{World, indexes};
use crate::pods;

/// How a Job ends: first as an interim condition, and as the final one when no pod is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub complete: bool,
    pub reason: String,
    pub message: String,
}

impl Verdict {
    fn failed(reason: &str, message: impl Into<String>) -> Self {
        Self { complete: false, reason: reason.into(), message: message.into() }
    }
    fn complete(reason: &str, message: impl Into<String>) -> Self {
        Self { complete: true, reason: reason.into(), message: message.into() }
    }
    /// The interim and the final condition.
    pub fn conditions(&self) -> (&'static str, &'static str) {
        if self.complete { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") }
    }
}

pub(super) fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind && condition.status == "True")
}

pub(super) fn finished_at(status: &JobStatus) -> Option<Timestamp> {
    let end = condition(status, "Complete").or_else(|| condition(status, "Failed"))?;
    Some(end.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

pub(super) fn new_condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// One that was given while pods still ran.
pub(super) fn standing(status: &JobStatus) -> Option<Verdict> {
    let (complete, given) = match (condition(status, "SuccessCriteriaMet"), condition(status, "FailureTarget")) {
        (Some(given), _) => (true, given),
        (None, Some(given)) => (false, given),
        (None, None) => return None,
    };
    Some(Verdict { complete, reason: given.reason.clone().unwrap_or_default(), message: given.message.clone().unwrap_or_default() })
}

/// In upstream's order: the failure policy, the back-off limit, the deadline, failed indexes, the success policy, completions.
pub(super) fn reach(
    world: &World,
    spec: &JobSpec,
    status: &JobStatus,
    ends: &Ends,
    failed_indexes: &BTreeSet<i32>,
    active: usize,
) -> Option<Verdict> {
    by_failure_policy(world, spec)
        .or_else(|| by_backoff_limit(world, spec, ends.failed))
        .or_else(|| by_deadline(spec, status, world.now))
        .or_else(|| by_failed_indexes(spec, ends, failed_indexes))
        .or_else(|| by_success_policy(spec, &ends.succeeded_indexes))
        .or_else(|| by_completions(spec, ends.succeeded, active))
}

fn by_failure_policy(world: &World, spec: &JobSpec) -> Option<Verdict> {
    spec.pod_failure_policy.as_ref()?;
    let failed = world.pods.iter().filter(|pod| ends::is_failed(pod, spec));
    let messages = failed.filter_map(|pod| match failure_policy::judge(world, pod) {
        Action::FailJob(message) => Some(message),
        _ => None,
    });
    messages.into_iter().next().map(|message| Verdict::failed("PodFailurePolicy", message))
}

fn by_backoff_limit(world: &World, spec: &JobSpec, failed: i32) -> Option<Verdict> {
    // With limits per index the Job's own limit defaults to the largest number.
    let limit = spec.backoff_limit.unwrap_or(if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 });
    let restarts = restarts_in_place(world, spec);
    let beyond = failed > limit || restarts.is_some_and(|restarts| if limit == 0 { restarts > 0 } else { restarts >= limit });
    beyond.then(|| Verdict::failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"))
}

/// Restarts of containers count as failures where the pod itself stays.
fn restarts_in_place(world: &World, spec: &JobSpec) -> Option<i32> {
    let policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return None;
    }
    let living = world.pods.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending")).filter_map(|pod| pod.status.as_ref());
    let containers = living.flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten());
    Some(containers.map(|container| container.restart_count).sum())
}

pub(super) fn seconds_left(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> Option<i64> {
    let start = status.start_time.as_ref()?.0.as_second();
    Some(start.saturating_add(spec.active_deadline_seconds?).saturating_sub(now.as_second()))
}

fn by_deadline(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> Option<Verdict> {
    let over = spec.suspend != Some(true) && seconds_left(spec, status, now).is_some_and(|left| left <= 0);
    over.then(|| Verdict::failed("DeadlineExceeded", "Job was active longer than specified deadline"))
}

fn by_failed_indexes(spec: &JobSpec, ends: &Ends, failed: &BTreeSet<i32>) -> Option<Verdict> {
    let count = failed.len() as i32;
    if spec.max_failed_indexes.is_some_and(|most| count > most) {
        return Some(Verdict::failed("MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes"));
    }
    let all_over = count > 0 && count + ends.succeeded_indexes.len() as i32 >= spec.completions.unwrap_or(0);
    all_over.then(|| Verdict::failed("FailedIndexes", "Job has failed indexes"))
}

/// KEP-3998.
fn by_success_policy(spec: &JobSpec, succeeded: &BTreeSet<i32>) -> Option<Verdict> {
    let policy = spec.success_policy.as_ref().filter(|_| ends::is_indexed(spec))?;
    let met = policy.rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_ref().map(|text| indexes::parse(text, spec.completions.unwrap_or(0)));
        let enough = |found: usize| rule.succeeded_count.is_some_and(|count| found as i32 >= count);
        match wanted {
            Some(wanted) if rule.succeeded_count.is_some() => enough(wanted.intersection(succeeded).count()),
            Some(wanted) => wanted.is_subset(succeeded),
            None => enough(succeeded.len()),
        }
    })?;
    Some(Verdict::complete("SuccessPolicy", format!("Matched rules at index {met}")))
}

fn by_completions(spec: &JobSpec, succeeded: i32, active: usize) -> Option<Verdict> {
    let enough = match spec.completions {
        Some(completions) => succeeded >= completions && active == 0,
        // A work queue: the first success means that there is no more work.
        None => succeeded > 0 && active == 0,
    };
    enough.then(|| Verdict::complete("CompletionsReached", "Reached expected number of succeeded pods"))
}
