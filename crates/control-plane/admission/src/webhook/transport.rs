//! HTTPS to webhooks: one POST at a time on each connection, connections kept for the next write.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rules::value::{at, int, text};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::credentials::Credentials;
use super::endpoint;
use super::tls::{self, Trust};
use crate::Lookup;

/// Idle connections that one webhook keeps, and for how long (Go's defaults for a client of this kind).
const IDLE_MAX: usize = 25;
const IDLE_TIME: Duration = Duration::from_secs(90);
/// An answer carries a patch, in base64, of an object of at most 3 MiB.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Where a webhook is and whom to trust there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    place: Place,
    /// Path and query; begins with a slash or is empty.
    path: String,
    trust: Trust,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Service { namespace: String, name: String, port: u16 },
    Host { host: String, port: u16 },
}

/// Why no answer came.
#[derive(Debug)]
pub enum Failure {
    /// In Go's words: `Post "https://…": dial tcp …`.
    Unreachable(String),
    /// It answered with a code that is no success.
    Refused { code: u16, why: String },
}

impl Failure {
    pub fn why(&self) -> &str {
        match self {
            Self::Unreachable(why) | Self::Refused { why, .. } => why,
        }
    }
    pub fn code(&self) -> u16 {
        match self {
            Self::Unreachable(_) => 503,
            Self::Refused { code, .. } => *code,
        }
    }
}

impl Destination {
    /// From a `clientConfig`.
    pub fn read(config: &Value) -> Result<Self, String> {
        let trust = match text(config, "caBundle") {
            "" => Trust::System,
            bundle => Trust::Bundle(STANDARD.decode(bundle).map_err(|error| format!("caBundle: {error}"))?),
        };
        let service = at(config, "service");
        if service.is_object() {
            let port = int(service, "port").unwrap_or(443);
            let place = Place::Service {
                namespace: text(service, "namespace").to_owned(),
                name: text(service, "name").to_owned(),
                port: u16::try_from(port).map_err(|_| format!("invalid port {port}"))?,
            };
            let path = text(service, "path");
            let path = if path.is_empty() || path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            return Ok(Self { place, path, trust });
        }
        let url = text(config, "url");
        if url.is_empty() {
            return Err("webhook configuration must have either service or URL".into());
        }
        let bundle = match trust {
            Trust::Bundle(bundle) => Some(bundle),
            _ => None,
        };
        Self::of_url(url, bundle)
    }

    /// A URL with the certificates (PEM) that are trusted there.
    pub fn of_url(url: &str, bundle: Option<Vec<u8>>) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("Unparsable URL: {error}"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let place = Place::Host { host, port: uri.port_u16().unwrap_or(443) };
        Ok(Self { place, path: uri.path().to_owned(), trust: bundle.map_or(Trust::System, Trust::Bundle) })
    }

    /// As the `Host` header and the URL in errors say it.
    fn authority(&self) -> String {
        match &self.place {
            Place::Service { namespace, name, port } => format!("{name}.{namespace}.svc:{port}"),
            Place::Host { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Place::Host { host, port } => format!("{host}:{port}"),
        }
    }

    /// The host is also the name that its certificate must have.
    fn host_and_port(&self) -> (String, u16) {
        match &self.place {
            Place::Service { namespace, name, port } => (format!("{name}.{namespace}.svc"), *port),
            Place::Host { host, port } => (host.clone(), *port),
        }
    }

    async fn addresses(&self, lookup: &dyn Lookup) -> Result<Vec<SocketAddr>, String> {
        match &self.place {
            Place::Service { namespace, name, port } => endpoint::resolve(lookup, namespace, name, *port).await,
            Place::Host { host, port } => host_addresses(lookup, host, *port).await,
        }
    }
}

/// An address, `localhost`, or the cluster name of a Service. Other names need a name service, which a static binary does not have.
pub async fn host_addresses(lookup: &dyn Lookup, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)]);
    }
    let parts: Vec<&str> = host.trim_end_matches('.').split('.').collect();
    match parts.as_slice() {
        [name, namespace, "svc"] | [name, namespace, "svc", "cluster", "local"] => endpoint::resolve(lookup, namespace, name, port).await,
        _ => match lookup.resolve_host(host).await {
            addresses if addresses.is_empty() => Err(format!("dial tcp: lookup {host}: no such host")),
            addresses => Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect()),
        },
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// The kept connections and TLS settings of all webhooks.
#[derive(Default)]
pub struct Transport {
    idle: Mutex<HashMap<Destination, Vec<(Sender, Instant)>>>,
    /// By whom they trust; those that show an identity also by whom they are for.
    configs: Mutex<HashMap<(Trust, Option<(String, u16)>), Arc<rustls::ClientConfig>>>,
    credentials: Credentials,
}

/// TLS settings that are kept at most; beyond, all are made anew.
const CONFIGS_MAX: usize = 256;

impl Transport {
    /// Shows these credentials to those who are named there.
    pub fn with(credentials: Credentials) -> Self {
        Self { credentials, ..Self::default() }
    }

    /// Puts the question; `timeout` bounds everything and is told to the webhook.
    pub async fn post(&self, to: &Destination, body: Bytes, timeout: Duration, lookup: &dyn Lookup) -> Result<Bytes, Failure> {
        let path = if to.path.is_empty() { "/" } else { &to.path };
        let target = format!("{path}?timeout={}s", timeout.as_secs());
        let url = format!("https://{}{target}", to.authority());
        let unreachable = |why: String| Failure::Unreachable(format!("Post {url:?}: {why}"));
        let exchange = tokio::time::timeout(timeout, self.exchange(to, &target, body, lookup)).await;
        let (code, bytes) = exchange.unwrap_or_else(|_| Err("context deadline exceeded".into())).map_err(unreachable)?;
        match code.as_u16() {
            200..=206 => Ok(bytes),
            code => Err(Failure::Refused { code, why: refusal(code, &bytes) }),
        }
    }

    async fn exchange(&self, to: &Destination, target: &str, body: Bytes, lookup: &dyn Lookup) -> Result<(StatusCode, Bytes), String> {
        while let Some(sender) = self.take(to) {
            // A kept connection may have been closed by the other side meanwhile: then nothing was done yet and a new one serves.
            if let Ok(answer) = self.send(to, sender, target, body.clone()).await {
                return Ok(answer);
            }
        }
        let sender = self.connect(to, lookup).await?;
        self.send(to, sender, target, body).await
    }

    async fn send(&self, to: &Destination, mut sender: Sender, target: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        let (host, port) = to.host_and_port();
        let mut request = Request::post(target);
        if let Some(authorization) = self.credentials.of(&host, port).and_then(|credential| credential.authorization.clone()) {
            request = request.header(http::header::AUTHORIZATION, authorization);
        }
        let request = request
            .header(http::header::HOST, to.authority())
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json, */*")
            .header(http::header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let code = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?.to_bytes();
        if sender.ready().await.is_ok() {
            self.keep(to, sender);
        }
        Ok((code, bytes))
    }

    async fn connect(&self, to: &Destination, lookup: &dyn Lookup) -> Result<Sender, String> {
        let config = self.config(to)?;
        let name = ServerName::try_from(to.host_and_port().0).map_err(|error| error.to_string())?;
        let mut last = "no address".to_owned();
        for address in to.addresses(lookup).await? {
            let stream = match TcpStream::connect(address).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = format!("dial tcp {address}: {}", dial_words(&error));
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let stream = TlsConnector::from(config.clone()).connect(name.clone(), stream).await.map_err(|error| tls::go_words(&error))?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection to a webhook");
                }
            });
            return Ok(sender);
        }
        Err(last)
    }

    fn config(&self, to: &Destination) -> Result<Arc<rustls::ClientConfig>, String> {
        let (host, port) = to.host_and_port();
        let identity = self.credentials.of(&host, port).and_then(|credential| credential.identity.clone());
        let key = (to.trust.clone(), identity.is_some().then_some((host, port)));
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(&key) {
            return Ok(config.clone());
        }
        if configs.len() >= CONFIGS_MAX {
            configs.clear();
        }
        let config = Arc::new(tls::client_config(&to.trust, identity)?);
        configs.insert(key, config.clone());
        Ok(config)
    }

    fn take(&self, to: &Destination) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(to)?;
        while let Some((sender, since)) = kept.pop() {
            if since.elapsed() < IDLE_TIME && sender.is_ready() {
                return Some(sender);
            }
        }
        idle.remove(to);
        None
    }

    fn keep(&self, to: &Destination, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Connections of webhooks that nobody asks any more end here too.
        idle.retain(|_, kept| {
            kept.retain(|(sender, since)| since.elapsed() < IDLE_TIME && !sender.is_closed());
            !kept.is_empty()
        });
        let kept = idle.entry(to.clone()).or_default();
        if kept.len() < IDLE_MAX {
            kept.push((sender, Instant::now()));
        }
    }
}

/// A connection that ended instead of answering, in Go's words.
fn broken(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    match source.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::UnexpectedEof) => "EOF".into(),
        Some(std::io::ErrorKind::ConnectionReset) => "read: connection reset by peer".into(),
        _ if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => "EOF".into(),
        _ => error.to_string(),
    }
}

fn dial_words(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        ErrorKind::HostUnreachable => "connect: no route to host".into(),
        ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        ErrorKind::TimedOut => "i/o timeout".into(),
        _ => error.to_string(),
    }
}

/// What client libraries say of an answer that is no success and no Status.
fn refusal(code: u16, body: &[u8]) -> String {
    if let Ok(status) = serde_json::from_slice::<Value>(body)
        && status["kind"] == "Status"
        && !text(&status, "message").is_empty()
    {
        return text(&status, "message").to_owned();
    }
    let said = String::from_utf8_lossy(&body[..body.len().min(2_048)]).trim().to_owned();
    match code {
        401 => "the server has asked for the client to provide credentials".into(),
        403 if said.is_empty() => "unknown".into(),
        403 => said,
        404 => "the server could not find the requested resource".into(),
        400 => "the server rejected our request for an unknown reason".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        429 => "the server has received too many requests and has asked us to try again later".into(),
        503 => "the server is currently unable to handle the request".into(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".into(),
        500.. => format!("an error on the server ({said:?}) has prevented the request from succeeding"),
        _ => format!("the server responded with the status code {code} but did not return more information"),
    }
}
