//! The transport with a socket: HTTP/2 (or 1.1) over TLS, one pooled connection that many requests share.
//!
//! Addresses are IP:port or `localhost`; any other name needs the resolver given with [`Https::with_resolver`], because a
//! statically linked binary must not rely on the system's name service.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::kubeconfig::{self, Access};
use crate::{Body, Transport};

/// Turns a host name into an address.
pub type Resolver = Arc<dyn Fn(&str) -> Option<IpAddr> + Send + Sync>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A dead peer is noticed after interval + timeout, so that watches end and are resumed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Many watches share one connection: a slow reader of one must not use up the window of all.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Why a transport cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kubeconfig(#[from] kubeconfig::Error),
    #[error("server address {address:?}: {reason}")]
    Address { address: String, reason: String },
    #[error("{what}: {reason}")]
    Tls { what: &'static str, reason: String },
}

/// Talks to one server with one identity.
pub struct Https {
    http: hyper_util::client::legacy::Client<Connector, Full<Bytes>>,
    scheme: http::uri::Scheme,
    authority: http::uri::Authority,
    token: Option<HeaderValue>,
}

impl Https {
    pub fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Self, Error> {
        Self::new(&kubeconfig::load(path, context)?)
    }

    pub fn new(access: &Access) -> Result<Self, Error> {
        Self::with_resolver(access, Arc::new(|_| None))
    }

    /// `resolve` is asked for hosts that are neither an address nor `localhost`.
    pub fn with_resolver(access: &Access, resolve: Resolver) -> Result<Self, Error> {
        let address = |reason: &str| Error::Address { address: access.server.clone(), reason: reason.to_owned() };
        let uri: Uri = access.server.parse().map_err(|error: http::uri::InvalidUri| address(&error.to_string()))?;
        let scheme = uri.scheme().cloned().ok_or_else(|| address("no https:// before it"))?;
        let authority = uri.authority().cloned().ok_or_else(|| address("no host"))?;
        let secure = match scheme.as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(address("the scheme is neither https nor http")),
        };
        let host = access.server_name.as_deref().unwrap_or(authority.host()).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| address(&error.to_string()))?;
        let tls = secure.then(|| tls_config(access)).transpose()?.map(|config| (TlsConnector::from(Arc::new(config)), name));
        let token = access.token.as_deref().map(bearer).transpose()?;
        let mut builder = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
        builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
        builder.http2_keep_alive_interval(KEEP_ALIVE_INTERVAL).http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        builder.http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES).http2_initial_stream_window_size(STREAM_WINDOW_BYTES);
        let http = builder.build(Connector { tls, resolve });
        Ok(Self { http, scheme, authority, token })
    }

    fn address(&self, request: &mut Request<Full<Bytes>>) -> std::io::Result<()> {
        let mut parts = request.uri().clone().into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        *request.uri_mut() = Uri::from_parts(parts).map_err(std::io::Error::other)?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(http::header::AUTHORIZATION, token.clone());
        }
        Ok(())
    }
}

fn bearer(token: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|error| Error::Tls { what: "bearer token", reason: error.to_string() })?;
    value.set_sensitive(true);
    Ok(value)
}

impl Transport for Https {
    fn send(&self, request: Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<Response<Body>>> + Send + '_>> {
        Box::pin(async move {
            let mut request = request.map(Full::new);
            self.address(&mut request)?;
            let response = self.http.request(request).await.map_err(|error| std::io::Error::other(chain(&error)))?;
            Ok(response.map(|body| body.map_err(std::io::Error::other).boxed()))
        })
    }
}

/// An error with its causes: hyper's own sentence says only "client error (Connect)".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What a connection with this access speaks: HTTP/2, or HTTP/1.1 where the server knows nothing else.
pub fn tls_config(access: &Access) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls { what: "TLS versions", reason: error.to_string() })?;
    let builder = if access.insecure {
        versions.dangerous().with_custom_certificate_verifier(auth::pki::any_certificate(provider))
    } else {
        versions.with_root_certificates(roots(access.ca.as_deref().unwrap_or_default())?)
    };
    let mut config = match &access.identity {
        Some((certificates, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| Error::Tls { what: "client key", reason: error.to_string() })?;
            let chain = certificates_of("client certificate", certificates)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| Error::Tls { what: "client certificate", reason: error.to_string() })?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates (DER) that a server shows, the leaf first. Nobody vouches for them: whoever asks knows one of them by its hash.
pub async fn presented_chain(server: &str) -> Result<Vec<Vec<u8>>, Error> {
    let access = Access { server: server.to_owned(), insecure: true, ..Access::default() };
    let address = |reason: String| Error::Address { address: server.to_owned(), reason };
    let uri: Uri = server.parse().map_err(|error: http::uri::InvalidUri| address(error.to_string()))?;
    let host = uri.host().ok_or_else(|| address("no host".into()))?.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(|error| address(error.to_string()))?;
    let tls = Some((TlsConnector::from(Arc::new(tls_config(&access)?)), name));
    let connector = Connector { tls, resolve: Arc::new(|_| None) };
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, connector.open(&uri)).await;
    let stream = opened.map_err(|_| address("timed out".into()))?.map_err(|error| address(error.to_string()))?;
    let Stream::Tls(stream) = stream else { return Err(address("no https:// before it".into())) };
    let shown = stream.inner().get_ref().1.peer_certificates().unwrap_or_default();
    Ok(shown.iter().map(|certificate| certificate.as_ref().to_vec()).collect())
}

fn roots(pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in certificates_of("certificate authority", pem)? {
        store.add(certificate).map_err(|error| Error::Tls { what: "certificate authority", reason: error.to_string() })?;
    }
    Ok(store)
}

fn certificates_of(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| Error::Tls { what, reason: error.to_string() })?;
    if all.is_empty() { Err(Error::Tls { what, reason: "no certificate in it".into() }) } else { Ok(all) }
}

/// Opens connections for the pool.
#[derive(Clone)]
struct Connector {
    tls: Option<(TlsConnector, ServerName<'static>)>,
    resolve: Resolver,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let opened = tokio::time::timeout(CONNECT_TIMEOUT, this.open(&uri)).await;
            opened.unwrap_or_else(|_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("connect to {uri}: timed out"))))
        })
    }
}

impl Connector {
    async fn open(&self, uri: &Uri) -> std::io::Result<Stream> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let unknown = || std::io::Error::new(std::io::ErrorKind::NotFound, format!("{host}: not an address, and nothing resolves it"));
        let address = match host.parse() {
            Ok(address) => address,
            Err(_) if host == "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Err(_) => (self.resolve)(host).ok_or_else(unknown)?,
        };
        let tcp = TcpStream::connect(SocketAddr::new(address, port)).await?;
        tcp.set_nodelay(true)?;
        Ok(match &self.tls {
            Some((tls, name)) => Stream::Tls(TokioIo::new(Box::new(tls.connect(name.clone(), tcp).await?))),
            None => Stream::Plain(TokioIo::new(tcp)),
        })
    }
}

/// A connection, with or without TLS.
enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(TokioIo<Box<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Stream::Tls(tls) if tls.inner().get_ref().1.alpn_protocol() == Some(b"h2") => Connected::new().negotiated_h2(),
            _ => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Stream::Tls(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_write(context, buffer),
            Stream::Tls(io) => Pin::new(io).poll_write(context, buffer),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_flush(context),
            Stream::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_shutdown(context),
            Stream::Tls(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}
