//! The loop: observe pods and nodes, plan the next pod, act through the API.
//!
//! One task owns everything. What waits for the API runs beside it: bindings, of which [`BINDINGS_MAX`] may be on their way, and the writes of
//! [`report`].

mod act;
mod announce;
mod extend;
mod gang;
mod observe;
mod preempt;
mod report;
mod schedule;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::Client;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::api::storage::v1::{CSINode, CSIStorageCapacity, StorageClass};
use reconcile::{Cache, Caches, EventRecorder, ObjectKey, Wakeups};
use stdx::Drain;
use tokio::task::JoinSet;
use tracing::debug;

use crate::class::Class;
use crate::classes::Classes;
use crate::devices::{Devices, PODS_BY_CLAIM, claims_index};
use crate::extender::Extender;
use crate::gang::Gangs;
use crate::owners::Owners;
use crate::plan::Planner;
use crate::preemption::Budget;
use crate::profile::Profile;
use crate::queue::Queue;
use crate::snapshot::Snapshot;
use crate::volumes::Volumes;

/// Bindings on their way to the API at most.
const BINDINGS_MAX: usize = 1024;
/// Pods placed before changes are looked at again.
const BURST: usize = 256;
/// How often the gauges are set.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// What a `KubeSchedulerConfiguration` says; see [`crate::config`].
#[derive(Clone, Debug)]
pub struct Config {
    pub profiles: Vec<Profile>,
    pub extenders: Vec<crate::extender::Config>,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profiles: vec![Profile::default()],
            extenders: Vec::new(),
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
        }
    }
}

/// Schedules until `drain`. `caches` are shared with others in the process.
pub async fn run(config: Config, client: Client, caches: Caches, recorder: EventRecorder, drain: Drain) {
    let Some(groups) = drain.run(serves_pod_groups(&client)).await else { return };
    let world = World::new(&caches, groups);
    if drain.run(world.synced()).await.is_none() {
        return;
    }
    let wakeups = Changes::of(&world);
    let mut scheduler = Scheduler::new(config, client, world, recorder, &drain);
    scheduler.observe_everything();
    drain.run(scheduler.follow(wakeups)).await;
}

/// Pod groups are of a version that a server may be told not to serve: then nobody asks for them again until the next start, which is when
/// what a server serves can change.
async fn serves_pod_groups(client: &Client) -> bool {
    let mut backoff = stdx::Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
    loop {
        match client.request_json::<serde_json::Value>(http::Method::GET, "/apis/scheduling.k8s.io/v1beta1", None).await {
            Ok(list) => {
                return list["resources"].as_array().is_some_and(|all| all.iter().any(|resource| resource["name"] == "podgroups"));
            }
            Err(error) if error.is_not_found() => return false,
            Err(error) => debug!(%error, "cannot tell whether pod groups are served"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// What the scheduler reads.
struct World {
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    namespaces: Cache<Namespace>,
    budgets: Cache<PodDisruptionBudget>,
    groups: Cache<PodGroup>,
    claims: Cache<PersistentVolumeClaim>,
    persistent_volumes: Cache<PersistentVolume>,
    storage_classes: Cache<StorageClass>,
    csi_nodes: Cache<CSINode>,
    capacities: Cache<CSIStorageCapacity>,
    owners: Owners,
    volumes: Option<Volumes>,
    devices: Option<Devices>,
}

impl World {
    /// `groups`: pod groups are served.
    fn new(caches: &Caches, groups: bool) -> Self {
        let pods: Cache<Pod> = caches.of();
        pods.index(PODS_BY_CLAIM, claims_index);
        Self {
            pods,
            nodes: caches.of(),
            namespaces: caches.of(),
            budgets: caches.of(),
            groups: if groups { caches.of() } else { Cache::detached() },
            claims: caches.of(),
            persistent_volumes: caches.of(),
            storage_classes: caches.of(),
            csi_nodes: caches.of(),
            capacities: caches.of(),
            owners: Owners::new(caches),
            volumes: Some(Volumes::new(caches)),
            devices: Some(Devices::new(caches)),
        }
    }

    /// Waits for what placement would be wrong without.
    async fn synced(&self) {
        self.nodes.synced().await;
        self.pods.synced().await;
        self.namespaces.synced().await;
        self.owners.synced().await;
        self.budgets.synced().await;
        if let Some(volumes) = &self.volumes {
            volumes.synced().await;
        }
        if let Some(devices) = &self.devices {
            devices.synced().await;
        }
    }
}

/// What wakes the loop.
struct Changes {
    pods: Wakeups,
    nodes: Wakeups,
    namespaces: Wakeups,
    budgets: Wakeups,
    groups: Wakeups,
    volumes: [Wakeups; 5],
    /// ResourceClaims, and what else decides about devices.
    claims: Wakeups,
    devices: [Wakeups; 3],
}

impl Changes {
    fn of(world: &World) -> Self {
        let [claims, slices, classes, rules] = world.devices.as_ref().map_or_else(|| unreachable!("not taken yet"), Devices::subscribe);
        Self {
            pods: world.pods.subscribe(),
            nodes: world.nodes.subscribe(),
            namespaces: world.namespaces.subscribe(),
            budgets: world.budgets.subscribe(),
            groups: world.groups.subscribe(),
            volumes: [
                world.claims.subscribe(),
                world.persistent_volumes.subscribe(),
                world.storage_classes.subscribe(),
                world.csi_nodes.subscribe(),
                world.capacities.subscribe(),
            ],
            claims,
            devices: [slices, classes, rules],
        }
    }

    async fn any_device(devices: &mut [Wakeups; 3]) {
        let [slices, classes, rules] = devices;
        tokio::select! {
            _ = slices.next() => {}
            _ = classes.next() => {}
            _ = rules.next() => {}
        }
    }

    async fn any_volume(volumes: &mut [Wakeups; 5]) {
        let [claims, persistent, classes, nodes, capacities] = volumes;
        tokio::select! {
            _ = claims.next() => {}
            _ = persistent.next() => {}
            _ = classes.next() => {}
            _ = nodes.next() => {}
            _ = capacities.next() => {}
        }
    }
}

struct Scheduler {
    profiles: HashMap<String, Arc<Profile>>,
    extenders: Vec<Arc<Extender>>,
    client: Client,
    world: World,
    volumes: Volumes,
    devices: Devices,
    recorder: EventRecorder,
    reports: report::Reports,
    snapshot: Snapshot,
    classes: Classes,
    planner: Planner,
    queue: Queue,
    gangs: Gangs,
    /// Pods that occupy a node.
    placed: HashMap<ObjectKey, Placed>,
    /// Nodes by the pods that wait for room there.
    nominated: HashMap<ObjectKey, String>,
    preemptions: preempt::Preemptions,
    announcements: announce::Announcements,
    /// Pods with gates, which are not in the queue.
    gated: std::collections::HashSet<ObjectKey>,
    budgets: Vec<Budget>,
    budgets_generation: u64,
    budgets_stale: bool,
    bindings: JoinSet<act::Bound>,
    gauges_due: Instant,
}

/// A pod that occupies a node.
struct Placed {
    uid: Arc<str>,
    node: Arc<str>,
    class: Arc<Class>,
    /// The API does not show it yet.
    assumed: bool,
    /// `metadata.generation`: what may change of a bound pod's spec raises it.
    generation: i64,
}

impl Scheduler {
    fn new(config: Config, client: Client, mut world: World, recorder: EventRecorder, drain: &Drain) -> Self {
        let (volumes, devices) = (world.volumes.take(), world.devices.take());
        Self {
            profiles: config.profiles.into_iter().map(|profile| (profile.scheduler_name.clone(), Arc::new(profile))).collect(),
            extenders: config.extenders.into_iter().map(|config| Arc::new(Extender::new(config))).collect(),
            reports: report::Reports::start(&client, drain.clone()),
            client,
            volumes: volumes.unwrap_or_else(|| unreachable!("taken once")),
            devices: devices.unwrap_or_else(|| unreachable!("taken once")),
            world,
            recorder,
            snapshot: Snapshot::default(),
            classes: Classes::default(),
            planner: Planner::default(),
            queue: Queue::new(config.backoff_first, config.backoff_max),
            gangs: Gangs::default(),
            placed: HashMap::new(),
            nominated: HashMap::new(),
            preemptions: Default::default(),
            announcements: Default::default(),
            gated: Default::default(),
            budgets: Vec::new(),
            budgets_generation: 0,
            budgets_stale: true,
            bindings: JoinSet::new(),
            gauges_due: Instant::now(),
        }
    }

    async fn follow(&mut self, mut changes: Changes) {
        loop {
            self.observe_pending(&mut changes);
            if self.schedule_some().await {
                self.announce();
                tokio::task::yield_now().await;
                continue;
            }
            self.announce();
            let due = [self.queue.next_due(), self.announcements.next_due()].into_iter().flatten().min();
            let due = due.map(tokio::time::Instant::from_std);
            tokio::select! {
                key = changes.nodes.next() => self.observe_node(&key),
                key = changes.pods.next() => self.observe_pod(&key),
                key = changes.namespaces.next() => self.observe_namespace(&key),
                _ = changes.budgets.next() => self.budgets_stale = true,
                key = changes.groups.next() => self.observe_group(&key),
                () = Changes::any_volume(&mut changes.volumes) => self.observe_volumes(),
                key = changes.claims.next() => self.observe_resource_claim(&key),
                () = Changes::any_device(&mut changes.devices) => self.observe_devices(),
                Some(Ok(bound)) = self.bindings.join_next() => self.bound(bound),
                evicted = self.preemptions.next() => self.evicted(evicted),
                () = sleep_until(due) => {}
            }
        }
    }

    fn observe_pending(&mut self, changes: &mut Changes) {
        while let Some(key) = changes.nodes.try_next() {
            self.observe_node(&key);
        }
        while let Some(key) = changes.namespaces.try_next() {
            self.observe_namespace(&key);
        }
        while changes.budgets.try_next().is_some() {
            self.budgets_stale = true;
        }
        while let Some(key) = changes.groups.try_next() {
            self.observe_group(&key);
        }
        let mut volumes = false;
        for wakeups in &mut changes.volumes {
            while wakeups.try_next().is_some() {
                volumes = true;
            }
        }
        if volumes {
            self.observe_volumes();
        }
        while let Some(key) = changes.claims.try_next() {
            self.observe_resource_claim(&key);
        }
        let mut devices = false;
        for wakeups in &mut changes.devices {
            while wakeups.try_next().is_some() {
                devices = true;
            }
        }
        if devices {
            self.observe_devices();
        }
        while let Some(key) = changes.pods.try_next() {
            self.observe_pod(&key);
        }
        while let Some(Ok(bound)) = self.bindings.try_join_next() {
            self.bound(bound);
        }
        while let Some(evicted) = self.preemptions.try_next() {
            self.evicted(evicted);
        }
        if self.gauges_due <= Instant::now() {
            self.set_gauges();
        }
    }

    fn set_gauges(&mut self) {
        self.gauges_due = Instant::now() + GAUGES_EVERY;
        self.wake_after_failed_evictions();
        let metrics = crate::metrics::metrics();
        let sizes = self.queue.sizes();
        let pending = [("active", sizes.active), ("backoff", sizes.backoff), ("unschedulable", sizes.unschedulable)];
        for (queue, size) in pending.into_iter().chain([("gated", self.gated.len())]) {
            metrics.pending.with_label_values(&[queue]).set(size as i64);
        }
        let cached = [("nodes", self.snapshot.len()), ("pods", self.placed.len()), ("assumed_pods", self.bindings.len())];
        for (kind, size) in cached {
            metrics.cache_size.with_label_values(&[kind]).set(size as i64);
        }
    }
}

async fn sleep_until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
