//! The loop: observe pods and nodes, plan the next pod, act through the API.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use client::{Client, Patch};
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cache, Cached, EventKind, EventRecorder, ObjectKey, Wakeups, reference_to};
use serde_json::{Value, json};
use stdx::Drain;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::class::Class;
use crate::plan::{FitError, plan};
use crate::queue::Queue;
use crate::snapshot::Snapshot;

/// Bindings on their way to the API at most.
const BINDINGS_MAX: usize = 512;
/// Pods placed before changes are looked at again.
const BURST: usize = 64;

#[derive(Clone, Debug)]
pub struct Config {
    /// The `spec.schedulerName` that this scheduler serves.
    pub scheduler_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".into() }
    }
}

/// What the scheduler reads; all of the cluster, shared with others in the process.
pub struct Caches {
    pub pods: Cache<Pod>,
    pub nodes: Cache<Node>,
    pub namespaces: Cache<Namespace>,
}

/// Schedules until `drain`.
pub async fn run(config: Config, client: Client, caches: Caches, recorder: EventRecorder, drain: Drain) {
    let Caches { pods, nodes, namespaces } = caches;
    pods.synced().await;
    nodes.synced().await;
    namespaces.synced().await;
    let wakeups = (pods.subscribe(), nodes.subscribe(), namespaces.subscribe());
    let mut scheduler = Scheduler {
        config,
        client,
        pods,
        nodes,
        namespaces,
        recorder,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        placed: HashMap::new(),
        tried: HashMap::new(),
        bindings: JoinSet::new(),
        ties: 0,
    };
    scheduler.observe_everything();
    drain.run(scheduler.follow(wakeups)).await;
}

struct Scheduler {
    config: Config,
    client: Client,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    namespaces: Cache<Namespace>,
    recorder: EventRecorder,
    snapshot: Snapshot,
    queue: Queue,
    /// Pods that occupy a node in the snapshot: bound ones, and those whose binding is on its way.
    placed: HashMap<ObjectKey, Placed>,
    /// What a waiting pod asked for when it was last tried: only a different wish is a reason to try it at once.
    tried: HashMap<ObjectKey, Arc<Class>>,
    bindings: JoinSet<Bound>,
    ties: usize,
}

struct Placed {
    uid: String,
    node: String,
    class: Arc<Class>,
    /// The API has not shown the binding yet.
    assumed: bool,
}

/// How a binding ended.
struct Bound {
    key: ObjectKey,
    uid: String,
    result: Result<(), client::Error>,
}

impl Scheduler {
    fn observe_everything(&mut self) {
        for node in self.nodes.list() {
            self.snapshot.set_node(node);
        }
        for namespace in self.namespaces.list() {
            self.observe_namespace(&namespace.key());
        }
        for pod in self.pods.list() {
            self.observe_pod(&pod.key());
        }
    }

    async fn follow(&mut self, (mut pods, mut nodes, mut namespaces): (Wakeups, Wakeups, Wakeups)) {
        loop {
            while let Some(key) = nodes.try_next() {
                self.observe_node(&key);
            }
            while let Some(key) = namespaces.try_next() {
                self.observe_namespace(&key);
            }
            while let Some(key) = pods.try_next() {
                self.observe_pod(&key);
            }
            while let Some(Ok(bound)) = self.bindings.try_join_next() {
                self.bound(bound);
            }
            if self.schedule_some().await {
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.queue.next_due().map(tokio::time::Instant::from_std);
            tokio::select! {
                key = nodes.next() => self.observe_node(&key),
                key = pods.next() => self.observe_pod(&key),
                key = namespaces.next() => self.observe_namespace(&key),
                Some(Ok(bound)) = self.bindings.join_next() => self.bound(bound),
                () = sleep_until(due) => {}
            }
        }
    }

    fn observe_node(&mut self, key: &ObjectKey) {
        match self.nodes.get_key(key) {
            Some(node) => self.snapshot.set_node(node),
            None => self.snapshot.remove_node(&key.name),
        }
        self.queue.wake_all(Instant::now());
    }

    fn observe_namespace(&mut self, key: &ObjectKey) {
        match self.namespaces.get_key(key) {
            Some(namespace) => {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                self.snapshot.namespaces.insert(key.name.clone(), labels);
            }
            None => drop(self.snapshot.namespaces.remove(&key.name)),
        }
    }

    fn observe_pod(&mut self, key: &ObjectKey) {
        let pod = self.pods.get_key(key);
        let Some(pod) = pod.filter(|pod| !is_terminal(pod)) else {
            self.queue.remove(key);
            self.tried.remove(key);
            return self.release(key);
        };
        let uid = pod.uid().to_owned();
        match pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty()) {
            Some(node) => self.observe_bound(key, &pod, uid, node),
            None if self.placed.get(key).is_some_and(|placed| placed.uid == uid && placed.assumed) => {}
            None => self.observe_waiting(key, &pod),
        }
    }

    fn observe_bound(&mut self, key: &ObjectKey, pod: &Pod, uid: String, node: String) {
        self.queue.remove(key);
        self.tried.remove(key);
        let class = Arc::new(Class::of(pod));
        if let Some(placed) = self.placed.get_mut(key)
            && placed.uid == uid
            && placed.node == node
            && placed.class == class
        {
            placed.assumed = false;
            return;
        }
        self.release(key);
        self.snapshot.add_pod(&node, &class);
        self.placed.insert(key.clone(), Placed { uid, node, class, assumed: false });
    }

    fn observe_waiting(&mut self, key: &ObjectKey, pod: &Pod) {
        self.release(key);
        let spec = pod.spec.as_ref();
        let ours = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler") == self.config.scheduler_name;
        let gated = spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
        if !ours || gated || pod.metadata.deletion_timestamp.is_some() {
            self.queue.remove(key);
            return;
        }
        let changed = self.tried.get(key).is_some_and(|tried| **tried != Class::of(pod));
        let priority = spec.and_then(|spec| spec.priority).unwrap_or(0);
        self.queue.add(key, priority, changed, Instant::now());
    }

    /// The pod no longer occupies a node.
    fn release(&mut self, key: &ObjectKey) {
        if let Some(placed) = self.placed.remove(key) {
            self.snapshot.remove_pod(&placed.node, &placed.class);
            self.queue.wake_all(Instant::now());
        }
    }

    /// Places some waiting pods; `false` when none waits.
    async fn schedule_some(&mut self) -> bool {
        for done in 0..BURST {
            if self.bindings.len() >= BINDINGS_MAX
                && let Some(Ok(bound)) = self.bindings.join_next().await
            {
                self.bound(bound);
            }
            let Some(key) = self.queue.pop(Instant::now()) else { return done > 0 };
            match self.pods.get_key(&key) {
                Some(pod) => self.schedule(key, &pod),
                None => self.queue.remove(&key),
            }
        }
        true
    }

    fn schedule(&mut self, key: ObjectKey, pod: &Arc<Pod>) {
        let class = Arc::new(Class::of(pod));
        self.ties = self.ties.wrapping_add(1);
        match plan(&self.snapshot, &class, self.ties) {
            Ok(slot) => {
                let node = self.snapshot.details[slot].name.clone();
                self.snapshot.add_pod(&node, &class);
                let uid = pod.uid().to_owned();
                self.placed.insert(key.clone(), Placed { uid: uid.clone(), node: node.clone(), class, assumed: true });
                let about = reference_to(&**pod);
                self.bindings.spawn(bind(self.client.clone(), self.recorder.clone(), key, uid, node, about));
            }
            Err(error) => {
                debug!(pod = %key, %error, "does not fit");
                self.queue.unschedulable(&key, Instant::now());
                self.tried.insert(key, class);
                self.report(pod, &error);
            }
        }
    }

    /// Says in the pod's condition and in an event why it does not fit; silent where the condition says it already.
    fn report(&self, pod: &Arc<Pod>, error: &FitError) {
        let message = error.to_string();
        self.recorder.event_with_action(&reference_to(&**pod), EventKind::Warning, "FailedScheduling", "Scheduling", message.clone());
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let said = conditions.iter().any(|condition| {
            condition.type_ == "PodScheduled" && condition.status == "False" && condition.message.as_deref() == Some(message.as_str())
        });
        if said {
            return;
        }
        let (client, key, uid) = (self.client.clone(), pod.key(), pod.uid().to_owned());
        tokio::spawn(async move {
            let patch = Patch::Strategic(json!({
                "metadata": { "uid": uid },
                "status": { "conditions": [{
                    "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                    "lastProbeTime": null, "lastTransitionTime": meta::time::now(),
                }] },
            }));
            let patched = client.patch::<Pod>(key.namespace(), &key.name, &patch, "status").await;
            if let Err(error) = patched
                && !error.is_not_found()
            {
                warn!(pod = %key, %error, "cannot write the PodScheduled condition");
            }
        });
    }

    fn bound(&mut self, bound: Bound) {
        let Bound { key, uid, result } = bound;
        let ours = self.placed.get(&key).is_some_and(|placed| placed.uid == uid && placed.assumed);
        match result {
            Ok(()) => {
                self.queue.remove(&key);
                self.tried.remove(&key);
            }
            Err(error) if ours => {
                self.release(&key);
                if error.is_not_found() || error.is_conflict() {
                    self.queue.remove(&key);
                    self.observe_pod(&key);
                } else {
                    warn!(pod = %key, %error, "binding failed");
                    self.queue.retry(&key, Instant::now());
                }
            }
            Err(_) => {}
        }
    }
}

async fn sleep_until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn bind(client: Client, recorder: EventRecorder, key: ObjectKey, uid: String, node: String, about: ObjectReference) -> Bound {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            uid: Some(uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference { kind: Some("Node".into()), name: Some(node.clone()), ..ObjectReference::default() },
    };
    let result = client.create_subresource::<Pod, Value>(key.namespace(), &key.name, "binding", &binding).await.map(drop);
    if result.is_ok() {
        let message = format!("Successfully assigned {key} to {node}");
        recorder.event_with_action(&about, EventKind::Normal, "Scheduled", "Binding", message);
    }
    Bound { key, uid, result }
}

fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
