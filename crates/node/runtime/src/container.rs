//! Containers: create, start, stop, remove, tell.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::v1;
use oci::{PidNamespace, in_root};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::cdi;
use crate::plan::{self, CgroupView, Surroundings, Volume};
use crate::protocol::{Exit, Reply, Request, Start};
use crate::record::{self, ContainerRecord};
use crate::sandbox::remove_directory;
use crate::state::{Container, Inner, Life, Sandbox, lock, new_id, v1_controllers};
use crate::{Error, Result, io_error, shim};

/// What containerd gives a container that never ran.
const START_ERROR_CODE: i32 = 128;
/// A process that survives SIGKILL for so long hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(60);

/// Everything that a start needs, opened by the daemon.
struct Prepared {
    start: Start,
    descriptors: Vec<OwnedFd>,
}

impl Inner {
    pub async fn create_container(self: &Arc<Self>, request: v1::CreateContainerRequest) -> Result<String> {
        let config = request.config.ok_or_else(|| Error::Invalid("container config must not be nil".into()))?;
        let metadata = config.metadata.clone().ok_or_else(|| Error::Invalid("container config must include metadata".into()))?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(Error::Invalid(format!("sandbox container {:?} is not running", sandbox.id)));
        }
        let name = config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        let image = self.images.resolve(&name).ok_or_else(|| Error::NotFound(format!("failed to resolve image {name:?}: not found")))?;
        let gone = || Error::NotFound(format!("failed to resolve image {name:?}: not found"));
        let lease = self.images.lease(&image.id).ok_or_else(gone)?;
        if plan::args(&config, &image.config).is_empty() {
            return Err(Error::Invalid("failed to generate container spec: no command specified".into()));
        }
        if let Some(other) = self
            .containers_of(&sandbox.id)
            .iter()
            .find(|c| lock(&c.record).config.as_ref().and_then(|c| c.metadata.as_ref()) == Some(&metadata))
        {
            return Err(Error::Invalid(format!("failed to reserve container name {:?}: it is reserved for {:?}", metadata.name, other.id)));
        }
        self.device_edits(&config)?;
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        security.map_or(Ok(None), |security| self.apparmor.profile(security)).map_err(Error::Invalid)?;
        let id = new_id()?;
        let log_directory = sandbox.config().log_directory;
        let log_path = if config.log_path.is_empty() || log_directory.is_empty() {
            String::new()
        } else {
            Path::new(&log_directory).join(&config.log_path).display().to_string()
        };
        let record = ContainerRecord {
            id: id.clone(),
            sandbox: sandbox.id.clone(),
            created_at: shim::now(),
            image_id: image.id.clone(),
            image_ref: image.reference(),
            log_path,
            cgroup: format!("{}/{id}", lock(&sandbox.record).cgroup),
            stop_signal: plan::stop_signal(&config, &image.config),
            config: Some(config),
            ..Default::default()
        };
        let directory = sandbox.directory.join(&id);
        let container = Container {
            id: id.clone(),
            directory: directory.clone(),
            record: Mutex::new(record),
            lease: Mutex::new(Some(lease)),
            volume_leases: Mutex::default(),
            life: tokio::sync::watch::channel(Life::default()).0,
            changing: tokio::sync::Mutex::default(),
            sandbox: sandbox.clone(),
        };
        let container = self
            .blocking(move |_| {
                std::fs::create_dir_all(&directory).map_err(io_error(format!("create {}", directory.display())))?;
                container.save()?;
                Ok(container)
            })
            .await?;
        self.containers.insert(&id, Arc::new(container));
        self.emit(&id, &sandbox.id, v1::ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _changing = container.changing.lock().await;
        let state = container.life.borrow().state();
        if state != v1::ContainerState::ContainerCreated {
            return Err(Error::Invalid(format!("container {:?} is in {} state", container.id, state.as_str_name())));
        }
        match self.launch(&container).await {
            Ok(started_at) => {
                container.life.send_modify(|life| life.started_at = started_at);
                self.emit(&container.id, &container.sandbox.id, v1::ContainerEventType::ContainerStartedEvent);
                Ok(())
            }
            Err(error) => {
                let message = match &error {
                    Error::Launch(failure) => format!(
                        "failed to create containerd task: failed to create shim task: OCI runtime create failed: unable to start container process: {failure}"
                    )
                    .replace("containerd task: failed to create shim task", "task"),
                    other => format!("failed to create task: {other}"),
                };
                let (at, reason) = (shim::now(), "StartError".to_owned());
                let exit = Exit { code: START_ERROR_CODE, started_at: 0, finished_at: at, reason, message: message.clone() };
                let _ = record::save_exit(&container.directory, &exit);
                // Where the answer was lost, it may run all the same.
                let cgroup = lock(&container.record).cgroup.clone();
                let _ = self.blocking(move |inner| Ok(inner.cgroups.open(&cgroup)?.kill()?)).await;
                container.ended(&self.cgroups, exit);
                self.emit(&container.id, &container.sandbox.id, v1::ContainerEventType::ContainerStoppedEvent);
                Err(match error {
                    Error::ShimGone(_) => error,
                    _ => io_error(format!("failed to start container {:?}", container.id))(std::io::Error::other(message)),
                })
            }
        }
    }

    async fn launch(self: &Arc<Self>, container: &Arc<Container>) -> Result<i64> {
        let connection = container.sandbox.connection()?;
        let target = container.clone();
        let prepared = self.blocking(move |inner| inner.prepare(&target)).await?;
        let borrowed: Vec<BorrowedFd<'_>> = prepared.descriptors.iter().map(AsFd::as_fd).collect();
        match connection.call(Request::Start(Box::new(prepared.start)), &borrowed).await? {
            (Reply::Started { pid, started_at }, _) => {
                container.life.send_modify(|life| life.pid = Some(pid));
                Ok(started_at)
            }
            (reply, _) => Err(Error::Invalid(format!("the shim answered {reply:?}"))),
        }
    }

    fn device_edits(&self, config: &v1::ContainerConfig) -> Result<cdi::Edits> {
        let names: Vec<String> = config.cdi_devices.iter().map(|device| device.name.clone()).collect();
        cdi::resolve(&self.config.cdi_dirs, &names).map_err(Error::Invalid)
    }

    /// Control group, root, volumes, log, and the spec that refers to them.
    fn prepare(&self, container: &Container) -> Result<Prepared> {
        let record = lock(&container.record).clone();
        let mut config = record.config.clone().unwrap_or_default();
        let edits = self.device_edits(&config)?;
        config.mounts.extend(edits.mounts.iter().map(edit_mount));
        let linux = config.linux.clone().unwrap_or_default();
        let security = linux.security_context.clone().unwrap_or_default();
        let gone = || Error::NotFound(format!("image {} is gone", record.image_id));
        let (image, layers) = lock(&container.lease).as_ref().map(|lease| (lease.config().clone(), lease.layers())).ok_or_else(gone)?;
        let mut devices = devices(&config, security.privileged)?;
        devices.extend(edits.device_nodes.iter().map(edit_device).collect::<Result<Vec<_>>>()?);
        let group = self.prepare_cgroup(&record.cgroup, linux.resources.as_ref(), plan::device_rules(security.privileged, &devices))?;
        let users = container.sandbox.users()?;
        let external = self.external(container, &record.cgroup, security.privileged)?;
        let mounts = with_pod_files(&config.mounts, &container.sandbox, security.readonly_rootfs);
        let layers = if external.is_some() { layers } else { self.with_mountpoints(layers, &mounts) };
        // First of all mounts, so that it is the first in the container's table, where some programs look for it.
        let rootfs = self.mount_root(&container.id, &layers, users.as_ref())?;
        let (volumes, mut trees) = self.open_volumes(container, &mounts, users.as_ref())?;
        let mut identity = identity(&rootfs, &security, &image)?;
        identity.user.groups.extend(&edits.additional_gids);
        let sandbox_config = container.sandbox.config();
        let (bounding, ambient) = plan::capability_masks(&security).map_err(Error::Invalid)?;
        let mut process = oci::Process {
            args: plan::args(&config, &image),
            env: plan::env(&config, &image, &sandbox_config.hostname, &identity.home),
            cwd: [&config.working_dir, &image.working_dir].into_iter().find(|d| !d.is_empty()).cloned().unwrap_or_else(|| "/".into()),
            terminal: config.tty,
            user: identity.user,
            bounding,
            ambient,
            seccomp: plan::default_filter(&security),
            seccomp_profile: plan::own_filter(&security).map_err(Error::Invalid)?,
            apparmor: self.apparmor.profile(&security).map_err(Error::Invalid)?,
            no_new_privileges: security.no_new_privs && !security.privileged,
            rlimits: Vec::new(),
            oom_score_adj: Some(linux.resources.as_ref().map_or(0, |r| r.oom_score_adj as i32)),
            umask: None,
        };
        process.env.extend(edits.env);
        self.remember_process(container, &process)?;
        let namespaces = security.namespace_options.clone().unwrap_or_default();
        let device_mounts =
            users.as_ref().map(|_| open_devices(&config, security.privileged, &edits.device_nodes, &mut trees)).transpose()?;
        let (pid, pid_target) = pid_namespace(&namespaces);
        let host_ipc = namespaces.ipc == v1::NamespaceMode::Node as i32;
        let is_own = external.is_none() && !security.privileged;
        let cgroups = self.cgroup_view(&group, is_own, &mut trees).map_err(io_error(format!("show {} its group", container.id)))?;
        let empty = self.skeleton.empty().filter(|_| is_own).map(|tree| {
            trees.push(tree);
            trees.len() - 1
        });
        let spec = plan::spec(&config, Surroundings { process, pid, host_ipc, volumes, devices, cgroups, device_mounts, empty });
        let join = group.join_fds()?;
        let (birthplace, kill) = (group.birthplace(), group.kill_fd());
        let start = Start {
            container: container.id.clone(),
            spec,
            pid_target,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            trees: trees.len(),
            join: join.len(),
            birthplace: birthplace.is_some(),
            kill: kill.is_some(),
            external,
        };
        let host = start.external.as_ref().map(|_| File::open("/proc/self/ns/mnt")).transpose();
        let host = host.map_err(io_error("open the mount namespace"))?.map(OwnedFd::from);
        let log = open_log(&record.log_path)?;
        let descriptors = [rootfs, log].into_iter().chain(trees).chain(join).chain(birthplace).chain(kill).chain(host).collect();
        Ok(Prepared { start, descriptors })
    }

    /// What the container sees of the control groups. Mounts of v1 hierarchies that are bound to its own group where they may be, for each new one
    /// makes the kernel visit every group of the machine.
    fn cgroup_view(&self, group: &cgroups::Cgroup, bound: bool, trees: &mut Vec<OwnedFd>) -> std::io::Result<CgroupView> {
        let controllers = v1_controllers(&self.cgroups);
        if controllers.is_empty() {
            return Ok(CgroupView::Unified);
        }
        let Some(base) = self.skeleton.cgroup().filter(|_| bound) else { return Ok(CgroupView::New(controllers)) };
        let mut add = |tree: OwnedFd| {
            trees.push(tree);
            trees.len() - 1
        };
        let base = add(base);
        let mut bound = Vec::with_capacity(controllers.len());
        for (controller, directory) in group.v1_directories() {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
            bound.push((controller.to_owned(), add(open_tree(directory, "", flags)?)));
        }
        Ok(CgroupView::Bound(base, bound))
    }

    /// The program that the pod's handler stands for, with a bundle for it to find, where it is not this one.
    fn external(&self, container: &Container, cgroup: &str, all_devices: bool) -> Result<Option<oci::External>> {
        let handler = lock(&container.sandbox.record).runtime_handler.clone();
        let Some(program) = self.config.handlers.get(&handler) else {
            // A handler that was taken from the configuration is not quietly another one.
            let is_own = crate::sandbox::HANDLERS.contains(&handler.as_str());
            return if is_own { Ok(None) } else { Err(Error::Invalid(format!("no runtime for {handler:?} is configured"))) };
        };
        let bundle = container.directory.join("bundle");
        for part in ["rootfs", "mounts"] {
            std::fs::create_dir_all(bundle.join(part)).map_err(io_error(format!("create {}", bundle.display())))?;
        }
        Ok(Some(oci::External {
            program: program.display().to_string(),
            id: container.id.clone(),
            bundle: bundle.display().to_string(),
            cgroup: format!("/{}/{cgroup}", self.config.cgroup_root),
            all_devices,
            ids: container.sandbox.ids()?.map(|range| (range.first, range.length)),
        }))
    }

    fn prepare_cgroup(
        &self,
        path: &str,
        resources: Option<&v1::LinuxContainerResources>,
        devices: Vec<cgroups::DeviceRule>,
    ) -> Result<cgroups::Cgroup> {
        let mut group = self.cgroups.create(path)?;
        let limits = resources.map(plan::limits).unwrap_or_default();
        group.set(&cgroups::Limits { devices: Some(devices), ..limits })?;
        Ok(group)
    }

    /// The user and the process description, for status and exec.
    fn remember_process(&self, container: &Container, process: &oci::Process) -> Result<()> {
        let user = &process.user;
        let text = serde_json::to_string(process).map_err(|e| Error::Invalid(e.to_string()))?;
        let mut record = lock(&container.record);
        record.process = text;
        record.user = Some(v1::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            // The primary group is among them.
            supplemental_groups: user.groups.iter().copied().map(i64::from).collect(),
        });
        drop(record);
        container.save()
    }

    /// The image's layers above one with what will be mounted on. Without it the container's own layer gets that, as it does for everything else.
    fn with_mountpoints(&self, layers: Vec<PathBuf>, mounts: &[v1::Mount]) -> Vec<PathBuf> {
        let own = ["/dev", "/proc", "/sys"].map(|path| (path, true));
        let targets = mounts.iter().map(|mount| (mount.container_path.as_str(), Path::new(&mount.host_path).is_dir())).chain(own);
        match crate::mountpoints::layer(&self.config.data_dir, targets) {
            Ok(layer) => std::iter::once(layer).chain(layers).collect(),
            Err(error) => {
                tracing::warn!(%error, "make the layer of mount points");
                layers
            }
        }
    }

    /// The image's layers below a writable one, as a mount that is attached nowhere: it lives as long as somebody holds it.
    fn mount_root(&self, id: &str, layers: &[PathBuf], users: Option<&Users>) -> Result<OwnedFd> {
        let directory = self.config.data_dir.join("containers").join(id);
        let (upper, work) = (directory.join("upper"), directory.join("work"));
        let mount = || -> std::io::Result<OwnedFd> {
            std::fs::create_dir_all(&upper)?;
            std::fs::create_dir_all(&work)?;
            let (layers, _held) = Users::layers(users, layers)?;
            if let Some(users) = users {
                // What is written belongs to the pod's ids on the disk, too: it goes with the container.
                std::os::unix::fs::chown(&upper, Some(users.first), Some(users.first))?;
            }
            let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(&context, "source", "overlay")?;
            set_lower(&context, &layers)?;
            fsconfig_set_string(&context, "upperdir", &upper)?;
            fsconfig_set_string(&context, "workdir", &work)?;
            fsconfig_create(&context)?;
            Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
        };
        mount().map_err(io_error(format!("mount the root of container {id}")))
    }

    /// An image's files as a detached tree, held by a lease as long as the container is there (KEP-4639).
    fn open_image(&self, container: &Container, image: &v1::ImageSpec, sub: &str, users: Option<&Users>) -> Result<(OwnedFd, bool)> {
        let gone = || Error::NotFound(format!("failed to resolve image {:?}: not found", image.image));
        let lease = self.images.resolve(&image.image).and_then(|found| self.images.lease(&found.id)).ok_or_else(gone)?;
        let layers = lease.layers();
        lock(&container.volume_leases).push(lease);
        let open = || -> std::io::Result<(OwnedFd, bool)> {
            let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let (layers, mut mapped) = Users::layers(users, &layers)?;
            let tree = match layers.as_slice() {
                // overlayfs takes no single layer without a writable one.
                [only] => mapped.pop().map_or_else(|| Ok(open_tree(CWD, only, clone)?), Ok::<_, std::io::Error>)?,
                layers => {
                    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
                    set_lower(&context, layers)?;
                    fsconfig_create(&context)?;
                    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?
                }
            };
            if sub.is_empty() {
                return Ok((tree, true));
            }
            let found = in_root::open(&tree, sub, rustix::fs::OFlags::PATH)?;
            let directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == rustix::fs::FileType::Directory;
            Ok((open_tree(&found, "", clone | OpenTreeFlags::AT_EMPTY_PATH)?, directory))
        };
        open().map_err(io_error(format!("mount image {:?} {sub}", image.image)))
    }

    /// Opens each volume's source as a detached tree, in the host's mount namespace.
    fn open_volumes<'a>(
        &self,
        container: &Container,
        mounts: &'a [v1::Mount],
        users: Option<&Users>,
    ) -> Result<(Vec<Volume<'a>>, Vec<OwnedFd>)> {
        let mut volumes = Vec::with_capacity(mounts.len());
        let mut trees = Vec::with_capacity(mounts.len());
        for mount in mounts {
            if let Some(image) = mount.image.as_ref().filter(|image| !image.image.is_empty()) {
                let (tree, directory) = self.open_image(container, image, &mount.image_sub_path, users)?;
                volumes.push(Volume { mount, directory });
                trees.push(tree);
                continue;
            }
            let open = || -> std::io::Result<(OwnedFd, bool)> {
                let path = Path::new(&mount.host_path);
                if !path.exists() {
                    // As Docker and containerd do for a bind mount of nothing.
                    std::fs::create_dir_all(path)?;
                }
                let directory = path.is_dir();
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
                let tree = open_tree(CWD, path, flags)?;
                users.map_or(Ok(()), |users| users.map(&tree))?;
                Ok((tree, directory))
            };
            let (tree, directory) = open().map_err(io_error(format!("mount {:?} at {:?}", mount.host_path, mount.container_path)))?;
            volumes.push(Volume { mount, directory });
            trees.push(tree);
        }
        Ok((volumes, trees))
    }

    /// Sends the stop signal, waits `timeout` seconds, kills.
    pub async fn stop_container(self: &Arc<Self>, id: &str, timeout: i64) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        if container.life.borrow().state() != v1::ContainerState::ContainerRunning {
            return Ok(());
        }
        if timeout > 0 {
            let signal = lock(&container.record).stop_signal;
            let request = Request::Signal { container: container.id.clone(), signal };
            // A container that is gone in this moment is what was wanted.
            let _ = container.sandbox.connection()?.call(request, &[]).await;
            if tokio::time::timeout(Duration::from_secs(timeout as u64), container.wait()).await.is_ok() {
                return Ok(());
            }
        }
        self.kill_container(&container).await?;
        match tokio::time::timeout(KILL_WAIT, container.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Timeout(format!("an error occurs during waiting for container {:?} to be killed", container.id))),
        }
    }

    /// SIGKILL to all of it at once.
    pub async fn kill_container(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let cgroup = lock(&container.record).cgroup.clone();
        self.blocking(move |inner| Ok(inner.cgroups.open(&cgroup)?.kill()?)).await?;
        if let Ok(connection) = container.sandbox.connection() {
            let _ = connection.call(Request::Signal { container: container.id.clone(), signal: libc::SIGKILL }, &[]).await;
        }
        Ok(())
    }

    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let _changing = container.changing.lock().await;
        if container.life.borrow().state() == v1::ContainerState::ContainerRunning {
            self.kill_container(&container).await?;
            let _ = tokio::time::timeout(KILL_WAIT, container.wait()).await;
        }
        let was_started = container.life.borrow().pid.is_some();
        if let (Ok(connection), true) = (container.sandbox.connection(), was_started) {
            let _ = connection.call(Request::Forget { container: container.id.clone() }, &[]).await;
        }
        let (cgroup, directory, id) = (lock(&container.record).cgroup.clone(), container.directory.clone(), container.id.clone());
        self.blocking(move |inner| {
            let group = inner.cgroups.open(&cgroup)?;
            group.kill()?;
            group.remove()?;
            // The record goes last: until then a restarted daemon knows what is left to remove.
            remove_directory(&inner.config.data_dir.join("containers").join(&id))?;
            remove_directory(&directory)
        })
        .await?;
        lock(&container.lease).take();
        lock(&container.volume_leases).clear();
        self.containers.remove(&container.id);
        self.emit(&container.id, &container.sandbox.id, v1::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    pub async fn update_resources(self: &Arc<Self>, id: &str, resources: v1::LinuxContainerResources) -> Result<()> {
        let container = self.container(id)?;
        let cgroup = lock(&container.record).cgroup.clone();
        let limits = plan::limits(&resources);
        self.blocking(move |inner| Ok(inner.cgroups.create(&cgroup)?.set(&limits)?)).await?;
        let mut record = lock(&container.record);
        if let Some(config) = record.config.as_mut() {
            merge_resources(config.linux.get_or_insert_default().resources.get_or_insert_default(), resources);
        }
        drop(record);
        container.save()
    }

    /// The group of the whole pod.
    pub async fn update_sandbox_resources(self: &Arc<Self>, request: v1::UpdatePodSandboxResourcesRequest) -> Result<()> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let Some(resources) = request.resources else { return Ok(()) };
        let cgroup = lock(&sandbox.record).cgroup.clone();
        let mut limits = plan::limits(&resources);
        // What was limited may be unlimited now.
        limits.memory = limits.memory.or(Some(-1));
        limits.cpu_quota = limits.cpu_quota.or(Some(-1));
        self.blocking(move |inner| Ok(inner.cgroups.open(&cgroup)?.set(&limits)?)).await?;
        let mut record = lock(&sandbox.record);
        if let Some(config) = record.config.as_mut() {
            config.linux.get_or_insert_default().resources = Some(resources);
        }
        drop(record);
        sandbox.save()
    }

    pub async fn reopen_log(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if container.life.borrow().state() != v1::ContainerState::ContainerRunning {
            return Err(Error::Invalid("container is not running".into()));
        }
        let file = open_log(&lock(&container.record).log_path)?;
        let request = Request::ReopenLog { container: container.id.clone() };
        container.sandbox.connection()?.call(request, &[file.as_fd()]).await.map(drop)
    }

    pub fn container_status(&self, container: &Container) -> v1::ContainerStatus {
        let life = container.life.borrow().clone();
        let record = lock(&container.record).clone();
        let config = record.config.unwrap_or_default();
        let resources = config.linux.as_ref().and_then(|l| l.resources.clone());
        v1::ContainerStatus {
            id: record.id,
            metadata: config.metadata,
            state: life.state() as i32,
            created_at: record.created_at,
            started_at: life.started_at,
            finished_at: life.exit.as_ref().map_or(0, |e| e.finished_at),
            exit_code: life.exit.as_ref().map_or(0, |e| e.code),
            reason: life.reason(),
            message: life.exit.map(|e| e.message).unwrap_or_default(),
            image: config.image,
            image_ref: record.image_ref,
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            log_path: record.log_path,
            resources: Some(v1::ContainerResources { linux: resources, windows: None }),
            image_id: record.image_id,
            user: record.user.map(|linux| v1::ContainerUser { linux: Some(linux) }),
            stop_signal: config.stop_signal,
        }
    }

    pub fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
        let filter = filter.unwrap_or_default();
        let wanted = |container: &Arc<Container>| {
            let record = lock(&container.record);
            (filter.id.is_empty() || container.id.starts_with(&filter.id))
                && (filter.pod_sandbox_id.is_empty() || container.sandbox.id == filter.pod_sandbox_id)
                && filter.state.is_none_or(|state| state.state == container.life.borrow().state() as i32)
                && record
                    .config
                    .as_ref()
                    .map_or(filter.label_selector.is_empty(), |config| plan::labels_match(&filter.label_selector, &config.labels))
        };
        // Filtered before anything is copied.
        self.containers.candidates(&filter.label_selector).iter().filter(|c| wanted(c)).map(|c| list_entry(c)).collect()
    }
}

fn list_entry(container: &Container) -> v1::Container {
    let state = container.life.borrow().state() as i32;
    let record = lock(&container.record);
    let config = record.config.clone().unwrap_or_default();
    v1::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        metadata: config.metadata,
        image: config.image,
        image_ref: record.image_ref.clone(),
        state,
        created_at: record.created_at,
        labels: config.labels,
        annotations: config.annotations,
        image_id: record.image_id.clone(),
    }
}

fn merge_resources(old: &mut v1::LinuxContainerResources, new: v1::LinuxContainerResources) {
    for (old, new) in [
        (&mut old.cpu_period, new.cpu_period),
        (&mut old.cpu_quota, new.cpu_quota),
        (&mut old.cpu_shares, new.cpu_shares),
        (&mut old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        (&mut old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
    ] {
        if new != 0 {
            *old = new;
        }
    }
    for (old, new) in [(&mut old.cpuset_cpus, new.cpuset_cpus), (&mut old.cpuset_mems, new.cpuset_mems)] {
        if !new.is_empty() {
            *old = new;
        }
    }
}

/// The user namespace of a container's pod, for the files that it sees.
struct Users {
    namespace: Arc<OwnedFd>,
    first: u32,
}

impl Users {
    fn map(&self, tree: &OwnedFd) -> std::io::Result<()> {
        oci::sys::idmap(tree, &*self.namespace).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => {
                std::io::Error::other("its file system does not support idmapped mounts, which a pod with hostUsers: false needs")
            }
            _ => error,
        })
    }

    /// An image's layers as the pod's ids see them, by paths that lead through the descriptors beside them.
    fn layers(users: Option<&Self>, layers: &[PathBuf]) -> std::io::Result<(Vec<PathBuf>, Vec<OwnedFd>)> {
        let Some(users) = users else { return Ok((layers.to_vec(), Vec::new())) };
        let mut held = Vec::with_capacity(layers.len());
        for layer in layers {
            let tree = open_tree(CWD, layer, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
            users.map(&tree)?;
            held.push(tree);
        }
        Ok((held.iter().map(|tree| format!("/proc/self/fd/{}", tree.as_raw_fd()).into()).collect(), held))
    }
}

impl Sandbox {
    fn users(&self) -> Result<Option<Users>> {
        let Some(range) = self.ids()? else { return Ok(None) };
        let namespace = lock(&self.users).clone().ok_or_else(|| Error::ShimGone(self.id.clone()))?;
        Ok(Some(Users { namespace, first: range.first }))
    }
}

/// Mounts of the host's device nodes, where none can be made: the standard ones and those asked for. Their descriptors join `trees`.
fn open_devices(
    config: &v1::ContainerConfig,
    privileged: bool,
    named: &[cdi::Node],
    trees: &mut Vec<OwnedFd>,
) -> Result<Vec<(String, usize)>> {
    let standard = ["null", "zero", "full", "random", "urandom", "tty"].map(|name| format!("/dev/{name}"));
    let mut paths: Vec<(PathBuf, String)> = standard.into_iter().map(|path| (path.clone().into(), path)).collect();
    if privileged {
        let mut all = Vec::new();
        host_devices(Path::new("/dev"), &mut all);
        paths.extend(all.into_iter().map(|device| (device.path.clone().into(), device.path)));
    }
    let target =
        |device: &v1::Device| if device.container_path.is_empty() { device.host_path.clone() } else { device.container_path.clone() };
    paths.extend(config.devices.iter().map(|device| (device.host_path.clone().into(), target(device))));
    paths.extend(named.iter().map(|node| (host_path(node).into(), node.path.clone())));
    let mut seen = std::collections::BTreeSet::new();
    paths.retain(|(_, path)| seen.insert(path.clone()));
    let mut mounts = Vec::with_capacity(paths.len());
    for (host, path) in paths {
        let tree = open_tree(CWD, &host, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        trees.push(tree.map_err(|error| io_error(format!("device {}", host.display()))(error.into()))?);
        mounts.push((path, trees.len() - 1));
    }
    Ok(mounts)
}

/// overlayfs wants the topmost layer first. `lowerdir+` takes one layer each (Linux 6.8); before it, one string of all.
fn set_lower(context: &OwnedFd, layers: &[PathBuf]) -> std::io::Result<()> {
    if layers.is_empty() {
        return Err(std::io::Error::other("the image has no layers"));
    }
    let all_at_once = layers.iter().rev().map(|l| l.display().to_string().replace(':', "\\:")).collect::<Vec<_>>().join(":");
    if all_at_once.len() < 256 {
        return Ok(fsconfig_set_string(context, "lowerdir", all_at_once)?);
    }
    layers.iter().rev().try_for_each(|layer| Ok(fsconfig_set_string(context, "lowerdir+", layer)?))
}

/// Who the container runs as: the pod's word before the image's, names looked up in the image's own files.
fn identity(rootfs: &OwnedFd, security: &v1::LinuxContainerSecurityContext, image: &images::ImageConfig) -> Result<oci::user::Identity> {
    let read = |path: &str| in_root::read(rootfs, path).map_err(io_error(format!("read the image's {path}")));
    let mut wanted = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(uid), _) => uid.value.to_string(),
        (None, "") => image.user.clone(),
        (None, name) => name.to_owned(),
    };
    if let Some(gid) = &security.run_as_group {
        wanted = format!("{}:{}", wanted.split(':').next().unwrap_or_default(), gid.value);
    }
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    let mut identity = oci::user::resolve(&wanted, &passwd, &group).map_err(|e| Error::Invalid(e.to_string()))?;
    if security.supplemental_groups_policy == v1::SupplementalGroupsPolicy::Merge as i32 {
        // The image's groups of this user count even when the primary group is given.
        let user_only = wanted.split(':').next().unwrap_or_default();
        let from_image = oci::user::resolve(user_only, &passwd, &group).map(|i| i.user.groups).unwrap_or_default();
        identity.user.groups.extend(from_image);
    } else {
        identity.user.groups.clear();
    }
    identity.user.groups.extend(security.supplemental_groups.iter().filter_map(|gid| u32::try_from(*gid).ok()));
    // Without its own group in the list, a process could escape from what is denied to that group (CVE-2022-2995).
    identity.user.groups.push(identity.user.gid);
    identity.user.groups.sort_unstable();
    identity.user.groups.dedup();
    Ok(identity)
}

fn pid_namespace(namespaces: &v1::NamespaceOption) -> (PidNamespace, Option<String>) {
    match v1::NamespaceMode::try_from(namespaces.pid) {
        Ok(v1::NamespaceMode::Node) => (PidNamespace::Host, None),
        Ok(v1::NamespaceMode::Pod) => (PidNamespace::Join, None),
        Ok(v1::NamespaceMode::Target) => (PidNamespace::Join, Some(namespaces.target_id.clone())),
        _ => (PidNamespace::New, None),
    }
}

/// The pod's own `/etc/hostname` and `/etc/resolv.conf`, unless the container brings its own, and `/dev/shm` of a pod in the host's IPC namespace.
fn with_pod_files(mounts: &[v1::Mount], sandbox: &Sandbox, readonly: bool) -> Vec<v1::Mount> {
    let mut all = mounts.to_vec();
    let mut add = |host: PathBuf, target: &str, readonly: bool| {
        if !all.iter().any(|m| m.container_path == target) {
            all.push(v1::Mount { container_path: target.into(), host_path: host.display().to_string(), readonly, ..Default::default() });
        }
    };
    add(sandbox.directory.join("resolv.conf"), "/etc/resolv.conf", readonly);
    add(sandbox.directory.join("hostname"), "/etc/hostname", readonly);
    if sandbox.namespaces().ipc == v1::NamespaceMode::Node as i32 {
        add("/dev/shm".into(), "/dev/shm", false);
    }
    all
}

/// The devices asked for; all of the host's for a privileged container.
fn devices(config: &v1::ContainerConfig, privileged: bool) -> Result<Vec<oci::Device>> {
    let mut devices = Vec::new();
    if privileged {
        host_devices(Path::new("/dev"), &mut devices);
    }
    for device in &config.devices {
        let path = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        let found =
            describe_device(Path::new(&device.host_path), path.clone()).map_err(io_error(format!("device {}", device.host_path)))?;
        let found = found.ok_or_else(|| Error::Invalid(format!("{} is not a device", device.host_path)))?;
        devices.push(oci::Device { access: device.permissions.clone(), ..found });
    }
    Ok(devices)
}

fn host_path(node: &cdi::Node) -> &str {
    if node.host_path.is_empty() { &node.path } else { &node.host_path }
}

/// A device node of a CDI file: what the file does not say, the host's own node does.
fn edit_device(node: &cdi::Node) -> Result<oci::Device> {
    let host = host_path(node);
    let known = match (node.r#type.as_str(), node.major, node.minor) {
        ("b" | "c" | "u", Some(major), Some(minor)) => {
            let kind = if node.r#type == "b" { 'b' } else { 'c' };
            oci::Device { kind, major, minor, mode: 0o666, ..Default::default() }
        }
        _ => {
            let found = describe_device(Path::new(host), node.path.clone()).map_err(io_error(format!("device {host}")))?;
            found.ok_or_else(|| Error::Invalid(format!("{host} is not a device")))?
        }
    };
    Ok(oci::Device {
        path: node.path.clone(),
        mode: node.file_mode.map_or(known.mode, |mode| mode & 0o7777),
        uid: node.uid.unwrap_or(known.uid),
        gid: node.gid.unwrap_or(known.gid),
        access: node.permissions.clone(),
        ..known
    })
}

fn edit_mount(mount: &cdi::Mount) -> v1::Mount {
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.options.iter().any(|option| option == "ro"),
        mount_options: mount.options.clone(),
        ..Default::default()
    }
}

fn describe_device(host: &Path, path: String) -> std::io::Result<Option<oci::Device>> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let metadata = std::fs::metadata(host)?;
    let kind = match metadata.file_type() {
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        _ => return Ok(None),
    };
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    Ok(Some(oci::Device {
        path,
        kind,
        major,
        minor,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: String::new(),
    }))
}

/// Device nodes below a directory, without what every container has of its own.
fn host_devices(directory: &Path, into: &mut Vec<oci::Device>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !["pts", "shm", "mqueue", "fd"].iter().any(|own| name == *own) => host_devices(&path, into),
            Ok(kind) if !kind.is_dir() && !kind.is_symlink() && name != "console" && name != "ptmx" => {
                into.extend(describe_device(&path, path.display().to_string()).ok().flatten());
            }
            _ => {}
        }
    }
}

fn open_log(path: &str) -> Result<OwnedFd> {
    let open = || -> std::io::Result<File> {
        if path.is_empty() {
            return File::options().append(true).open("/dev/null");
        }
        if let Some(parent) = Path::new(path).parent() {
            std::fs::create_dir_all(parent)?;
        }
        use std::os::unix::fs::OpenOptionsExt;
        // A container that reaches its log folder must not choose what the runtime writes to.
        File::options().append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path)
    };
    open().map(OwnedFd::from).map_err(io_error(format!("open log {path:?}")))
}
