//! The mission: a cluster of ten nodes on this machine, a thousand replicas, and one node that dies.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use client::{Client, ListParams};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::Options;
use crate::cluster::Cluster;
use crate::pods::{NAMESPACE, burst, expose, hostname, is_running, next, watch};
use crate::processes::footprint;
use crate::report::{Outcome, number};

const NODES: usize = 10;
const REPLICAS: usize = 1_000;
/// Clients of the Service, each with one request under way.
const CLIENTS: usize = 8;
/// Stock timers evict after five minutes and a bit.
const PATIENCE: Duration = Duration::from_secs(480);
/// Load goes on so long before the node dies, and after all pods run again.
const AROUND: Duration = Duration::from_secs(2);

const METHOD: &str = "\
`up --nodes 10` on one machine: each further node is a process of its own with its own network and mount namespace, runtime, proxy and DNS. A Deployment of \
sternpost.io/toolbox, real containers, no probes. Running: by a watch. Then every pod is asked for `/hostname` through the Service's cluster IP, 16 requests at a time, until each has answered, and once by its own \
address. Eight clients on the first node then ask the Service without a pause, a connection each time, one second of patience, and one asks cluster DNS every 10 ms; one further node's \
processes are all killed (`node stop`). Detected: its Node is no longer Ready. Recovered: so many pods run on other nodes. One round each, whatever --rounds says. \
There is no peer: Debian has no Kubernetes.";

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let (mut rows, mut figures) = (Vec::new(), serde_json::Map::new());
    for (mode, flags) in [("fast failover", &["--fast-failover"][..]), ("stock timers", &[])] {
        if !options.wants(mode) {
            continue;
        }
        let found = mission(options, dir, flags).await.with_context(|| mode.to_owned())?;
        for (what, figure) in &found {
            let shown = figure.as_f64().map_or_else(|| figure.as_str().unwrap_or_default().to_owned(), number);
            rows.push(vec![format!("{mode}: {what}"), shown]);
        }
        figures.insert(mode.into(), found.into_iter().map(|(what, figure)| json!([what, figure])).collect());
    }
    Ok(Outcome { method: METHOD.into(), head: vec!["what", "figure"], rows, figures: figures.into() })
}

async fn mission(options: &Options, dir: &Path, flags: &[&str]) -> anyhow::Result<Vec<(String, Value)>> {
    let (nodes, replicas) = if options.quick { (NODES / 3, REPLICAS / 10) } else { (NODES, REPLICAS) };
    let cluster = Cluster::new(dir)?;
    let mut found: Vec<(String, Value)> = Vec::new();
    let up = cluster.up_with(&[&["--nodes", &nodes.to_string()], flags].concat())?;
    found.push((format!("{nodes} nodes up and Ready, s"), up.as_secs_f64().into()));
    let api = cluster.client()?;
    api.create::<Namespace>(&serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } }))?).await?;
    let service = expose(&api).await?;
    let burst = burst(&api, replicas, &service).await?;
    found.push((format!("apply of {replicas} replicas → all Running, s"), burst.running.into()));
    found.push(("→ each has answered through the Service, s".into(), burst.answering.into()));
    let pods = api.list::<Pod>(&ListParams::in_namespace(NAMESPACE)).await?.items;
    found.push(("pods that answer at their own address".into(), format!("{} of {replicas}", reachable(&pods).await).into()));
    found.push(("memory of all our processes, PSS, MiB".into(), footprint(&cluster.program).pss_mib.into()));
    found.extend(a_node_dies(&cluster, &api, &pods, replicas, &service).await?);
    tokio::task::block_in_place(|| cluster.purge())?;
    Ok(found)
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// How many give their own name at their own address.
async fn reachable(pods: &[Pod]) -> usize {
    let mut count = 0;
    for pod in pods {
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).unwrap_or_default();
        let answer = hostname(&format!("{address}:8080")).await.unwrap_or_default();
        count += usize::from(Some(&answer) == pod.metadata.name.as_ref());
    }
    count
}

async fn a_node_dies(
    cluster: &Cluster,
    api: &Client,
    pods: &[Pod],
    replicas: usize,
    service: &str,
) -> anyhow::Result<Vec<(String, Value)>> {
    let mut events = watch(api).await?;
    let victim = tokio::task::block_in_place(|| cluster.further())?.pop().context("there are further nodes")?;
    let load = Load::start(service, dns_address(api).await?);
    tokio::time::sleep(AROUND).await;
    let killed = Instant::now();
    tokio::task::block_in_place(|| cluster.stop_node(&victim))?;
    let stopped = killed.elapsed();
    let (watching, name) = (api.clone(), victim.clone());
    let detection = tokio::spawn(async move {
        while is_ready(&watching.get::<Node>(None, &name).await?) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(killed.elapsed())
    });
    let mut running: HashMap<String, bool> = pods.iter().map(|pod| (name_of(pod), node_of(pod) != victim)).collect();
    let lost = running.values().filter(|safe| !**safe).count();
    while running.values().filter(|safe| **safe).count() < replicas {
        let (pod, gone) = next(&mut events, killed + PATIENCE).await?;
        let safe = !gone && node_of(&pod) != victim && is_running(&pod);
        running.insert(name_of(&pod), safe);
    }
    let recovered = killed.elapsed();
    let detected = detection.await??;
    tokio::time::sleep(AROUND).await;
    let requests = load.end().await;
    let [requests, names] = requests.map(|asked| Failures::of(&asked, killed));
    Ok(vec![
        ("pods on the node that dies".into(), lost.into()),
        ("the kill itself, s".into(), stopped.as_secs_f64().into()),
        ("dead → known to be, s".into(), detected.as_secs_f64().into()),
        (format!("dead → {replicas} Running again, s"), recovered.as_secs_f64().into()),
        ("requests to the Service that failed".into(), requests.count().into()),
        ("dead → the last of them, s".into(), requests.last.into()),
        ("DNS questions that failed".into(), names.count().into()),
    ])
}

fn name_of(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn dns_address(api: &Client) -> anyhow::Result<SocketAddr> {
    let service = api.get::<Service>(Some("kube-system"), "kube-dns").await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("kube-dns has no address")?;
    Ok((address.parse::<Ipv4Addr>()?, 53).into())
}

/// When each request was sent, and whether it was answered.
type Asked = Vec<(Instant, bool)>;

struct Load {
    tasks: JoinSet<()>,
    asked: [Arc<Mutex<Asked>>; 2],
}

impl Load {
    fn start(service: &str, dns: SocketAddr) -> Self {
        let mut load = Self { tasks: JoinSet::new(), asked: Default::default() };
        for _ in 0..CLIENTS {
            let (service, asked) = (service.to_owned(), load.asked[0].clone());
            load.tasks.spawn(async move {
                loop {
                    let sent = Instant::now();
                    let answered = hostname(&service).await.is_ok_and(|name| !name.is_empty());
                    asked.lock().unwrap_or_else(PoisonError::into_inner).push((sent, answered));
                    // Enough to see what fails, and no race of its own.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        let asked = load.asked[1].clone();
        load.tasks.spawn(async move {
            loop {
                let sent = Instant::now();
                let answered = look_up(dns).await.unwrap_or_default();
                asked.lock().unwrap_or_else(PoisonError::into_inner).push((sent, answered));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        load
    }

    async fn end(mut self) -> [Asked; 2] {
        self.tasks.shutdown().await;
        self.asked.map(|asked| std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Whether the name of the Service has an address.
async fn look_up(server: SocketAddr) -> std::io::Result<bool> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["web", NAMESPACE, "svc", "cluster", "local"] {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut buffer = [0; 512];
    let length = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await??;
    Ok(length > 12 && buffer[3] & 15 == 0 && buffer[7] > 0)
}

struct Failures {
    asked: usize,
    failed: usize,
    /// Seconds from the kill to the last that failed; 0 where none did.
    last: f64,
}

impl Failures {
    fn of(asked: &Asked, killed: Instant) -> Self {
        let failed: Vec<Instant> = asked.iter().filter(|(_, answered)| !answered).map(|(sent, _)| *sent).collect();
        let last = failed.iter().max().map_or(0.0, |last| last.saturating_duration_since(killed).as_secs_f64());
        Self { asked: asked.len(), failed: failed.len(), last }
    }

    fn count(&self) -> String {
        format!("{} of {}", number(self.failed as f64), number(self.asked as f64))
    }
}
