//! What a CronJob does next.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::reference_to;

use super::World;
use super::schedule::{self, Schedule};

/// More missed runs than this are worth a warning.
const MISSED_MAX: usize = 100;
#[derive(Default)]
pub(super) struct Plan {
    pub status: CronJobStatus,
    /// Jobs beyond the history limits.
    pub forget: Vec<Arc<Job>>,
    /// Running Jobs that the new one takes the place of.
    pub replace: Vec<Arc<Job>>,
    /// The time of the run to start.
    pub start: Option<Timestamp>,
    pub zone: Option<TimeZone>,
    /// Type, reason, message.
    pub events: Vec<(&'static str, &'static str, String)>,
    pub look_again: Option<Duration>,
}

pub(super) fn plan(world: &World) -> Plan {
    let cron = &*world.cron_job;
    let spec = &cron.spec;
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    plan.forget = beyond_history(spec, &world.jobs);
    follow_jobs(world, &mut plan);
    if cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
        return plan;
    }
    match (Schedule::parse(&spec.schedule), schedule::zone(spec.time_zone.as_deref())) {
        (Err(error), _) => {
            plan.events.push(("Warning", "UnparseableSchedule", format!("unparseable schedule: {:?} : {error}", spec.schedule)))
        }
        (_, Err(error)) => {
            let name = spec.time_zone.as_deref().unwrap_or_default();
            plan.events.push(("Warning", "UnknownTimeZone", format!("invalid timeZone: {name:?}: {error}")));
        }
        (Ok(schedule), Ok(zone)) => {
            plan.look_again = schedule.next(world.now, &zone).map(|next| until(world.now, next));
            start(world, cron, spec, &schedule, &zone, &mut plan);
            plan.zone = Some(zone);
        }
    }
    plan
}

/// A little later than the time itself, as upstream, so that clocks that differ a little do not make a run early.
fn until(now: Timestamp, next: Timestamp) -> Duration {
    Duration::try_from(now.duration_until(next)).unwrap_or_default() + Duration::from_millis(100)
}

pub(super) fn condition(job: &Job) -> Option<&'static str> {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut found = conditions.into_iter().flatten().filter(|condition| condition.status == "True");
    found.find_map(|condition| match condition.type_.as_str() {
        "Complete" => Some("Complete"),
        "Failed" => Some("Failed"),
        _ => None,
    })
}

/// Brings the list of running Jobs and the time of the last success up to date.
fn follow_jobs(world: &World, plan: &mut Plan) {
    let mut active = plan.status.active.take().unwrap_or_default();
    for job in &world.jobs {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let listed = active.iter().position(|known| known.uid == job.metadata.uid);
        match (condition(job), listed) {
            (None, None) if job.metadata.deletion_timestamp.is_none() => {
                plan.events.push(("Warning", "UnexpectedJob", format!("Saw a job that the controller did not create or forgot: {name}")));
            }
            (Some(end), Some(index)) => {
                active.remove(index);
                plan.events.push(("Normal", "SawCompletedJob", format!("Saw completed job: {name}, condition: {end}")));
            }
            _ => {}
        }
        let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
        if condition(job) == Some("Complete") && completed > plan.status.last_successful_time {
            plan.status.last_successful_time = completed;
        }
    }
    active.retain(|known| {
        let there = world.jobs.iter().any(|job| job.metadata.uid == known.uid);
        if !there {
            let name = known.name.as_deref().unwrap_or_default();
            plan.events.push(("Normal", "MissingJob", format!("Active job went missing: {name}")));
        }
        there
    });
    plan.status.active = (!active.is_empty()).then_some(active);
}

fn start(world: &World, cron: &CronJob, spec: &CronJobSpec, schedule: &Schedule, zone: &TimeZone, plan: &mut Plan) {
    let Some((due, missed)) = latest_due(world, cron, spec, schedule, zone) else { return };
    if missed > MISSED_MAX {
        let advice = "Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push(("Warning", "TooManyMissedTimes", format!("too many missed start times. {advice}")));
    }
    let late = spec.starting_deadline_seconds.is_some_and(|seconds| due.as_second().saturating_add(seconds) < world.now.as_second());
    if late {
        let time = due.strftime("%a, %d %b %Y %H:%M:%S +0000");
        plan.events.push(("Warning", "MissSchedule", format!("Missed scheduled time to start a job: {time}")));
        return;
    }
    let name = job_name(cron, due);
    let active = plan.status.active.as_deref().unwrap_or_default();
    let started = plan.status.last_schedule_time.as_ref().is_some_and(|last| last.0 == due);
    if started || active.iter().any(|known| known.name.as_deref() == Some(name.as_str())) {
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push(("Normal", "JobAlreadyActive", message.into()));
            return;
        }
        Some("Replace") => {
            let running = |job: &&Arc<Job>| active.iter().any(|known| known.uid == job.metadata.uid);
            plan.replace = world.jobs.iter().filter(running).cloned().collect();
        }
        _ => {}
    }
    plan.start = Some(due);
}

/// The latest time that is due and not before the last one that was, and how many there were.
fn latest_due(world: &World, cron: &CronJob, spec: &CronJobSpec, schedule: &Schedule, zone: &TimeZone) -> Option<(Timestamp, usize)> {
    let created = cron.metadata.creation_timestamp.as_ref().map_or(world.now, |time| time.0);
    let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref()).map_or(created, |time| time.0);
    let deadline = spec.starting_deadline_seconds.and_then(|seconds| world.now.checked_sub(SignedDuration::from_secs(seconds)).ok());
    let mut at = deadline.map_or(last, |deadline| deadline.max(last));
    let from = at;
    let mut missed = 0;
    while let Some(next) = schedule.next(at, zone).filter(|next| *next <= world.now && missed <= MISSED_MAX) {
        (at, missed) = (next, missed + 1);
    }
    match missed {
        0 => None,
        missed if missed <= MISSED_MAX => Some((at, missed)),
        missed => schedule.latest(from, world.now, zone).map(|latest| (latest, missed)),
    }
}

/// `<cron job>-<minutes since 1970>`: the same run has the same name, whoever starts it.
pub(super) fn job_name(cron: &CronJob, due: Timestamp) -> String {
    format!("{}-{}", cron.metadata.name.as_deref().unwrap_or_default(), due.as_second() / 60)
}

/// The Job as it stands in `status.active`.
pub(super) fn entry(job: &Job) -> ObjectReference {
    reference_to(job)
}

fn beyond_history(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let mut doomed = Vec::new();
    for (end, limit) in [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)] {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
        let mut ended: Vec<&Arc<Job>> =
            jobs.iter().filter(|job| condition(job) == Some(end) && job.metadata.deletion_timestamp.is_none()).collect();
        let started = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.clone()).map(|time: Time| time.0);
        ended.sort_by_key(|job| (started(job), job.metadata.name.clone()));
        let surplus = ended.len().saturating_sub(limit);
        doomed.extend(ended.into_iter().take(surplus).cloned());
    }
    doomed
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn world(spec: Value, status: Value, jobs: &[Value]) -> World {
        let mut full = json!({"schedule": "*/5 * * * *", "jobTemplate": {}, "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1});
        spec.as_object().into_iter().flatten().for_each(|(key, value)| full[key] = value.clone());
        let meta = json!({"name": "c", "namespace": "a", "uid": "c", "creationTimestamp": "2026-01-01T00:00:00Z"});
        World {
            cron_job: Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": full, "status": status})).unwrap()),
            jobs: jobs.iter().map(|job| Arc::new(serde_json::from_value(job.clone()).unwrap())).collect(),
            now: "2026-01-01T00:12:03Z".parse().unwrap(),
        }
    }

    fn job(name: &str, end: Option<&str>) -> Value {
        let conditions = end.map(|end| json!([{"type": end, "status": "True"}]));
        let time = format!("2026-01-01T00:0{}:00Z", name.len());
        json!({"metadata": {"name": name, "uid": name}, "status": {"conditions": conditions, "startTime": time, "completionTime": time}})
    }

    fn words(world: &World) -> String {
        let plan = plan(world);
        let names = |sign: &str, jobs: &[Arc<Job>]| {
            jobs.iter().map(|job| format!("{sign}{}", job.metadata.name.as_deref().unwrap())).collect::<Vec<_>>()
        };
        let mut words = names("-", &plan.forget);
        words.extend(names("!", &plan.replace));
        words.extend(plan.start.map(|due| format!("+{}", job_name(&world.cron_job, due))));
        words.extend(plan.events.iter().map(|(_, reason, _)| (*reason).to_owned()));
        words.join(" ")
    }

    #[test]
    fn the_latest_run_that_is_due_is_started_once() {
        let running = json!({"active": [{"name": "j", "uid": "j"}], "lastScheduleTime": "2026-01-01T00:05:00Z"});
        let cases: [(Value, Value, &[Value], &str); 10] = [
            (json!({}), json!({}), &[], "+c-29453770"),
            (json!({}), json!({"lastScheduleTime": "2026-01-01T00:10:00Z"}), &[], ""),
            (json!({"suspend": true}), json!({}), &[], ""),
            (json!({"schedule": "nonsense"}), json!({}), &[], "UnparseableSchedule"),
            (json!({"timeZone": "Nowhere"}), json!({}), &[], "UnknownTimeZone"),
            (json!({"startingDeadlineSeconds": 60}), json!({}), &[], ""),
            (json!({}), running.clone(), &[job("j", None)], "+c-29453770"),
            (json!({"concurrencyPolicy": "Forbid"}), running.clone(), &[job("j", None)], "JobAlreadyActive"),
            (json!({"concurrencyPolicy": "Replace"}), running.clone(), &[job("j", None)], "!j +c-29453770"),
            (json!({"concurrencyPolicy": "Forbid"}), running, &[job("j", Some("Complete"))], "+c-29453770 SawCompletedJob"),
        ];
        for (spec, status, jobs, expected) in cases {
            assert_eq!(words(&world(spec.clone(), status, jobs)), expected, "{spec}");
        }
    }

    #[test]
    fn ended_jobs_leave_the_active_list_and_the_oldest_are_forgotten() {
        let active = json!([{"name": "a", "uid": "a"}, {"name": "gone", "uid": "gone"}]);
        let jobs = [job("a", Some("Complete")), job("bb", Some("Complete")), job("ccc", Some("Failed")), job("dddd", None)];
        let world = world(json!({"suspend": true}), json!({ "active": active }), &jobs);
        assert_eq!(words(&world), "-a SawCompletedJob UnexpectedJob MissingJob");
        let status = plan(&world).status;
        assert_eq!(status.active, None);
        assert_eq!(status.last_successful_time.unwrap().0.to_string(), "2026-01-01T00:02:00Z");
    }

    #[test]
    fn a_cron_job_that_slept_for_days_starts_one_job_and_says_so() {
        let mut world = world(json!({"schedule": "* * * * *"}), json!({}), &[]);
        world.now = "2026-01-03T00:00:30Z".parse().unwrap();
        assert_eq!(words(&world), "+c-29456640 TooManyMissedTimes");
        assert_eq!(plan(&world).look_again, Some(Duration::from_millis(30_100)));
    }

    #[test]
    fn a_clock_that_jumps_starts_nothing_twice_and_waits_for_the_next_time_it_shows() {
        let ran = json!({"lastScheduleTime": "2026-01-01T00:10:00Z"});
        let mut back = world(json!({}), ran.clone(), &[]);
        back.now = "2025-01-01T00:12:03Z".parse().unwrap();
        assert_eq!((words(&back), plan(&back).look_again), (String::new(), Some(Duration::from_millis(177_100))));
        let mut ahead = world(json!({"startingDeadlineSeconds": i64::MAX}), ran, &[]);
        ahead.now = "2036-01-01T00:12:03Z".parse().unwrap();
        assert_eq!(words(&ahead), "+c-34712650 TooManyMissedTimes");
    }
}
