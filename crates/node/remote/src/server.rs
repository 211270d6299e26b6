//! The runtime and images of this process as CRI v1 on a Unix socket.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cri::{Code, Error, ImageService, RuntimeService, v1};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::{HeaderValue, Request, Response, header};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use stdx::Drain;
use tokio::net::UnixListener;

use crate::grpc;
use crate::streams::{Desk, Ticket};

type Frames = BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

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
        let failed = |source| crate::Error::Listen { path: socket.display().to_string(), source };
        if let Some(parent) = socket.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(socket).map_err(failed)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let desk = Desk::open(runtime.clone(), drain.clone()).await.map_err(crate::Error::Streams)?;
        tokio::spawn(Arc::new(Self { runtime, images, desk }).serve(listener, drain));
        Ok(())
    }

    async fn serve(self: Arc<Self>, listener: UnixListener, drain: Drain) {
        while let Some(accepted) = drain.run(listener.accept()).await {
            let Ok((stream, _)) = accepted else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let answer = server.clone().answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let connection =
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "CRI connection");
                }
            });
        }
    }

    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Response<StreamBody<Frames>>> {
        Box::pin(async move { self.call(request).await })
    }

    async fn call(&self, request: Request<Incoming>) -> Response<StreamBody<Frames>> {
        let path = request.uri().path().to_owned();
        let frames = match path.trim_start_matches('/').split_once('/') {
            Some(("runtime.v1.RuntimeService", method)) => self.runtime_call(method, request.into_body()).await,
            Some(("runtime.v1.ImageService", method)) => self.image_call(method, request.into_body()).await,
            Some((service, _)) => ended(Err(Error::new(Code::Unimplemented, format!("unknown service {service}")))),
            None => ended(Err(Error::new(Code::Unimplemented, format!("malformed method name: {path:?}")))),
        };
        let mut response = Response::new(StreamBody::new(frames));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
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
            _ => unknown("RuntimeService", method),
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
            _ => unknown("ImageService", method),
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

fn unknown(service: &str, method: &str) -> Frames {
    ended(Err(Error::new(Code::Unimplemented, format!("unknown method {method} for service runtime.v1.{service}"))))
}

fn ended(outcome: cri::Result<()>) -> Frames {
    Box::pin(futures_util::stream::iter([Ok(Frame::trailers(grpc::trailers(&outcome)))]))
}

fn one<A: Message>(answer: cri::Result<A>) -> Frames {
    match answer {
        Ok(answer) => {
            let frames = [Ok(Frame::data(grpc::frame(&answer))), Ok(Frame::trailers(grpc::trailers(&Ok(()))))];
            Box::pin(futures_util::stream::iter(frames))
        }
        Err(error) => ended(Err(error)),
    }
}

fn many<A: Message + 'static>(answers: BoxStream<'static, cri::Result<A>>) -> Frames {
    let frames = answers.map(|answer| {
        Ok(match answer {
            Ok(answer) => Frame::data(grpc::frame(&answer)),
            Err(error) => Frame::trailers(grpc::trailers(&Err(error))),
        })
    });
    // A stream of events ends when its reader was too slow: then it starts anew.
    let end = Frame::trailers(grpc::trailers(&Err(Error::new(Code::Unavailable, "the stream ended"))));
    Box::pin(frames.chain(futures_util::stream::iter([Ok(end)])))
}
