//! The loop: pods and nodes as they change, a step for each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use client::{ApiResource, Client, DeleteParams, Error, Patch};
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Cache, Cached, ObjectKey, Outcome, Queue, Scope};
use serde_json::json;
use stdx::Drain;
use tracing::debug;

use crate::plan::{Step, plan, status};
use crate::{Config, register, view};

/// Where a namespace would be: no namespace has that name.
const NODE: &str = "(node)";

struct World {
    config: Arc<Config>,
    client: Client,
    nodes: Cache<view::Node>,
    pods: Cache<view::Pod>,
    /// Since when pods with a stage ahead are in their phase, as far as we saw.
    since: Mutex<HashMap<ObjectKey, (String, Instant)>>,
}

/// Runs hollow nodes until `drain`.
pub async fn run(config: Config, client: Client, drain: Drain) {
    let config = Arc::new(config);
    let only_ours = Scope { label_selector: Some(crate::LABEL.into()), ..Scope::default() };
    let assigned = Scope::fields("spec.nodeName!=");
    let nodes = Cache::start_of(&client, ApiResource::of::<Node>(), only_ours, false, drain.clone());
    let pods = Cache::start_of(&client, ApiResource::of::<Pod>(), assigned, false, drain.clone());
    let world = Arc::new(World { config: config.clone(), client: client.clone(), nodes, pods, since: Mutex::default() });
    // Before all are registered: the first of many would count as silent.
    tokio::spawn({
        let (nodes, client, drain) = (world.nodes.clone(), client.clone(), drain.clone());
        let beats = register::heartbeat(config.clone(), client, nodes);
        async move { drain.run(beats).await }
    });
    if drain.run(register::register(&config, &client)).await.is_none() {
        return;
    }
    world.nodes.synced().await;
    let queue = Queue::new();
    let wake = queue.clone();
    world.pods.on_change(move |old, new| new.or(old).into_iter().for_each(|pod| wake.add(pod.key())));
    let (wake, ours) = (queue.clone(), Arc::downgrade(&world));
    world.nodes.on_change(move |old, new| {
        let Some(node) = new.or(old) else { return };
        wake.add(ObjectKey::new(NODE, node.name()));
        // It came back: its pods go on.
        if old.is_some_and(|old| old.is_down()) && !node.is_down() {
            let pods = ours.upgrade().map(|world| world.pods.list()).unwrap_or_default();
            pods.iter().filter(|pod| pod.spec.node_name == node.name()).for_each(|pod| wake.add(pod.key()));
        }
    });
    reconcile::run("hollow", queue, config.workers, drain, move |key| {
        let world = world.clone();
        async move { world.step(key).await }
    })
    .await;
}

impl World {
    async fn step(&self, key: ObjectKey) -> Outcome {
        let done = match key.namespace == NODE {
            true => self.step_node(&key.name).await,
            false => self.step_pod(&key).await,
        };
        match done {
            Ok(None) => Outcome::Done,
            Ok(Some(wait)) => Outcome::RequeueAfter(wait),
            Err(error) if error.is_not_found() || error.is_conflict() => Outcome::Done,
            Err(error) => {
                debug!(%key, %error, "will be tried again");
                Outcome::Err(error.into())
            }
        }
    }

    async fn step_node(&self, name: &str) -> Result<Option<Duration>, Error> {
        match self.nodes.get("", name) {
            Some(node) if !node.is_down() && !node.is_ready() => register::say_ready(&self.client, name).await.map(|()| None),
            _ => Ok(None),
        }
    }

    async fn step_pod(&self, key: &ObjectKey) -> Result<Option<Duration>, Error> {
        let Some(pod) = self.pods.get_key(key) else {
            self.since().remove(key);
            return Ok(None);
        };
        if !self.nodes.get("", &pod.spec.node_name).is_some_and(|node| !node.is_down()) {
            return Ok(None);
        }
        match plan(&pod, &self.config.stages, self.in_phase(key, &pod)) {
            Step::Nothing => {
                self.since().remove(key);
                Ok(None)
            }
            Step::Wait(wait) => Ok(Some(wait)),
            Step::Remove => {
                let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::of_uid(pod.uid()) };
                self.client.delete::<Pod>(key.namespace(), &key.name, &at_once).await.map(|_| None)
            }
            Step::Enter(phase) => {
                let now = meta::time::now();
                let address = if pod.status.pod_ip.is_empty() { address_of(&pod) } else { pod.status.pod_ip.clone() };
                let patch = json!({ "metadata": { "uid": pod.uid() }, "status": status(&pod, &phase, &address, &now) });
                let (resource, patch) = (ApiResource::of::<Pod>(), Patch::Strategic(patch));
                let patched = self.client.patch_of::<view::Pod>(&resource, key.namespace(), &key.name, &patch, "status").await;
                patched.map(|_| None)
            }
        }
    }

    /// How long the pod has been in its phase, as far as we saw.
    fn in_phase(&self, key: &ObjectKey, pod: &view::Pod) -> Duration {
        let staged = self.config.stages.iter().any(|stage| stage.after_seconds > 0.0 && stage.from == pod.status.phase);
        if !staged {
            return Duration::ZERO;
        }
        let mut since = self.since();
        let (phase, at) = since.entry(key.clone()).or_insert_with(|| (pod.status.phase.clone(), Instant::now()));
        if *phase != pod.status.phase {
            (*phase, *at) = (pod.status.phase.clone(), Instant::now());
        }
        at.elapsed()
    }

    fn since(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, (String, Instant)>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address that depends on the pod's uid alone, in a range that nobody routes (RFC 6598).
fn address_of(pod: &view::Pod) -> String {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    pod.uid().hash(&mut hasher);
    let number = hasher.finish();
    format!("100.{}.{}.{}", 64 + number % 64, (number >> 8) & 255, 1 + (number >> 16) % 254)
}
