//! A node whose control plane is elsewhere: the node's half of the daemon over an HTTPS client.

use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use auth::pki::NodeKeys;
use client::{Client, Https};
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Cache, Caches, Scope};
use tokio::task::JoinSet;

use crate::cli::AgentArgs;
use crate::config::{Config, outward_address};
use crate::daemon::{self, PidFile};
use crate::progress::Progress;
use crate::up::{GRACE, Signals, wait_for_node};
use crate::{control, memory, node, preflight};

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
    let keys = NodeKeys::read(&config.pki_dir())?.with_context(|| format!("no keys for this node in {}", config.pki_dir().display()))?;
    let client = client(&args.server, &keys)?;
    let drain = stdx::drain();
    let caches = Caches::new(&client, drain.clone());
    // Other nodes' pods are none of this node's business, and the API would not show them.
    let own = Scope::fields(format!("spec.nodeName={}", config.node_name));
    caches.set(Cache::<Pod>::start(&client, own, drain.clone()));
    let tls = keys.server.server_config(&keys.ca)?;
    let around = node::Surroundings { config, address, client, caches, tls, drain: drain.clone() };
    let mut tasks = JoinSet::new();
    let parts = node::start(&around, &mut tasks).await?;
    progress.step("node", "runtime, kubelet, network, Services, DNS");
    tasks.spawn(control::serve(around.config.clone(), drain.clone(), parts));
    let nodes = around.caches.of::<Node>();
    let ready = tokio::select! {
        ready = wait_for_node(&nodes, &around.config.node_name) => ready.map(|()| true)?,
        () = signals.next() => false,
    };
    if ready {
        progress.step("Ready", &around.config.node_name);
        progress.done();
        memory::give_back();
        tokio::select! {
            () = signals.next() => {}
            Some(ended) = tasks.join_next() => anyhow::bail!("a component ended by itself: {ended:?}"),
        }
    }
    drain.stop();
    let _ = tokio::time::timeout(GRACE, async { while tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

fn client(server: &str, keys: &NodeKeys) -> anyhow::Result<Client> {
    let access = client::kubeconfig::Access {
        server: server.to_owned(),
        ca: Some(keys.ca.clone().into_bytes()),
        identity: Some((keys.client.certificate.clone().into_bytes(), keys.client.key.clone().into_bytes())),
        ..client::kubeconfig::Access::default()
    };
    Ok(Client::new(Arc::new(Https::new(&access)?)))
}
