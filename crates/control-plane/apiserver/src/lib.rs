//! The API server: HTTPS and in-process requests in, one generic path over the table of kinds, bytes in the store.
//!
//! Read in the order a request goes: `serve` (TLS, HTTP/1 and 2, upgrades) → `pipeline` (the one list of stages) over
//! `request` (what is it about) → `handlers` (a function per verb) → `registry` (the life cycle of objects) → the store; back through
//! `views` and `reply`. Reads of many objects and watches come from `cache`.
//!
//! Way in: [`Server::new`], [`Server::bootstrap`], [`Server::serve`] for sockets, [`Server::handle`] for the in-process transport.
//! Tasks: one feed from the store's events into the watch cache, one per connection, the audit writer's thread. The RBAC policy is made
//! again by the first request after a change of its objects. Channels: the store's events (bounded by the store), one bounded queue per watcher (full: the watcher is closed
//! with 410), the bounded audit queue (full: counted, dropped). An idle server writes nothing.

mod access;
mod aggregation;
mod audit;
mod backend;
mod bootstrap;
mod cache;
mod codec;
mod context;
mod convert;
mod custom;
mod deadline;
mod discovery;
mod expiry;
mod flow;
mod handlers;
mod health;
mod metrics;
mod negotiate;
mod object;
mod openapi;
mod outcall;
mod patching;
mod pipeline;
mod registry;
mod reply;
mod request;
mod sealed;
mod selection;
mod serve;
mod shard;
mod type_checking;
mod views;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use auth::UserInfo;
use auth::authenticate::Authenticator;
use http::{Request, Response};
use meta::Status;
use stdx::Drain;

pub use access::reload::Source;
pub use access::token_webhook::TokenWebhook;
pub use audit::webhook::AuditWebhook;
pub use registry::service::{Network, Ranges};
pub use reply::Body;
pub use serve::turns::threads;

use registry::Registry;
use registry::service::Allocators;

/// The addresses of a host; none where it is not known.
pub type Resolver = Arc<dyn Fn(String) -> futures_util::future::BoxFuture<'static, Vec<std::net::IpAddr>> + Send + Sync>;

/// What a server is told. Nothing is read from elsewhere.
pub struct Config {
    /// Static tokens; client certificates are checked by TLS.
    pub authenticator: Authenticator,
    /// Makes and checks service account tokens.
    pub issuer: Option<Arc<auth::tokens::Issuer>>,
    /// Upstream's `AuthenticationConfiguration` (YAML): token issuers, and who may come without credentials.
    pub authentication: Option<Source>,
    /// A server that knows tokens.
    pub token_webhook: Option<TokenWebhook>,
    /// Upstream's `AuthorizationConfiguration` (YAML); absent: Node, then RBAC.
    pub authorization: Option<Source>,
    /// The TLS of the sockets, which tells users' certificates from front proxies'; absent: the TLS given to [`Server::serve`] knows users only.
    pub tls: Option<Arc<auth::tls::Server>>,
    /// What extension API servers are told of our clients; absent: nothing is published.
    pub client_authorities: Option<ClientAuthorities>,
    /// The audit trail; none where absent.
    pub audit_file: Option<PathBuf>,
    /// What the trail tells, as YAML of `audit.k8s.io/v1`; absent: Metadata of everything.
    pub audit_policy: Option<String>,
    /// A receiver of the trail beside the file.
    pub audit_webhook: Option<AuditWebhook>,
    /// The trail's file is rotated at this size, …
    pub audit_bytes_max: u64,
    /// … and so many old ones are kept.
    pub audit_backups: usize,
    /// Encryption at rest; absent, everything is stored as it is.
    pub encryption: Option<auth::encryption::Encryption>,
    /// The file that `encryption` came from, to be read again when it changes; absent: it never does.
    pub encryption_file: Option<PathBuf>,
    /// Requests at the same time, long-running ones not counted.
    pub reads_inflight_max: usize,
    pub writes_inflight_max: usize,
    /// Events that a watcher may be behind before it is closed with 410.
    pub watch_backlog_max: usize,
    /// Cluster addresses and node ports of Services.
    pub services: Ranges,
    /// Where the `kubernetes` Service leads; a loopback address (the default) gives it no endpoints.
    pub advertise: std::net::Ipv4Addr,
    pub port: u16,
    /// How the API server shows itself to kubelets (exec, logs); absent: those requests are refused.
    pub kubelet_client: Option<Arc<rustls::ClientConfig>>,
    /// Which admission plugins run, and how they are configured.
    pub admission: admission::Options,
    /// Finds the addresses of hosts that webhooks are configured with; absent: only addresses, `localhost` and Services are found.
    pub resolver: Option<Resolver>,
    /// How the API server shows itself to aggregated servers.
    pub front_proxy: Option<Arc<dyn rustls::client::ResolvesClientCert>>,
    /// Which built-in resources are served (`--runtime-config`).
    pub served: schema::resources::Served,
}

/// The authorities of client certificates (PEM), and the common names of front proxies.
#[derive(Clone, Debug, Default)]
pub struct ClientAuthorities {
    pub client_ca: String,
    pub front_proxy_ca: String,
    pub front_proxies: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            authenticator: Authenticator::default(),
            issuer: None,
            authentication: None,
            token_webhook: None,
            authorization: None,
            tls: None,
            client_authorities: None,
            advertise: std::net::Ipv4Addr::LOCALHOST,
            port: 6443,
            kubelet_client: None,
            admission: admission::Options::default(),
            resolver: None,
            front_proxy: None,
            audit_file: None,
            audit_policy: None,
            audit_webhook: None,
            audit_bytes_max: 100 << 20,
            audit_backups: 3,
            encryption: None,
            encryption_file: None,
            reads_inflight_max: 400,
            writes_inflight_max: 200,
            watch_backlog_max: cache::LENGTH_MAX,
            services: Ranges::default(),
            served: schema::resources::Served::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("audit policy: {0}")]
    AuditPolicy(String),
    #[error("audit file {path}")]
    Audit { path: PathBuf, source: std::io::Error },
    /// Who may come in, who decides, who is told: the configuration cannot be used.
    #[error("{0}")]
    Access(String),
    #[error("admission")]
    Admission(#[from] admission::ConfigError),
    #[error("metrics")]
    Metrics(#[source] telemetry::prometheus::Error),
    #[error("bootstrap: {what}: {status}")]
    Bootstrap { what: String, status: Status },
}

/// A running API server. Cloning shares it.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

pub(crate) struct Inner {
    tls: Option<Arc<auth::tls::Server>>,
    client_authorities: Option<ClientAuthorities>,
    pub access: access::Access,
    pub registry: Registry,
    pub flow: flow::Flow,
    pub audit: Option<audit::Trail>,
    sealed: Option<Arc<sealed::Sealed>>,
    pub metrics: metrics::Metrics,
    pub drain: Drain,
    pub advertise: std::net::Ipv4Addr,
    pub port: u16,
    pub kubelet_client: Option<Arc<rustls::ClientConfig>>,
    pub resolver: Option<Resolver>,
    pub aggregator: aggregation::Aggregator,
    pub openapi: Arc<openapi::Documents>,
    pub served: schema::resources::Served,
    /// Of the connections, once they are served.
    turns: std::sync::OnceLock<Arc<serve::turns::Turns>>,
    bootstrapped: AtomicBool,
}

impl Server {
    /// Starts the watch cache's feed; must be called inside a runtime.
    pub fn new(config: Config, store: Arc<dyn store::Store>) -> Result<Self, Error> {
        let policy = match &config.audit_policy {
            Some(text) => audit::policy::Policy::parse(text).map_err(Error::AuditPolicy)?,
            None => audit::policy::Policy::standard(),
        };
        let sink = match config.audit_file {
            Some(path) => {
                let sink = audit::sink::Sink::open(&path, config.audit_bytes_max, config.audit_backups);
                Some(sink.map_err(|source| Error::Audit { path, source })?)
            }
            None => None,
        };
        let sealed = config.encryption.map(|encryption| Arc::new(sealed::Sealed::new(store.clone(), encryption)));
        let store = sealed.clone().map_or(store, |sealed| sealed as Arc<dyn store::Store>);
        let registry = Registry::new(
            store.clone(),
            cache::Caches::new(config.watch_backlog_max),
            Allocators::new(config.services),
            &config.admission,
        )?;
        let reader = registry.reader.clone();
        let registry_custom = registry.custom.clone();
        let flow = flow::Flow::new(config.reads_inflight_max + config.writes_inflight_max, &registry.caches).map_err(Error::Metrics)?;
        let drain = stdx::drain();
        let (caches, stop) = (registry.caches.clone(), drain.clone());
        tokio::spawn(async move { stop.run(cache::feed::run(store, caches)).await });
        let webhook = config.audit_webhook.map(|settings| audit::webhook::Webhook::start(&settings, registry.reader.clone()));
        let webhook = webhook.transpose().map_err(|why| Error::Access(format!("audit webhook: {why}")))?;
        let audit = (sink.is_some() || webhook.is_some()).then_some(audit::Trail { policy, sink, webhook });
        if let (Some(path), Some(sealed)) = (config.encryption_file, sealed.clone()) {
            tokio::spawn(Source::File(path).follow(drain.clone(), "encryption at rest", async move |text: &str| {
                sealed.configure(text)?;
                sealed.seal_again().await;
                Ok(())
            }));
        }
        let (authentication, authorization) = (config.authentication.clone(), config.authorization.clone());
        let settings = access::Settings {
            authenticator: config.authenticator,
            issuer: config.issuer,
            front_proxies: config.client_authorities.as_ref().map(|authorities| authorities.front_proxies.clone()).unwrap_or_default(),
            authentication: config.authentication,
            token_webhook: config.token_webhook,
            authorization: config.authorization,
        };
        let access = access::Access::new(settings, &registry.caches, registry.reader.clone()).map_err(Error::Access)?;
        let inner = Arc::new(Inner {
            access,
            tls: config.tls,
            client_authorities: config.client_authorities,
            registry,
            flow,
            audit,
            sealed,
            metrics: metrics::Metrics::new().map_err(Error::Metrics)?,
            drain,
            advertise: config.advertise,
            port: config.port,
            kubelet_client: config.kubelet_client,
            openapi: Arc::new(openapi::Documents::new(config.served.clone(), registry_custom)),
            served: config.served,
            turns: std::sync::OnceLock::new(),
            resolver: config.resolver,
            aggregator: aggregation::Aggregator::new(config.front_proxy),
            bootstrapped: AtomicBool::new(false),
        });
        // Once only: the reader was made above.
        let _ = reader.server.set(Arc::downgrade(&inner));
        let weak = Arc::downgrade(&inner);
        access::Access::follow(authentication, authorization, move || weak.upgrade(), &inner.drain);
        let (following, stop) = (inner.clone(), inner.drain.clone());
        tokio::spawn(async move { stop.run(custom::run(following)).await });
        Ok(Self(inner))
    }

    /// Answers one request. With an `identity` the caller vouches for who asks (the in-process transport); authorization still applies.
    pub async fn handle(&self, request: Request<Body>, identity: Option<UserInfo>) -> Response<Body> {
        pipeline::run(&self.0, request, identity).await
    }

    /// Makes what every cluster has: namespaces, roles, priority classes, the `kubernetes` Service. Idempotent. Until it has run, Services get
    /// no addresses safely: call it before anything else writes.
    pub async fn bootstrap(&self) -> Result<(), Error> {
        bootstrap::run(&self.0).await?;
        flow::tell(&self.0).await;
        self.0.bootstrapped.store(true, Ordering::Relaxed);
        tokio::spawn(expiry::run(self.0.clone()));
        tokio::spawn(aggregation::run(self.0.clone()));
        tokio::spawn(flow::run(self.0.clone()));
        tokio::spawn(type_checking::run(self.0.clone()));
        if let Some(sealed) = self.0.sealed.clone() {
            tokio::spawn(async move { sealed.seal_again().await });
        }
        Ok(())
    }

    /// Tells extension API servers of other authorities of our clients.
    pub async fn publish_authorities(&self, authorities: ClientAuthorities) -> Result<(), Error> {
        let published = bootstrap::publish_authorities(&self.0, &authorities).await;
        published.map_err(|status| Error::Bootstrap { what: "the authentication of extension API servers".into(), status })
    }

    /// Ends watches and makes `/readyz` fail; connections finish what they are doing.
    pub fn stop(&self) {
        self.0.drain.stop();
        self.0.registry.caches.close();
    }
}

impl Inner {
    /// The served kind behind a path: a built-in one, or one made of a CRD.
    pub fn kind(&self, group: &str, version: &str, plural: &str) -> Option<registry::catalog::Found> {
        use registry::catalog::{self, Found};
        let built_in = catalog::find(group, version, plural).filter(|kind| self.served.contains(kind.facts));
        built_in.map(Found::BuiltIn).or_else(|| self.registry.custom.find(group, version, plural).map(Found::Custom))
    }
    pub fn bootstrapped(&self) -> bool {
        self.bootstrapped.load(Ordering::Relaxed)
    }
    /// The caches have seen everything that the store had at the start.
    pub fn loaded(&self) -> bool {
        self.registry.caches.loaded()
    }
}
