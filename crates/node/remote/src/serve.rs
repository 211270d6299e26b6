//! A gRPC service of ours on a Unix socket.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cri::{Code, Error};
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

/// What a call is answered with.
pub type Frames = BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

/// The services behind a socket.
pub trait Services: Send + Sync + 'static {
    /// One call; `service` is with its package.
    fn call<'a>(&'a self, service: &'a str, method: &'a str, body: Incoming) -> BoxFuture<'a, Frames>;
}

/// Listens on `socket`, for this user only. A socket that is there from before is replaced.
pub fn listen(socket: &Path) -> Result<UnixListener, crate::Error> {
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
    Ok(listener)
}

/// Serves until `drain`.
pub async fn serve(services: Arc<dyn Services>, listener: UnixListener, drain: Drain) {
    while let Some(accepted) = drain.run(listener.accept()).await {
        let Ok((stream, _)) = accepted else { continue };
        let services = services.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(services.clone(), request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "gRPC connection");
            }
        });
    }
}

async fn answer(services: Arc<dyn Services>, request: Request<Incoming>) -> Response<StreamBody<Frames>> {
    let path = request.uri().path().to_owned();
    let frames = match path.trim_start_matches('/').split_once('/') {
        Some((service, method)) => services.call(service, method, request.into_body()).await,
        None => ended(Err(Error::new(Code::Unimplemented, format!("malformed method name: {path:?}")))),
    };
    let mut response = Response::new(StreamBody::new(frames));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Nobody serves that.
pub fn unknown(service: &str, method: &str) -> Frames {
    ended(Err(Error::new(Code::Unimplemented, format!("unknown method {method} for service {service}"))))
}

/// A call that ends without an answer.
pub fn ended(outcome: cri::Result<()>) -> Frames {
    Box::pin(futures_util::stream::iter([Ok(Frame::trailers(grpc::trailers(&outcome)))]))
}

/// A call of one answer, or the error in its place.
pub fn one<A: Message>(answer: cri::Result<A>) -> Frames {
    match answer {
        Ok(answer) => {
            let frames = [Ok(Frame::data(grpc::frame(&answer))), Ok(Frame::trailers(grpc::trailers(&Ok(()))))];
            Box::pin(futures_util::stream::iter(frames))
        }
        Err(error) => ended(Err(error)),
    }
}

/// A call of answers as they come.
pub fn many<A: Message + 'static>(answers: BoxStream<'static, cri::Result<A>>) -> Frames {
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
