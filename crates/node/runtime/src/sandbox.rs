//! Pod sandboxes: run, stop, remove, tell.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::v1;

use crate::connection::{self, Connection};
use crate::protocol::{Exit, Request, Setup};
use crate::record::SandboxRecord;
use crate::state::{Inner, Sandbox, cgroup_group, lock, new_id, uid_group};
use crate::{Error, Result, host_ports, io_error, plan, shim};

/// The pod's `/dev/shm`, as containerd sizes it.
const SHM_BYTES: u64 = 64 << 20;
/// Names by which a RuntimeClass may ask for this runtime: none, its own, and that of the plain runtime elsewhere.
pub const HANDLERS: &[&str] = &["", "sternpost", "runc"];
/// Does this kernel make any?
pub fn has_user_namespaces() -> bool {
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    most.is_ok_and(|most| most.trim() != "0")
}

/// For the exits of killed containers to arrive before their shim goes.
const KILL_WAIT: Duration = Duration::from_secs(10);

impl Inner {
    pub async fn run_pod_sandbox(self: &Arc<Self>, request: v1::RunPodSandboxRequest) -> Result<String> {
        let config = request.config.ok_or_else(|| Error::Invalid("sandbox config must not be nil".into()))?;
        if config.metadata.is_none() {
            return Err(Error::Invalid("sandbox config must include metadata".into()));
        }
        let is_external = self.config.handlers.contains_key(&request.runtime_handler);
        if !is_external && !HANDLERS.contains(&request.runtime_handler.as_str()) {
            return Err(Error::Invalid(format!("no runtime for {:?} is configured", request.runtime_handler)));
        }
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let namespaces = security.and_then(|security| security.namespace_options.clone()).unwrap_or_default();
        plan::ids(&namespaces).map_err(Error::Invalid)?;
        self.refuse_duplicate(&config)?;
        let ports: &[v1::PortMapping] = if namespaces.network() == v1::NamespaceMode::Node { &[] } else { &config.port_mappings };
        if let Some(why) = host_ports::taken(ports) {
            return Err(Error::PortTaken(why));
        }
        let id = new_id()?;
        let directory = self.config.run_dir.join("sandboxes").join(&id);
        let parent = config.linux.as_ref().map(|l| l.cgroup_parent.as_str()).unwrap_or_default();
        let cgroup = if parent.is_empty() { format!("pods/{id}") } else { parent.to_owned() };
        let result = self.start_sandbox(&id, &directory, config, cgroup.clone(), request.runtime_handler).await;
        if result.is_err() {
            self.clear_sandbox(&id, &directory).await;
            let _ = self.blocking(move |inner| Ok(inner.remove_pod_cgroup(&cgroup))).await;
        }
        result.map(|()| id)
    }

    fn refuse_duplicate(&self, config: &v1::PodSandboxConfig) -> Result<()> {
        let same_pod = config.metadata.as_ref().map(|metadata| self.sandboxes.group(&uid_group(metadata))).unwrap_or_default();
        let taken =
            same_pod.into_iter().find(|s| lock(&s.record).config.as_ref().and_then(|c| c.metadata.as_ref()) == config.metadata.as_ref());
        match (taken, &config.metadata) {
            (Some(sandbox), Some(m)) => {
                let name = format!("{}_{}_{}_{}", m.name, m.namespace, m.uid, m.attempt);
                Err(Error::Invalid(format!("failed to reserve sandbox name {name:?}: name {name:?} is reserved for {:?}", sandbox.id)))
            }
            _ => Ok(()),
        }
    }

    async fn start_sandbox(
        self: &Arc<Self>,
        id: &str,
        directory: &Path,
        config: v1::PodSandboxConfig,
        cgroup: String,
        runtime_handler: String,
    ) -> Result<()> {
        let connection = {
            let (id, directory, config, cgroup) = (id.to_owned(), directory.to_owned(), config.clone(), cgroup.clone());
            self.blocking(move |inner| inner.prepare_sandbox(&id, &directory, &config, &cgroup)).await?
        };
        let record = SandboxRecord {
            id: id.to_owned(),
            config: Some(config.clone()),
            created_at: shim::now(),
            cgroup,
            runtime_handler,
            ..Default::default()
        };
        let sandbox = Arc::new(Sandbox {
            id: id.to_owned(),
            directory: directory.to_owned(),
            record: Mutex::new(record),
            connection: Mutex::new(Some(connection.clone())),
            users: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        });
        self.listen(&sandbox, connection.clone());
        let setup = setup(&config)?;
        let (own_network, own_users) = (setup.network_namespace, setup.users.is_some());
        let (_, descriptors) = connection.call(Request::Setup(setup), &[]).await?;
        let mut descriptors = descriptors.into_iter();
        let netns = descriptors.next().ok_or_else(|| Error::ShimGone(id.to_owned()))?;
        *lock(&sandbox.users) = if own_users { descriptors.next().map(Arc::new) } else { None };
        if own_network {
            let addresses = self.attach_network(id, netns, descriptors.next(), &config.annotations).await?;
            lock(&sandbox.record).addresses = addresses;
        }
        sandbox.save()?;
        self.sandboxes.insert(id, sandbox);
        Ok(())
    }

    /// Directories, files, control group and the shim process.
    fn prepare_sandbox(&self, id: &str, directory: &Path, config: &v1::PodSandboxConfig, cgroup: &str) -> Result<Arc<Connection>> {
        let step = |what: &str| io_error(format!("{what} of sandbox {id}"));
        std::fs::create_dir_all(directory).map_err(step("directory"))?;
        if let Some(dns) = &config.dns_config {
            std::fs::write(directory.join("resolv.conf"), plan::resolv_conf(dns)).map_err(step("resolv.conf"))?;
        } else {
            std::fs::copy("/etc/resolv.conf", directory.join("resolv.conf"))
                .map(drop)
                .or_else(|_| std::fs::write(directory.join("resolv.conf"), ""))
                .map_err(step("resolv.conf"))?;
        }
        std::fs::write(directory.join("hostname"), format!("{}\n", config.hostname)).map_err(step("hostname"))?;
        if !config.log_directory.is_empty() {
            std::fs::create_dir_all(&config.log_directory).map_err(step("log directory"))?;
        }
        let mut group = self.cgroups.create(cgroup)?;
        if let Some(resources) = config.linux.as_ref().and_then(|l| l.resources.as_ref()) {
            group.set(&plan::limits(resources))?;
        }
        let socket = connection::listen(directory).map_err(step("socket"))?;
        let log = std::fs::File::create(directory.join("shim.log")).map_err(step("shim log"))?;
        self.nursery.spawn(&self.config.exe, &self.config.cgroup_root, directory, socket, log.into()).map_err(step("shim"))?;
        Connection::open(id, directory).map_err(step("connection"))
    }

    /// The task that reads a shim's socket until it is gone.
    pub fn listen(self: &Arc<Self>, sandbox: &Arc<Sandbox>, connection: Arc<Connection>) {
        let (inner, sandbox) = (Arc::downgrade(self), Arc::downgrade(sandbox));
        tokio::spawn(async move {
            let events = inner.clone();
            connection
                .run(move |container, exit| {
                    if let Some(inner) = events.upgrade() {
                        inner.exited(&container, exit);
                    }
                })
                .await;
            let (Some(inner), Some(sandbox)) = (inner.upgrade(), sandbox.upgrade()) else { return };
            lock(&sandbox.connection).take();
            // The end of a connection is not the end of a shim: it lets go of a daemon that does not read, or that another one followed.
            let stopped = lock(&sandbox.record).stopped;
            match if stopped { None } else { inner.adopt(&sandbox).await } {
                Some(running) => running.into_iter().for_each(|running| inner.adopt_container(running)),
                None => inner.shim_gone(&sandbox).await,
            }
        });
    }

    /// Without its shim a pod cannot be watched any more: what is left of it is killed, and its containers have ended.
    pub async fn shim_gone(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        for container in self.containers_of(&sandbox.id) {
            let cgroup = lock(&container.record).cgroup.clone();
            let killed = move |inner: &Arc<Self>| {
                let group = inner.cgroups.open(&cgroup)?;
                group.kill()?;
                // Nobody else sees its processes end.
                group.wait_empty(KILL_WAIT);
                Ok(())
            };
            let _ = self.blocking(killed).await;
            let life = container.life.borrow().clone();
            if life.exit.is_none() && life.pid.is_some() {
                let exit = crate::record::load_exit(&container.directory).unwrap_or_else(|| Exit::unknown(life.started_at));
                self.exited(&container.id, exit);
            }
        }
    }

    /// `inside`: an rtnetlink socket of the namespace.
    async fn attach_network(
        self: &Arc<Self>,
        id: &str,
        netns: OwnedFd,
        inside: Option<OwnedFd>,
        annotations: &HashMap<String, String>,
    ) -> Result<Vec<String>> {
        let Some(network) = self.network.clone() else { return Ok(Vec::new()) };
        let id = id.to_owned();
        let bandwidth = cni::Bandwidth::of(annotations).map_err(Error::Invalid)?;
        let attach = move || {
            let attachment = match inside {
                Some(inside) => network.attach_through(&id, netns.as_fd(), inside)?,
                None => network.attach(&id, netns.as_fd())?,
            };
            network.limit(&id, netns.as_fd(), bandwidth)?;
            Ok(attachment)
        };
        let attachment = self.blocking(move |_| attach()).await?;
        Ok(attachment.addresses.iter().map(ToString::to_string).collect())
    }

    pub async fn stop_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _changing = sandbox.changing.lock().await;
        let containers = self.containers_of(&sandbox.id);
        for container in &containers {
            if container.life.borrow().state() == v1::ContainerState::ContainerRunning {
                self.kill_container(container).await?;
            }
        }
        for container in containers.iter().filter(|c| c.life.borrow().pid.is_some()) {
            let _ = tokio::time::timeout(KILL_WAIT, container.wait()).await;
        }
        if let Ok(connection) = sandbox.connection() {
            let _ = connection.call(Request::Shutdown, &[]).await;
        }
        lock(&sandbox.record).stopped = true;
        sandbox.save()?;
        if let Some(network) = self.network.clone() {
            let id = sandbox.id.clone();
            self.blocking(move |_| Ok(network.detach(&id)?)).await?;
        }
        Ok(())
    }

    pub async fn remove_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        self.stop_pod_sandbox(&sandbox.id).await?;
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(&container.id).await?;
        }
        let _changing = sandbox.changing.lock().await;
        let (directory, cgroup) = (sandbox.directory.clone(), lock(&sandbox.record).cgroup.clone());
        self.blocking(move |_| remove_directory(&directory)).await?;
        self.sandboxes.remove(&sandbox.id);
        self.blocking(move |inner| Ok(inner.remove_pod_cgroup(&cgroup))).await
    }

    /// A pod's group goes with its last sandbox: a newer attempt of the same pod lives in the same group.
    fn remove_pod_cgroup(&self, cgroup: &str) {
        if self.sandboxes.has_group(&cgroup_group(cgroup)) {
            return;
        }
        if let Err(error) = self.cgroups.open(cgroup).and_then(|group| group.remove()) {
            tracing::warn!(%error, "cannot remove a pod's control group");
        }
    }

    /// Undoes a sandbox that did not come to be, or that an earlier daemon left half-made.
    pub async fn clear_sandbox(self: &Arc<Self>, id: &str, directory: &Path) {
        if let Ok(connection) = Connection::open(id, directory) {
            let reader = tokio::spawn(connection.clone().run(|_, _| ()));
            let _ = tokio::time::timeout(KILL_WAIT, connection.call(Request::Shutdown, &[])).await;
            reader.abort();
        }
        let (network, id, directory) = (self.network.clone(), id.to_owned(), directory.to_owned());
        let cleared = self.blocking(move |_| {
            if let Some(network) = network {
                network.detach(&id)?;
            }
            remove_directory(&directory)
        });
        if let Err(error) = cleared.await {
            tracing::warn!(%error, "cannot clear a sandbox");
        }
    }

    pub fn sandbox_status(&self, sandbox: &Sandbox) -> v1::PodSandboxStatus {
        let record = lock(&sandbox.record).clone();
        let config = record.config.clone().unwrap_or_default();
        let mut addresses = record.addresses.into_iter();
        let network = v1::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
        };
        v1::PodSandboxStatus {
            id: record.id,
            metadata: config.metadata,
            state: sandbox_state(sandbox) as i32,
            created_at: record.created_at,
            network: Some(network),
            linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(sandbox.namespaces()) }) }),
            labels: config.labels,
            annotations: config.annotations,
            runtime_handler: record.runtime_handler,
        }
    }

    pub fn list_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let filter = filter.unwrap_or_default();
        let wanted = |sandbox: &Arc<Sandbox>| {
            (filter.id.is_empty() || sandbox.id.starts_with(&filter.id))
                && filter.state.is_none_or(|state| state.state == sandbox_state(sandbox) as i32)
                && lock(&sandbox.record)
                    .config
                    .as_ref()
                    .map_or(filter.label_selector.is_empty(), |c| plan::labels_match(&filter.label_selector, &c.labels))
        };
        // Filtered before anything is copied.
        self.sandboxes.candidates(&filter.label_selector).iter().filter(|s| wanted(s)).map(|s| list_entry(s)).collect()
    }
}

fn list_entry(sandbox: &Sandbox) -> v1::PodSandbox {
    let state = sandbox_state(sandbox) as i32;
    let record = lock(&sandbox.record);
    let config = record.config.clone().unwrap_or_default();
    v1::PodSandbox {
        id: record.id.clone(),
        metadata: config.metadata,
        state,
        created_at: record.created_at,
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: record.runtime_handler.clone(),
    }
}

fn sandbox_state(sandbox: &Sandbox) -> v1::PodSandboxState {
    if sandbox.is_ready() { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
}

fn setup(config: &v1::PodSandboxConfig) -> Result<Setup> {
    let linux = config.linux.clone().unwrap_or_default();
    let options = linux.security_context.and_then(|s| s.namespace_options).unwrap_or_default();
    let node = v1::NamespaceMode::Node as i32;
    let users = plan::ids(&options).map_err(Error::Invalid)?;
    Ok(Setup {
        hostname: config.hostname.clone(),
        network_namespace: options.network != node,
        ipc_namespace: options.ipc != node,
        shared_pid_namespace: options.pid == v1::NamespaceMode::Pod as i32,
        sysctls: linux.sysctls.into_iter().collect(),
        shm_bytes: SHM_BYTES,
        users,
    })
}

pub(crate) fn remove_directory(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error(format!("remove {}", directory.display()))(error)),
        _ => Ok(()),
    }
}
