//! Requests that go on to a kubelet, a pod or a Service: one HTTP/1.1 connection each, upgrades tunnelled byte for byte.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use meta::Status;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::reply::{self, Body};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a request goes on to.
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
    /// Absent: plain HTTP.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("dial tcp {address}:{port}: {source}")]
    Connect { address: IpAddr, port: u16, source: io::Error },
    #[error("tls: {0}")]
    Tls(io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
}

impl Error {
    /// 503 as upstream's proxies say it.
    pub fn unavailable(&self) -> Status {
        Status::failure(503, "ServiceUnavailable", format!("error trying to reach service: {self}"))
    }
    /// 500 as upstream says it of a kubelet.
    pub fn internal(&self, url: &str) -> Status {
        Status::internal(format!("Get \"{url}\": {self}"))
    }
}

impl Backend {
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.authority())
    }

    fn authority(&self) -> String {
        match self.address {
            IpAddr::V4(address) => format!("{address}:{}", self.port),
            IpAddr::V6(address) => format!("[{address}]:{}", self.port),
        }
    }

    /// Sends the request and gives the answer back; an answer of 101 connects both sides.
    pub async fn forward(&self, mut request: Request<Body>, target: &str) -> Result<Response<Body>, Error> {
        let upgrade = request.headers().contains_key(UPGRADE);
        let client = upgrade.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let mut outgoing = Request::builder().method(parts.method).uri(target).body(if upgrade { reply::empty() } else { body })?;
        *outgoing.headers_mut() = end_to_end(parts.headers, upgrade);
        if let Ok(host) = HeaderValue::from_str(&self.authority()) {
            outgoing.headers_mut().insert(HOST, host);
        }
        let mut response = self.send(outgoing).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client) = client
        {
            let server = hyper::upgrade::on(&mut response);
            tokio::spawn(tunnel(client, server));
            let (mut parts, _) = response.into_parts();
            parts.extensions.clear();
            return Ok(Response::from_parts(parts, reply::empty()));
        }
        let (mut parts, body) = response.into_parts();
        parts.headers = end_to_end(std::mem::take(&mut parts.headers), false);
        Ok(Response::from_parts(parts, body.map_err(io::Error::other).boxed()))
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<hyper::body::Incoming>, Error> {
        let fail = |source| Error::Connect { address: self.address, port: self.port, source };
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((self.address, self.port)));
        let stream = connecting.await.map_err(|_| fail(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout")))?.map_err(fail)?;
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => exchange(stream, request).await,
            Some(config) => {
                let name = ServerName::IpAddress(self.address.into());
                let handshake = TlsConnector::from(config.clone()).connect(name, stream);
                let stream = tokio::time::timeout(CONNECT_TIMEOUT, handshake).await;
                let stream =
                    stream.map_err(|_| fail(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timeout")))?.map_err(Error::Tls)?;
                exchange(stream, request).await
            }
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Body>) -> Result<Response<hyper::body::Incoming>, Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "backend connection");
        }
    });
    Ok(sender.send_request(request).await?)
}

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

/// Without what concerns one connection only, and without the client's credentials: the backend sees the API server's.
fn end_to_end(mut headers: HeaderMap, upgrade: bool) -> HeaderMap {
    let mut dropped: Vec<HeaderName> = vec![
        TE,
        TRANSFER_ENCODING,
        http::header::AUTHORIZATION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    dropped.extend(headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned());
    if !upgrade {
        dropped.extend([CONNECTION, UPGRADE]);
    }
    for name in dropped {
        headers.remove(name);
    }
    headers
}
