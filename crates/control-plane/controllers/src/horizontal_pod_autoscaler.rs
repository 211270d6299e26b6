//! HorizontalPodAutoscaler v2: a target's scale follows metrics (upstream: `pkg/controller/podautoscaler`).
//!
//! Each autoscaler is looked at every fifteen seconds and when its spec changes. `metrics` asks the three metrics APIs, which others serve
//! (metrics.k8s.io, custom.metrics.k8s.io, external.metrics.k8s.io); `replicas` computes what each metric asks for; `behavior` holds that
//! within rates and windows. What was recommended and done lately is kept in memory: a restart begins with what is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Client, Error};
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, MetricStatus};
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};

use crate::act;
use crate::context::Context;
use crate::kinds::Kinds;

mod behavior;
mod metrics;
mod plan;
mod replicas;

pub(crate) const NAME: &str = "horizontal-pod-autoscaler-controller";
const WORKERS: usize = 5;
const PERIOD: Duration = Duration::from_secs(15);

struct Controller {
    client: Client,
    autoscalers: Cache<HorizontalPodAutoscaler>,
    pods: Cache<Pod>,
    recorder: EventRecorder,
    /// What was recommended and done lately, by uid.
    memory: Mutex<HashMap<String, behavior::Memory>>,
    kinds: Kinds,
}

/// Everything that one look at an autoscaler decides from.
struct World {
    autoscaler: Arc<HorizontalPodAutoscaler>,
    /// Its target's size; `Err` says why it is not known.
    scale: Result<Scale, String>,
    /// Per metric of the spec, what it asks for.
    proposals: Vec<Result<Proposal, Failure>>,
    memory: behavior::Memory,
    now: Timestamp,
}

/// What a metric asks for.
struct Proposal {
    replicas: i32,
    /// `cpu resource utilization (percentage of request)`.
    name: String,
    status: MetricStatus,
}

/// Why a metric asks for nothing: the reason of the condition, and the sentence.
#[derive(Clone, Debug)]
struct Failure {
    reason: &'static str,
    message: String,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        autoscalers: context.caches.of(),
        pods: context.caches.of(),
        recorder: context.recorder("horizontal-pod-autoscaler"),
        memory: Mutex::default(),
        kinds: Kinds::new(&context.client),
    });
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    controller.autoscalers.on_change(move |old, new| {
        let generation = |autoscaler: &Arc<HorizontalPodAutoscaler>| (autoscaler.metadata.uid.clone(), autoscaler.spec.clone());
        if old.map(generation) != new.map(generation) {
            new.or(old).into_iter().for_each(|autoscaler| wake.add(key_of(&autoscaler.metadata)));
        }
    });
    tokio::join!(controller.autoscalers.synced(), controller.pods.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(autoscaler) = self.autoscalers.get_key(&key) else {
            let live: Vec<Option<String>> = self.autoscalers.list().iter().map(|autoscaler| autoscaler.metadata.uid.clone()).collect();
            self.memory().retain(|uid, _| live.iter().any(|known| known.as_ref() == Some(uid)));
            return Outcome::Done;
        };
        let world = self.observe(autoscaler).await;
        let plan = plan::plan(&world);
        match self.act(&world, plan).await {
            Ok(()) => Outcome::RequeueAfter(PERIOD),
            Err(error) if error.is_conflict() => Outcome::Err(error.into()),
            Err(error) => {
                tracing::debug!(%key, %error, "autoscaling will try again");
                Outcome::RequeueAfter(PERIOD)
            }
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, HashMap<String, behavior::Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn observe(&self, autoscaler: Arc<HorizontalPodAutoscaler>) -> World {
        let uid = autoscaler.metadata.uid.clone().unwrap_or_default();
        let memory = self.memory().get(&uid).cloned().unwrap_or_default();
        let scale = self.scale(&autoscaler).await.map(|(_, scale)| scale).map_err(|error| error.to_string());
        let now = Timestamp::now();
        let proposals = match &scale {
            Ok(scale) if plan::asks_metrics(&autoscaler, scale) => self.proposals(&autoscaler, scale, now).await,
            _ => Vec::new(),
        };
        World { autoscaler, scale, proposals, memory, now }
    }

    /// The target's scale and its path.
    async fn scale(&self, autoscaler: &HorizontalPodAutoscaler) -> Result<(String, Scale), Error> {
        let target = &autoscaler.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or("v1");
        self.kinds.scale(autoscaler.metadata.namespace.as_deref(), version, &target.kind, &target.name).await
    }

    async fn act(&self, world: &World, plan: plan::Plan) -> Result<(), Error> {
        let autoscaler = &*world.autoscaler;
        let about = reference_to(autoscaler);
        let (mut status, mut memory) = (plan.status, plan.memory);
        for (kind, reason, message) in &plan.events {
            self.recorder.event(&about, *kind, reason, message.clone());
        }
        if let (Some(resize), Ok(scale)) = (plan.resize, &world.scale) {
            let mut next = scale.clone();
            next.spec.get_or_insert_default().replicas = Some(resize.to);
            let body = serde_json::to_vec(&next).map_err(|error| Error::Request(error.to_string()))?;
            let (path, _) = self.scale(autoscaler).await?;
            match self.client.request_json::<Scale>(Method::PUT, &path, Some(body.into())).await {
                Ok(_) => {
                    let message = format!("New size: {}; reason: {}", resize.to, resize.reason);
                    self.recorder.event(&about, EventKind::Normal, "SuccessfulRescale", message);
                    memory.scaled(resize.from, resize.to, world.now);
                    plan::note_rescaled(&mut status, resize.to, world.now);
                }
                Err(error) => {
                    let message = format!("New size: {}; reason: {}; error: {error}", resize.to, resize.reason);
                    self.recorder.event(&about, EventKind::Warning, "FailedRescale", message);
                    plan::note_not_rescaled(&mut status, resize.from, &error.to_string(), world.now);
                }
            }
        }
        self.memory().insert(autoscaler.metadata.uid.clone().unwrap_or_default(), memory);
        if autoscaler.status.as_ref().is_some_and(|current| act::same(current, &status)) {
            return Ok(());
        }
        act::write_status(&self.client, &HorizontalPodAutoscaler { status: Some(status), ..autoscaler.clone() }).await
    }
}
