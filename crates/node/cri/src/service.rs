//! Upstream's services `runtime.v1.RuntimeService` and `runtime.v1.ImageService`, one method per call.

use std::pin::Pin;

use futures_util::Stream;

use crate::streams::{Forward, Streams};
use crate::{Code, Error, Result, v1};

/// A future as the traits return it, so that both stay usable as trait objects.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;
/// Container life-cycle events; the stream ends when the reader is too slow, and the kubelet then relists.
pub type Events = Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse>> + Send>>;

/// Sandboxes and containers.
pub trait RuntimeService: Send + Sync + 'static {
    fn version(&self) -> Call<'_, v1::VersionResponse>;
    fn status(&self, request: v1::StatusRequest) -> Call<'_, v1::StatusResponse>;
    fn update_runtime_config(&self, request: v1::UpdateRuntimeConfigRequest) -> Call<'_, v1::UpdateRuntimeConfigResponse>;

    fn run_pod_sandbox(&self, request: v1::RunPodSandboxRequest) -> Call<'_, v1::RunPodSandboxResponse>;
    fn stop_pod_sandbox(&self, request: v1::StopPodSandboxRequest) -> Call<'_, v1::StopPodSandboxResponse>;
    fn remove_pod_sandbox(&self, request: v1::RemovePodSandboxRequest) -> Call<'_, v1::RemovePodSandboxResponse>;
    fn pod_sandbox_status(&self, request: v1::PodSandboxStatusRequest) -> Call<'_, v1::PodSandboxStatusResponse>;
    fn list_pod_sandbox(&self, request: v1::ListPodSandboxRequest) -> Call<'_, v1::ListPodSandboxResponse>;

    fn create_container(&self, request: v1::CreateContainerRequest) -> Call<'_, v1::CreateContainerResponse>;
    fn start_container(&self, request: v1::StartContainerRequest) -> Call<'_, v1::StartContainerResponse>;
    fn stop_container(&self, request: v1::StopContainerRequest) -> Call<'_, v1::StopContainerResponse>;
    fn remove_container(&self, request: v1::RemoveContainerRequest) -> Call<'_, v1::RemoveContainerResponse>;
    fn container_status(&self, request: v1::ContainerStatusRequest) -> Call<'_, v1::ContainerStatusResponse>;
    fn list_containers(&self, request: v1::ListContainersRequest) -> Call<'_, v1::ListContainersResponse>;
    fn update_container_resources(&self, request: v1::UpdateContainerResourcesRequest) -> Call<'_, v1::UpdateContainerResourcesResponse>;
    /// The group of the whole pod. A runtime that leaves it to its caller does not implement it.
    fn update_pod_sandbox_resources(
        &self,
        _request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Call<'_, v1::UpdatePodSandboxResourcesResponse> {
        unimplemented_call("UpdatePodSandboxResources")
    }
    fn reopen_container_log(&self, request: v1::ReopenContainerLogRequest) -> Call<'_, v1::ReopenContainerLogResponse>;

    fn exec_sync(&self, request: v1::ExecSyncRequest) -> Call<'_, v1::ExecSyncResponse>;
    /// Runs a command in a container with its standard streams connected (upstream: Exec plus its streaming URL).
    fn exec(&self, request: v1::ExecRequest) -> Call<'_, Streams>;
    /// Connects to the standard streams of a container's first process.
    fn attach(&self, request: v1::AttachRequest) -> Call<'_, Streams>;
    /// Opens one TCP connection to `port` on the loopback address inside the sandbox's network namespace.
    fn port_forward(&self, pod_sandbox_id: String, port: u16) -> Call<'_, Forward>;

    fn container_stats(&self, request: v1::ContainerStatsRequest) -> Call<'_, v1::ContainerStatsResponse>;
    fn list_container_stats(&self, request: v1::ListContainerStatsRequest) -> Call<'_, v1::ListContainerStatsResponse>;
    fn pod_sandbox_stats(&self, request: v1::PodSandboxStatsRequest) -> Call<'_, v1::PodSandboxStatsResponse>;
    fn list_pod_sandbox_stats(&self, request: v1::ListPodSandboxStatsRequest) -> Call<'_, v1::ListPodSandboxStatsResponse>;
    fn get_container_events(&self) -> Call<'_, Events>;

    fn runtime_config(&self, _request: v1::RuntimeConfigRequest) -> Call<'_, v1::RuntimeConfigResponse> {
        unimplemented_call("RuntimeConfig")
    }
}

/// Images on the node.
pub trait ImageService: Send + Sync + 'static {
    fn list_images(&self, request: v1::ListImagesRequest) -> Call<'_, v1::ListImagesResponse>;
    /// `image` is absent in the answer when the image is not on the node.
    fn image_status(&self, request: v1::ImageStatusRequest) -> Call<'_, v1::ImageStatusResponse>;
    fn pull_image(&self, request: v1::PullImageRequest) -> Call<'_, v1::PullImageResponse>;
    /// Removing an image that is not there succeeds.
    fn remove_image(&self, request: v1::RemoveImageRequest) -> Call<'_, v1::RemoveImageResponse>;
    fn image_fs_info(&self) -> Call<'_, v1::ImageFsInfoResponse>;
}

fn unimplemented_call<'a, T: Send + 'a>(method: &'static str) -> Call<'a, T> {
    Box::pin(async move { Err(Error::new(Code::Unimplemented, format!("method {method} not implemented"))) })
}
