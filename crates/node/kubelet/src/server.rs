//! The kubelet's HTTPS server on port 10250: logs, exec, attach, port-forward, pods, health, metrics.
//!
//! Callers show a certificate of the cluster's CA or a token; [`access`] says whether they may. Only `/healthz` is open to all.
//! [`Pods`] is what the server knows of the kubelet; containers are found by their CRI labels.

pub mod access;
mod containers;
mod metrics;
mod query;
mod routes;
mod stats;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Pod;
use stdx::Drain;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use access::Refusal;

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The pods of this node as the kubelet knows them, with their newest status.
pub trait Pods: Send + Sync + 'static {
    fn list(&self) -> Vec<Arc<Pod>>;
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
    /// How full the pods' volumes are.
    fn volumes(&self) -> futures_util::future::BoxFuture<'_, Vec<crate::storage::usage::Usage>> {
        Box::pin(async { Vec::new() })
    }
    /// Successes and failures of probes, by namespace, pod, uid, container and kind.
    fn probe_counts(&self) -> Vec<(ProbeKey, (u64, u64))> {
        Vec::new()
    }
}

pub type ProbeKey = (String, String, String, String, String);

/// What the server is made of.
pub struct Server {
    pub node_name: String,
    pub pods: Arc<dyn Pods>,
    pub runtime: Arc<dyn cri::RuntimeService>,
    pub access: access::Access,
    /// The configuration in use, for `/configz`.
    pub config: serde_json::Value,
    /// Paths on the file systems of pods and of images.
    pub data_directory: std::path::PathBuf,
    pub image_directory: std::path::PathBuf,
}

impl Server {
    /// Serves until `drain`. Connections with upgrades live on until their streams end.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Arc<rustls::ServerConfig>, drain: Drain) {
        let acceptor = TlsAcceptor::from(tls);
        while let Some(accepted) = drain.run(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    let (server, acceptor) = (self.clone(), acceptor.clone());
                    tokio::spawn(server.connection(stream, peer, acceptor));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor) {
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let user = certificate.and_then(|der| auth::authenticate::certificate_user(der)).map(Arc::new);
        let service = service_fn(move |request| {
            let (server, user) = (self.clone(), user.clone());
            async move {
                let is_head = request.method() == http::Method::HEAD;
                let response = server.answer(request, user.as_deref()).await;
                // Over HTTP/2 hyper would send the body of a HEAD's answer, which is a fault of the protocol.
                let response = if is_head { response.map(|_| Full::default().map_err(|never| match never {}).boxed()) } else { response };
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
            tracing::debug!(%peer, %error, "connection");
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, user: Option<&auth::UserInfo>) -> Response<Body> {
        if matches!(request.uri().path(), "/healthz" | "/healthz/ping" | "/healthz/syncloop" | "/healthz/log") {
            return text(StatusCode::OK, "ok");
        }
        match self.access.check(user, &request).await {
            Ok(()) => {}
            Err(Refusal::Unauthorized) => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
            Err(Refusal::Forbidden(why)) => return text(StatusCode::FORBIDDEN, why),
            Err(Refusal::Unknown(why)) => {
                return text(StatusCode::INTERNAL_SERVER_ERROR, format!("Authorization error: {why}\n"));
            }
        }
        routes::route(self, request).await
    }
}

/// A whole body.
pub(crate) fn full(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    full(status, "text/plain; charset=utf-8", body)
}

pub(crate) fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => full(StatusCode::OK, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
