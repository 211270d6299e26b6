//! The runtime and images of this process as CRI v1 on a Unix socket.

use std::path::Path;
use std::sync::Arc;

use cri::{Code, Error, ImageService, RuntimeService, v1};
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use stdx::Drain;

use crate::grpc;
use crate::serve::{self, Frames, Services, ended, many, one};
use crate::streams::{Desk, Ticket};

/// What the socket leads to.
pub struct Server {
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    desk: Arc<Desk>,
}

/// An answer of one message, or the error in its place.
macro_rules! unary {
    ($service:expr, $method:ident, $body:expr) => {{
        let answer = async {
            let request = grpc::question($body).await?;
            $service.$method(request).await
        };
        let answer: BoxFuture<'_, cri::Result<_>> = Box::pin(answer);
        one(answer.await)
    }};
}

impl Server {
    /// Serves on `socket`, for this user only, until `drain`. A socket that is there from before is replaced.
    pub async fn start(
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        socket: &Path,
        drain: Drain,
    ) -> Result<(), crate::Error> {
        let listener = serve::listen(socket)?;
        let desk = Desk::open(runtime.clone(), drain.clone()).await.map_err(crate::Error::Streams)?;
        tokio::spawn(serve::serve(Arc::new(Self { runtime, images, desk }), listener, drain));
        Ok(())
    }

    fn runtime_call<'a>(&'a self, method: &'a str, body: Incoming) -> BoxFuture<'a, Frames> {
        Box::pin(self.runtime_answer(method, body))
    }

    async fn runtime_answer(&self, method: &str, body: Incoming) -> Frames {
        let runtime = &self.runtime;
        match method {
            "Version" => one(runtime.version().await),
            "Status" => unary!(runtime, status, body),
            "UpdateRuntimeConfig" => unary!(runtime, update_runtime_config, body),
            "RunPodSandbox" => unary!(runtime, run_pod_sandbox, body),
            "StopPodSandbox" => unary!(runtime, stop_pod_sandbox, body),
            "RemovePodSandbox" => unary!(runtime, remove_pod_sandbox, body),
            "PodSandboxStatus" => unary!(runtime, pod_sandbox_status, body),
            "ListPodSandbox" => unary!(runtime, list_pod_sandbox, body),
            "CreateContainer" => unary!(runtime, create_container, body),
            "StartContainer" => unary!(runtime, start_container, body),
            "StopContainer" => unary!(runtime, stop_container, body),
            "RemoveContainer" => unary!(runtime, remove_container, body),
            "ContainerStatus" => unary!(runtime, container_status, body),
            "ListContainers" => unary!(runtime, list_containers, body),
            "UpdateContainerResources" => unary!(runtime, update_container_resources, body),
            "UpdatePodSandboxResources" => unary!(runtime, update_pod_sandbox_resources, body),
            "ReopenContainerLog" => unary!(runtime, reopen_container_log, body),
            "ExecSync" => unary!(runtime, exec_sync, body),
            "ContainerStats" => unary!(runtime, container_stats, body),
            "ListContainerStats" => unary!(runtime, list_container_stats, body),
            "PodSandboxStats" => unary!(runtime, pod_sandbox_stats, body),
            "ListPodSandboxStats" => unary!(runtime, list_pod_sandbox_stats, body),
            "RuntimeConfig" => unary!(runtime, runtime_config, body),
            "Exec" => one(self.exec(body).await),
            "Attach" => one(self.attach(body).await),
            "PortForward" => one(self.port_forward(body).await),
            "GetContainerEvents" => match runtime.get_container_events().await {
                Ok(events) => many(events),
                Err(error) => ended(Err(error)),
            },
            _ => serve::unknown("runtime.v1.RuntimeService", method),
        }
    }

    async fn image_call(&self, method: &str, body: Incoming) -> Frames {
        let images = &self.images;
        match method {
            "ListImages" => unary!(images, list_images, body),
            "ImageStatus" => unary!(images, image_status, body),
            "PullImage" => unary!(images, pull_image, body),
            "RemoveImage" => unary!(images, remove_image, body),
            "ImageFsInfo" => one(images.image_fs_info().await),
            _ => serve::unknown("runtime.v1.ImageService", method),
        }
    }

    /// The container is looked at before anybody is sent to it.
    async fn running(&self, id: &str) -> cri::Result<()> {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let status = self.runtime.container_status(request).await?.status.unwrap_or_default();
        if status.state == v1::ContainerState::ContainerRunning as i32 {
            return Ok(());
        }
        Err(Error::new(Code::FailedPrecondition, format!("container {id:?} is not running")))
    }

    async fn exec(&self, body: Incoming) -> cri::Result<v1::ExecResponse> {
        let request: v1::ExecRequest = grpc::question(body).await?;
        self.running(&request.container_id).await?;
        Ok(v1::ExecResponse { url: self.desk.url("exec", Ticket::Exec(request))? })
    }

    async fn attach(&self, body: Incoming) -> cri::Result<v1::AttachResponse> {
        let request: v1::AttachRequest = grpc::question(body).await?;
        self.running(&request.container_id).await?;
        Ok(v1::AttachResponse { url: self.desk.url("attach", Ticket::Attach(request))? })
    }

    async fn port_forward(&self, body: Incoming) -> cri::Result<v1::PortForwardResponse> {
        let request: v1::PortForwardRequest = grpc::question(body).await?;
        Ok(v1::PortForwardResponse { url: self.desk.url("portforward", Ticket::PortForward(request.pod_sandbox_id))? })
    }
}

impl Services for Server {
    fn call<'a>(&'a self, service: &'a str, method: &'a str, body: Incoming) -> BoxFuture<'a, Frames> {
        match service {
            "runtime.v1.RuntimeService" => self.runtime_call(method, body),
            "runtime.v1.ImageService" => Box::pin(self.image_call(method, body)),
            _ => Box::pin(async move { ended(Err(Error::new(Code::Unimplemented, format!("unknown service {service}")))) }),
        }
    }
}
