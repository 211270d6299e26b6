//! CronJob: a Job of a template at each time of a schedule.
//!
//! Woken by its CronJob, by the Jobs that name it as controller, and by the clock. A run's Job is named after the run's time, so that
//! a restart between starting it and noting it starts nothing twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{DeleteParams, Error, Propagation};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use reconcile::object::controller_of;
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};

use crate::context::Context;
use crate::{act, pods};

mod plan;
mod schedule;

use plan::Plan;

pub(crate) const NAME: &str = "cronjob-controller";
const WORKERS: usize = 5;
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

struct Controller {
    client: client::Client,
    cron_jobs: Cache<CronJob>,
    jobs: Cache<Job>,
    recorder: EventRecorder,
}

struct World {
    cron_job: Arc<CronJob>,
    /// Jobs whose controller the CronJob is.
    jobs: Vec<Arc<Job>>,
    now: Timestamp,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        cron_jobs: context.caches.of(),
        jobs: context.caches.of(),
        recorder: context.recorder(NAME),
    });
    controller.jobs.index(pods::BY_CONTROLLER, |job| pods::controller_uid(&job.metadata));
    let queue = Queue::new();
    let (by_cron, by_job) = (queue.clone(), queue.clone());
    controller.cron_jobs.on_change(move |old, new| new.or(old).into_iter().for_each(|cron| by_cron.add(key_of(&cron.metadata))));
    controller.jobs.on_change(move |old, new| {
        let owner = new.or(old).and_then(|job| Some((job.metadata.namespace.clone()?, controller_of(&job.metadata)?.clone())));
        let owner = owner.filter(|(_, owner)| owner.kind == "CronJob");
        owner.into_iter().for_each(|(namespace, owner)| by_job.add(ObjectKey::new(namespace, owner.name)));
    });
    tokio::join!(controller.cron_jobs.synced(), controller.jobs.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(cron_job) = self.cron_jobs.get_key(&key) else { return Outcome::Done };
        let jobs = match self.jobs_of(&cron_job).await {
            Ok(jobs) => jobs,
            Err(error) => return Outcome::Err(error.into()),
        };
        let world = World { cron_job, jobs, now: Timestamp::now() };
        let plan = plan::plan(&world);
        self.act(&world, plan).await.into()
    }

    /// The cache may not show yet what was just made: a Job that runs by the status is only gone when the server says so.
    async fn jobs_of(&self, cron: &CronJob) -> Result<Vec<Arc<Job>>, Error> {
        let mut jobs = self.jobs.by_index(pods::BY_CONTROLLER, cron.metadata.uid.as_deref().unwrap_or_default());
        let active = cron.status.as_ref().and_then(|status| status.active.as_deref()).unwrap_or_default();
        let unseen: Vec<_> = active.iter().filter(|known| !jobs.iter().any(|job| job.metadata.uid == known.uid)).collect();
        for known in unseen {
            match self.client.get::<Job>(cron.metadata.namespace.as_deref(), known.name.as_deref().unwrap_or_default()).await {
                Ok(found) if found.metadata.uid == known.uid => jobs.push(Arc::new(found)),
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(jobs)
    }

    async fn act(&self, world: &World, mut plan: Plan) -> Result<Outcome, Error> {
        let cron = &*world.cron_job;
        for (kind, reason, message) in std::mem::take(&mut plan.events) {
            self.tell(cron, if kind == "Warning" { EventKind::Warning } else { EventKind::Normal }, reason, message);
        }
        for job in plan.forget.iter().chain(&plan.replace) {
            self.delete(cron, job).await?;
            plan.status.active.iter_mut().for_each(|active| active.retain(|known| known.uid != job.metadata.uid));
        }
        let started = match (plan.start, &plan.zone) {
            (Some(due), Some(zone)) => self.start(cron, due, zone, &mut plan.status).await,
            _ => Ok(()),
        };
        if !cron.status.as_ref().is_some_and(|current| act::same(current, &plan.status)) {
            let next = CronJob { status: Some(plan.status), ..cron.clone() };
            match self.client.replace_status(&next).await {
                // The next look must see what this one wrote.
                Ok(written) => self.cron_jobs.wait_for_own(&written).await,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        started?;
        Ok(plan.look_again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }

    async fn start(
        &self,
        cron: &CronJob,
        due: Timestamp,
        zone: &TimeZone,
        status: &mut k8s_openapi::api::batch::v1::CronJobStatus,
    ) -> Result<(), Error> {
        let new = job(cron, due, zone);
        let made = match self.client.create(&new).await {
            Ok(made) => {
                let message = format!("Created job {}", made.metadata.name.as_deref().unwrap_or_default());
                self.tell(cron, EventKind::Normal, "SuccessfulCreate", message);
                made
            }
            Err(error) if error.is_namespace_terminating() => return Ok(()),
            Err(error) if error.is_already_exists() => {
                let key = key_of(&new.metadata);
                let found: Job = self.client.get(key.namespace(), &key.name).await?;
                let ours = controller_of(&found.metadata).is_some_and(|owner| Some(&owner.uid) == cron.metadata.uid.as_ref());
                if !ours {
                    return Ok(());
                }
                found
            }
            Err(error) => {
                self.tell(cron, EventKind::Warning, "FailedCreate", format!("Error creating job: {error}"));
                return Err(error);
            }
        };
        let active = status.active.get_or_insert_default();
        if plan::condition(&made).is_none() && active.iter().all(|known| known.uid != made.metadata.uid) {
            active.push(plan::entry(&made));
        }
        status.last_schedule_time = Some(Time(due));
        Ok(())
    }

    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<(), Error> {
        let key = key_of(&job.metadata);
        let params = DeleteParams {
            propagation: Some(Propagation::Background),
            ..DeleteParams::of_uid(job.metadata.uid.as_deref().unwrap_or_default())
        };
        match self.client.delete::<Job>(key.namespace(), &key.name, &params).await {
            Ok(_) => self.tell(cron, EventKind::Normal, "SuccessfulDelete", format!("Deleted job {}", key.name)),
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => {
                self.tell(cron, EventKind::Warning, "FailedDelete", format!("Deleted job: {error}"));
                return Err(error);
            }
        }
        Ok(())
    }

    fn tell(&self, cron: &CronJob, kind: EventKind, reason: &str, message: String) {
        self.recorder.event(&reference_to(cron), kind, reason, message);
    }
}

fn job(cron: &CronJob, due: Timestamp, zone: &TimeZone) -> Job {
    let template = cron.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations: BTreeMap<String, String> = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.into(), due.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z"));
    let metadata = ObjectMeta {
        namespace: cron.metadata.namespace.clone(),
        name: Some(plan::job_name(cron, due)),
        labels: meta.labels,
        annotations: Some(annotations),
        owner_references: Some(vec![act::controller_ref(cron)]),
        ..ObjectMeta::default()
    };
    Job { metadata, spec: template.spec, status: None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use testkit::fake_api::FakeApi;

    use super::*;

    #[tokio::test]
    async fn a_job_that_the_cache_does_not_show_yet_still_runs() {
        let api = FakeApi::new();
        let job: Job = serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "j"}})).unwrap();
        let made = api.client().create(&job).await.unwrap();
        let controller =
            Controller { client: api.client(), cron_jobs: Cache::detached(), jobs: Cache::detached(), recorder: EventRecorder::discard() };
        let active = json!([{"name": "j", "uid": made.metadata.uid}, {"name": "j", "uid": "an earlier one"}, {"name": "gone", "uid": "x"}]);
        let cron = json!({"metadata": {"namespace": "a", "name": "c", "uid": "c"}, "spec": {"schedule": "* * * * *", "jobTemplate": {}}, "status": {"active": active}});
        let jobs = controller.jobs_of(&serde_json::from_value(cron).unwrap()).await.unwrap();
        assert_eq!(jobs.iter().map(|job| job.metadata.uid.clone()).collect::<Vec<_>>(), [made.metadata.uid]);
    }
}
