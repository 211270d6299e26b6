//! What the scheduler says: conditions and nominations in pods' status, and events.

use std::sync::Arc;

use client::{Client, Patch};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use reconcile::{Cached, EventKind, ObjectKey};
use serde_json::{Value, json};
use stdx::Drain;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::Scheduler;
use super::announce::Announcement;

/// Writes that wait; where more come, the condition waits for the pod's next attempt.
const PENDING_MAX: usize = 16 * 1024;
/// Writes under way at once.
const WRITES_MAX: usize = 64;

/// What one pod's status shall say.
pub(super) struct Report {
    key: ObjectKey,
    uid: String,
    pub message: String,
    reason: &'static str,
    /// The node that the pod waits for; empty: none any more.
    nominated: Option<String>,
}

impl Report {
    /// Says nothing of itself.
    pub fn of(pod: &Pod) -> Self {
        Self { key: pod.key(), uid: pod.uid().to_owned(), message: String::new(), reason: "", nominated: None }
    }
    pub fn unschedulable(pod: &Pod, message: String) -> Self {
        Self { message, reason: "Unschedulable", ..Self::of(pod) }
    }
    pub fn failed(pod: &Pod, message: String) -> Self {
        Self { message, reason: "SchedulerError", ..Self::of(pod) }
    }
    pub fn nominate(&mut self, node: &str) {
        self.nominated = Some(node.to_owned());
    }

    fn patch(&self) -> Patch {
        let mut status = serde_json::Map::new();
        if !self.reason.is_empty() {
            status.insert(
                "conditions".into(),
                json!([{
                    "type": "PodScheduled", "status": "False", "reason": self.reason, "message": self.message,
                    "lastProbeTime": null, "lastTransitionTime": meta::time::now(),
                }]),
            );
        }
        if let Some(node) = &self.nominated {
            status.insert("nominatedNodeName".into(), if node.is_empty() { Value::Null } else { json!(node) });
        }
        Patch::Strategic(json!({ "metadata": { "uid": self.uid }, "status": status }))
    }

    pub async fn write(&self, client: &Client) {
        log_failure(&self.key, client.patch::<Pod>(self.key.namespace(), &self.key.name, &self.patch(), "status").await);
    }
}

/// One write beside the loop.
enum Write {
    Status(Report),
    /// A claim loses its devices: its key and uid.
    TakeBack(ObjectKey, String),
}

/// The writer's end in the loop.
pub(super) struct Reports(mpsc::Sender<Write>);

impl Reports {
    pub fn start(client: &Client, drain: Drain) -> Self {
        let (sender, receiver) = mpsc::channel(PENDING_MAX);
        let client = client.clone();
        tokio::spawn(async move { drain.run(write_all(client, receiver)).await });
        Self(sender)
    }

    pub fn send(&self, report: Report) {
        if self.0.try_send(Write::Status(report)).is_err() {
            debug!("too many writes wait; a pod's condition waits for its next attempt");
        }
    }

    /// Gives the claim's devices back.
    pub fn take_back(&self, claim: &ResourceClaim) {
        if self.0.try_send(Write::TakeBack(claim.key(), claim.uid().to_owned())).is_err() {
            debug!("too many writes wait; a claim keeps its devices until the pod's next attempt");
        }
    }
}

impl Scheduler {
    /// Says in the pod's condition and in an event why it has no node; silent where the status says it already.
    pub(super) fn report(&mut self, pod: &Arc<Pod>, report: Report) {
        if let Some(report) = self.say(pod, report) {
            self.reports.send(report);
        }
    }

    /// The event; and what is left to be written, where the status does not say it already.
    pub(super) fn say(&mut self, pod: &Arc<Pod>, report: Report) -> Option<Report> {
        let (kind, reason, action) = (EventKind::Warning, "FailedScheduling", "Scheduling");
        self.announcements.push(Announcement { about: pod.clone(), kind, reason, action, message: report.message.clone() });
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let said = conditions.iter().any(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some(report.reason)
                && condition.message.as_deref() == Some(report.message.as_str())
        });
        let nominated = status.and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default();
        (!said || report.nominated.as_deref().is_some_and(|node| node != nominated)).then_some(report)
    }
}

async fn write_all(client: Client, receiver: mpsc::Receiver<Write>) {
    let writes = futures_util::stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|write| (write, receiver)) });
    writes.for_each_concurrent(WRITES_MAX, |write| write_one(&client, write)).await;
}

async fn write_one(client: &Client, write: Write) {
    match write {
        Write::Status(report) => report.write(client).await,
        Write::TakeBack(key, uid) => {
            let nothing = json!({ "allocation": null, "reservedFor": null, "devices": null });
            let patch = Patch::Merge(json!({ "metadata": { "uid": uid }, "status": nothing }));
            log_failure(&key, client.patch::<ResourceClaim>(key.namespace(), &key.name, &patch, "status").await);
        }
    }
}

fn log_failure<T>(key: &ObjectKey, result: Result<T, client::Error>) {
    if let Err(error) = result
        && !error.is_not_found()
        && !error.is_conflict()
    {
        warn!(object = %key, %error, "cannot write what was decided about a pod");
    }
}
