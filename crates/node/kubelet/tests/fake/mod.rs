//! A container runtime in memory that records what it is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use cri::service::{Call, Events};
use cri::streams::{Forward, Streams};
use cri::{Error, ImageService, RuntimeService, v1};
use futures_util::StreamExt;
use tokio::sync::broadcast;

#[derive(Default)]
pub struct State {
    pub sandboxes: BTreeMap<String, (v1::PodSandboxConfig, bool)>,
    pub containers: BTreeMap<String, Container>,
    pub images: BTreeSet<String>,
    pub calls: Vec<String>,
    next: u32,
}

#[derive(Clone)]
pub struct Container {
    pub sandbox: String,
    pub config: v1::ContainerConfig,
    pub state: v1::ContainerState,
    pub exit_code: i32,
    pub started_at: i64,
    pub finished_at: i64,
}

pub struct Fake {
    state: Mutex<State>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64
}

fn ready<'a, T: Send + 'a>(result: cri::Result<T>) -> Call<'a, T> {
    Box::pin(std::future::ready(result))
}

fn unsupported<'a, T: Send + 'a>() -> Call<'a, T> {
    ready(Err(Error::internal("not in the fake")))
}

impl Fake {
    pub fn new(images: &[&str]) -> Arc<Self> {
        let state = State { images: images.iter().map(|image| (*image).to_owned()).collect(), ..State::default() };
        Arc::new(Self { state: Mutex::new(state), events: broadcast::channel(1024).0 })
    }
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
    pub fn containers(&self, name: &str) -> Vec<(String, Container)> {
        let state = self.lock();
        let named = state.containers.iter().filter(|(_, container)| container.config.metadata.as_ref().unwrap().name == name);
        named.map(|(id, container)| (id.clone(), container.clone())).collect()
    }
    pub fn calls(&self, prefix: &str) -> usize {
        self.lock().calls.iter().filter(|call| call.starts_with(prefix)).count()
    }
    /// The container's process ends by itself.
    pub fn exit(&self, id: &str, code: i32) {
        self.change(id, |container| {
            container.state = v1::ContainerState::ContainerExited;
            container.exit_code = code;
            container.finished_at = now();
        });
    }
    fn change(&self, id: &str, change: impl FnOnce(&mut Container)) {
        let mut state = self.lock();
        let Some(container) = state.containers.get_mut(id) else { return };
        change(container);
        let sandbox = container.sandbox.clone();
        let metadata = state.sandboxes.get(&sandbox).and_then(|(config, _)| config.metadata.clone());
        drop(state);
        let status = v1::PodSandboxStatus { id: sandbox, metadata, ..Default::default() };
        let _ = self.events.send(v1::ContainerEventResponse {
            container_id: id.into(),
            pod_sandbox_status: Some(status),
            ..Default::default()
        });
    }
}

fn matches(filter: &std::collections::HashMap<String, String>, labels: &std::collections::HashMap<String, String>) -> bool {
    filter.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl RuntimeService for Fake {
    fn version(&self) -> Call<'_, v1::VersionResponse> {
        ready(Ok(v1::VersionResponse { runtime_name: "fake".into(), runtime_version: "1".into(), ..Default::default() }))
    }
    fn status(&self, _: v1::StatusRequest) -> Call<'_, v1::StatusResponse> {
        ready(Ok(v1::StatusResponse::default()))
    }
    fn update_runtime_config(&self, _: v1::UpdateRuntimeConfigRequest) -> Call<'_, v1::UpdateRuntimeConfigResponse> {
        unsupported()
    }
    fn run_pod_sandbox(&self, request: v1::RunPodSandboxRequest) -> Call<'_, v1::RunPodSandboxResponse> {
        let mut state = self.lock();
        state.next += 1;
        let id = format!("s{}", state.next);
        let config = request.config.unwrap_or_default();
        state.calls.push(format!("run {}", config.metadata.as_ref().unwrap().name));
        state.sandboxes.insert(id.clone(), (config, true));
        ready(Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
    }
    fn stop_pod_sandbox(&self, request: v1::StopPodSandboxRequest) -> Call<'_, v1::StopPodSandboxResponse> {
        if let Some((_, up)) = self.lock().sandboxes.get_mut(&request.pod_sandbox_id) {
            *up = false;
        }
        ready(Ok(v1::StopPodSandboxResponse {}))
    }
    fn remove_pod_sandbox(&self, request: v1::RemovePodSandboxRequest) -> Call<'_, v1::RemovePodSandboxResponse> {
        self.lock().sandboxes.remove(&request.pod_sandbox_id);
        ready(Ok(v1::RemovePodSandboxResponse {}))
    }
    fn pod_sandbox_status(&self, request: v1::PodSandboxStatusRequest) -> Call<'_, v1::PodSandboxStatusResponse> {
        let state = self.lock();
        let Some((config, _)) = state.sandboxes.get(&request.pod_sandbox_id) else { return ready(Err(Error::not_found("sandbox"))) };
        let network = Some(v1::PodSandboxNetworkStatus { ip: "10.244.0.9".into(), ..Default::default() });
        let status = v1::PodSandboxStatus { id: request.pod_sandbox_id, metadata: config.metadata.clone(), network, ..Default::default() };
        ready(Ok(v1::PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }
    fn list_pod_sandbox(&self, request: v1::ListPodSandboxRequest) -> Call<'_, v1::ListPodSandboxResponse> {
        let filter = request.filter.unwrap_or_default();
        let state = self.lock();
        let chosen = state.sandboxes.iter().filter(|(_, (config, _))| matches(&filter.label_selector, &config.labels));
        let items = chosen.map(|(id, (config, up))| v1::PodSandbox {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: i32::from(!up),
            labels: config.labels.clone(),
            ..Default::default()
        });
        ready(Ok(v1::ListPodSandboxResponse { items: items.collect() }))
    }
    fn create_container(&self, request: v1::CreateContainerRequest) -> Call<'_, v1::CreateContainerResponse> {
        let config = request.config.unwrap_or_default();
        let mut state = self.lock();
        state.next += 1;
        let id = format!("c{}", state.next);
        state.calls.push(format!("create {}", config.metadata.as_ref().unwrap().name));
        let container = Container {
            sandbox: request.pod_sandbox_id,
            config,
            state: v1::ContainerState::ContainerCreated,
            exit_code: 0,
            started_at: 0,
            finished_at: 0,
        };
        state.containers.insert(id.clone(), container);
        ready(Ok(v1::CreateContainerResponse { container_id: id }))
    }
    fn start_container(&self, request: v1::StartContainerRequest) -> Call<'_, v1::StartContainerResponse> {
        self.change(&request.container_id, |container| {
            container.state = v1::ContainerState::ContainerRunning;
            container.started_at = now();
        });
        ready(Ok(v1::StartContainerResponse {}))
    }
    fn stop_container(&self, request: v1::StopContainerRequest) -> Call<'_, v1::StopContainerResponse> {
        self.lock().calls.push(format!("stop {} {}", request.container_id, request.timeout));
        self.change(&request.container_id, |container| {
            container.state = v1::ContainerState::ContainerExited;
            container.exit_code = 143;
            container.finished_at = now();
        });
        ready(Ok(v1::StopContainerResponse {}))
    }
    fn remove_container(&self, request: v1::RemoveContainerRequest) -> Call<'_, v1::RemoveContainerResponse> {
        self.lock().containers.remove(&request.container_id);
        ready(Ok(v1::RemoveContainerResponse {}))
    }
    fn container_status(&self, request: v1::ContainerStatusRequest) -> Call<'_, v1::ContainerStatusResponse> {
        let state = self.lock();
        let Some(container) = state.containers.get(&request.container_id) else { return ready(Err(Error::not_found("container"))) };
        let directory = state.sandboxes.get(&container.sandbox).map(|(config, _)| config.log_directory.clone()).unwrap_or_default();
        let status = v1::ContainerStatus {
            id: request.container_id,
            metadata: container.config.metadata.clone(),
            state: container.state as i32,
            created_at: 1,
            started_at: container.started_at,
            finished_at: container.finished_at,
            exit_code: container.exit_code,
            image: container.config.image.clone(),
            image_ref: "sha256:1".into(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            log_path: format!("{directory}/{}", container.config.log_path),
            ..Default::default()
        };
        ready(Ok(v1::ContainerStatusResponse { status: Some(status), ..Default::default() }))
    }
    fn list_containers(&self, request: v1::ListContainersRequest) -> Call<'_, v1::ListContainersResponse> {
        let filter = request.filter.unwrap_or_default();
        let state = self.lock();
        let chosen = state.containers.iter().filter(|(_, container)| matches(&filter.label_selector, &container.config.labels));
        let items = chosen.map(|(id, container)| v1::Container {
            id: id.clone(),
            pod_sandbox_id: container.sandbox.clone(),
            metadata: container.config.metadata.clone(),
            state: container.state as i32,
            labels: container.config.labels.clone(),
            ..Default::default()
        });
        ready(Ok(v1::ListContainersResponse { containers: items.collect() }))
    }
    fn update_container_resources(&self, _: v1::UpdateContainerResourcesRequest) -> Call<'_, v1::UpdateContainerResourcesResponse> {
        unsupported()
    }
    fn reopen_container_log(&self, _: v1::ReopenContainerLogRequest) -> Call<'_, v1::ReopenContainerLogResponse> {
        unsupported()
    }
    fn exec_sync(&self, request: v1::ExecSyncRequest) -> Call<'_, v1::ExecSyncResponse> {
        self.lock().calls.push(format!("exec {}", request.cmd.join(" ")));
        let exit_code = i32::from(request.cmd.first().is_some_and(|word| word == "false"));
        ready(Ok(v1::ExecSyncResponse { exit_code, stdout: "said so".into(), ..Default::default() }))
    }
    fn exec(&self, request: v1::ExecRequest) -> Call<'_, Streams> {
        let output = request.cmd.join(" ").into_bytes();
        let (exit_sender, exit) = tokio::sync::oneshot::channel();
        let _ = exit_sender.send(0);
        ready(Ok(Streams {
            stdin: None,
            stdout: Some(Box::pin(std::io::Cursor::new(output))),
            stderr: None,
            resize: None,
            exit,
            failure: None,
        }))
    }
    fn attach(&self, _: v1::AttachRequest) -> Call<'_, Streams> {
        unsupported()
    }
    fn port_forward(&self, _: String, _: u16) -> Call<'_, Forward> {
        unsupported()
    }
    fn container_stats(&self, _: v1::ContainerStatsRequest) -> Call<'_, v1::ContainerStatsResponse> {
        unsupported()
    }
    fn list_container_stats(&self, _: v1::ListContainerStatsRequest) -> Call<'_, v1::ListContainerStatsResponse> {
        ready(Ok(v1::ListContainerStatsResponse::default()))
    }
    fn pod_sandbox_stats(&self, _: v1::PodSandboxStatsRequest) -> Call<'_, v1::PodSandboxStatsResponse> {
        unsupported()
    }
    fn list_pod_sandbox_stats(&self, _: v1::ListPodSandboxStatsRequest) -> Call<'_, v1::ListPodSandboxStatsResponse> {
        ready(Ok(v1::ListPodSandboxStatsResponse::default()))
    }
    fn get_container_events(&self) -> Call<'_, Events> {
        let receiver = self.events.subscribe();
        let stream =
            futures_util::stream::unfold(receiver, |mut receiver| async { receiver.recv().await.ok().map(|event| (Ok(event), receiver)) });
        ready(Ok(stream.boxed() as Events))
    }
}

impl ImageService for Fake {
    fn list_images(&self, _: v1::ListImagesRequest) -> Call<'_, v1::ListImagesResponse> {
        ready(Ok(v1::ListImagesResponse::default()))
    }
    fn image_status(&self, request: v1::ImageStatusRequest) -> Call<'_, v1::ImageStatusResponse> {
        let name = request.image.unwrap_or_default().image;
        let image = self.lock().images.contains(&name).then(|| v1::Image { id: format!("sha256:{name}"), size: 7, ..Default::default() });
        ready(Ok(v1::ImageStatusResponse { image, ..Default::default() }))
    }
    fn pull_image(&self, request: v1::PullImageRequest) -> Call<'_, v1::PullImageResponse> {
        let name = request.image.unwrap_or_default().image;
        let mut state = self.lock();
        state.calls.push(format!("pull {name}"));
        if name.contains("missing") {
            return ready(Err(Error::not_found(format!("{name}: not found"))));
        }
        state.images.insert(name.clone());
        ready(Ok(v1::PullImageResponse { image_ref: format!("sha256:{name}") }))
    }
    fn remove_image(&self, _: v1::RemoveImageRequest) -> Call<'_, v1::RemoveImageResponse> {
        unsupported()
    }
    fn image_fs_info(&self) -> Call<'_, v1::ImageFsInfoResponse> {
        ready(Ok(v1::ImageFsInfoResponse::default()))
    }
}
