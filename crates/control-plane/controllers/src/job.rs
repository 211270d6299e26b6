//! Job: pods of a template until enough of them succeeded, or too many failed.
//!
//! Each pod carries a finalizer until its end is in the Job's status, so that no end is missed or counted twice (KEP-2307): ends are
//! first noted by uid, then the finalizers go, then the notes become counts. Woken by its Job and by pods that name it as
//! controller. A finished Job with a time to live is deleted when that is over.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use reconcile::object::controller_of;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::pod_control::PodControl;
use crate::{pods, selector};

mod act;
mod ends;
mod failure_policy;
mod indexes;
mod observe;
mod per_index;
mod plan;
mod verdict;

use observe::World;

pub(crate) const NAME: &str = "job-controller";
const WORKERS: usize = 8;
pub(crate) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

pub(crate) struct Controller {
    client: client::Client,
    jobs: Cache<Job>,
    pods: Cache<Pod>,
    control: PodControl,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        jobs: context.caches.of(),
        pods: context.caches.of(),
        control: PodControl::with_finalizer(&context, NAME, TRACKING),
    });
    pods::index(&controller.pods);
    let queue = Queue::new();
    let (by_job, by_pod, jobs) = (queue.clone(), queue.clone(), controller.jobs.clone());
    controller.jobs.on_change(move |old, new| new.or(old).into_iter().for_each(|job| by_job.add(key_of(&job.metadata))));
    controller.pods.on_change(move |old, new| {
        new.or(old).and_then(|pod| owner(pod)).into_iter().for_each(|key| by_pod.add(key));
        let orphan = new.filter(|pod| controller_of(&pod.metadata).is_none());
        orphan.into_iter().flat_map(|pod| candidates(&jobs, pod)).for_each(|key| by_pod.add(key));
    });
    tokio::join!(controller.jobs.synced(), controller.pods.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

/// The Job that a pod is or was of: an orphaned one keeps the label.
fn owner(pod: &Pod) -> Option<ObjectKey> {
    let name = match controller_of(&pod.metadata) {
        Some(owner) => (owner.kind == "Job").then(|| owner.name.clone()),
        None => pod.metadata.labels.as_ref()?.get(JOB_NAME).cloned(),
    };
    Some(ObjectKey::new(pod.metadata.namespace.clone()?, name?))
}

/// The Jobs that would adopt this pod.
fn candidates(jobs: &Cache<Job>, pod: &Pod) -> Vec<ObjectKey> {
    let all = jobs.by_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
    let adopts = |job: &&Arc<Job>| {
        let wanted = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        selector::selects(&selector::parse(wanted), pod.metadata.labels.as_ref())
    };
    all.iter().filter(adopts).map(|job| key_of(&job.metadata)).collect()
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        if self.jobs.get_key(&key).is_none() {
            return self.free(&key).await.into();
        }
        let Some(world) = self.observe(&key) else { return Outcome::Done };
        let plan = plan::plan(&world);
        self.act(&world, plan).await.into()
    }
}
