//! The node agent: runs the pods that the API binds to this node, behind the CRI contract, and says how they are.
//!
//! The way in is [`run`]. Each pod has one key (its uid) in one queue; [`worker`] reconciles it: *observe* the runtime
//! ([`observe`]), *plan* ([`plan`], pure), *act* ([`act`], [`pull`]), until nothing is left to do, then [`status`] says to the API how
//! the pod is. A wake-up carries the uid and no hint; it comes from the pod watch, runtime events, probe verdicts, a changed ConfigMap
//! or Secret, the end of a pull, stop or hook, or the time that the plan named.
//!
//! Read in this order: [`config`], [`podspec`], [`amounts`], [`world`], [`admit`], [`plan`], [`resize`], [`grants`], [`status`], [`worker`], [`act`], [`pull`],
//! [`mounts`], [`projections`], [`storage`], [`objects`], [`crispec`], [`env`], [`dns`], [`probe`], [`node`], [`evict`], [`pressure`], [`garbage`], [`static_pods`], [`server`],
//! [`logs`]. What pods get of the node beyond that: [`users`], [`devices`], [`claims`], [`placement`], [`qos`].
//!
//! Tasks: one per reconcile (bounded), one timer for all probes, one each for the runtime's events, the Node's status and Lease, the
//! rotation of logs, what the node is short of, unused images, static pods, the server, and one per pull, stop and hook under way. Restart: what runs is found again through the labels of its sandbox and goes on;
//! pods that the API deleted meanwhile are removed once the API's list is known. Nothing of this depends on the API being up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use client::Client;
use cri::{ImageService, RuntimeService, v1};
use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use reconcile::{Cache, Cached, EventKind, EventRecorder, Queue, Scope};
use stdx::{Backoff, Drain};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

pub mod act;
pub mod admit;
pub mod amounts;
pub mod certificate;
pub mod claims;
pub mod config;
pub mod credentials;
pub mod crispec;
pub mod devices;
pub mod dns;
pub mod env;
pub mod evict;
pub mod garbage;
pub mod grants;
pub mod logs;
pub mod mounts;
pub mod node;
pub mod objects;
pub mod observe;
pub mod placement;
pub mod plan;
pub mod podspec;
pub mod pressure;
pub mod probe;
pub mod projections;
pub mod pull;
pub mod pulled;
pub mod qos;
pub mod resize;
pub mod server;
pub mod settings;
pub mod static_pods;
pub mod status;
pub mod storage;
pub mod users;
pub mod worker;
pub mod world;

pub use config::Config;

use node::Machine;
use probe::Probes;
use worker::{Agent, Record, lock};

/// How often a runtime without events is looked at.
const RELIST_INTERVAL: Duration = Duration::from_secs(1);
/// Reconciles under way at once; starts are bounded more tightly by `Config::starts_max`.
const WORKERS: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("make {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[error("{0}")]
    Reserved(String),
    #[error("serve on port {port}: {source}")]
    Listen { port: u16, source: std::io::Error },
}

/// Runs the node until `drain`; pods keep running afterwards.
pub async fn run(
    config: Config,
    client: Client,
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    drain: Drain,
) -> Result<(), Error> {
    for directory in [&config.data_directory, &config.runtime_directory, &config.log_directory] {
        std::fs::create_dir_all(directory).map_err(|source| Error::Directory { path: directory.display().to_string(), source })?;
    }
    if config.share_mounts
        && let Err(error) = volumes::mounting::share(&config.data_directory)
    {
        tracing::warn!(%error, "drivers' mounts will not be seen by this kubelet");
    }
    let listening = match &config.tls {
        Some(tls) => Some((tls.clone(), listen(config.port).await?)),
        None => None,
    };
    let machine = Machine::look(&config.data_directory);
    let client = client.named("kubelet");
    let (agent, pods) = start(config, client, runtime, images, machine, &drain);
    let port = listening.as_ref().and_then(|(_, listener)| listener.local_addr().ok()).map_or(agent.config.port, |address| address.port());
    let server = tokio::spawn(serve(agent.clone(), listening, drain.clone()));
    agent.limit_reserved().map_err(Error::Reserved)?;
    serve_plugins(&agent, &drain);
    tokio::spawn(drain.clone().run_owned(agent.clone().keep_shared_processors()));
    tokio::spawn(drain.clone().run_owned(agent.clone().keep_groups(machine)));
    let events = tokio::spawn(drain.clone().run_owned(follow_runtime(agent.clone())));
    let logs = tokio::spawn(drain.clone().run_owned(agent.clone().rotate_logs()));
    let pressure = tokio::spawn(drain.clone().run_owned(agent.clone().watch_pressure()));
    let images = tokio::spawn(drain.clone().run_owned(agent.clone().keep_images()));
    let files = tokio::spawn(drain.clone().run_owned(agent.clone().watch_static_pods()));
    let node = tokio::spawn(agent.clone().keep_node(machine, port, drain.clone()));
    let local = tokio::spawn(storage::local::keep(agent.clone(), drain.clone()));
    let orphans = tokio::spawn(drain.clone().run_owned(adopt_orphans(agent.clone(), pods)));
    let reconciler = agent.clone();
    reconcile::run("kubelet", agent.queue.clone(), WORKERS, drain.clone(), move |uid| reconciler.clone().reconcile(uid)).await;
    let _ = futures_util::future::join5(events, node, orphans, server, logs).await;
    let _ = futures_util::future::join4(pressure, images, files, local).await;
    Ok(())
}

/// Plugins find their kubelet by its sockets; without them pods that need none run all the same.
fn serve_plugins(agent: &Arc<Agent>, drain: &Drain) {
    let folder = &agent.config.plugin_directory;
    let served = agent.devices.serve(drain.clone());
    let served = served.and_then(|()| plugins::resources::serve(&folder.join("pod-resources/kubelet.sock"), agent.clone(), drain.clone()));
    if let Err(error) = served {
        tracing::error!(%error, "serve device plugins");
    }
    let takers = plugins::registry::Takers::from([
        (plugins::dra::KIND, agent.claims.clone() as Arc<dyn plugins::registry::Taker>),
        (storage::csi::drivers::KIND, agent.storage.csi.clone()),
    ]);
    tokio::spawn(drain.clone().run_owned(keep_csi_node(agent.clone())));
    let registry = folder.join("plugins_registry");
    if let Err(error) = std::fs::create_dir_all(&registry) {
        tracing::error!(%error, folder = %registry.display(), "make the folder where plugins register");
    }
    tokio::spawn(plugins::registry::follow(registry, takers, drain.clone()));
}

/// The node's CSINode is there whether or not any driver comes: schedulers and other people's tools look for it.
async fn keep_csi_node(agent: Arc<Agent>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    while let Err(error) = agent.storage.csi.ensure_node().await {
        tracing::debug!(error, "make the node's CSINode; will retry");
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

async fn listen(port: u16) -> Result<TcpListener, Error> {
    // Both families where the host has IPv6.
    let both = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port)).await;
    let listener = match both {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).await,
        other => other,
    };
    listener.map_err(|source| Error::Listen { port, source })
}

async fn serve(agent: Arc<Agent>, listening: Option<(Arc<rustls::ServerConfig>, TcpListener)>, drain: Drain) {
    let Some((tls, listener)) = listening else { return };
    let mut config = agent.config.shown.clone();
    if !config.is_object() {
        config = serde_json::json!({"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1"});
    }
    for (field, value) in [
        ("port", serde_json::json!(agent.config.port)),
        ("maxPods", agent.config.pods_max.into()),
        ("podPidsLimit", serde_json::json!(agent.config.pod_pids_max)),
        ("clusterDomain", agent.config.cluster_domain.clone().into()),
        ("clusterDNS", serde_json::json!(agent.config.cluster_dns)),
        ("resolvConf", serde_json::json!(agent.config.resolv_conf)),
        ("staticPodPath", serde_json::json!(agent.config.static_pods)),
        ("imageGCHighThresholdPercent", agent.config.image_gc.high_percent.into()),
        ("imageGCLowThresholdPercent", agent.config.image_gc.low_percent.into()),
        ("allowedUnsafeSysctls", serde_json::json!(agent.config.unsafe_sysctls)),
        ("seccompDefault", agent.config.seccomp_default.into()),
        ("cgroupDriver", "cgroupfs".into()),
    ] {
        config[field] = value;
    }
    let server = server::Server {
        node_name: agent.config.node_name.clone(),
        runtime: agent.runtime.clone(),
        access: server::access::Access::new(agent.client.clone(), &agent.config.node_name, agent.config.server_users.clone()),
        data_directory: agent.config.data_directory.clone(),
        image_directory: agent.config.image_directory.clone(),
        pods: agent,
        config,
    };
    Arc::new(server).serve(listener, tls, drain).await;
}

impl plugins::resources::Source for Agent {
    fn pods(&self) -> Vec<plugins::resources::PodResources> {
        let active = server::Pods::list(self).into_iter().filter(|pod| !podspec::is_terminal(pod));
        let place = |pod: &Pod, container: &k8s_openapi::api::core::v1::Container| {
            self.placement.of(podspec::uid(pod), &container.name).unwrap_or_default()
        };
        let on_node = |(node, size): (u32, u64)| plugins::resources::ContainerMemory {
            memory_type: "memory".into(),
            size,
            topology: Some(plugins::device::TopologyInfo { nodes: vec![plugins::device::NumaNode { id: node.into() }] }),
        };
        let container = |pod: &Pod, container: &k8s_openapi::api::core::v1::Container| plugins::resources::ContainerResources {
            name: container.name.clone(),
            devices: self.devices.of(podspec::uid(pod), &container.name),
            cpu_ids: place(pod, container).cpus.into_iter().map(i64::from).collect(),
            memory: place(pod, container).memory.into_iter().map(on_node).collect(),
            dynamic_resources: self.claims.of(podspec::uid(pod), container),
            ..Default::default()
        };
        let of = |pod: Arc<Pod>| plugins::resources::PodResources {
            name: podspec::name(&pod).into(),
            namespace: podspec::namespace(&pod).into(),
            containers: podspec::spec(&pod).containers.iter().map(|one| container(&pod, one)).collect(),
        };
        active.map(of).collect()
    }

    fn allocatable(&self) -> plugins::resources::Allocatable {
        let cpu_ids = self.placement.allocatable_cpus().into_iter().map(i64::from).collect();
        plugins::resources::Allocatable { devices: self.devices.all(), cpu_ids, ..Default::default() }
    }
}

impl server::Pods for Agent {
    fn list(&self) -> Vec<Arc<Pod>> {
        let records: Vec<Arc<Record>> = lock(&self.records).values().cloned().collect();
        records.iter().map(|record| record.view()).filter(|(_, gone)| !gone).map(|(pod, _)| pod).collect()
    }
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.list().into_iter().find(|pod| podspec::namespace(pod) == namespace && podspec::name(pod) == name)
    }
    fn volumes(&self) -> futures_util::future::BoxFuture<'_, Vec<storage::usage::Usage>> {
        Box::pin(self.volume_usage())
    }
    fn probe_counts(&self) -> Vec<(server::ProbeKey, (u64, u64))> {
        let Some(probes) = self.probes.get() else { return Vec::new() };
        let counts = probes.counts().into_iter().filter_map(|((uid, container, kind), counts)| {
            let (pod, _) = self.record(&uid)?.view();
            let kind = kind.as_str();
            Some(((podspec::namespace(&pod).into(), podspec::name(&pod).into(), uid, container, kind.into()), counts))
        });
        counts.collect()
    }
}

/// `Drain::run` that owns its drain, for spawned tasks.
trait RunOwned {
    fn run_owned<T>(self, work: impl Future<Output = T> + Send) -> impl Future<Output = Option<T>> + Send;
}
impl RunOwned for Drain {
    async fn run_owned<T>(self, work: impl Future<Output = T> + Send) -> Option<T> {
        self.run(work).await
    }
}

fn start(
    config: Config,
    client: Client,
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    machine: Machine,
    drain: &Drain,
) -> (Arc<Agent>, Cache<Pod>) {
    let pulled = pulled::Records::open(&config.data_directory, config.pulled_images.clone());
    let queue: Queue<String> = Queue::new();
    let waker = queue.clone();
    let recorder = EventRecorder::start(&client, "kubelet", Some(&config.node_name), drain.clone());
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let starts = if config.starts_max == 0 { cores * 2 } else { config.starts_max };
    let unified = cgroups::Root::detect(config.cgroup_root.as_deref().unwrap_or("kubepods")).is_ok_and(|root| root.is_unified());
    if config.single_process_oom_kill == Some(false) && !unified {
        tracing::warn!("singleProcessOOMKill: false needs control groups v2, which this host does not use");
    }
    let resolver = std::fs::read_to_string(dns::host_file(&config.resolv_conf)).unwrap_or_default();
    let scope = Scope::fields(format!("spec.nodeName={}", config.node_name));
    let agent = Arc::new(Agent {
        recorder,
        objects: objects::Objects::new(&client, &config.node_name, Arc::new(move |uid| waker.add(uid.to_owned())), drain),
        storage: storage::Storage::new(config.clone(), client.clone()),
        records: Mutex::new(HashMap::new()),
        starts: Semaphore::new(starts),
        probes: OnceLock::new(),
        services: Cache::<Service>::start(&client, Scope::all(), drain.clone()),
        pulling: Mutex::default(),
        host_dns: dns::parse(&resolver),
        cpu_milli: node::allocatable(&config, machine, "cpu"),
        memory_bytes: node::allocatable(&config, machine, "memory"),
        swap_bytes: machine.swap_bytes,
        kills_together: unified && !config.single_process_oom_kill.unwrap_or(false),
        allocatable: ["cpu", "memory", "ephemeral-storage"].map(|name| (name.to_owned(), node::allocatable(&config, machine, name))).into(),
        runtime_name: OnceLock::new(),
        pressures: Mutex::default(),
        node_changed: Notify::new(),
        image_uses: Mutex::default(),
        keyring: credentials::Keyring::default(),
        pulled,
        admitting: Mutex::default(),
        mirrors: Mutex::default(),
        node_uid: Mutex::default(),
        users: users::Ranges::default(),
        devices: Arc::new(devices::Devices::open(&config.plugin_directory, &config.data_directory)),
        claims: Arc::new(claims::Claims::open(&config.data_directory)),
        placement: placement::open(&config, machine),
        node_labels: Mutex::default(),
        started_at: Timestamp::now(),
        config,
        client: client.clone(),
        runtime,
        images,
        queue,
    });
    let _ = agent.probes.set(start_probes(&agent, drain));
    agent.load_static_pods();
    let pods = Cache::<Pod>::start(&client, scope, drain.clone());
    let watching = agent.clone();
    pods.on_change(move |old, new| on_pod(&watching, old, new));
    (agent, pods)
}

fn start_probes(agent: &Arc<Agent>, drain: &Drain) -> Probes {
    let runtime = agent.runtime.clone();
    let queue = agent.queue.clone();
    // Weak: the agent owns the probes.
    let teller = Arc::downgrade(agent);
    Probes::start(
        Arc::new(move |target| Box::pin(probe::check::check(runtime.clone(), target))),
        Arc::new(move |uid, target, message| {
            let Some((agent, record)) = teller.upgrade().and_then(|agent| agent.record(uid).map(|record| (agent, record))) else { return };
            let pod = lock(&record.wish).pod.clone();
            let scene = worker::Scene { record, pod, observed: observe::Observed::default() };
            let about = scene.container_reference(&target.container.name);
            agent.event(&about, EventKind::Warning, "Unhealthy", format!("{} probe failed: {message}", target.kind.as_str()));
        }),
        Arc::new(move |uid| queue.add(uid.to_owned())),
        drain.clone(),
    )
}

/// The API's word on a pod changed.
fn on_pod(agent: &Agent, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
    let (pod, gone) = match (old, new) {
        (_, Some(new)) => (new, false),
        (Some(old), None) => (old, true),
        (None, None) => return,
    };
    if static_pods::is_mirror(pod) {
        return agent.on_mirror(pod, gone);
    }
    let uid = pod.uid().to_owned();
    let mut records = lock(&agent.records);
    match records.get(&uid) {
        Some(record) => {
            let mut wish = lock(&record.wish);
            wish.pod = pod.clone();
            wish.gone = gone;
        }
        None if gone => return,
        None => drop(records.insert(uid.clone(), Arc::new(Record::new(&uid, pod.clone(), false)))),
    }
    drop(records);
    agent.queue.add(uid);
}

/// Runtime events wake their pods; when the stream breaks, everything is looked at once more.
async fn follow_runtime(agent: Arc<Agent>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
    loop {
        match agent.runtime.get_container_events().await {
            Ok(mut events) => {
                agent.known().into_iter().for_each(|uid| agent.queue.add(uid));
                while let Some(Ok(event)) = events.next().await {
                    backoff.reset();
                    if let Some(uid) = event.pod_sandbox_status.and_then(|status| status.metadata).map(|metadata| metadata.uid) {
                        agent.queue.add(uid);
                    }
                }
            }
            // An older runtime: what it shows is looked at once a second instead.
            Err(error) if error.code == cri::Code::Unimplemented => return relist(&agent).await,
            Err(error) => tracing::warn!(%error, "follow the runtime's events; will retry"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Wakes every pod of which the runtime shows something else than a second before (upstream: the generic PLEG).
async fn relist(agent: &Agent) {
    let mut before: HashMap<String, (String, i32)> = HashMap::new();
    loop {
        tokio::time::sleep(RELIST_INTERVAL).await;
        let (Ok(sandboxes), Ok(containers)) = (
            agent.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await,
            agent.runtime.list_containers(v1::ListContainersRequest::default()).await,
        ) else {
            continue;
        };
        let uid = |labels: &HashMap<String, String>| labels.get(crispec::LABEL_UID).cloned().unwrap_or_default();
        let sandboxes = sandboxes.items.into_iter().map(|sandbox| (sandbox.id, (uid(&sandbox.labels), sandbox.state)));
        let containers = containers.containers.into_iter().map(|container| (container.id, (uid(&container.labels), container.state)));
        let now: HashMap<String, (String, i32)> = sandboxes.chain(containers).collect();
        let changed =
            now.iter().filter(|(id, state)| before.get(*id) != Some(*state)).chain(before.iter().filter(|(id, _)| !now.contains_key(*id)));
        changed.for_each(|(_, (uid, _))| agent.queue.add(uid.clone()));
        before = now;
    }
}

/// Once the API's list is known, what runs here for a pod that is not on it is stopped and removed, and so is what lies on the disk.
async fn adopt_orphans(agent: Arc<Agent>, pods: Cache<Pod>) {
    pods.synced().await;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
    let sandboxes = loop {
        match agent.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await {
            Ok(answer) => break answer.items,
            Err(error) => tracing::warn!(%error, "list sandboxes; will retry"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    };
    for metadata in sandboxes.into_iter().filter_map(|sandbox| sandbox.metadata) {
        adopt_orphan(&agent, &metadata.uid, &metadata.namespace, &metadata.name);
    }
    // Log folders before the others: only they tell the name by which the logs are removed.
    for entry in std::fs::read_dir(&agent.config.log_directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let mut parts = name.to_str().unwrap_or_default().split('_');
        if let (Some(namespace), Some(pod), Some(uid), None) = (parts.next(), parts.next(), parts.next(), parts.next()) {
            adopt_orphan(&agent, uid, namespace, pod);
        }
    }
    let directories = [&agent.config.data_directory, &agent.config.runtime_directory].map(|directory| directory.join("pods"));
    for entry in directories.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten().flatten() {
        if let Some(uid) = entry.file_name().to_str() {
            adopt_orphan(&agent, uid, "", "");
        }
    }
}

fn adopt_orphan(agent: &Agent, uid: &str, namespace: &str, name: &str) {
    let mut records = lock(&agent.records);
    if uid.is_empty() || records.contains_key(uid) {
        return;
    }
    tracing::info!(uid, namespace, name, "removing what is left of a deleted pod");
    let mut pod = Pod::default();
    pod.metadata.uid = Some(uid.into());
    pod.metadata.namespace = Some(namespace.into());
    pod.metadata.name = Some(name.into());
    records.insert(uid.into(), Arc::new(Record::new(uid, Arc::new(pod), true)));
    drop(records);
    agent.queue.add(uid.into());
}
