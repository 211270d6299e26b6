//! A node whose control plane is elsewhere: the node's half of the daemon over an HTTPS client.

use std::os::fd::FromRawFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use auth::pki::{NodeKeys, Pair};
use auth::tls;
use bytes::Bytes;
use client::{Body, Client, Https, ListParams, Transport};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Cache, Caches, Scope};
use tokio::sync::Notify;

use crate::cli::AgentArgs;
use crate::components::Components;
use crate::config::{Config, outward_address};
use crate::daemon::{self, PidFile};
use crate::join::{self, Invitation};
use crate::progress::Progress;
use crate::up::{GRACE, Signals, wait_for_node, warn_of_late};
use crate::{control, memory, node, preflight};

/// How often certificates are looked at by the wall clock, and how soon a failure is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);
/// The bundles that vouch for the API server.
const AUTHORITIES: &str = "spec.signerName=kubernetes.io/kube-apiserver-serving";

/// Runs the node until SIGINT or SIGTERM; its pods go on afterwards.
pub fn run(config: Config, args: &AgentArgs) -> anyhow::Result<i32> {
    let start = Instant::now();
    // SAFETY: the descriptor was made for us by the process that started us, which passed its number; nobody else owns it.
    let report = args.report_fd.map(|fd| unsafe { std::fs::File::from_raw_fd(fd) });
    let mut progress = Progress::new(start, report);
    if let Some(pid) = daemon::running(&config) {
        println!("already running as process {pid}");
        return Ok(0);
    }
    let faults = preflight::check_agent(&config);
    if !faults.is_empty() {
        faults.iter().for_each(|fault| progress.line(&format!("  - {fault}")));
        anyhow::bail!("this host cannot run a node yet; nothing was changed");
    }
    let Some(_pid_file) = PidFile::take(&config)? else { return Ok(0) };
    let filter = if args.report_fd.is_none() && config.log == "info" { "warn" } else { &config.log };
    telemetry::init_logs(filter, telemetry::LogFormat::Plain).map_err(anyhow::Error::msg)?;
    memory::configure();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Err(error) = runtime.block_on(serve(config, args, &mut progress)) {
        progress.failed(&error);
        return Err(error);
    }
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    Ok(0)
}

async fn serve(config: Config, args: &AgentArgs, progress: &mut Progress) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    progress.line(&format!("sternpost {} on {} (data in {})", env!("CARGO_PKG_VERSION"), config.node_name, config.data_dir.display()));
    let address = config.node_ip.or_else(outward_address).context("this host has no address")?;
    let given = |flag: &Option<String>, variable: &str| flag.clone().or_else(|| std::env::var(variable).ok());
    let (token, ca_hash) = (given(&args.token, "STERNPOST_TOKEN"), given(&args.ca_hash, "STERNPOST_CA_HASH"));
    let (keys, joined) = match (NodeKeys::read(&config.pki_dir())?, &token, &ca_hash) {
        (Some(keys), ..) => (keys, false),
        (None, Some(token), Some(ca_hash)) => {
            let keys = join::join(&Invitation { server: &args.server, token, ca_hash }, &config, address).await.context("join")?;
            progress.step("joined", &args.server);
            (keys, true)
        }
        _ => anyhow::bail!("no keys for this node in {}: join with --token and --ca-hash", config.pki_dir().display()),
    };
    let certificates = Certificates::new(&args.server, keys)?;
    let client = Client::new(Arc::new(Shared(certificates.clone())));
    join::check_clock(&client).await?;
    if let Err(error) = join::check_name(&client, &config, address).await {
        if joined {
            // Keys to somebody else's name are not kept.
            std::fs::remove_dir_all(config.pki_dir()).context("remove the new keys")?;
        }
        return Err(error);
    }
    let drain = stdx::drain();
    let caches = Caches::new(&client, drain.clone());
    // Other nodes' pods are none of this node's business, and the API would not show them.
    let own = Scope::fields(format!("spec.nodeName={}", config.node_name));
    caches.set(Cache::<Pod>::start(&client, own, drain.clone()));
    let tls = certificates.serving.config()?;
    let pods = all_pods(&client, &drain);
    let to_nodes = certificates.to_nodes.config(&lock(&certificates.ca))?;
    let around = node::Surroundings { config, address, client, caches, pods, tls, to_nodes, drain: drain.clone() };
    let mut components = Components::default();
    let parts = node::start(&around, &mut components).await?;
    progress.step("node", "runtime, kubelet, network, Services, DNS");
    let served = control::Served { node: parts, cluster: None };
    components.spawn("control socket", control::serve(around.config.clone(), drain.clone(), served));
    let nodes = around.caches.of::<Node>();
    let ready = tokio::select! {
        ready = wait_for_node(&nodes, &around.config.node_name) => ready.map(|()| true)?,
        () = signals.next() => false,
    };
    if ready {
        let (keeping, drain) = (certificates.clone().keep(around.clone(), joined), drain.clone());
        components.spawn("certificates", async move {
            drain.run(keeping).await;
        });
        progress.step("Ready", &around.config.node_name);
        progress.done();
        memory::give_back_later();
        tokio::select! {
            () = signals.next() => {}
            ended = components.ended() => anyhow::bail!("a component ended by itself: {ended}"),
        }
    }
    drain.stop();
    warn_of_late(&components.finish(GRACE).await);
    Ok(())
}

/// The node's certificates while it runs, and the way to the API with the present one.
struct Certificates {
    server: String,
    /// Every authority that is believed: the API server's, and those whose clients the kubelet serves.
    ca: Mutex<String>,
    /// Watches under way stay on the connection of a former certificate.
    api: ArcSwap<Https>,
    client: Mutex<Pair>,
    serving: Arc<tls::Server>,
    /// What it shows to other nodes.
    to_nodes: Arc<tls::Client>,
    shown: Mutex<Pair>,
}

impl Certificates {
    fn new(server: &str, keys: NodeKeys) -> anyhow::Result<Arc<Self>> {
        let NodeKeys { ca, client, server: shown } = keys;
        Ok(Arc::new(Self {
            server: server.to_owned(),
            api: ArcSwap::from_pointee(https(server, &ca, &client)?),
            serving: tls::Server::new(&shown, &ca)?,
            to_nodes: tls::Client::new(&client)?,
            ca: Mutex::new(ca),
            client: Mutex::new(client),
            shown: Mutex::new(shown),
        }))
    }

    /// Renews what ends soon, or was issued by an authority of before, until the daemon stops: by the wall clock, and as soon as the cluster's
    /// authorities change, for the former one may be trusted no longer a moment later. After a first join the serving certificate is still our own
    /// work.
    async fn keep(self: Arc<Self>, around: node::Surroundings, joined: bool) {
        let mut serving_is_due = joined;
        let bundles = Cache::<ClusterTrustBundle>::start(&around.client, Scope::fields(AUTHORITIES), around.drain.clone());
        let changed = Arc::new(Notify::new());
        let wake = changed.clone();
        bundles.on_change(move |_, _| wake.notify_one());
        loop {
            let mut patience = LOOK_EVERY.min(lasts(&lock(&self.client)) / 12);
            if let Err(error) = self.renew(&around, &mut serving_is_due).await {
                tracing::warn!(error = format!("{error:#}"), "renew the node's certificates; will retry");
                patience = RETRY.min(patience);
            }
            let _ = tokio::time::timeout(patience, changed.notified()).await;
        }
    }

    /// Without its client certificate a node has no way back, so that goes first, and what became of the other does not matter to it.
    async fn renew(&self, around: &node::Surroundings, serving_is_due: &mut bool) -> anyhow::Result<()> {
        self.follow_authorities(around).await?;
        let due = |pair: &Pair| ends_soon(pair) || !auth::csr::is_issued_by(&pair.certificate, &lock(&self.ca));
        let client = lock(&self.client).clone();
        if due(&client) {
            let fresh = join::own(&around.client, &around.config).await?;
            self.api.store(Arc::new(https(&self.server, &lock(&self.ca), &fresh)?));
            self.to_nodes.rotate(&fresh)?;
            *lock(&self.client) = fresh;
            self.write(around)?;
        }
        let shown = lock(&self.shown).clone();
        if *serving_is_due || due(&shown) {
            let fresh = join::serving(&around.client, &around.config, around.address).await?;
            self.serving.rotate(&fresh)?;
            *lock(&self.shown) = fresh;
            *serving_is_due = false;
            self.write(around)?;
        }
        Ok(())
    }

    /// The cluster may be about to exchange its authority: what vouches for the API server is published as ClusterTrustBundles.
    async fn follow_authorities(&self, around: &node::Surroundings) -> anyhow::Result<()> {
        let wanted = ListParams::default().fields(AUTHORITIES);
        let bundles = match around.client.list::<ClusterTrustBundle>(&wanted).await {
            Ok(found) => found.items,
            // Where they are not served, the authority stays what it was.
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error).context("the cluster's authorities"),
        };
        let ca: String = bundles.iter().map(|bundle| bundle.spec.trust_bundle.as_str()).collect();
        if ca.is_empty() || ca == *lock(&self.ca) {
            return Ok(());
        }
        let api = https(&self.server, &ca, &lock(&self.client))?;
        self.serving.trust(&ca, None)?;
        self.to_nodes.trust(&ca)?;
        self.api.store(Arc::new(api));
        *lock(&self.ca) = ca;
        tracing::info!("the cluster's authorities changed");
        self.write(around)
    }

    fn write(&self, around: &node::Surroundings) -> anyhow::Result<()> {
        let keys = NodeKeys { ca: lock(&self.ca).clone(), client: lock(&self.client).clone(), server: lock(&self.shown).clone() };
        Ok(keys.write(&around.config.pki_dir())?)
    }
}

/// Of all pods only what policies look at is kept.
fn all_pods(client: &Client, drain: &stdx::Drain) -> Arc<dyn Fn() -> Cache<Pod> + Send + Sync> {
    let (client, drain) = (node::network_client(client), drain.clone());
    Arc::new(move || Cache::start_trimmed(&client, Scope::all(), Arc::new(policy::read::trim), drain.clone()))
}

/// A share of the node's transport.
struct Shared(Arc<Certificates>);

impl Transport for Shared {
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        let api = self.0.api.load_full();
        Box::pin(async move { api.send(request).await })
    }

    /// By impersonation: the cluster lets nodes take the part of its network's account only.
    fn as_account(&self, namespace: &str, name: &str) -> Option<Arc<dyn Transport>> {
        let user = http::HeaderValue::from_str(&auth::tokens::username(namespace, name)).ok()?;
        Some(Arc::new(Impersonating { node: self.0.clone(), user }))
    }
}

struct Impersonating {
    node: Arc<Certificates>,
    user: http::HeaderValue,
}

impl Transport for Impersonating {
    fn send(&self, mut request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        request.headers_mut().insert("impersonate-user", self.user.clone());
        let api = self.node.api.load_full();
        Box::pin(async move { api.send(request).await })
    }
}

/// How long it is of use, all in all; an hour where it does not say.
fn lasts(pair: &Pair) -> Duration {
    let (issued, end) = auth::csr::use_of(&pair.certificate).unwrap_or((0, 3_600));
    Duration::from_secs(u64::try_from(end - issued).unwrap_or_default())
}

/// Less than a third of its time is left.
fn ends_soon(pair: &Pair) -> bool {
    let now = jiff::Timestamp::now().as_second();
    auth::csr::use_of(&pair.certificate).is_some_and(|(issued, end)| end - now < (end - issued) / 3)
}

fn https(server: &str, ca: &str, keys: &Pair) -> anyhow::Result<Https> {
    let access = client::kubeconfig::Access {
        server: server.to_owned(),
        ca: Some(ca.as_bytes().to_vec()),
        identity: Some((keys.certificate.clone().into_bytes(), keys.key.clone().into_bytes())),
        ..client::kubeconfig::Access::default()
    };
    Ok(Https::new(&access)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
