//! HTTPS to the servers that the administrator names: token issuers, webhooks that know users or decide, receivers of the audit trail.
//!
//! A connection carries one request at a time and is kept for the next.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use admission::Lookup;
use admission::webhook::credentials::{self, bearer};
use admission::webhook::tls::{self, Trust};
use admission::webhook::transport::host_addresses;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Idle connections to one server, and for how long (Go's defaults for a client of this kind).
const IDLE_MAX: usize = 25;
const IDLE_TIME: Duration = Duration::from_secs(90);
/// No key set and no review comes near.
const ANSWER_BYTES_MAX: usize = 4 << 20;

type Sender = SendRequest<Full<Bytes>>;

/// One server, how it is trusted, and what we show it.
pub struct Remote {
    host: String,
    port: u16,
    /// Path and query.
    target: String,
    server_name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
    token: Option<HeaderValue>,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.target)
    }
}

impl Remote {
    /// The server of an `https` URL, whom `authority` (PEM; empty: the machine) vouches for.
    pub fn new(url: &str, authority: &str) -> Result<Self, String> {
        let trust = if authority.is_empty() { Trust::System } else { Trust::Bundle(authority.as_bytes().to_vec()) };
        Self::with(url, "", &tls::client_config(&trust, None)?, None)
    }

    /// Shows this token; an empty one is none.
    pub fn with_token(mut self, token: &str) -> Result<Self, String> {
        self.token = Some(token).filter(|token| !token.is_empty()).map(bearer).transpose()?;
        Ok(self)
    }

    fn with(url: &str, server_name: &str, config: &rustls::ClientConfig, token: Option<HeaderValue>) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        if uri.scheme_str() != Some("https") {
            return Err(format!("{url:?}: the scheme must be https"));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let named = if server_name.is_empty() { host.clone() } else { server_name.to_owned() };
        Ok(Self {
            server_name: ServerName::try_from(named).map_err(|error| format!("{url:?}: {error}"))?,
            port: uri.port_u16().unwrap_or(443),
            target: uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
            tls: Arc::new(config.clone()),
            idle: Mutex::default(),
            host,
            token,
        })
    }

    /// The current context of a kubeconfig; its cluster's address is where requests go, path and all.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, String> {
        let named = |why: String| format!("kubeconfig {}: {why}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        let file: Value = serde_saphyr::from_str(&text).map_err(|error| named(error.to_string()))?;
        Self::from_tree(&file, path.parent().unwrap_or(Path::new(""))).map_err(named)
    }

    fn from_tree(file: &Value, folder: &Path) -> Result<Self, String> {
        let context = file["current-context"].as_str().filter(|name| !name.is_empty());
        let (cluster, user) = match context {
            Some(name) => {
                let context = entry(file, "contexts", "context", name)?;
                let user = context["user"].as_str().filter(|name| !name.is_empty());
                let user = user.map(|name| entry(file, "users", "user", name)).transpose()?;
                (entry(file, "clusters", "cluster", context["cluster"].as_str().unwrap_or_default())?, user)
            }
            // Without contexts the only cluster and the only user are meant.
            None => (file["clusters"][0]["cluster"].clone(), file["users"][0].get("user").cloned()),
        };
        let user = user.unwrap_or_default();
        if !user["username"].is_null() {
            return Err("credentials by username are not supported".into());
        }
        let shown = credentials::credential(&user, folder)?;
        let authority = credentials::data_or_file(&cluster, "certificate-authority", folder)?;
        let trust = match (cluster["insecure-skip-tls-verify"] == true, authority) {
            (true, _) => Trust::Anybody,
            (false, Some(bundle)) => Trust::Bundle(bundle),
            (false, None) => Trust::System,
        };
        let server = cluster["server"].as_str().unwrap_or_default();
        let name = cluster["tls-server-name"].as_str().unwrap_or_default();
        Self::with(server, name, &tls::client_config(&trust, shown.identity)?, shown.authorization)
    }

    fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }

    /// Posts JSON to the server's own path.
    pub async fn post(&self, body: Bytes, timeout: Duration, lookup: &dyn Lookup) -> Result<(StatusCode, Bytes), String> {
        self.exchange(Method::POST, body, timeout, lookup).await
    }

    pub async fn get(&self, timeout: Duration, lookup: &dyn Lookup) -> Result<(StatusCode, Bytes), String> {
        self.exchange(Method::GET, Bytes::new(), timeout, lookup).await
    }

    async fn exchange(&self, method: Method, body: Bytes, timeout: Duration, lookup: &dyn Lookup) -> Result<(StatusCode, Bytes), String> {
        let words = if method == Method::POST { "Post" } else { "Get" };
        let answer = tokio::time::timeout(timeout, self.try_exchange(method, body, lookup)).await;
        let answer = answer.unwrap_or_else(|_| Err("context deadline exceeded".into()));
        answer.map_err(|why| format!("{words} \"https://{}{}\": {why}", self.authority(), self.target))
    }

    async fn try_exchange(&self, method: Method, body: Bytes, lookup: &dyn Lookup) -> Result<(StatusCode, Bytes), String> {
        while let Some(sender) = self.take() {
            // A kept connection may have been closed by the other side meanwhile: then nothing was done yet and a new one serves.
            if let Ok(answer) = self.send(sender, &method, body.clone()).await {
                return Ok(answer);
            }
        }
        self.send(self.connect(lookup).await?, &method, body).await
    }

    async fn send(&self, mut sender: Sender, method: &Method, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        let mut request = Request::builder().method(method).uri(&self.target).header(http::header::HOST, self.authority());
        request = request.header(http::header::ACCEPT, "application/json, */*").header(http::header::USER_AGENT, "kube-apiserver");
        if method == Method::POST {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.token {
            request = request.header(http::header::AUTHORIZATION, token.clone());
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let code = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?.to_bytes();
        if sender.ready().await.is_ok() {
            self.keep(sender);
        }
        Ok((code, bytes))
    }

    async fn connect(&self, lookup: &dyn Lookup) -> Result<Sender, String> {
        let mut last = "no address".to_owned();
        for address in host_addresses(lookup, &self.host, self.port).await? {
            let stream = match TcpStream::connect(address).await {
                Ok(stream) => stream,
                Err(error) => {
                    last = format!("dial tcp {address}: {error}");
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let stream = TlsConnector::from(self.tls.clone()).connect(self.server_name.clone(), stream).await;
            let (sender, connection) =
                handshake(TokioIo::new(stream.map_err(|error| tls::go_words(&error))?)).await.map_err(|e| broken(&e))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection to another server");
                }
            });
            return Ok(sender);
        }
        Err(last)
    }

    fn take(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((sender, since)) = idle.pop() {
            if since.elapsed() < IDLE_TIME && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push((sender, Instant::now()));
        }
    }
}

fn broken(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() { "EOF".into() } else { error.to_string() }
}

fn entry(file: &Value, list: &str, kind: &str, name: &str) -> Result<Value, String> {
    let found = file[list].as_array().into_iter().flatten().find(|entry| entry["name"] == name);
    found.map(|entry| entry[kind].clone()).ok_or_else(|| format!("no {kind} named {name:?}"))
}
