//! The steps of a plan, each idempotent: what was done before is done again without harm.

use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use k8s_openapi::api::node::v1::RuntimeClass;
use reconcile::EventKind;

use crate::crispec::{self, ContainerInput, ImageUser};
use crate::env::{self, Facts};
use crate::mounts;
use crate::plan::{Action, KillReason, Plan, next_backoff, next_failure};
use crate::podspec;
use crate::probe::check;
use crate::resize::Given;
use crate::storage::Trouble;
use crate::users::IdRange;
use crate::worker::{Agent, Record, Scene, lock};
use crate::world::{Image, PostStart};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Waits after a failed step: volumes from half a second, sandboxes and containers from one, doubling.
const VOLUMES_FIRST: Duration = Duration::from_millis(500);
/// How soon a volume is looked for again that somebody else has to make or attach.
const VOLUMES_WAIT: Duration = Duration::from_millis(200);
const START_FIRST: Duration = Duration::from_secs(1);
const RESIZE_FIRST: Duration = Duration::from_secs(2);
/// A hook's time counts against the grace period, but a container always gets this much after it.
const GRACE_SECONDS_MIN: i64 = 2;

/// A container that could not be started: `state.waiting`.
struct Refused {
    reason: &'static str,
    message: String,
}

impl Agent {
    /// `Err` is a failure of the runtime or the API that the whole reconcile is repeated for.
    pub async fn act(self: &Arc<Self>, scene: &Scene, plan: &Plan, action: Action) -> Result<(), Error> {
        match action {
            Action::MountVolumes => self.mount_volumes(scene).await,
            Action::RunSandbox { attempt } => self.run_sandbox(scene, attempt).await,
            Action::StopSandbox(id) => {
                self.runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id }).await?;
            }
            Action::EnsureImage { container, attempt } => self.ensure_image(scene, &container, attempt).await,
            Action::Start { container, attempt, restart } => self.start(scene, &container, attempt, restart).await,
            Action::Kill { id, container, grace_seconds, why } => self.kill(scene, id, &container, grace_seconds, &why),
            Action::Remove { id, log } => self.remove(scene, id, log).await?,
            Action::Resize { id, container, resources } => self.resize(scene, id, &container, *resources).await,
            Action::Retire => {
                let mut memory = scene.record.memory();
                memory.retired = scene.observed.containers.iter().map(|seen| seen.id.clone()).collect();
                let retired = memory.retired.clone();
                memory.replaced.extend(retired);
            }
            Action::Fail(verdict) => {
                self.event(&scene.reference(), EventKind::Normal, &verdict.reason, verdict.message.clone());
                scene.record.memory().verdict = Some(verdict);
            }
            Action::Finish => {
                self.take_volumes(scene).await?;
                self.finish(scene, plan).await?;
            }
            Action::Forget => self.remove_all(scene).await?,
        }
        Ok(())
    }

    async fn mount_volumes(&self, scene: &Scene) {
        let mounted = self.mount(scene).await;
        let mut memory = scene.record.memory();
        match mounted {
            Ok(_) => {
                memory.volumes_ready = true;
                memory.volumes_failed = None;
            }
            Err(Trouble::Failed(reason, message)) => {
                let former = memory.volumes_failed.take().map(|failure| failure.wait);
                memory.volumes_failed = Some(next_failure(former, VOLUMES_FIRST, reason, message.clone(), Timestamp::now()));
                drop(memory);
                self.event(&scene.reference(), EventKind::Warning, reason, message);
            }
            Err(Trouble::Waiting(message)) => {
                tracing::debug!(pod = podspec::name(&scene.pod), message, "a volume is waited for");
                memory.volumes_failed = Some(next_failure(None, VOLUMES_WAIT, "FailedMount", message, Timestamp::now()));
            }
        }
    }

    /// Before the API forgets the pod: once it has, a claim's volume may be deleted, and nothing of it may be in use then.
    async fn take_volumes(&self, scene: &Scene) -> Result<(), Error> {
        if !self.storage.has_any(&scene.record.uid) {
            return Ok(());
        }
        lock(&scene.record.placed).clear();
        if let Err(message) = self.storage.tear_down(&scene.record.uid).await {
            self.event(&scene.reference(), EventKind::Warning, "FailedUnMount", message.clone());
            return Err(message.into());
        }
        Ok(())
    }

    async fn run_sandbox(&self, scene: &Scene, attempt: u32) {
        let _permit = self.starts.acquire().await;
        let dns = crate::dns::of_pod(&scene.pod, &self.config, &self.host_dns);
        if attempt > 0 {
            self.event(&scene.reference(), EventKind::Normal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
        }
        let prepared = async {
            let runtime_handler = self.runtime_handler(scene).await?;
            self.check_users(scene, &runtime_handler).await?;
            self.prepare_claims(scene).await?;
            let users = self.users_of(scene).map_err(cri::Error::internal)?;
            let config = crispec::sandbox(&scene.pod, &self.config, dns, attempt, users);
            let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
            self.set_group(scene, &resources).map_err(cri::Error::internal)?;
            Ok(v1::RunPodSandboxRequest { config: Some(config), runtime_handler })
        };
        let made = match prepared.await {
            Ok(request) => self.runtime.run_pod_sandbox(request).await,
            Err(error) => Err(error),
        };
        let mut memory = scene.record.memory();
        match made {
            Ok(_) => memory.sandbox_failed = None,
            Err(error) => {
                let former = memory.sandbox_failed.take().map(|failure| failure.wait);
                memory.sandbox_failed =
                    Some(next_failure(former, START_FIRST, "FailedCreatePodSandBox", error.message.clone(), Timestamp::now()));
                drop(memory);
                let message = format!("Failed to create pod sandbox: {error}");
                self.event(&scene.reference(), EventKind::Warning, "FailedCreatePodSandBox", message);
            }
        }
    }

    /// Makes the pod's control group or changes its limits, where the runtime leaves it to the kubelet.
    fn set_group(&self, scene: &Scene, resources: &v1::LinuxContainerResources) -> Result<(), String> {
        let Some(root) = &self.config.pod_cgroups else { return Ok(()) };
        let limits = cgroups::Limits {
            cpu_shares: u64::try_from(resources.cpu_shares).ok().filter(|shares| *shares > 0),
            cpu_quota: Some(resources.cpu_quota).filter(|quota| *quota > 0),
            cpu_period: u64::try_from(resources.cpu_period).ok().filter(|period| *period > 0),
            memory: Some(resources.memory_limit_in_bytes).filter(|bytes| *bytes > 0),
            pids: resources.unified.get("pids.max").and_then(|max| max.parse().ok()),
            ..cgroups::Limits::default()
        };
        let made = cgroups::Root::detect(root).and_then(|root| root.create(&crispec::pod_cgroup(&scene.pod))?.set(&limits));
        made.map_err(|error| error.to_string())
    }

    async fn prepare_claims(&self, scene: &Scene) -> cri::Result<()> {
        let prepared = self.claims.prepare(&self.client, &scene.pod).await;
        prepared.map_err(|error| {
            let message = format!("Failed to prepare dynamic resources: {error}");
            self.event(&scene.reference(), EventKind::Warning, "FailedPrepareDynamicResources", message.clone());
            cri::Error::internal(message)
        })
    }

    /// The ids of a pod with a user namespace.
    fn users_of(&self, scene: &Scene) -> Result<Option<IdRange>, String> {
        let wanted = podspec::spec(&scene.pod).host_users == Some(false);
        wanted.then(|| self.users.of(&self.config, &scene.record.uid)).transpose()
    }

    /// Does the runtime's handler make user namespaces, where the pod wants one?
    async fn check_users(&self, scene: &Scene, handler: &str) -> cri::Result<()> {
        if podspec::spec(&scene.pod).host_users != Some(false) {
            return Ok(());
        }
        let handlers = self.runtime.status(v1::StatusRequest::default()).await?.runtime_handlers;
        let known = handlers.iter().find(|known| known.name == handler).and_then(|known| known.features);
        if known.is_some_and(|features| features.user_namespaces) {
            return Ok(());
        }
        let message = format!("can't set `spec.hostUsers: false`, runtime handler {handler:?} does not support user namespaces");
        Err(cri::Error::internal(message))
    }

    /// What the pod's RuntimeClass names (KEP-585).
    async fn runtime_handler(&self, scene: &Scene) -> cri::Result<String> {
        let Some(name) = podspec::spec(&scene.pod).runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(String::new());
        };
        let found = self.client.get::<RuntimeClass>(None, name).await;
        found.map(|class| class.handler).map_err(|error| cri::Error::internal(format!("failed to get RuntimeClass {name:?}: {error}")))
    }

    /// The pod's group gives way before its containers grow, and shrinks after them.
    async fn resize(&self, scene: &Scene, id: String, name: &str, resources: v1::LinuxContainerResources) {
        let done = self.resize_container(scene, id, name, resources).await;
        let mut memory = scene.record.memory();
        match done {
            Ok(()) => {
                memory.resize_failed.remove(name);
                if let Some((_, container)) = podspec::container(&scene.pod, name) {
                    memory.given.insert(name.into(), Given::of(&scene.pod, &container));
                }
            }
            Err(message) => {
                let former = memory.resize_failed.get(name).map(|failure| failure.wait);
                memory.resize_failed.insert(name.into(), next_failure(former, RESIZE_FIRST, "Error", message.clone(), Timestamp::now()));
                drop(memory);
                self.event(&scene.container_reference(name), EventKind::Warning, "ResizeError", message);
            }
        }
    }

    async fn resize_container(&self, scene: &Scene, id: String, name: &str, resources: v1::LinuxContainerResources) -> Result<(), String> {
        let limit = resources.memory_limit_in_bytes;
        if limit > 0
            && let Ok(answer) = self.runtime.container_stats(v1::ContainerStatsRequest { container_id: id.clone() }).await
        {
            let used = answer.stats.and_then(|stats| stats.memory?.usage_bytes).map_or(0, |used| used.value);
            if used > u64::try_from(limit).unwrap_or(0) {
                return Err(format!("attempting to set container {name} memory limit ({limit}) below current usage ({used})"));
            }
        }
        let whole = crispec::pod_resources(&scene.pod, self.config.pod_pids_max);
        // Where it shrinks below what a container still has, this is too early, and the second time counts.
        let _ = self.resize_pod(scene, &whole).await;
        let request = v1::UpdateContainerResourcesRequest { container_id: id, linux: Some(resources), ..Default::default() };
        self.runtime.update_container_resources(request).await.map_err(|error| error.message)?;
        self.resize_pod(scene, &whole).await
    }

    async fn resize_pod(&self, scene: &Scene, resources: &v1::LinuxContainerResources) -> Result<(), String> {
        self.set_group(scene, resources)?;
        let Some(sandbox) = scene.observed.sandboxes.first() else { return Ok(()) };
        let request = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: sandbox.id.clone(),
            resources: Some(resources.clone()),
            ..Default::default()
        };
        match self.runtime.update_pod_sandbox_resources(request).await {
            Err(error) if error.code != cri::Code::Unimplemented => Err(error.message),
            _ => Ok(()),
        }
    }

    async fn start(self: &Arc<Self>, scene: &Scene, name: &str, attempt: u32, restart: bool) {
        let Some((role, container)) = podspec::container(&scene.pod, name) else { return };
        let about = scene.container_reference(name);
        let started = self.create_and_start(scene, role, &container, attempt).await;
        let now = Timestamp::now();
        let mut memory = scene.record.memory();
        memory.images.remove(&(name.to_owned(), attempt));
        if restart {
            let next = next_backoff(memory.backoffs.get(name), now);
            memory.backoffs.insert(name.into(), next);
        }
        match started {
            Ok(id) => {
                memory.starts_failed.remove(name);
                memory.given.insert(name.into(), Given::of(&scene.pod, &container));
                if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone()) {
                    memory.post_start.insert(id.clone(), PostStart::Running);
                    drop(memory);
                    self.post_start(scene, &container, id, hook);
                }
            }
            Err(Refused { reason, message }) => {
                let former = memory.starts_failed.get(name).map(|failure| failure.wait);
                memory.starts_failed.insert(name.into(), next_failure(former, START_FIRST, reason, message.clone(), now));
                drop(memory);
                self.event(&about, EventKind::Warning, "Failed", format!("Error: {message}"));
            }
        }
    }

    async fn create_and_start(&self, scene: &Scene, role: podspec::Role, container: &Container, attempt: u32) -> Result<String, Refused> {
        let config_error = |message: String| Refused { reason: "CreateContainerConfigError", message };
        let about = scene.container_reference(&container.name);
        let Some(sandbox) = scene.observed.sandboxes.first() else { return Err(config_error("the pod has no sandbox".into())) };
        let facts = self.container_facts(scene, container).await.map_err(config_error)?;
        let envs = env::of_container(&scene.pod, container, &facts).map_err(|error| config_error(error.0))?;
        let images = scene.record.memory().volume_images();
        let placed = lock(&scene.record.placed).clone();
        let inside = mounts::Inside { attempt, env: &envs, ips: &facts.pod_ips, images: &images, placed: &placed };
        let files = mounts::of_container(&self.config, &scene.pod, container, &inside);
        let files = files.map_err(|message| Refused { reason: "CreateContainerConfigError", message })?;
        let users = self.users_of(scene).map_err(config_error)?;
        let image_ref = match scene.record.memory().images.get(&(container.name.clone(), attempt)) {
            Some(Image::Ready(reference)) => reference.clone(),
            _ => container.image.clone().unwrap_or_default(),
        };
        let devices = self.devices.prepare(&scene.record.uid, &container.name).await.map_err(config_error)?;
        let named = self.claims.devices(&scene.record.uid, container).map_err(config_error)?;
        let mut config = crispec::container(&ContainerInput {
            pod: &scene.pod,
            container,
            role,
            attempt,
            facts: &facts,
            mounts: files.mounts,
            devices: files.devices,
            message_file: &files.message_file,
            image_user: self.image_user(scene, container, &image_ref).await,
            image_ref: &image_ref,
            node: crispec::Node {
                memory_bytes: self.memory_bytes,
                swap_bytes: self.config.limited_swap.then_some(self.swap_bytes),
                kills_together: self.kills_together,
            },
            seccomp_default: self.config.seccomp_default,
            seccomp_directory: &self.config.seccomp_directory,
            target_id: self.target_id(scene, container),
            users,
        })
        .map_err(|error| config_error(error.0))?;
        crispec::add_devices(&mut config, devices, named);
        self.pin(&scene.record.uid, &container.name, &mut config);
        let dns = crate::dns::of_pod(&scene.pod, &self.config, &self.host_dns);
        let sandbox_config = crispec::sandbox(&scene.pod, &self.config, dns, sandbox.attempt, users);
        let request =
            v1::CreateContainerRequest { pod_sandbox_id: sandbox.id.clone(), config: Some(config), sandbox_config: Some(sandbox_config) };
        let logs = crispec::log_directory(&scene.pod, &self.config).join(&container.name);
        std::fs::create_dir_all(&logs).map_err(|error| config_error(format!("create {}: {error}", logs.display())))?;
        // Held only while the runtime works: what came before may have waited for the API.
        let _permit = self.starts.acquire().await;
        if attempt > 0 {
            // It may have more than the one before it: the pod's group must give way first.
            let resources = Some(crispec::pod_resources(&scene.pod, self.config.pod_pids_max));
            let request = v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id: sandbox.id.clone(), resources, ..Default::default() };
            let _ = self.runtime.update_pod_sandbox_resources(request).await;
        }
        let created = self.runtime.create_container(request).await;
        let id = created.map_err(|error| Refused { reason: "CreateContainerError", message: error.message })?.container_id;
        self.event(&about, EventKind::Normal, "Created", format!("Created container: {}", container.name));
        let started = self.runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await;
        started.map_err(|error| Refused { reason: "RunContainerError", message: error.message })?;
        drop(files.held);
        self.event(&about, EventKind::Normal, "Started", format!("Started container {}", container.name));
        Ok(id)
    }

    /// The facts of the pod and every object that the container's environment refers to.
    async fn container_facts(&self, scene: &Scene, container: &Container) -> Result<Facts, String> {
        let mut facts = self.pod_facts(scene);
        let (uid, namespace) = (scene.record.uid.as_str(), podspec::namespace(&scene.pod));
        let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
        for source in container.env_from.iter().flatten() {
            config_maps.extend(source.config_map_ref.as_ref().map(|reference| reference.name.as_str()));
            secrets.extend(source.secret_ref.as_ref().map(|reference| reference.name.as_str()));
        }
        for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            config_maps.extend(source.config_map_key_ref.as_ref().map(|reference| reference.name.as_str()));
            secrets.extend(source.secret_key_ref.as_ref().map(|reference| reference.name.as_str()));
        }
        for key in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()?.file_key_ref.clone()) {
            let (config, pod) = (self.config.clone(), scene.pod.clone());
            let (volume, path) = (key.volume_name.clone(), key.path.clone());
            let read = tokio::task::spawn_blocking(move || mounts::env_file(&config, &pod, &volume, &path)).await;
            facts.files.insert((key.volume_name, key.path), read.unwrap_or_else(|error| Err(error.to_string())));
        }
        for name in config_maps {
            facts.config_maps.insert(name.into(), self.objects.config_maps.get(uid, namespace, name).await?);
        }
        for name in secrets {
            facts.secrets.insert(name.into(), self.objects.secrets.get(uid, namespace, name).await?);
        }
        if tokio::time::timeout(Duration::from_secs(10), self.services.synced()).await.is_err() {
            return Err("services have not yet been read at least once, cannot construct envvars".into());
        }
        facts.services = self.services.by_namespace(namespace);
        if namespace != "default" {
            facts.services.extend(self.services.get("default", "kubernetes"));
        }
        Ok(facts)
    }

    /// Looked up only where `runAsNonRoot` must judge it.
    async fn image_user(&self, scene: &Scene, container: &Container, image_ref: &str) -> ImageUser {
        let pod_level = podspec::spec(&scene.pod).security_context.as_ref().and_then(|security| security.run_as_non_root);
        let own = container.security_context.as_ref().and_then(|security| security.run_as_non_root);
        if own.or(pod_level) != Some(true) {
            return ImageUser::Root;
        }
        let spec = v1::ImageSpec { image: image_ref.into(), ..Default::default() };
        let answer = self.images.image_status(v1::ImageStatusRequest { image: Some(spec), verbose: false }).await;
        match answer.ok().and_then(|answer| answer.image) {
            Some(v1::Image { uid: Some(uid), .. }) => ImageUser::Uid(uid.value),
            Some(image) if !image.username.is_empty() => ImageUser::Name(image.username),
            _ => ImageUser::Root,
        }
    }

    fn target_id(&self, scene: &Scene, container: &Container) -> Option<String> {
        let ephemeral =
            podspec::spec(&scene.pod).ephemeral_containers.iter().flatten().find(|ephemeral| ephemeral.name == container.name)?;
        let target = ephemeral.target_container_name.as_deref()?;
        scene.observed.containers.iter().filter(|seen| seen.name == target).max_by_key(|seen| seen.attempt).map(|seen| seen.id.clone())
    }

    fn post_start(self: &Arc<Self>, scene: &Scene, container: &Container, id: String, hook: LifecycleHandler) {
        let (agent, record, container) = (self.clone(), scene.record.clone(), container.clone());
        let (ips, about) = (scene.ips(), scene.container_reference(&container.name));
        tokio::spawn(async move {
            let result = agent.hook(&hook, &container, &id, ips.first().map_or("", String::as_str), 0).await;
            let mut memory = record.memory();
            match result {
                Ok(()) => drop(memory.post_start.remove(&id)),
                Err(message) => {
                    memory.post_start.insert(id, PostStart::Failed(message.clone()));
                    drop(memory);
                    agent.event(&about, EventKind::Warning, "FailedPostStartHook", format!("PostStartHook failed: {message}"));
                }
            }
            agent.queue.add(record.uid.clone());
        });
    }

    /// `timeout_seconds` 0 is none.
    async fn hook(
        &self,
        hook: &LifecycleHandler,
        container: &Container,
        id: &str,
        pod_ip: &str,
        timeout_seconds: i64,
    ) -> Result<(), String> {
        if let Some(exec) = &hook.exec {
            return check::exec_check(self.runtime.as_ref(), id, exec.command.clone().unwrap_or_default(), timeout_seconds).await;
        }
        if let Some(get) = &hook.http_get {
            return check::http_get(get, container, pod_ip).await.map(drop);
        }
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            return Ok(());
        }
        Err("invalid handler: no handler specified".into())
    }

    /// Stops a container in the background; the pod is looked at again when that ended.
    fn kill(self: &Arc<Self>, scene: &Scene, id: String, name: &str, grace_seconds: i64, why: &KillReason) {
        let first = scene.record.memory().stopping.insert(id.clone(), grace_seconds).is_none();
        let (role, container) = podspec::container(&scene.pod, name).map(|(role, container)| (role, container.into_owned())).unzip();
        // A pod that never restarts does not come back from a failed probe.
        let never =
            role.zip(container.as_ref()).is_some_and(|(role, container)| podspec::restart_policy(&scene.pod, role, container) == "Never");
        let replaced = match why {
            KillReason::Changed | KillReason::Resized | KillReason::RestartAll => true,
            KillReason::Liveness | KillReason::Startup | KillReason::PostStart => !never,
            KillReason::PodEnds | KillReason::SandboxChanged => false,
        };
        if replaced {
            scene.record.memory().replaced.insert(id.clone());
        }
        if first && container.is_some() {
            self.event(&scene.container_reference(name), EventKind::Normal, "Killing", kill_message(name, why));
        }
        let (agent, record, ips, about) = (self.clone(), scene.record.clone(), scene.ips(), scene.container_reference(name));
        // A second, more impatient stop does not run the hook again.
        let hook = container
            .as_ref()
            .and_then(|container| container.lifecycle.as_ref())
            .and_then(|lifecycle| lifecycle.pre_stop.clone())
            .filter(|_| first);
        tokio::spawn(async move {
            let mut left = grace_seconds;
            if let (Some(hook), Some(container)) = (hook, container) {
                let begun = Timestamp::now();
                let limit = Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
                let running = agent.hook(&hook, &container, &id, ips.first().map_or("", String::as_str), grace_seconds);
                if let Ok(Err(message)) = tokio::time::timeout(limit, running).await {
                    agent.event(&about, EventKind::Warning, "FailedPreStopHook", format!("PreStopHook failed: {message}"));
                }
                left = (grace_seconds - Timestamp::now().duration_since(begun).as_secs()).max(GRACE_SECONDS_MIN);
            }
            agent.stop(&record, id, left).await;
        });
    }

    async fn stop(&self, record: &Arc<Record>, id: String, timeout: i64) {
        let stopped = self.runtime.stop_container(v1::StopContainerRequest { container_id: id.clone(), timeout }).await;
        let failed = stopped.is_err_and(|error| !error.is_not_found());
        let mut memory = record.memory();
        memory.stopping.remove(&id);
        memory.post_start.remove(&id);
        drop(memory);
        match failed {
            // The plan asks for it again, but not at once.
            true => self.queue.add_after(record.uid.clone(), START_FIRST),
            false => self.queue.add(record.uid.clone()),
        }
    }

    async fn remove(&self, scene: &Scene, id: String, log: Option<(String, u32)>) -> Result<(), Error> {
        self.runtime.remove_container(v1::RemoveContainerRequest { container_id: id }).await?;
        if let Some((container, attempt)) = log {
            let path = crispec::log_directory(&scene.pod, &self.config).join(container).join(format!("{attempt}.log"));
            crate::logs::rotate::remove(&path);
        }
        Ok(())
    }

    /// Containers, sandboxes, logs, volumes and memory of a pod that the API no longer has.
    async fn remove_all(&self, scene: &Scene) -> Result<(), Error> {
        for seen in &scene.observed.containers {
            self.runtime.remove_container(v1::RemoveContainerRequest { container_id: seen.id.clone() }).await?;
        }
        for sandbox in &scene.observed.sandboxes {
            self.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() }).await?;
        }
        if let Some(root) = &self.config.pod_cgroups {
            // What class an orphan was of, nobody knows any more.
            for group in crispec::pod_cgroups(&scene.record.uid) {
                let _ = cgroups::Root::detect(root).and_then(|root| root.open(&group)?.remove());
            }
        }
        if self.storage.has_any(&scene.record.uid) {
            self.storage.tear_down(&scene.record.uid).await?;
        }
        lock(&scene.record.placed).clear();
        let (config, uid) = (self.config.clone(), scene.record.uid.clone());
        let logs = crispec::log_directory(&scene.pod, &self.config);
        let work = move || {
            mounts::remove_pod(&config, &uid)?;
            volumes::teardown::remove(&logs)
        };
        tokio::task::spawn_blocking(work).await??;
        self.users.release(&scene.record.uid);
        self.devices.release(&scene.record.uid);
        self.placement.release(&scene.record.uid);
        self.claims.unprepare(&scene.record.uid).await?;
        // A pod of the same uid never comes back; a new wish for it would make a new record.
        if lock(&scene.record.wish).gone {
            self.forget(&scene.record.uid);
        }
        Ok(())
    }
}

fn kill_message(name: &str, why: &KillReason) -> String {
    match why {
        KillReason::PodEnds | KillReason::SandboxChanged => format!("Stopping container {name}"),
        KillReason::Changed => format!("Container {name} definition changed, will be restarted"),
        KillReason::Liveness => format!("Container {name} failed liveness probe, will be restarted"),
        KillReason::Startup => format!("Container {name} failed startup probe, will be restarted"),
        KillReason::PostStart => "FailedPostStartHook".into(),
        KillReason::RestartAll => format!("Stopping container {name} because all containers of the pod are restarted"),
        KillReason::Resized => format!("Container {name} resize requires restart"),
    }
}
