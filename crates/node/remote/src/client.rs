//! Another runtime as [`RuntimeService`] and [`ImageService`].

use std::path::Path;
use std::time::Duration;

use cri::service::{Call, Events};
use cri::streams::{Forward, Streams};
use cri::{Code, Error, ImageService, RuntimeService, v1};

use crate::dial;
use crate::grpc::Channel;

/// Upstream's default for a call to the runtime; what may take longer has its own.
const TIMEOUT: Duration = Duration::from_secs(120);
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

/// A runtime behind a socket.
pub struct Remote {
    channel: Channel,
}

/// One method of the contract, which is one call.
macro_rules! calls {
    ($service:literal $($name:ident $method:literal $question:ident $answer:ident)*) => {$(
        fn $name(&self, request: v1::$question) -> Call<'_, v1::$answer> {
            Box::pin(async move { self.call(concat!("runtime.v1.", $service, "/", $method), &request, TIMEOUT).await })
        }
    )*};
}

impl Remote {
    pub fn new(socket: &Path) -> Self {
        Self { channel: Channel::new(socket.to_owned()) }
    }

    async fn call<A: prost::Message + Default>(&self, method: &str, request: &impl prost::Message, timeout: Duration) -> cri::Result<A> {
        let answer = tokio::time::timeout(timeout, self.channel.unary(method, request)).await;
        answer.unwrap_or_else(|_| Err(Error::new(Code::DeadlineExceeded, format!("{method}: no answer within {} s", timeout.as_secs()))))
    }
}

impl Remote {
    async fn stats_of_each(&self, request: v1::ListPodSandboxStatsRequest) -> cri::Result<v1::ListPodSandboxStatsResponse> {
        let wanted = request.filter.unwrap_or_default();
        let ready = v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady.into() };
        let filter = v1::PodSandboxFilter { id: wanted.id, state: Some(ready), label_selector: wanted.label_selector };
        let mut stats = Vec::new();
        for sandbox in self.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) }).await?.items {
            // It may have ended meanwhile.
            let answer = self.pod_sandbox_stats(v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox.id }).await;
            stats.extend(answer.ok().and_then(|answer| answer.stats));
        }
        Ok(v1::ListPodSandboxStatsResponse { stats })
    }
}

impl RuntimeService for Remote {
    fn version(&self) -> Call<'_, v1::VersionResponse> {
        let request = v1::VersionRequest { version: "v1".into() };
        Box::pin(async move { self.call("runtime.v1.RuntimeService/Version", &request, TIMEOUT).await })
    }

    calls! { "RuntimeService"
        status "Status" StatusRequest StatusResponse
        update_runtime_config "UpdateRuntimeConfig" UpdateRuntimeConfigRequest UpdateRuntimeConfigResponse
        run_pod_sandbox "RunPodSandbox" RunPodSandboxRequest RunPodSandboxResponse
        stop_pod_sandbox "StopPodSandbox" StopPodSandboxRequest StopPodSandboxResponse
        remove_pod_sandbox "RemovePodSandbox" RemovePodSandboxRequest RemovePodSandboxResponse
        pod_sandbox_status "PodSandboxStatus" PodSandboxStatusRequest PodSandboxStatusResponse
        list_pod_sandbox "ListPodSandbox" ListPodSandboxRequest ListPodSandboxResponse
        create_container "CreateContainer" CreateContainerRequest CreateContainerResponse
        start_container "StartContainer" StartContainerRequest StartContainerResponse
        remove_container "RemoveContainer" RemoveContainerRequest RemoveContainerResponse
        container_status "ContainerStatus" ContainerStatusRequest ContainerStatusResponse
        list_containers "ListContainers" ListContainersRequest ListContainersResponse
        update_container_resources "UpdateContainerResources" UpdateContainerResourcesRequest UpdateContainerResourcesResponse
        update_pod_sandbox_resources "UpdatePodSandboxResources" UpdatePodSandboxResourcesRequest UpdatePodSandboxResourcesResponse
        reopen_container_log "ReopenContainerLog" ReopenContainerLogRequest ReopenContainerLogResponse
        container_stats "ContainerStats" ContainerStatsRequest ContainerStatsResponse
        list_container_stats "ListContainerStats" ListContainerStatsRequest ListContainerStatsResponse
        pod_sandbox_stats "PodSandboxStats" PodSandboxStatsRequest PodSandboxStatsResponse
        runtime_config "RuntimeConfig" RuntimeConfigRequest RuntimeConfigResponse
    }

    /// Containerd before 1.7 fails as a whole while one of the sandboxes is stopped or being removed: then those that are ready are asked one by one.
    fn list_pod_sandbox_stats(&self, request: v1::ListPodSandboxStatsRequest) -> Call<'_, v1::ListPodSandboxStatsResponse> {
        Box::pin(async move {
            match self.call("runtime.v1.RuntimeService/ListPodSandboxStats", &request, TIMEOUT).await {
                Err(error) if matches!(error.code, Code::Unknown | Code::NotFound | Code::Internal) => {
                    self.stats_of_each(request).await.map_err(|_| error)
                }
                answered => answered,
            }
        })
    }

    /// The call lasts as long as the container takes to end.
    fn stop_container(&self, request: v1::StopContainerRequest) -> Call<'_, v1::StopContainerResponse> {
        let timeout = TIMEOUT + Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        Box::pin(async move { self.call("runtime.v1.RuntimeService/StopContainer", &request, timeout).await })
    }

    fn exec_sync(&self, request: v1::ExecSyncRequest) -> Call<'_, v1::ExecSyncResponse> {
        // Without a limit of its own the command may run for as long as it wants.
        let limit = u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0);
        let timeout = limit.map_or(Duration::from_secs(86_400), |seconds| TIMEOUT + Duration::from_secs(seconds));
        Box::pin(async move { self.call("runtime.v1.RuntimeService/ExecSync", &request, timeout).await })
    }

    fn exec(&self, request: v1::ExecRequest) -> Call<'_, Streams> {
        Box::pin(async move {
            let answer: v1::ExecResponse = self.call("runtime.v1.RuntimeService/Exec", &request, TIMEOUT).await?;
            dial::streams(
                &answer.url,
                dial::Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty },
            )
            .await
        })
    }

    fn attach(&self, request: v1::AttachRequest) -> Call<'_, Streams> {
        Box::pin(async move {
            let answer: v1::AttachResponse = self.call("runtime.v1.RuntimeService/Attach", &request, TIMEOUT).await?;
            dial::streams(
                &answer.url,
                dial::Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty },
            )
            .await
        })
    }

    fn port_forward(&self, pod_sandbox_id: String, port: u16) -> Call<'_, Forward> {
        Box::pin(async move {
            let request = v1::PortForwardRequest { pod_sandbox_id, port: vec![port.into()] };
            let answer: v1::PortForwardResponse = self.call("runtime.v1.RuntimeService/PortForward", &request, TIMEOUT).await?;
            dial::port(&answer.url, port).await
        })
    }

    fn get_container_events(&self) -> Call<'_, Events> {
        Box::pin(async move {
            let events = self.channel.stream("runtime.v1.RuntimeService/GetContainerEvents", &v1::GetEventsRequest {}).await?;
            Ok(events as Events)
        })
    }
}

impl ImageService for Remote {
    calls! { "ImageService"
        list_images "ListImages" ListImagesRequest ListImagesResponse
        image_status "ImageStatus" ImageStatusRequest ImageStatusResponse
        remove_image "RemoveImage" RemoveImageRequest RemoveImageResponse
    }

    fn pull_image(&self, request: v1::PullImageRequest) -> Call<'_, v1::PullImageResponse> {
        Box::pin(async move { self.call("runtime.v1.ImageService/PullImage", &request, PULL_TIMEOUT).await })
    }

    fn image_fs_info(&self) -> Call<'_, v1::ImageFsInfoResponse> {
        Box::pin(async move { self.call("runtime.v1.ImageService/ImageFsInfo", &v1::ImageFsInfoRequest {}, TIMEOUT).await })
    }
}
