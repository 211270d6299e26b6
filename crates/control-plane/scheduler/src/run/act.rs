//! Bindings: written through the API beside the loop, and what becomes of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::Client;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cached, EventKind, ObjectKey};
use serde_json::Value;
use tracing::warn;

use super::Scheduler;
use super::announce::Announcement;
use super::report::Report;
use crate::devices::bind::Reservation;
use crate::extender::Extender;
use crate::metrics::metrics;

/// How often a pod is looked at whose binding nobody answered: about ten seconds.
const LOOKS_MAX: usize = 10;

/// A pod and its node.
pub(super) struct Order {
    pub key: ObjectKey,
    pub pod: Arc<Pod>,
    pub node: String,
    pub volumes: Option<crate::volumes::bind::Binding>,
    pub devices: Option<Reservation>,
    pub since: Instant,
    /// The extender that binds instead of us.
    pub binder: Option<Arc<Extender>>,
}

/// How a binding ended.
pub(super) struct Bound {
    key: ObjectKey,
    pod: Arc<Pod>,
    node: String,
    since: Instant,
    /// ResourceClaims that were written, with their revisions; `None` where the pod has none.
    claims: Option<Vec<(ObjectKey, u64)>>,
    result: Result<(), Error>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Volumes(#[from] crate::volumes::bind::Error),
    #[error(transparent)]
    Devices(#[from] crate::devices::bind::Error),
    #[error("{0}")]
    Api(#[from] client::Error),
    #[error(transparent)]
    Extender(#[from] crate::extender::Error),
}

pub(super) async fn bind(client: Client, order: Order) -> Bound {
    let Order { key, pod, node, volumes, devices, since, binder } = order;
    let mut claims = None;
    let mut result = Ok(());
    if let Some(devices) = devices {
        let written = devices.carry_out(&client).await;
        claims = Some(written.claims);
        result = written.result.map_err(Error::from);
    }
    if result.is_ok() {
        result = write(&client, &key, pod.uid(), &node, volumes, binder).await;
    }
    Bound { key, pod, node, since, claims, result }
}

async fn write(
    client: &Client,
    key: &ObjectKey,
    uid: &str,
    node: &str,
    volumes: Option<crate::volumes::bind::Binding>,
    binder: Option<Arc<Extender>>,
) -> Result<(), Error> {
    if let Some(volumes) = &volumes {
        volumes.carry_out(client).await?;
    }
    if let Some(binder) = binder {
        return Ok(binder.bind(key, uid, node).await?);
    }
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        },
        target: ObjectReference { kind: Some("Node".into()), name: Some(node.to_owned()), ..ObjectReference::default() },
    };
    match client.create_subresource::<Pod, Value>(key.namespace(), &key.name, "binding", &binding).await {
        Ok(_) => Ok(()),
        // Nobody answered: the server may have done it all the same, and until that is known the room must not go to another pod.
        Err(error) if error.status().is_none() && is_bound(client, key, uid, node).await => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Asks until somebody answers, or for some seconds.
async fn is_bound(client: &Client, key: &ObjectKey, uid: &str, node: &str) -> bool {
    let mut backoff = stdx::Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
    for _ in 0..LOOKS_MAX {
        match client.get::<Pod>(key.namespace(), &key.name).await {
            Ok(pod) => return pod.uid() == uid && super::observe::node_of(&pod) == Some(node),
            Err(error) if error.status().is_some() => return false,
            Err(_) => tokio::time::sleep(backoff.next_wait()).await,
        }
    }
    false
}

impl Scheduler {
    pub(super) fn bound(&mut self, bound: Bound) {
        let Bound { key, pod, node, since, claims, result } = bound;
        if result.is_ok() {
            let message = format!("Successfully assigned {key} to {node}");
            let (kind, reason, action) = (EventKind::Normal, "Scheduled", "Binding");
            self.announcements.push(Announcement { about: pod.clone(), kind, reason, action, message });
        }
        if let Some(claims) = claims {
            self.devices.settle(&key, &claims);
        }
        let ours = self.placed.get(&key).is_some_and(|placed| *placed.uid == *pod.uid() && placed.assumed);
        let profile = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let label = if result.is_ok() { "scheduled" } else { "error" };
        metrics().attempts.with_label_values(&[profile, label]).inc();
        metrics().attempt_duration.with_label_values(&[profile, label]).observe(since.elapsed().as_secs_f64());
        // Another pod of that name is on its way or bound: what is in the queue, if anything, is that one's.
        if self.placed.get(&key).is_some_and(|placed| *placed.uid != *pod.uid()) {
            return;
        }
        match result {
            Ok(()) => {
                if let Some((arrived, attempts)) = self.queue.history(&key) {
                    metrics().pod_attempts.observe(f64::from(attempts));
                    let attempts = if attempts >= 16 { "16+".to_owned() } else { attempts.to_string() };
                    metrics().sli_duration.with_label_values(&[&attempts]).observe(arrived.elapsed().as_secs_f64());
                }
                self.done_with(&key);
            }
            Err(error) if ours => {
                self.release(&key);
                if let Error::Api(api) = &error
                    && (api.is_not_found() || api.is_conflict())
                {
                    self.queue.remove(&key);
                    return self.observe_pod(&key);
                }
                warn!(pod = %key, %error, "binding failed");
                self.queue.retry(&key, Instant::now());
                self.report(&pod, Report::failed(&pod, error.to_string()));
            }
            Err(_) => self.done_with(&key),
        }
    }

    /// A pod made anew under the name while the binding was on its way was taken for the one in flight: it is looked at now.
    fn done_with(&mut self, key: &ObjectKey) {
        self.queue.remove(key);
        if !self.placed.contains_key(key) {
            self.observe_pod(key);
        }
    }
}
