//! HTTP/1.1 and 2 to registries and other nodes, with pooled connections.
//!
//! Names of hosts are looked up by the function that the process gives: a static binary must not rely on the system's name service.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Addresses of a host, or why there are none.
pub type Resolver = Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, String>> + Send>> + Send + Sync>;

pub(crate) type Body = http_body_util::combinators::BoxBody<Bytes, io::Error>;

const CONNECT: Duration = Duration::from_secs(15);
/// What a machine trusts by itself, in the places of the distributions.
const SYSTEM_BUNDLES: [&str; 4] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// `length` bytes of a file from its place on.
pub(crate) fn file(file: tokio::fs::File, length: u64) -> Body {
    use tokio::io::AsyncReadExt;
    let chunks = tokio_util::io::ReaderStream::with_capacity(file.take(length), 256 << 10);
    BodyExt::boxed(StreamBody::new(chunks.map_ok(hyper::body::Frame::data)))
}

/// How a server is known, and how we show ourselves to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM, beside what the machine trusts.
    pub ca: Vec<u8>,
    /// PEM certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Take any certificate.
    pub insecure: bool,
}

impl Tls {
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        static DEFAULT: OnceLock<Arc<ClientConfig>> = OnceLock::new();
        if *self != Self::default() {
            return self.build();
        }
        // Read once: a machine's bundle has some hundred certificates.
        match DEFAULT.get() {
            Some(config) => Ok(config.clone()),
            None => Ok(DEFAULT.get_or_init(|| Self::default().build().unwrap_or_else(|_| nobody())).clone()),
        }
    }

    fn build(&self) -> Result<Arc<ClientConfig>, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
        let builder = if self.insecure {
            builder.dangerous().with_custom_certificate_verifier(auth::pki::any_certificate(provider))
        } else {
            let mut roots = rustls::RootCertStore::empty();
            let bundle = std::env::var_os("SSL_CERT_FILE").and_then(|path| std::fs::read(path).ok());
            let system = bundle.or_else(|| SYSTEM_BUNDLES.iter().find_map(|path| std::fs::read(path).ok())).unwrap_or_default();
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&system).filter_map(Result::ok));
            for certificate in CertificateDer::pem_slice_iter(&self.ca) {
                let certificate = certificate.map_err(|e| format!("certificate authority: {e}"))?;
                roots.add(certificate).map_err(|e| format!("certificate authority: {e}"))?;
            }
            builder.with_root_certificates(roots)
        };
        let mut config = match &self.identity {
            Some((certificates, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>();
                let chain = chain.map_err(|e| format!("client certificate: {e}"))?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("client key: {e}"))?;
                builder.with_client_auth_cert(chain, key).map_err(|e| format!("client certificate: {e}"))?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Trusts nobody: every handshake fails with its reason.
fn nobody() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(rustls::ALL_VERSIONS);
    let builder = builder.expect("the versions that rustls offers fit the provider that rustls offers");
    Arc::new(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
}

/// Requests over connections that are kept for the next one.
#[derive(Clone)]
pub(crate) struct Http(hyper_util::client::legacy::Client<Connector, Body>);

impl Http {
    pub fn new(tls: Arc<ClientConfig>, resolve: Resolver) -> Self {
        let mut builder = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
        builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(30));
        builder.http2_keep_alive_interval(Duration::from_secs(20)).http2_initial_stream_window_size(8 << 20);
        builder.http2_initial_connection_window_size(32 << 20);
        Self(builder.build(Connector { tls: TlsConnector::from(tls), resolve }))
    }

    /// The answer's head; its error says which step failed.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, String> {
        self.0.request(request).await.map_err(|error| chain(&error))
    }
}

/// An error with its causes: hyper's own sentence says only "client error (Connect)".
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text.trim_start_matches("client error (Connect): ").to_owned()
}

/// Opens connections for the pool.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    resolve: Resolver,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let opened = tokio::time::timeout(CONNECT, this.open(&uri)).await;
            opened.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("connect to {uri}: timed out"))))
        })
    }
}

impl Connector {
    async fn open(&self, uri: &Uri) -> io::Result<Stream> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tcp = self.dial(&host, port).await?;
        tcp.set_nodelay(true)?;
        if !secure {
            return Ok(Stream::Plain(TokioIo::new(tcp)));
        }
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        Ok(Stream::Tls(TokioIo::new(Box::new(self.tls.connect(name, tcp).await?))))
    }

    async fn dial(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let addresses = match host.parse() {
            Ok(address) => vec![address],
            Err(_) if host == "localhost" => vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            Err(_) => (self.resolve)(host.to_owned()).await.map_err(|error| io::Error::other(format!("lookup {host}: {error}")))?,
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("lookup {host}: no such host"));
        for address in addresses {
            match TcpStream::connect(SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = io::Error::new(error.kind(), format!("dial tcp {}: connect: {error}", SocketAddr::new(address, port))),
            }
        }
        Err(last)
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
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Stream::Tls(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_write(context, buffer),
            Stream::Tls(io) => Pin::new(io).poll_write(context, buffer),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_flush(context),
            Stream::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_shutdown(context),
            Stream::Tls(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}
