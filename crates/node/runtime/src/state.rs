//! What the daemon knows of its pods while it runs.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cri::v1;
use tokio::sync::{Semaphore, broadcast, watch};

use crate::connection::Connection;
use crate::nursery::Nursery;
use crate::plan;
use crate::protocol::{Exit, IdRange};
use crate::record::{ContainerRecord, SandboxRecord};
use crate::shelf::{LABEL_POD, Shelf, Shelved, pod_group};
use crate::skeleton::Skeleton;
use crate::{Config, Error, Result, io_error};

/// Blocking work (mounts, control groups, forks) at the same time: more than the cores would only wait for each other in the kernel.
const BLOCKING_MAX: usize = 32;
/// Events that a reader may lag behind before it is cut off.
const EVENTS_MAX: usize = 4096;

/// The embedded runtime. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub images: Arc<images::Store>,
    pub network: Option<Arc<dyn cni::PodNetwork>>,
    pub cgroups: cgroups::Root,
    pub apparmor: crate::apparmor::Host,
    pub sandboxes: Shelf<Sandbox>,
    pub containers: Shelf<Container>,
    pub events: broadcast::Sender<Event>,
    pub nursery: Nursery,
    pub skeleton: Skeleton,
    blocking: Semaphore,
}

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub container: String,
    pub sandbox: String,
    pub kind: v1::ContainerEventType,
    pub at: i64,
}

pub(crate) struct Sandbox {
    pub id: String,
    pub directory: PathBuf,
    pub record: Mutex<SandboxRecord>,
    pub connection: Mutex<Option<Arc<Connection>>>,
    /// Its user namespace, where it has one and its shim has told.
    pub users: Mutex<Option<Arc<OwnedFd>>>,
    /// Stop and remove come one after the other.
    pub changing: tokio::sync::Mutex<()>,
}

pub(crate) struct Container {
    pub id: String,
    pub sandbox: Arc<Sandbox>,
    pub directory: PathBuf,
    pub record: Mutex<ContainerRecord>,
    pub lease: Mutex<Option<images::Lease>>,
    /// Of images that are mounted as volumes.
    pub volume_leases: Mutex<Vec<images::Lease>>,
    pub life: watch::Sender<Life>,
    /// Start, stop and remove come one after the other.
    pub changing: tokio::sync::Mutex<()>,
}

/// Created (no pid, no exit), running (pid, no exit), exited.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life {
    pub pid: Option<i32>,
    pub started_at: i64,
    pub exit: Option<Exit>,
    pub out_of_memory: bool,
}

impl Life {
    pub fn state(&self) -> v1::ContainerState {
        match (&self.exit, self.pid) {
            (Some(_), _) => v1::ContainerState::ContainerExited,
            (None, Some(_)) => v1::ContainerState::ContainerRunning,
            (None, None) => v1::ContainerState::ContainerCreated,
        }
    }

    /// `Completed`, `Error`, `OOMKilled`, or what kept it from starting.
    pub fn reason(&self) -> String {
        match &self.exit {
            None => String::new(),
            Some(exit) if !exit.reason.is_empty() => exit.reason.clone(),
            Some(_) if self.out_of_memory => "OOMKilled".to_owned(),
            Some(exit) if exit.code == 0 => "Completed".to_owned(),
            Some(_) => "Error".to_owned(),
        }
    }
}

/// The v1 hierarchies that a container sees; none where the unified one has the controllers.
pub(crate) fn v1_controllers(cgroups: &cgroups::Root) -> Vec<String> {
    if cgroups.is_unified() { Vec::new() } else { cgroups.v1_controllers() }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 64 hexadecimal digits, as every runtime names its things.
pub(crate) fn new_id() -> Result<String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| io_error("make an id")(std::io::Error::other(e.to_string())))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Runtime {
    /// `Err` says why no pod can be attached to the network yet.
    pub(crate) fn network_readiness(&self) -> std::result::Result<(), String> {
        self.inner.network.as_ref().map_or(Ok(()), |network| network.readiness())
    }

    /// The node's pod ranges, with commas between them, as the CRI gives them.
    pub(crate) async fn set_network_ranges(&self, ranges: &str) -> Result<()> {
        let parsed: Option<Vec<cni::Cidr>> = ranges.split(',').filter(|text| !text.is_empty()).map(cni::parse_cidr).collect();
        let parsed = parsed.ok_or_else(|| Error::Invalid(format!("pod_cidr: {ranges:?} is not a list of address ranges")))?;
        let Some(network) = self.inner.network.clone() else { return Ok(()) };
        self.inner.blocking(move |_| Ok(network.set_ranges(&parsed)?)).await
    }

    /// Opens the runtime and re-adopts what runs. Must be called inside a tokio runtime.
    pub async fn open(config: Config, images: Arc<images::Store>, network: Option<Arc<dyn cni::PodNetwork>>) -> Result<Self> {
        for directory in [config.data_dir.join("containers"), config.run_dir.join("sandboxes")] {
            std::fs::create_dir_all(&directory).map_err(io_error(format!("create {}", directory.display())))?;
        }
        let cgroups = cgroups::Root::detect(&config.cgroup_root)?;
        let inner = Inner {
            images,
            network,
            apparmor: crate::apparmor::Host::default(),
            sandboxes: Shelf::default(),
            containers: Shelf::default(),
            events: broadcast::channel(EVENTS_MAX).0,
            nursery: Nursery::default(),
            skeleton: Skeleton::make(&v1_controllers(&cgroups)),
            blocking: Semaphore::new(BLOCKING_MAX),
            cgroups,
            config,
        };
        let runtime = Self { inner: Arc::new(inner) };
        runtime.inner.clone().recover().await?;
        Ok(runtime)
    }

    /// Stops and removes every sandbox with its containers. The first error is returned, after all were tried.
    pub async fn remove_all(&self) -> Result<()> {
        let sandboxes = self.inner.sandboxes.all();
        let removals = sandboxes.iter().map(|sandbox| self.inner.remove_pod_sandbox(&sandbox.id));
        futures_util::future::join_all(removals).await.into_iter().collect()
    }

    /// Removes what belongs to the runtime once every sandbox is removed: its control group root and its directories.
    pub fn purge(&self) -> Result<()> {
        self.inner.cgroups.remove_all()?;
        for directory in [&self.inner.config.run_dir, &self.inner.config.data_dir] {
            std::fs::remove_dir_all(directory).map_err(io_error(format!("remove {}", directory.display())))?;
        }
        Ok(())
    }
}

impl Inner {
    /// Runs blocking work on a blocking thread, a bounded number at once.
    pub async fn blocking<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static) -> Result<T> {
        let _permit = self.blocking.acquire().await.map_err(|e| Error::Invalid(e.to_string()))?;
        let inner = self.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(|e| io_error("blocking work")(std::io::Error::other(e)))?
    }

    /// By id or an unambiguous beginning of it.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.sandboxes.find(id).ok_or_else(|| Error::NotFound(format!("an error occurred when try to find sandbox {id:?}: not found")))
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers.find(id).ok_or_else(|| Error::NotFound(format!("an error occurred when try to find container {id:?}: not found")))
    }

    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers.group(&sandbox_group(sandbox))
    }

    pub fn emit(&self, container: &str, sandbox: &str, kind: v1::ContainerEventType) {
        let event = Event { container: container.to_owned(), sandbox: sandbox.to_owned(), kind, at: crate::shim::now() };
        let _ = self.events.send(event);
    }

    /// A shim told that a container ended.
    pub fn exited(&self, id: &str, exit: Exit) {
        let Some(container) = self.containers.get(id) else { return };
        container.ended(&self.cgroups, exit);
        self.emit(id, &container.sandbox.id, v1::ContainerEventType::ContainerStoppedEvent);
    }
}

fn sandbox_group(sandbox: &str) -> String {
    format!("sandbox {sandbox}")
}

/// Sandboxes of one pod by what the pod is called, which must be unique.
pub(crate) fn uid_group(metadata: &v1::PodSandboxMetadata) -> String {
    format!("uid {}", metadata.uid)
}

pub(crate) fn cgroup_group(cgroup: &str) -> String {
    format!("cgroup {cgroup}")
}

impl Shelved for Sandbox {
    fn groups(&self) -> Vec<String> {
        let record = lock(&self.record);
        let config = record.config.as_ref();
        let uid = config.and_then(|config| config.metadata.as_ref()).map(uid_group);
        let pod = pod_group(config.and_then(|config| config.labels.get(LABEL_POD)));
        [pod, cgroup_group(&record.cgroup)].into_iter().chain(uid).collect()
    }
}

impl Shelved for Container {
    fn groups(&self) -> Vec<String> {
        let record = lock(&self.record);
        let pod = pod_group(record.config.as_ref().and_then(|config| config.labels.get(LABEL_POD)));
        vec![pod, sandbox_group(&self.sandbox.id)]
    }
}

impl Sandbox {
    pub fn connection(&self) -> Result<Arc<Connection>> {
        lock(&self.connection).clone().ok_or_else(|| Error::ShimGone(self.id.clone()))
    }

    /// Ready means: its shim serves and nobody has stopped it.
    pub fn is_ready(&self) -> bool {
        lock(&self.connection).is_some() && !lock(&self.record).stopped
    }

    pub fn save(&self) -> Result<()> {
        crate::record::save(&self.directory.join("record"), &*lock(&self.record)).map_err(io_error(format!("save sandbox {}", self.id)))
    }

    pub fn config(&self) -> v1::PodSandboxConfig {
        lock(&self.record).config.clone().unwrap_or_default()
    }

    /// The host's ids of its user namespace.
    pub fn ids(&self) -> Result<Option<IdRange>> {
        plan::ids(&self.namespaces()).map_err(Error::Invalid)
    }

    pub fn namespaces(&self) -> v1::NamespaceOption {
        let security = self.config().linux.and_then(|l| l.security_context);
        security.and_then(|s| s.namespace_options).unwrap_or_default()
    }
}

impl Container {
    pub fn config(&self) -> v1::ContainerConfig {
        lock(&self.record).config.clone().unwrap_or_default()
    }

    pub fn save(&self) -> Result<()> {
        crate::record::save(&self.directory.join("record"), &*lock(&self.record)).map_err(io_error(format!("save container {}", self.id)))
    }

    pub fn ended(&self, root: &cgroups::Root, exit: Exit) {
        let out_of_memory = root.open(&lock(&self.record).cgroup).is_ok_and(|group| group.oom_kills() > 0);
        self.life.send_modify(|life| {
            // A container ends once: what was said first was said by who knew most.
            if life.exit.is_some() {
                return;
            }
            life.out_of_memory = out_of_memory && exit.code != 0;
            life.started_at = if exit.started_at != 0 { exit.started_at } else { life.started_at };
            life.exit = Some(exit);
        });
    }

    /// Waits for the exit.
    pub async fn wait(&self) -> Exit {
        let mut life = self.life.subscribe();
        match life.wait_for(|life| life.exit.is_some()).await {
            Ok(life) => life.exit.clone().unwrap_or_default(),
            Err(_) => Exit::default(),
        }
    }
}
