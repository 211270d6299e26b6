//! Requests that go on to a kubelet, a pod or a Service: one HTTP/1.1 connection each, upgrades tunnelled byte for byte.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use auth::authenticate::WEBSOCKET_TOKEN;
use http::header::{AUTHORIZATION, CONNECTION, HeaderName, SEC_WEBSOCKET_PROTOCOL, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use meta::Status;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::reply::{self, Body};

/// As upstream's dialer and its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a request goes on to.
#[derive(Clone, Debug)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
    /// Absent: plain HTTP.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// In the words of Go's dialer, which users know.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("dial tcp {address}: {}", go_words(source))]
    Connect { address: SocketAddr, source: io::Error },
    #[error("{}", go_words(source))]
    Tls { source: io::Error },
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
}

fn go_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        io::ErrorKind::ConnectionReset => "read: connection reset by peer".into(),
        _ => admission::webhook::tls::go_words(error),
    }
}

impl Error {
    /// What upstream's proxies answer.
    pub fn unavailable(&self) -> Status {
        Status::failure(503, "ServiceUnavailable", format!("error trying to reach service: {self}"))
    }
    /// What upstream says of a kubelet: `step` and the error, without a reason.
    pub fn unreachable(&self, step: &str) -> Status {
        Status::failure(500, "", format!("{step}: {self}"))
    }
}

/// In the extensions of an answer that comes from elsewhere.
#[derive(Clone, Copy)]
pub struct PassedOn;

impl Backend {
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.socket())
    }

    fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Sends the request to `target` (path and query) and gives the answer back; an answer of 101 connects both sides.
    pub async fn forward(&self, request: Request<Body>, target: &str) -> Result<Response<Body>, Error> {
        self.forward_named(ServerName::IpAddress(self.address.into()), request, target).await
    }

    /// The same to a server whose certificate must be for `name`.
    pub async fn forward_named(
        &self,
        name: ServerName<'static>,
        mut request: Request<Body>,
        target: &str,
    ) -> Result<Response<Body>, Error> {
        let upgrade = is_upgrade(request.headers());
        let client = upgrade.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let mut outgoing = Request::builder().method(parts.method).uri(target).body(if upgrade { reply::empty() } else { body })?;
        *outgoing.headers_mut() = end_to_end(parts.headers, upgrade);
        let mut response = self.send(name, outgoing).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (mut parts, body) = response.into_parts();
            parts.headers = end_to_end(parts.headers, false);
            parts.version = http::Version::HTTP_11;
            parts.extensions.insert(PassedOn);
            return Ok(Response::from_parts(parts, body.map_err(io::Error::other).boxed()));
        }
        let server = hyper::upgrade::on(&mut response);
        if let Some(client) = client {
            tokio::spawn(tunnel(client, server));
        }
        let (mut parts, _) = response.into_parts();
        parts.extensions.clear();
        Ok(Response::from_parts(parts, reply::empty()))
    }

    async fn send(&self, name: ServerName<'static>, request: Request<Body>) -> Result<Response<hyper::body::Incoming>, Error> {
        let address = self.socket();
        let stream = within(CONNECT_TIMEOUT, "i/o timeout", TcpStream::connect(address)).await;
        let stream = stream.map_err(|source| Error::Connect { address, source })?;
        let _ = stream.set_nodelay(true);
        let Some(config) = &self.tls else {
            return exchange(stream, request).await;
        };
        let handshake = TlsConnector::from(config.clone()).connect(name, stream);
        let stream = within(HANDSHAKE_TIMEOUT, "net/http: TLS handshake timeout", handshake).await;
        exchange(stream.map_err(|source| Error::Tls { source })?, request).await
    }
}

async fn within<T>(limit: Duration, words: &'static str, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, step).await.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, words)))
}

async fn exchange<S>(stream: S, mut request: Request<Body>) -> Result<Response<hyper::body::Incoming>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // HTTP/1.1 wants a host; a client of HTTP/2 gave it in another form, a client in this process none.
    if !request.headers().contains_key(http::header::HOST) {
        request.headers_mut().insert(http::header::HOST, HeaderValue::from_static("kubernetes.default.svc"));
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend");
        }
    });
    Ok(sender.send_request(request).await?)
}

/// Copies until both directions have ended; one may end long before the other.
async fn tunnel(client: hyper::upgrade::OnUpgrade, server: hyper::upgrade::OnUpgrade) {
    match tokio::try_join!(client, server) {
        Ok((client, server)) => {
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
                tracing::debug!(%error, "tunnel");
            }
        }
        Err(error) => tracing::debug!(%error, "upgrade"),
    }
}

/// Whether the client asks to go on in another protocol (RFC 9110, 7.8).
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let mut options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    headers.contains_key(UPGRADE) && options.any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
}

/// Without what concerns one connection only, and without the client's credentials: the backend sees the API server's.
fn end_to_end(mut headers: HeaderMap, upgrade: bool) -> HeaderMap {
    let fixed = [TE, TRAILER, TRANSFER_ENCODING, AUTHORIZATION];
    let mut dropped: Vec<HeaderName> = fixed.into();
    dropped.extend(["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"].map(HeaderName::from_static));
    dropped.extend(headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned());
    if !upgrade {
        // What the sender named as its connection's own.
        let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
        dropped.extend(named.filter_map(|name| name.trim().parse().ok()).collect::<Vec<HeaderName>>());
        dropped.extend([CONNECTION, UPGRADE]);
    }
    for name in dropped {
        headers.remove(name);
    }
    drop_token(&mut headers);
    headers
}

/// A token among the subprotocols of a WebSocket is a credential too.
fn drop_token(headers: &mut HeaderMap) {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|text| text.split(',')).map(str::trim).collect();
    let kept: Vec<&str> = offered.iter().filter(|protocol| !protocol.starts_with(WEBSOCKET_TOKEN)).copied().collect();
    if kept.len() < offered.len()
        && let Ok(kept) = HeaderValue::from_str(&kept.join(", "))
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, kept);
    }
}
