//! `sternpost simulate`: nodes without machines, against a running cluster or one inside this process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use auth::UserInfo;
use clap::Args;
use client::{ApiResource, Client, DeleteParams, Https, ListParams};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use reconcile::{Cache, Caches, EventRecorder, PartialObject, Scope, trim};
use serde_json::json;
use stdx::Drain;

use crate::config::Config;
use crate::{memory, transport};

const NAMESPACE: &str = "simulated";
const WRITERS: usize = 64;
const LOOK_EVERY: Duration = Duration::from_millis(10);
const SAY_EVERY: Duration = Duration::from_secs(10);

#[derive(Args)]
pub struct SimulateArgs {
    /// Hollow nodes
    #[arg(long, default_value_t = 10)]
    nodes: usize,
    /// Pods to create in the namespace "simulated"
    #[arg(long, default_value_t = 0)]
    pods: usize,
    /// The cluster that the nodes join [default: the one on this machine]
    #[arg(long, value_name = "FILE", conflicts_with = "embedded")]
    kubeconfig: Option<PathBuf>,
    /// A control plane in the memory of this process instead: reports how long everything takes, and ends
    #[arg(long)]
    embedded: bool,
    #[arg(long, default_value = "hollow-")]
    prefix: String,
    #[arg(long, default_value = "32")]
    cpu: String,
    #[arg(long, default_value = "256Gi")]
    memory: String,
    /// Pods that a node takes
    #[arg(long, default_value_t = 110)]
    pods_per_node: usize,
    /// Zones that the nodes are spread over
    #[arg(long, default_value_t = 3)]
    zones: usize,
    /// How often a node renews its Lease
    #[arg(long, default_value_t = 10)]
    heartbeat_seconds: u64,
    /// What pods do and when, as a YAML list of {from, to, afterSeconds, labels, owner, percent}
    /// [default: they run at once, and those of Jobs succeed after a second]
    #[arg(long, value_name = "FILE")]
    stages: Option<PathBuf>,
    /// Leave the nodes and pods in the cluster at the end
    #[arg(long)]
    keep: bool,
}

impl SimulateArgs {
    fn hollow(&self) -> anyhow::Result<hollow::Config> {
        let stages = match &self.stages {
            None => hollow::Stage::defaults(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?
            }
        };
        Ok(hollow::Config {
            nodes: self.nodes,
            prefix: self.prefix.clone(),
            zones: self.zones,
            cpu: self.cpu.clone(),
            memory: self.memory.clone(),
            pods_max: self.pods_per_node,
            heartbeat: Duration::from_secs(self.heartbeat_seconds.max(1)),
            stages,
            ..hollow::Config::default()
        })
    }
}

pub fn run(config: &Config, args: &SimulateArgs) -> anyhow::Result<i32> {
    memory::configure();
    let hollow = args.hollow()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let drain = stdx::drain();
        let client = if args.embedded { embedded(config, &drain).await? } else { remote(config, args)? };
        let simulation = simulate(args, hollow, &client, &drain);
        tokio::select! {
            done = simulation => done?,
            _ = tokio::signal::ctrl_c() => {}
        }
        drain.stop();
        if !args.embedded && !args.keep {
            remove(&client).await?;
        }
        Ok(0)
    })
}

fn remote(config: &Config, args: &SimulateArgs) -> anyhow::Result<Client> {
    let kubeconfig = args.kubeconfig.clone().unwrap_or_else(|| config.kubeconfig());
    let https = Https::from_kubeconfig(&kubeconfig, None).with_context(|| kubeconfig.display().to_string())?;
    Ok(Client::new(Arc::new(https)).named("sternpost-simulate"))
}

/// API server, controllers and scheduler over a store in memory; no socket, no PKI.
async fn embedded(config: &Config, drain: &Drain) -> anyhow::Result<Client> {
    let settings = apiserver::Config { reads_inflight_max: 4096, writes_inflight_max: 4096, ..apiserver::Config::default() };
    let server = apiserver::Server::new(settings, Arc::new(store::memory::Memory::new()))?;
    server.bootstrap().await?;
    let client = |name: &str, groups: &[&str]| transport::client(&server, UserInfo::authenticated(name, groups));
    let system = client("system:apiserver", &["system:masters"]);
    let caches = Caches::new(&system, drain.clone());
    // No node is here.
    caches.set(Cache::start_trimmed(&system, Scope::all(), trim::pods_elsewhere(""), drain.clone()));
    let manager = client("system:kube-controller-manager", &["system:masters"]);
    tokio::spawn(controllers::run_on(manager, caches.clone(), controllers::Config::default(), drain.clone()));
    let scheduler = client("system:kube-scheduler", &[]).named("kube-scheduler");
    let recorder = EventRecorder::start(&scheduler, "default-scheduler", None, drain.clone());
    tokio::spawn(scheduler::run(config.scheduler()?, scheduler, caches, recorder, drain.clone()));
    Ok(client("admin", &["system:masters"]))
}

async fn simulate(args: &SimulateArgs, hollow: hollow::Config, client: &Client, drain: &Drain) -> anyhow::Result<()> {
    let start = Instant::now();
    let ours = Scope { label_selector: Some(hollow::LABEL.into()), ..Scope::default() };
    let nodes = Cache::<PartialObject>::start_of(client, ApiResource::of::<Node>(), ours, true, drain.clone());
    let running = tokio::spawn(hollow::run(hollow, client.clone(), drain.clone()));
    wait(&nodes, args.nodes, "nodes", start).await;
    if args.pods > 0 {
        let namespace = json!({ "metadata": { "name": NAMESPACE } });
        match client.create::<Namespace>(&serde_json::from_value(namespace)?).await {
            Err(error) if !error.is_already_exists() => return Err(error.into()),
            _ => {}
        }
        let in_phase = |phase: &str| Scope { namespace: Some(NAMESPACE.into()), field_selector: Some(phase.into()), ..Scope::default() };
        let pods = |scope| Cache::<PartialObject>::start_of(client, ApiResource::of::<Pod>(), scope, true, drain.clone());
        let (bound, runs) = (pods(in_phase("spec.nodeName!=")), pods(in_phase("status.phase=Running")));
        create_pods(client, args.pods).await?;
        say(start, &format!("{} pods created", args.pods));
        wait(&bound, args.pods, "pods bound", start).await;
        wait(&runs, args.pods, "pods running", start).await;
    }
    if args.embedded {
        return Ok(());
    }
    println!("The nodes live until this ends: Ctrl-C.");
    running.await.context("hollow nodes")
}

fn say(start: Instant, what: &str) {
    let rss = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = rss.lines().find_map(|line| line.strip_prefix("VmRSS:")).map_or("?", str::trim).to_owned();
    println!("{:8.2} s  {what}  (this process: {rss})", start.elapsed().as_secs_f64());
}

/// Until there are so many; says from time to time how many there are.
async fn wait(cache: &Cache<PartialObject>, count: usize, what: &str, start: Instant) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let mut said = Instant::now();
    while cache.len() < count {
        looks.tick().await;
        if said.elapsed() >= SAY_EVERY {
            say(start, &format!("{} of {count} {what}", cache.len()));
            said = Instant::now();
        }
    }
    say(start, &format!("{count} {what}"));
}

async fn create_pods(client: &Client, count: usize) -> anyhow::Result<()> {
    let mut made = futures_util::stream::iter(0..count)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let container =
                    json!({ "name": "hollow", "image": "hollow", "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } } });
                let pod = json!({
                    "metadata": { "namespace": NAMESPACE, "name": format!("pod-{number}"), "labels": { "app": "simulated" } },
                    "spec": { "containers": [container], "automountServiceAccountToken": false },
                });
                // The namespace's service account may not be there yet.
                for _ in 0..50 {
                    match client.create::<Pod>(&serde_json::from_value(pod.clone())?).await {
                        Ok(_) => return Ok(()),
                        Err(error) if error.is_already_exists() => return Ok(()),
                        Err(error) if error.is_forbidden() => tokio::time::sleep(Duration::from_millis(100)).await,
                        Err(error) => return Err(error.into()),
                    }
                }
                anyhow::bail!("the namespace {NAMESPACE} has no service account")
            })
        })
        .buffer_unordered(WRITERS);
    while let Some(result) = made.next().await {
        result??;
    }
    Ok(())
}

/// Takes the pods and nodes away again.
async fn remove(client: &Client) -> anyhow::Result<()> {
    println!("removing the simulated pods and nodes");
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    client.delete_collection(&ApiResource::of::<Pod>(), &ListParams::in_namespace(NAMESPACE), &at_once).await?;
    match client.delete::<Namespace>(None, NAMESPACE, &DeleteParams::default()).await {
        Err(error) if !error.is_not_found() => return Err(error.into()),
        _ => {}
    }
    let ours = ListParams::default().labels(hollow::LABEL);
    client.delete_collection(&ApiResource::of::<Node>(), &ours, &DeleteParams::default()).await?;
    Ok(())
}
