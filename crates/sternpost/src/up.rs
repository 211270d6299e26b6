//! The daemon's life: config, build, spawn, signal, drain.
//!
//! It stops in the reverse order of its start, so that nobody waits for what has gone before them: first the components, whose last writes and
//! reads find the API as it always was; then the API server, in its own order (no new connections, watches end, connections finish); then the
//! store is closed. The node's names are answered until the process ends.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use auth::UserInfo;
use k8s_openapi::api::core::v1::Node;
use reconcile::{Cache, Caches, EventRecorder, Scope, trim};
use stdx::Drain;
use store::Store;

use crate::certificates::Certificates;
use crate::cli::UpArgs;
use crate::components::Components;
use crate::config::{Config, outward_address};
use crate::daemon::{self, PidFile};
use crate::kubeconfig::{self, Invoker};
use crate::progress::Progress;
use crate::{control, dns_service, memory, node, nodes, preflight, status, transport};

/// How long all components together may take to finish after the signal, and after them the API server.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long the node may take to become ready before the start says that something is wrong.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long another process would wait before it takes a component over that is silent.
const LEASE: Duration = Duration::from_secs(60);
/// How much of the past the store keeps for watches to resume from (upstream: etcd compaction every five minutes).
const COMPACTION_PERIOD: Duration = Duration::from_secs(300);

/// Runs the cluster until SIGINT or SIGTERM.
pub fn run(config: Config, args: &UpArgs) -> anyhow::Result<i32> {
    let start = Instant::now();
    if let Some(code) = not_to_be_started(&config)? {
        return Ok(code);
    }
    // SAFETY: the descriptor was made for us by the process that started us, which passed its number; nobody else owns it.
    let report = args.report_fd.map(|fd| unsafe { std::fs::File::from_raw_fd(fd) });
    if let Some(report) = &report {
        // Who waits at its other end would wait for every process that we start.
        rustix::io::fcntl_setfd(report, rustix::io::FdFlags::CLOEXEC)?;
    }
    let mut progress = Progress::new(start, report);
    let Some(_pid_file) = PidFile::take(&config)? else {
        // Another start was faster by a moment; its outcome is ours.
        return not_to_be_started(&config)?.context("another daemon began to start here and ended; try again");
    };
    start_logs(&config, args)?;
    memory::configure();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(apiserver::threads()).enable_all().build()?;
    if let Err(error) = runtime.block_on(cluster(config, args, &mut progress)) {
        // Whoever waits for a detached start hears it even where the log cannot be written.
        progress.failed(&error);
        return Err(error);
    }
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(0)
}

/// The exit code where nothing is to be started: a daemon runs already, or the host is not fit. Says why; changes nothing.
pub fn not_to_be_started(config: &Config) -> anyhow::Result<Option<i32>> {
    if let Some(pid) = daemon::settled(config) {
        println!("already running as process {pid}");
        return status::run(config).map(Some);
    }
    let faults = preflight::check(config);
    if faults.is_empty() {
        return Ok(None);
    }
    eprintln!("this host cannot run the cluster yet; nothing was changed:");
    faults.iter().for_each(|fault| eprintln!("  - {fault}"));
    Ok(Some(1))
}

/// In the background everything that was asked for goes to the log file; on a terminal the default leaves room for the progress.
fn start_logs(config: &Config, args: &UpArgs) -> anyhow::Result<()> {
    let filter = if args.report_fd.is_none() && config.log == "info" { "warn" } else { &config.log };
    let coloured = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let format = if coloured { telemetry::LogFormat::Text } else { telemetry::LogFormat::Plain };
    telemetry::init_logs(filter, format).map_err(anyhow::Error::msg)
}

/// What every part of the cluster is built from.
pub struct Parts {
    pub config: Config,
    pub certificates: Certificates,
    pub node_ip: IpAddr,
    pub server: apiserver::Server,
    /// Shared by everything in this process that reads the API.
    pub caches: Caches,
    pub drain: Drain,
}

impl Parts {
    /// A client with an identity of its own.
    pub fn client(&self, username: &str, groups: &[&str]) -> client::Client {
        transport::client(&self.server, UserInfo::authenticated(username, groups))
    }
}

async fn cluster(config: Config, args: &UpArgs, progress: &mut Progress) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    progress.line(&format!("sternpost {} on {} (data in {})", env!("CARGO_PKG_VERSION"), config.node_name, config.data_dir.display()));
    let scheduler = config.scheduler()?;
    let ranges = config.cluster_ranges()?;
    nodes::have_room(&ranges, args.nodes.unwrap_or(1))?;
    let node_ip = config.node_ip.or_else(outward_address).context("this host has no address")?;
    keep_private(&config.data_dir)?;
    let certificates = Certificates::open(&config, node_ip)?;
    kubeconfig::write_admin(&config, &certificates.pki)?;
    let (store, objects) = open_store(&config).await?;
    progress.step("store", &format!("{objects} objects"));

    let (drain, last) = (stdx::drain(), stdx::drain());
    let (mut components, mut api) = (Components::default(), Components::default());
    let server = start_api(&config, &certificates, node_ip, store.clone(), &last, &mut api).await?;
    progress.step("API server", &format!("https://{node_ip}:{}", config.api_port));

    let system = transport::client(&server, UserInfo::authenticated("system:apiserver", &["system:masters"]));
    // They outlive their readers, who may be waiting for them when the stop comes.
    let caches = Caches::new(&system, last.clone());
    caches.set(Cache::start_trimmed(&system, Scope::all(), trim::pods_elsewhere(&config.node_name), last.clone()));
    let parts = Arc::new(Parts { config, certificates, node_ip, server, caches, drain: drain.clone() });
    start_control_plane(&parts, scheduler, ranges, &mut components);
    progress.step("controllers", "and scheduler");
    let node = node::start(&surroundings(&parts)?, &mut components).await?;
    components.spawn("endpoints of DNS", dns_service::keep(parts.clone()));
    progress.step("node", "runtime, kubelet, network, Services, DNS");
    let served = control::Served { node, cluster: Some(parts.clone()) };
    components.spawn("control socket", control::serve(parts.config.clone(), drain.clone(), served));
    components.spawn("compaction", compact(store.clone(), drain.clone()));
    let rotating = parts.clone();
    components.spawn("rotation of certificates", async move {
        rotating.certificates.rotate(&rotating.config, &rotating.server, &rotating.drain).await;
    });

    tokio::select! {
        ready = get_ready(&parts, args, progress) => {
            ready?;
            tokio::select! {
                () = signals.next() => {}
                ended = components.ended() => anyhow::bail!("a component ended by itself: {ended}"),
                ended = api.ended() => anyhow::bail!("a component ended by itself: {ended}"),
            }
        }
        () = signals.next() => {}
    }
    drain.stop();
    warn_of_late(&components.finish(GRACE).await);
    last.stop();
    warn_of_late(&api.finish(GRACE).await);
    store.close().await.context("close the store")
}

/// Until the cluster is what was asked for, and the user has been told.
async fn get_ready(parts: &Arc<Parts>, args: &UpArgs, progress: &mut Progress) -> anyhow::Result<()> {
    wait_until_ready(parts).await?;
    progress.step("Ready", &parts.config.node_name);
    node::label(parts).await?;
    if let Some(count) = args.nodes {
        nodes::start_all(parts, count, progress).await?;
    }
    greet(parts, args, progress)?;
    progress.done();
    memory::give_back_later();
    Ok(())
}

/// Says who was not waited for any longer.
pub fn warn_of_late(names: &[&str]) {
    if !names.is_empty() {
        tracing::warn!(components = names.join(", "), "did not stop in time");
    }
}

/// The node in this process: its requests go the short way, and everything else shares its caches.
fn surroundings(parts: &Parts) -> anyhow::Result<node::Surroundings> {
    Ok(node::Surroundings {
        config: parts.config.clone(),
        address: parts.node_ip,
        client: parts.client(&format!("system:node:{}", parts.config.node_name), &["system:nodes"]),
        caches: parts.caches.clone(),
        pods: {
            let caches = parts.caches.clone();
            Arc::new(move || caches.of())
        },
        tls: parts.certificates.kubelet.config()?,
        to_nodes: parts.certificates.to_kubelets()?,
        drain: parts.drain.clone(),
    })
}

async fn open_store(config: &Config) -> anyhow::Result<(Arc<dyn Store>, usize)> {
    let dir = config.data_dir.join("store");
    let opened = tokio::task::spawn_blocking(move || store::log::Log::open(&dir, store::log::Options::default())).await?;
    let store = Arc::new(opened.context("open the store")?);
    let objects = store.range(store::Range { prefix: "/registry/".into(), ..store::Range::default() }).await?.entries.len();
    Ok((store, objects))
}

async fn start_api(
    config: &Config,
    certificates: &Certificates,
    node_ip: IpAddr,
    store: Arc<dyn Store>,
    drain: &Drain,
    api: &mut Components,
) -> anyhow::Result<apiserver::Server> {
    let server = apiserver::Server::new(node::api_config(config, certificates, node_ip)?, store)?;
    server.bootstrap().await?;
    let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), config.api_port);
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let tls = certificates.api_server.config()?;
    let (serving, drain) = (server.clone(), drain.clone());
    api.spawn("API server", async move {
        if let Err(error) = serving.serve(listener, Some(tls), drain).await {
            tracing::error!(%error, "the API server ended");
        }
    });
    Ok(server)
}

fn start_control_plane(
    parts: &Arc<Parts>,
    scheduler: scheduler::Config,
    ranges: Vec<controllers::ClusterRange>,
    components: &mut Components,
) {
    let mut settings = controllers::Config {
        root_ca: controllers::RootCa::new(parts.certificates.authorities()),
        cluster_ranges: ranges,
        signer: parts.certificates.signer.clone(),
        local_path: Some(node::local_path_dir(&parts.config)),
        ..controllers::Config::default()
    };
    if parts.config.fast_failover {
        settings.node_monitor_grace_period = node::FAST_GRACE;
        settings.node_stuck_grace_period = node::FAST_STUCK_GRACE;
        settings.node_probe = Some(controllers::NodeProbe::new(node::answers));
        settings.node_monitor_period = node::FAST_GRACE / 10;
        settings.node_eviction_pause = node::FAST_GRACE / 10;
    }
    let client = parts.client("system:kube-controller-manager", &[]).named("kube-controller-manager");
    let caches = parts.caches.clone();
    let folder = parts.config.data_dir.join("csi-controllers");
    lead(parts, client.clone(), "kube-controller-manager", components, move |term| {
        let account = client.as_account("kube-system", "csi-sidecars").named("csi-sidecars");
        let sidecars = sidecars::run(folder.clone(), account, caches.clone(), term.clone());
        let controllers = controllers::run_on(client.clone(), caches.clone(), settings.clone(), term);
        async move {
            tokio::join!(controllers, sidecars);
        }
    });
    let client = parts.client("system:kube-scheduler", &[]).named("kube-scheduler");
    let caches = parts.caches.clone();
    lead(parts, client.clone(), "kube-scheduler", components, move |term| {
        let recorder = EventRecorder::start(&client, "default-scheduler", None, term.clone());
        scheduler::run(scheduler.clone(), client.clone(), caches.clone(), recorder, term)
    });
}

/// The component works while it holds the Lease of its name in kube-system: should another process work on this store, one of the two waits.
/// Who holds it is the node by its name, so that a restart takes up where it was without waiting for its own past to run out. An idle cluster
/// shall write little: the Lease lasts longer than upstream's 15 seconds and is renewed accordingly rarely.
fn lead<F, R>(parts: &Arc<Parts>, client: client::Client, name: &'static str, components: &mut Components, work: F)
where
    F: Fn(Drain) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    let election = reconcile::leader::Config {
        lease_duration: LEASE,
        renew_deadline: LEASE * 2 / 3,
        retry_period: LEASE / 3,
        ..reconcile::leader::Config::new("kube-system", name, &parts.config.node_name)
    };
    let drain = parts.drain.clone();
    components.spawn(name, async move { reconcile::leader::run(client, election, drain, work).await });
}

/// Nobody but root looks into the data folder: objects, keys, images, pods' volumes.
fn keep_private(dir: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mode = std::fs::metadata(dir).with_context(|| dir.display().to_string())?.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}

/// Forgets the past in the rhythm in which watches may still want it.
async fn compact(store: Arc<dyn Store>, drain: Drain) {
    let mut before = store.revision();
    while drain.run(tokio::time::sleep(COMPACTION_PERIOD)).await.is_some() {
        let now = store.revision();
        if now > before
            && let Err(error) = store.compact(before).await
        {
            tracing::warn!(%error, "compaction failed");
        }
        if now > before {
            memory::give_back();
        }
        before = now;
    }
}

async fn wait_until_ready(parts: &Parts) -> anyhow::Result<()> {
    wait_for_node(&parts.caches.of::<Node>(), &parts.config.node_name).await
}

/// Until the node is ready, which says in its own words why it is not.
pub async fn wait_for_node(nodes: &reconcile::Cache<Node>, name: &str) -> anyhow::Result<()> {
    let mut changes = nodes.subscribe();
    let ready = async {
        while !nodes.get("", name).is_some_and(|node| status::is_ready(&node)) {
            changes.next().await;
        }
    };
    if tokio::time::timeout(READY_WITHIN, ready).await.is_ok() {
        return Ok(());
    }
    let node = nodes.get("", name);
    let conditions = node.as_ref().and_then(|node| node.status.as_ref()?.conditions.as_ref());
    let why = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready").and_then(|ready| ready.message.clone());
    anyhow::bail!("the node is not ready after {} s: {}", READY_WITHIN.as_secs(), why.unwrap_or_else(|| "it did not register".into()))
}

fn greet(parts: &Parts, args: &UpArgs, progress: &mut Progress) -> anyhow::Result<()> {
    let config = &parts.config;
    let mut kubectl = format!("kubectl --kubeconfig {}", config.kubeconfig().display());
    if !args.no_kubeconfig {
        let invoker = Invoker::current();
        match kubeconfig::merge(config, &parts.certificates.pki, &invoker) {
            Ok(path) => {
                progress.line(&format!("\nkubectl context {:?} is current in {}", config.context, path.display()));
                kubectl = "kubectl".into();
            }
            Err(error) => progress.line(&format!("\nyour own kubeconfig was left alone: {error:#}")),
        }
    }
    progress.line("Try:");
    progress.line(&format!("  {kubectl} create deployment web --image=sternpost.io/toolbox --replicas=3 --port=8080"));
    progress.line(&format!("  {kubectl} expose deployment web --port=80 --target-port=8080 && {kubectl} get pods,services -o wide"));
    if args.report_fd.is_none() {
        progress.line("Ctrl-C stops the control plane; pods keep running. `sternpost down` stops everything.");
    }
    Ok(())
}

/// SIGINT and SIGTERM.
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
