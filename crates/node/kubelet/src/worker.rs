//! One pod's reconcile: look, plan, act, until nothing is left to do now; then say how the pod is. One key, one running reconcile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use client::{Client, DeleteParams, Patch};
use cri::{ImageService, RuntimeService, v1};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus, Service};
use reconcile::{Cache, EventKind, EventRecorder, Outcome, Queue};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

use crate::config::Config;
use crate::env::Facts;
use crate::evict::Pressure;
use crate::garbage::Uses;
use crate::grants::Claims;
use crate::mounts;
use crate::objects::Objects;
use crate::observe::{Observed, observe};
use crate::plan::{LAST_LOOK, Plan, plan};
use crate::podspec::{self, Role};
use crate::probe::{Kind, Probes, Target};
use crate::projections::Look;
use crate::resize::Grant;
use crate::status::status;
use crate::storage::{Placed, Storage, Trouble};
use crate::world::{Memory, State, World};

/// Rounds of one reconcile; a plan that still has actions then runs again a little later.
const ROUNDS_MAX: usize = 16;
/// Without any event, a pod is looked at this often.
const SAFETY_LOOK: SignedDuration = SignedDuration::from_secs(60);
/// How often a resize that waits for room looks whether there is some.
const RESIZE_LOOK: SignedDuration = SignedDuration::from_secs(5);

/// How often volumes of drivers are looked at: they may have grown.
const VOLUMES_LOOK: SignedDuration = SignedDuration::from_secs(15);

/// All that the workers share.
pub struct Agent {
    pub config: Config,
    pub client: Client,
    pub runtime: Arc<dyn RuntimeService>,
    pub images: Arc<dyn ImageService>,
    pub recorder: EventRecorder,
    pub queue: Queue<String>,
    pub records: Mutex<HashMap<String, Arc<Record>>>,
    pub starts: Semaphore,
    pub objects: Objects,
    pub storage: Storage,
    pub probes: OnceLock<Probes>,
    pub services: Cache<Service>,
    /// One pull per image at a time.
    pub pulling: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    pub host_dns: v1::DnsConfig,
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub swap_bytes: i64,
    /// Whether a container out of memory loses all its processes.
    pub kills_together: bool,
    pub started_at: Timestamp,
    /// The runtime's name: the scheme of container ids.
    pub runtime_name: OnceLock<Arc<str>>,
    /// What the node has for pods.
    pub allocatable: BTreeMap<String, i64>,
    /// What the node is short of now.
    pub pressures: Mutex<Vec<Pressure>>,
    /// Wakes whoever writes the Node's status.
    pub node_changed: Notify,
    pub image_uses: Mutex<Uses>,
    pub keyring: crate::credentials::Keyring,
    pub pulled: crate::pulled::Records,
    /// Held while a pod is judged.
    pub admitting: Mutex<()>,
    /// Mirror pods of this node by namespace and name, and the uid of the Node that owns them.
    pub mirrors: Mutex<BTreeMap<(String, String), Arc<Pod>>>,
    pub node_uid: Mutex<Option<String>>,
    pub devices: Arc<crate::devices::Devices>,
    pub claims: Arc<crate::claims::Claims>,
    pub placement: crate::placement::Placement,
    /// The host's ids of pods with a user namespace.
    pub users: crate::users::Ranges,
    /// The Node's labels as the API has them.
    pub node_labels: Mutex<Option<BTreeMap<String, String>>>,
}

/// What the kubelet holds of one pod.
pub struct Record {
    pub uid: String,
    pub wish: Mutex<Wish>,
    pub memory: Mutex<Memory>,
    payloads: Mutex<BTreeMap<String, u64>>,
    /// Claims and their like that are here, by volume.
    pub placed: Mutex<BTreeMap<String, Placed>>,
    /// The addresses that the sandbox had when it was last seen with any.
    addresses: Mutex<Vec<String>>,
    /// The status that we said last, and the revision that it made.
    shown: Mutex<Option<(u64, PodStatus)>>,
    /// The object that shows a static pod in the API.
    pub mirror: Mutex<Option<Arc<Pod>>>,
    /// The resources that the pod was granted.
    pub grant: Mutex<Option<Grant>>,
    /// What the pod holds of the node with that grant.
    pub claims: Mutex<Option<Arc<Claims>>>,
}

/// The API's last word on the pod.
#[derive(Clone)]
pub struct Wish {
    pub pod: Arc<Pod>,
    pub gone: bool,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Record {
    pub fn new(uid: &str, pod: Arc<Pod>, gone: bool) -> Self {
        let memory = Mutex::new(Memory { start_time: start_time(&pod), ..Memory::default() });
        Self {
            uid: uid.into(),
            wish: Mutex::new(Wish { pod, gone }),
            memory,
            payloads: Mutex::default(),
            placed: Mutex::default(),
            addresses: Mutex::default(),
            shown: Mutex::default(),
            mirror: Mutex::default(),
            grant: Mutex::default(),
            claims: Mutex::default(),
        }
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// The pod with the status that we said last, while the cache is behind our own write; after that, what the API has counts,
    /// so that what others changed in it is seen and corrected.
    pub fn view(&self) -> (Arc<Pod>, bool) {
        let Wish { mut pod, gone } = lock(&self.wish).clone();
        let mirror = lock(&self.mirror).clone();
        if let Some(mirror) = &mirror {
            let mut known = (*pod).clone();
            known.status.clone_from(&mirror.status);
            known.metadata.resource_version.clone_from(&mirror.metadata.resource_version);
            pod = Arc::new(known);
        }
        let Some((written, shown)) = lock(&self.shown).clone() else { return (pod, gone) };
        if podspec::is_terminal(&pod) || revision(&pod) >= written {
            return (pod, gone);
        }
        let mut view = (*pod).clone();
        let conditions = view.status.take().and_then(|status| status.conditions).unwrap_or_default();
        let mut status = shown;
        let ours = status.conditions.take().unwrap_or_default();
        let foreign = conditions.into_iter().filter(|condition| !ours.iter().any(|own| own.type_ == condition.type_));
        status.conditions = Some(foreign.chain(ours.clone()).collect());
        view.status = Some(status);
        (Arc::new(view), gone)
    }
}

fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_ref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn start_time(pod: &Pod) -> Option<Timestamp> {
    Some(pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or_else(Timestamp::now, |time| time.0))
}

/// What a step of acting needs.
pub struct Scene {
    pub record: Arc<Record>,
    pub pod: Arc<Pod>,
    pub observed: Observed,
}

impl Scene {
    /// The pod's addresses; those that it had, once its sandbox has none any more: the API tells them of a pod that is done, too.
    pub fn ips(&self) -> Vec<String> {
        let Some(sandbox) = self.observed.sandboxes.first() else { return Vec::new() };
        let mut had = lock(&self.record.addresses);
        if !sandbox.ips.is_empty() {
            had.clone_from(&sandbox.ips);
        } else if had.is_empty() {
            let told = self.pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
            *had = told.into_iter().flatten().map(|pod_ip| pod_ip.ip.clone()).collect();
        }
        had.clone()
    }
    pub fn reference(&self) -> ObjectReference {
        reconcile::reference_to(&*self.pod)
    }
    /// Whom an event about an image concerns: a container, or for the image of a volume the pod.
    pub fn image_reference(&self, name: &str) -> ObjectReference {
        if podspec::container(&self.pod, name).is_some() { self.container_reference(name) } else { self.reference() }
    }
    /// An event about one container names it by its field.
    pub fn container_reference(&self, container: &str) -> ObjectReference {
        let field = match podspec::container(&self.pod, container).map(|(role, _)| role) {
            Some(Role::Init | Role::Sidecar) => "initContainers",
            Some(Role::Ephemeral) => "ephemeralContainers",
            _ => "containers",
        };
        ObjectReference { field_path: Some(format!("spec.{field}{{{container}}}")), ..self.reference() }
    }
}

impl Agent {
    pub fn record(&self, uid: &str) -> Option<Arc<Record>> {
        lock(&self.records).get(uid).cloned()
    }

    pub fn event(&self, about: &ObjectReference, kind: EventKind, reason: &str, message: impl Into<String>) {
        self.recorder.event(about, kind, reason, message);
    }

    pub async fn reconcile(self: Arc<Self>, uid: String) -> Outcome {
        let Some(record) = self.record(&uid) else { return Outcome::Done };
        match self.rounds(record).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Err(error),
        }
    }

    async fn rounds(self: &Arc<Self>, record: Arc<Record>) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
        for _ in 0..ROUNDS_MAX {
            let (pod, gone) = record.view();
            let observed = observe(self.runtime.as_ref(), &record.uid, self.runtime_name().await?).await?;
            self.admit(&record, &pod, gone, &observed).await;
            let pod = self.granted(&record, pod, gone);
            let scene = Scene { record: record.clone(), pod, observed };
            let plan = self.plan(&scene, gone);
            if plan.actions.is_empty() {
                return self.settle(&scene, gone, &plan).await;
            }
            for action in plan.actions.clone() {
                self.act(&scene, &plan, action).await?;
            }
            if self.record(&record.uid).is_none() {
                return Ok(Outcome::Done);
            }
        }
        Ok(Outcome::RequeueAfter(Duration::from_secs(1)))
    }

    async fn runtime_name(&self) -> cri::Result<&Arc<str>> {
        if self.runtime_name.get().is_none() {
            let _ = self.runtime_name.set(self.runtime.version().await?.runtime_name.into());
        }
        self.runtime_name.get().ok_or_else(|| cri::Error::internal("the runtime has no name"))
    }

    fn plan(&self, scene: &Scene, gone: bool) -> Plan {
        self.with_world(scene, gone, plan)
    }

    pub fn with_world<T>(&self, scene: &Scene, gone: bool, look: impl FnOnce(&World<'_>) -> T) -> T {
        let probes = self.probes.get().map(|probes| probes.verdicts(&scene.record.uid)).unwrap_or_default();
        let memory = scene.record.memory();
        look(&World {
            pod: &scene.pod,
            gone,
            sandboxes: &scene.observed.sandboxes,
            containers: &scene.observed.containers,
            memory: &memory,
            probes: &probes,
            now: Timestamp::now(),
        })
    }

    /// Nothing is left to do now: keep volumes and probes current, say the status, and name the time of the next look.
    async fn settle(self: &Arc<Self>, scene: &Scene, gone: bool, plan: &Plan) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
        let mut wake_at = plan.wake_at;
        if !plan.ending && scene.record.memory().volumes_ready {
            match self.mount(scene).await {
                Ok(refresh_at) => wake_at = wake_at.into_iter().chain(refresh_at).min(),
                // The files of before stay; the next look tries again.
                Err(Trouble::Failed(reason, message)) => self.event(&scene.reference(), EventKind::Warning, reason, message),
                Err(Trouble::Waiting(_)) => {}
            }
        }
        if plan.ending && scene.observed.containers.iter().all(|seen| seen.state == State::Exited) {
            self.give_back(scene).await;
        }
        self.sync_probes(scene, gone, plan);
        self.tell_waiting(scene, plan);
        if !gone {
            self.publish(scene, gone, plan, false).await?;
        }
        if scene.record.memory().resize_waiting.as_ref().is_some_and(|waiting| waiting.reason == "Deferred") {
            wake_at = wake_at.into_iter().chain([Timestamp::now() + RESIZE_LOOK]).min();
        }
        if !plan.ending && lock(&scene.record.placed).values().any(|placed| placed.driver.is_some()) {
            wake_at = wake_at.into_iter().chain([Timestamp::now() + VOLUMES_LOOK]).min();
        }
        let wait = wake_at.map_or(SAFETY_LOOK, |at| at.duration_since(Timestamp::now()).min(SAFETY_LOOK));
        Ok(Outcome::RequeueAfter(Duration::try_from(wait).unwrap_or(Duration::from_millis(10)).max(Duration::from_millis(10))))
    }

    pub async fn mount(&self, scene: &Scene) -> Result<Option<Timestamp>, Trouble> {
        let (payloads, placed) = (lock(&scene.record.payloads).clone(), lock(&scene.record.placed).clone());
        let facts = self.pod_facts(scene);
        let mut look = Look { objects: &self.objects, pod: &scene.pod, facts: &facts, now: Timestamp::now(), refresh: None };
        let prepared = mounts::prepare(&self.config, &self.storage, &mut look, (&payloads, &placed)).await?;
        *lock(&scene.record.payloads) = prepared.payloads;
        *lock(&scene.record.placed) = prepared.placed;
        Ok(prepared.refresh_at)
    }

    /// A pod that is done holds no volumes any more, though its object stays: neither claims nor room on the node's disk.
    async fn give_back(&self, scene: &Scene) {
        if self.storage.has_any(&scene.record.uid) {
            lock(&scene.record.placed).clear();
            scene.record.memory().volumes_ready = false;
            if let Err(error) = self.storage.tear_down(&scene.record.uid).await {
                return tracing::warn!(pod = podspec::name(&scene.pod), error, "take a pod's volumes away; will retry");
            }
        }
        let (config, uid) = (self.config.clone(), scene.record.uid.clone());
        if ![config.pod_directory(&uid), config.secret_directory(&uid)].iter().any(|directory| directory.join("volumes").exists()) {
            return;
        }
        lock(&scene.record.payloads).clear();
        scene.record.memory().volumes_ready = false;
        let removed = tokio::task::spawn_blocking(move || mounts::remove_volumes(&config, &uid)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(pod = podspec::name(&scene.pod), %error, "remove a pod's volumes; will retry");
        }
    }

    /// What is known without asking anybody.
    pub fn pod_facts(&self, scene: &Scene) -> Facts {
        let host_ips: Vec<String> = self.config.node_ips.iter().map(ToString::to_string).collect();
        let host_network = podspec::spec(&scene.pod).host_network == Some(true);
        Facts {
            pod_ips: if host_network { host_ips.clone() } else { scene.ips() },
            host_ips,
            node_name: self.config.node_name.clone(),
            allocatable_cpu_milli: self.cpu_milli,
            allocatable_memory_bytes: self.memory_bytes,
            ..Facts::default()
        }
    }

    fn sync_probes(&self, scene: &Scene, gone: bool, plan: &Plan) {
        let Some(probes) = self.probes.get() else { return };
        let targets = if plan.ending { Vec::new() } else { self.with_world(scene, gone, |world| self.targets(scene, world)) };
        probes.sync(&scene.record.uid, targets);
    }

    fn targets(&self, scene: &Scene, world: &World<'_>) -> Vec<Target> {
        let mut targets = Vec::new();
        let facts = self.pod_facts(scene);
        for (role, container) in podspec::containers(&scene.pod).into_iter().filter(|(role, _)| matches!(role, Role::Main | Role::Sidecar))
        {
            let Some(seen) = world.latest(&container.name).filter(|seen| seen.state == State::Running) else { continue };
            if world.memory.stopping.contains_key(&seen.id) {
                continue;
            }
            let started = crate::plan::is_started(world, &container, seen);
            let wanted = [
                (Kind::Startup, &container.startup_probe, true),
                (Kind::Liveness, &container.liveness_probe, started),
                (Kind::Readiness, &container.readiness_probe, started),
            ];
            for (kind, probe, due) in wanted {
                let Some(probe) = probe.as_ref().filter(|_| due) else { continue };
                let running_for = seen.started_at.map(|at| world.now.duration_since(at)).and_then(|for_| Duration::try_from(for_).ok());
                targets.push(Target {
                    kind,
                    container: container.clone().into_owned(),
                    container_id: seen.id.clone(),
                    probe: probe.clone(),
                    pod_ip: facts.pod_ips.first().cloned().unwrap_or_default(),
                    running_for: running_for.unwrap_or_default(),
                    initial: self.known_verdict(scene, kind, role, &seen.id, seen.started_at),
                });
            }
        }
        targets
    }

    /// A container that was ready before this kubelet started stays so until a probe says otherwise.
    fn known_verdict(&self, scene: &Scene, kind: Kind, role: Role, id: &str, started_at: Option<Timestamp>) -> Option<bool> {
        if started_at.is_none_or(|at| at >= self.started_at) || kind == Kind::Liveness {
            return None;
        }
        let pod = lock(&scene.record.wish).pod.clone();
        let status = pod.status.as_ref()?;
        let list = if role == Role::Main { &status.container_statuses } else { &status.init_container_statuses };
        let is_it = |known: &str| known.split_once("://").is_some_and(|(_, known)| known == id);
        let known = list.iter().flatten().find(|known| known.container_id.as_deref().is_some_and(is_it))?;
        (if kind == Kind::Startup { known.started == Some(true) } else { known.ready }).then_some(true)
    }

    /// Back-offs become events, once for each attempt.
    fn tell_waiting(&self, scene: &Scene, plan: &Plan) {
        for (name, waiting) in &plan.waiting {
            let attempt =
                scene.observed.containers.iter().filter(|seen| seen.name == *name).map(|seen| seen.attempt + 1).max().unwrap_or(0);
            if !scene.record.memory().told.insert((name.clone(), waiting.reason, attempt)) {
                continue;
            }
            let about = scene.container_reference(name);
            let image = podspec::container(&scene.pod, name).and_then(|(_, container)| container.image.clone()).unwrap_or_default();
            let pod = podspec::format_pod(&scene.pod);
            match waiting.reason {
                "CrashLoopBackOff" => {
                    self.event(&about, EventKind::Warning, "BackOff", format!("Back-off restarting failed container {name} in pod {pod}"));
                }
                "ImagePullBackOff" => {
                    self.event(&about, EventKind::Normal, "BackOff", format!("Back-off pulling image {image:?}"));
                    self.event(&about, EventKind::Warning, "Failed", "Error: ImagePullBackOff");
                }
                _ => {}
            }
        }
    }

    /// Writes the status where it differs from what the API has.
    pub async fn publish(&self, scene: &Scene, gone: bool, plan: &Plan, last: bool) -> Result<(), client::Error> {
        let stopped = scene.observed.containers.iter().all(|seen| seen.state == State::Exited);
        let facts = self.pod_facts(scene);
        let new = self.with_world(scene, gone, |world| status(world, plan, &facts, last || (plan.ending && stopped)));
        let old = scene.pod.status.clone().unwrap_or_default();
        let Some(patch) = status_patch(&old, &new) else { return Ok(()) };
        let uid = match (lock(&scene.record.mirror).as_deref(), podspec::is_static(&scene.pod)) {
            (Some(mirror), _) => podspec::uid(mirror).to_owned(),
            // The API does not know the pod yet.
            (None, true) => return Ok(()),
            (None, false) => scene.record.uid.clone(),
        };
        let body = json!({"metadata": {"uid": uid}, "status": patch});
        let (namespace, name) = (podspec::namespace(&scene.pod), podspec::name(&scene.pod));
        match self.client.patch::<Pod>(Some(namespace), name, &Patch::Strategic(body), "status").await {
            Ok(stored) => *lock(&scene.record.shown) = Some((revision(&stored), merged(&old, new))),
            // Deleted, or another pod of that name by now: the watch will tell.
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The last status, then the deletion that the API waits for.
    pub async fn finish(&self, scene: &Scene, plan: &Plan) -> Result<(), client::Error> {
        if let Some(probes) = self.probes.get() {
            probes.sync(&scene.record.uid, Vec::new());
        }
        self.publish(scene, false, plan, true).await?;
        let stays = scene.pod.metadata.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0);
        if stays && scene.record.memory().last_look.is_none() {
            // The plan asks for this again then.
            scene.record.memory().last_look = Some(Timestamp::now() + SignedDuration::try_from(LAST_LOOK).unwrap_or(SignedDuration::ZERO));
            return Ok(());
        }
        let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::of_uid(&scene.record.uid) };
        let (namespace, name) = (podspec::namespace(&scene.pod), podspec::name(&scene.pod));
        match self.client.delete::<Pod>(Some(namespace), name, &params).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            _ => {}
        }
        scene.record.memory().finished = true;
        Ok(())
    }

    /// Drops all memory of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        if let Some(probes) = self.probes.get() {
            probes.sync(uid, Vec::new());
        }
        self.objects.release(uid);
        lock(&self.records).remove(uid);
    }

    /// The uids of all pods known here.
    pub fn known(&self) -> BTreeSet<String> {
        lock(&self.records).keys().cloned().collect()
    }
}

/// The new status with what others keep in it.
fn merged(old: &PodStatus, new: PodStatus) -> PodStatus {
    PodStatus { nominated_node_name: old.nominated_node_name.clone(), resize: old.resize.clone(), ..new }
}

/// A strategic merge patch from `old` to `new`, or `None` where nothing that we own differs.
fn status_patch(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let fields = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (old_fields, new_fields) = (fields(old), fields(new));
    let mut patch = serde_json::Map::new();
    for key in OWNED_FIELDS {
        match (old_fields.get(*key), new_fields.get(*key)) {
            (old, new) if old == new || (*key == "conditions" && same_conditions(old, new)) => {}
            (Some(_), None) => drop(patch.insert((*key).into(), Value::Null)),
            (old, Some(new)) => {
                let mut value = new.clone();
                if *key == "conditions" {
                    forget_reasons(old, &mut value);
                    forget_occasional(old, &mut value);
                }
                // These merge by `ip`: an address that changed must not stay beside the new one.
                if let (Value::Array(list), Some(_), true) = (&mut value, old, matches!(*key, "podIPs" | "hostIPs")) {
                    list.push(json!({"$patch": "replace"}));
                }
                patch.insert((*key).into(), value);
            }
            (None, None) => {}
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Conditions merge field by field: a reason or message that no longer holds must be taken away by name.
fn forget_reasons(old: Option<&Value>, new: &mut Value) {
    let old = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for condition in new.as_array_mut().into_iter().flatten() {
        let Some(before) = old.iter().find(|before| before["type"] == condition["type"]) else { continue };
        for field in ["reason", "message"] {
            if before.get(field).is_some() && condition.get(field).is_none() {
                condition[field] = Value::Null;
            }
        }
    }
}

/// Conditions that no longer hold and are then not there at all.
fn forget_occasional(old: Option<&Value>, new: &mut Value) {
    let Some(list) = new.as_array_mut() else { return };
    for kind in crate::status::OCCASIONAL {
        let had = old.and_then(Value::as_array).is_some_and(|old| old.iter().any(|condition| condition["type"] == *kind));
        if had && !list.iter().any(|condition| condition["type"] == *kind) {
            list.push(json!({"$patch": "delete", "type": kind}));
        }
    }
}

/// Order is no difference: a merge keeps the order in which the API had them.
fn same_conditions(old: Option<&Value>, new: Option<&Value>) -> bool {
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let (old, new) = (list(old), list(new));
    old.len() == new.len() && new.iter().all(|condition| old.contains(condition))
}

const OWNED_FIELDS: &[&str] = &[
    "phase",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "observedGeneration",
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn status_is_patched_only_where_it_differs_and_order_is_no_difference() {
        let ready = |kind: &str, on: &str| json!({"type": kind, "status": on});
        let old = status_of(
            json!({"phase": "Running", "podIPs": [{"ip": "1"}], "conditions": [ready("Ready", "True"), ready("Initialized", "True")]}),
        );
        let same = status_of(
            json!({"phase": "Running", "podIPs": [{"ip": "1"}], "conditions": [ready("Initialized", "True"), ready("Ready", "True")]}),
        );
        assert_eq!(status_patch(&old, &same), None);
        let moved = status_of(
            json!({"phase": "Running", "podIPs": [{"ip": "2"}], "conditions": [ready("Initialized", "True"), ready("Ready", "True")]}),
        );
        assert_eq!(status_patch(&old, &moved), Some(json!({"podIPs": [{"ip": "2"}, {"$patch": "replace"}]})));
        let gone = status_of(json!({"phase": "Pending", "conditions": [ready("Initialized", "True"), ready("Ready", "False")]}));
        let patch = status_patch(&old, &gone).unwrap();
        assert_eq!((&patch["phase"], &patch["podIPs"]), (&json!("Pending"), &Value::Null));
        assert_eq!(patch["conditions"].as_array().unwrap().len(), 2);
        let unready =
            status_of(json!({"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"}]}));
        let patch = status_patch(&unready, &status_of(json!({"conditions": [ready("Ready", "True")]}))).unwrap();
        assert_eq!((&patch["conditions"][0]["reason"], patch["conditions"][0].get("message")), (&Value::Null, Some(&Value::Null)));
    }
}
