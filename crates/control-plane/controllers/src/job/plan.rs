//! What a Job does next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::ends::{self, Ends, index_of, is_indexed, is_tracked};
use super::verdict::{self, Verdict};
use super::{World, indexes, per_index};
use crate::{act, pods};

/// A failed pod's successor waits 10 s, doubled by each further failure, six minutes at most.
const BACKOFF_FIRST_SECONDS: i64 = 10;
const BACKOFF_MAX_SECONDS: i64 = 360;
/// Pods made or deleted in one look (upstream: `MaxPodCreateDeletePerSync`).
const WRITES_MAX: usize = 500;

#[derive(Default)]
pub(super) struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    /// `None` where nothing changed.
    pub status: Option<JobStatus>,
    /// Pods whose end is in the status once that is written: their finalizer goes.
    pub untrack: Vec<Arc<Pod>>,
    pub create: Vec<NewPod>,
    /// Pods of a Job that is over: how they end is counted.
    pub delete: Vec<Arc<Pod>>,
    /// Pods that are not wanted any more, or not now: they go uncounted, because it is not they who failed.
    pub dismiss: Vec<Arc<Pod>>,
    /// The time to live is over.
    pub remove_job: bool,
    /// What the user is told: type, reason, message.
    pub event: Option<(&'static str, String, String)>,
    pub look_again: Option<Duration>,
}

/// A pod to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NewPod {
    /// The completion index of an Indexed Job.
    pub index: Option<i32>,
    /// With limits per index: failures of the index so far, counted and ignored ones.
    pub failures: Option<(i32, i32)>,
}

impl Plan {
    fn look_in(&mut self, wait: Duration) {
        self.look_again = Some(self.look_again.map_or(wait, |other| other.min(wait)));
    }
}

pub(super) fn plan(world: &World) -> Plan {
    let job = &*world.job;
    let mut plan = Plan { adopt: world.orphans.clone(), release: world.strays.clone(), ..Plan::default() };
    let Some(spec) = &job.spec else { return plan };
    let mut status = job.status.clone().unwrap_or_default();
    if let Some(finished) = verdict::finished_at(&status) {
        // Of a finished Job no finalizer may stay behind.
        plan.untrack = world.pods.iter().filter(|pod| is_tracked(pod)).cloned().collect();
        outlive(spec, finished, world.now, &mut plan);
        return plan;
    }
    let active: Vec<&Arc<Pod>> = world.pods.iter().filter(|pod| pods::is_active(pod)).collect();
    let terminating = world.pods.iter().filter(|pod| pods::is_terminating(pod)).count();
    if status.start_time.is_none() && spec.suspend != Some(true) {
        status.start_time = Some(Time(world.now));
    }
    let over = job.metadata.deletion_timestamp.is_some() || verdict::standing(&status).is_some();
    let waiting = waiting(world, spec, &status, over);
    let kept = waiting.values().filter_map(|pod| pod.metadata.uid.clone()).collect();
    let failed_indexes = fail_indexes(world, spec, &mut status);
    let ends = ends::count(world, spec, &mut status, &kept, over);
    plan.untrack = ends.untrack.clone();
    let verdict = verdict::standing(&status).or_else(|| verdict::reach(world, spec, &status, &ends, &failed_indexes, active.len()));
    match verdict {
        Some(verdict) => {
            conclude(&mut status, &verdict, active.is_empty() && terminating == 0 && ends.settled, world.now, &mut plan);
            plan.delete = active.iter().map(|pod| (*pod).clone()).collect();
        }
        None if job.metadata.deletion_timestamp.is_some() => {}
        None => steer(world, spec, &mut status, &ends, &Pods { active: &active, terminating, waiting, failed_indexes }, &mut plan),
    }
    status.active = Some(active.len() as i32);
    status.terminating = Some(terminating as i32);
    status.ready = Some(active.iter().filter(|pod| pods::is_ready(pod)).count() as i32);
    plan.status = (!job.status.as_ref().is_some_and(|old| act::same(old, &status))).then_some(status);
    plan
}

/// The pods of a Job that still runs.
struct Pods<'a> {
    active: &'a [&'a Arc<Pod>],
    terminating: usize,
    /// The last failed pod of each index whose successor is due.
    waiting: BTreeMap<i32, &'a Arc<Pod>>,
    failed_indexes: BTreeSet<i32>,
}

/// Of indexes that are neither done nor failed; none where the Job has no limits per index or is over.
fn waiting<'a>(world: &'a World, spec: &JobSpec, status: &JobStatus, over: bool) -> BTreeMap<i32, &'a Arc<Pod>> {
    let Some(limit) = spec.backoff_limit_per_index.filter(|_| is_indexed(spec) && !over) else { return BTreeMap::new() };
    let total = spec.completions.unwrap_or(0);
    let mut settled = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), total);
    settled.extend(indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), total));
    settled.extend(per_index::newly_failed(world, spec, limit));
    let succeeded = world.pods.iter().filter(|pod| pods::phase(pod) == "Succeeded");
    settled.extend(succeeded.filter_map(|pod| index_of(pod)));
    per_index::waiting(world, spec, &settled)
}

/// Notes the indexes that have failed for good; the empty set where the Job has no limits per index.
fn fail_indexes(world: &World, spec: &JobSpec, status: &mut JobStatus) -> BTreeSet<i32> {
    let Some(limit) = spec.backoff_limit_per_index.filter(|_| is_indexed(spec)) else { return BTreeSet::new() };
    let total = spec.completions.unwrap_or(0);
    let mut failed = indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), total);
    failed.extend(per_index::newly_failed(world, spec, limit).into_iter().filter(|index| *index < total));
    status.failed_indexes = Some(indexes::format(&failed));
    failed
}

/// Says first that the end is decided and, once no pod is left and every end is counted, that it is reached.
fn conclude(status: &mut JobStatus, verdict: &Verdict, at_rest: bool, now: Timestamp, plan: &mut Plan) {
    let (target, end) = verdict.conditions();
    let new = |kind: &str| verdict::new_condition(kind, "True", &verdict.reason, &verdict.message, now);
    if verdict::condition(status, target).is_none() {
        status.conditions.get_or_insert_default().push(new(target));
    }
    if !at_rest {
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
fn steer(world: &World, spec: &JobSpec, status: &mut JobStatus, ends: &Ends, pods: &Pods, plan: &mut Plan) {
    let suspended = spec.suspend == Some(true);
    note_suspension(status, suspended, world.now, plan);
    if let Some(left) = verdict::seconds_left(spec, status, world.now).filter(|_| !suspended) {
        plan.look_in(Duration::from_secs(u64::try_from(left).unwrap_or(0)));
    }
    let active = pods.active;
    let parallelism = spec.parallelism.unwrap_or(1);
    let wanted = match spec.completions {
        _ if suspended => 0,
        Some(completions) => parallelism.min((completions - ends.succeeded).max(0)),
        None if ends.succeeded > 0 => active.len() as i32,
        None => parallelism,
    };
    let wanted = usize::try_from(wanted).unwrap_or(0);
    plan.dismiss = surplus(world, spec, active, wanted);
    if !plan.dismiss.is_empty() {
        return;
    }
    let held_back = if ends::waits_for_ends(spec) { pods.terminating } else { 0 };
    let missing = wanted.saturating_sub(active.len()).saturating_sub(held_back).min(WRITES_MAX);
    if missing == 0 {
        return;
    }
    if spec.backoff_limit_per_index.is_none()
        && let Some(wait) = backoff(world, spec)
    {
        return plan.look_in(wait);
    }
    match is_indexed(spec) {
        true => fill_indexes(world, spec, ends, pods, missing, plan),
        false => plan.create = vec![NewPod::default(); missing],
    }
}

/// Pods beyond what is wanted, those that serve least first; of an Indexed Job also doubles and indexes out of range.
fn surplus(world: &World, spec: &JobSpec, active: &[&Arc<Pod>], wanted: usize) -> Vec<Arc<Pod>> {
    let (mut rest, mut doomed): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) = (active.iter().map(|pod| (*pod).clone()).collect(), Vec::new());
    crate::replicaset::sort_for_deletion(&mut rest, world.now);
    if is_indexed(spec) {
        let mut seen = BTreeSet::new();
        let total = spec.completions.unwrap_or(0);
        // From the end: of two pods of an index the one that is worth more stays.
        rest.reverse();
        rest.retain(|pod| {
            let good = index_of(pod).is_some_and(|index| index < total && seen.insert(index));
            if !good {
                doomed.push(pod.clone());
            }
            good
        });
        rest.reverse();
    }
    rest.truncate(rest.len().saturating_sub(wanted));
    doomed.extend(rest);
    doomed.truncate(WRITES_MAX);
    doomed
}

fn fill_indexes(world: &World, spec: &JobSpec, ends: &Ends, pods: &Pods, missing: usize, plan: &mut Plan) {
    let total = spec.completions.unwrap_or(0);
    let holds = |pod: &&Arc<Pod>| pods::is_active(pod) || (ends::waits_for_ends(spec) && pods::is_terminating(pod));
    let busy: BTreeSet<i32> = world.pods.iter().filter(holds).filter_map(|pod| index_of(pod)).collect();
    let is_free = |index: &i32| !ends.succeeded_indexes.contains(index) && !busy.contains(index) && !pods.failed_indexes.contains(index);
    let mut waits = Vec::new();
    for index in (0..total).filter(is_free).take(missing) {
        let last = pods.waiting.get(&index);
        match last.and_then(|last| backoff_of(world, last)) {
            Some(wait) => waits.push(wait),
            None => {
                let failures = last.map_or((0, 0), |last| per_index::after(world, last));
                plan.create.push(NewPod { index: Some(index), failures: spec.backoff_limit_per_index.map(|_| failures) });
            }
        }
    }
    waits.into_iter().min().into_iter().for_each(|wait| plan.look_in(wait));
}

fn note_suspension(status: &mut JobStatus, suspended: bool, now: Timestamp, plan: &mut Plan) {
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter_mut().find(|condition| condition.type_ == "Suspended");
    let (value, reason, message) = match suspended {
        true => ("True", "JobSuspended", "Job suspended"),
        false => ("False", "JobResumed", "Job resumed"),
    };
    let next = verdict::new_condition("Suspended", value, reason, message, now);
    let changed = match known {
        Some(known) if known.status == value => false,
        Some(known) => {
            *known = next;
            true
        }
        None if suspended => {
            conditions.push(next);
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
fn backoff(world: &World, spec: &JobSpec) -> Option<Duration> {
    let finish = |pod: &Arc<Pod>| ends::finished_at(pod).unwrap_or(world.now);
    let last_success = world.pods.iter().filter(|pod| pods::phase(pod) == "Succeeded").map(finish).max();
    let counts =
        |pod: &&Arc<Pod>| ends::is_failed(pod, spec) && super::failure_policy::judge(world, pod) != super::failure_policy::Action::Ignore;
    let failures: Vec<Timestamp> = world.pods.iter().filter(counts).map(finish).filter(|end| Some(*end) > last_success).collect();
    wait_after(*failures.iter().max()?, failures.len() as i32, world.now)
}

/// The same of one index, whose failures its last pod knows.
fn backoff_of(world: &World, last: &Pod) -> Option<Duration> {
    let (counted, ignored) = per_index::after(world, last);
    wait_after(ends::finished_at(last).unwrap_or(world.now), counted + ignored, world.now)
}

fn wait_after(last: Timestamp, failures: i32, now: Timestamp) -> Option<Duration> {
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(20);
    let wait = (BACKOFF_FIRST_SECONDS << doublings).min(BACKOFF_MAX_SECONDS);
    // Never longer than the wait itself, where the clock was put back.
    let left = (last.as_second() + wait - now.as_second()).min(wait);
    u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_secs)
}

fn outlive(spec: &JobSpec, finished: Timestamp, now: Timestamp, plan: &mut Plan) {
    let Some(ttl) = spec.ttl_seconds_after_finished else { return };
    match finished.as_second() + i64::from(ttl) - now.as_second() {
        left if left > 0 => plan.look_again = Some(Duration::from_secs(left.unsigned_abs())),
        _ => plan.remove_job = true,
    }
}

#[cfg(test)]
mod tests;
