//! Pods of one Deployment on one node, as a client sees them on a watch.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::{Client, DeleteParams, ListParams, WatchEvent, WatchParams, WatchStream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::Options;
use crate::cluster::Cluster;
use crate::measure::{Spread, quantile, sorted};
use crate::processes::footprint;
use crate::report::{Outcome, number, spread};

pub const NAMESPACE: &str = "race";
/// Pods made one after the other in a round.
const SINGLE: usize = 10;
/// How long a node with all its pods rests before it is watched, and for how long it is.
const SETTLE: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(20);
/// Longer than this and the race has failed.
const PATIENCE: Duration = Duration::from_secs(600);
/// Chance chooses the pod: of a thousand the last is met after some 7,500 requests.
const CLIENTS: usize = 16;

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let cluster = Cluster::new(dir)?;
    cluster.up()?;
    let api = cluster.client()?;
    api.create::<Namespace>(&serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } }))?).await?;
    let address = expose(&api).await?;
    let (mut singles, mut bursts, mut in_bursts) = (Vec::new(), Vec::new(), Vec::new());
    let (mut answers, mut memory, mut each_memory, mut idle) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // The first pod of a node finds nothing warm, and its namespace may be younger than its service account.
    one(&api, SINGLE).await?;
    for round in 1..=options.rounds {
        for number in 0..SINGLE {
            singles.push(one(&api, number).await?);
        }
        let empty = footprint(&cluster.program).pss_mib;
        let Burst { running: all, answering, each } = burst(&api, options.replicas, &address).await?;
        answers.push(answering);
        let full = footprint(&cluster.program).pss_mib;
        memory.push(full);
        each_memory.push((full - empty) / options.replicas as f64);
        if round == options.rounds {
            tokio::time::sleep(SETTLE).await;
            let before = footprint(&cluster.program).cpu_seconds;
            tokio::time::sleep(WATCH).await;
            idle.push((footprint(&cluster.program).cpu_seconds - before) / WATCH.as_secs_f64() * 100.0);
        }
        eprintln!("round {round}: {} pods in {all:.3} s", options.replicas);
        bursts.push(all);
        in_bursts.extend(each);
        clear(&api).await?;
    }
    cluster.purge()?;
    let (single, each) = (sorted(&singles), sorted(&in_bursts));
    let all = Spread::of(&bursts);
    let per_second: Vec<f64> = bursts.iter().map(|seconds| options.replicas as f64 / seconds).collect();
    let percentiles = |values: &[f64]| {
        format!("{} / {} / {}", number(quantile(values, 0.5)), number(quantile(values, 0.99)), number(quantile(values, 1.0)))
    };
    let row = |what: String, figure: String| vec![what, figure];
    let rows = vec![
        row(format!("apply of {} replicas → all Running, s", options.replicas), spread(&all)),
        row("the same → every one of them has answered through the Service, s".into(), spread(&Spread::of(&answers))),
        row("pods a second in that burst".into(), spread(&Spread::of(&per_second))),
        row("one pod alone, create → Running, p50 / p99 / most, ms".into(), percentiles(&single)),
        row("a pod in the burst, seen → Running, p50 / p99 / most, ms".into(), percentiles(&each)),
        row(format!("memory of all our processes with {} pods, PSS, MiB", options.replicas), spread(&Spread::of(&memory))),
        row("the same, what each pod adds, MiB".into(), spread(&Spread::of(&each_memory))),
        row(format!("idle processor with {} pods, % of one core", options.replicas), spread(&Spread::of(&idle))),
    ];
    let method = format!(
        "One node, through the real API over HTTPS with the administrator's certificate; image sternpost.io/toolbox, no probes. The run folder lies on a tmpfs, as `/run` does on most machines, where there is one. A round makes \
         {SINGLE} pods one after the other, then a Deployment of {} replicas, and deletes everything. Times are the client's: from before the request \
         is sent to the event on a watch that shows the pod (or the last of them) Running with its container ready; in the burst a pod's own clock starts at its \
         Added event. Then the node asks the Service's cluster IP for `/hostname`, {CLIENTS} requests at a time, a connection each, until every pod has answered. After the last burst the node rests 5 s and is watched for 20 s. One pod before the first round is not counted. There is no peer: Debian has no Kubernetes control plane.",
        options.replicas
    );
    let figures = json!({ "single_ms": singles, "burst_seconds": bursts, "answering_seconds": answers, "in_burst_ms": each, "burst": all, "pss_mib": memory, "pod_mib": each_memory, "idle_percent": idle });
    Ok(Outcome { method, head: vec!["what", "figure"], rows, figures })
}

pub fn is_running(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    status.phase.as_deref() == Some("Running") && !containers.is_empty() && containers.iter().all(|container| container.ready)
}

fn spec() -> serde_json::Value {
    json!({ "containers": [{ "name": "web", "image": "sternpost.io/toolbox" }], "terminationGracePeriodSeconds": 0 })
}

/// All pods of the namespace from now on.
pub async fn watch(api: &Client) -> anyhow::Result<WatchStream<Pod>> {
    let now = api.list::<Pod>(&ListParams::in_namespace(NAMESPACE)).await?.resource_version;
    Ok(api.watch(&WatchParams { namespace: Some(NAMESPACE.into()), resource_version: Some(now), ..WatchParams::default() }).await?)
}

/// The next event's pod, and whether it was deleted.
pub async fn next(events: &mut WatchStream<Pod>, deadline: Instant) -> anyhow::Result<(Pod, bool)> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, events.next()).await.context("too slow: the race is lost")? {
            Some(Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod))) => return Ok((pod, false)),
            Some(Ok(WatchEvent::Deleted(pod))) => return Ok((pod, true)),
            Some(Ok(WatchEvent::Bookmark { .. })) => {}
            other => bail!("the watch ended: {other:?}"),
        }
    }
}

/// One pod on an otherwise idle node; milliseconds from the request to Running.
async fn one(api: &Client, number: usize) -> anyhow::Result<f64> {
    let mut events = watch(api).await?;
    let name = format!("single-{number}");
    let pod: Pod = serde_json::from_value(json!({ "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec() }))?;
    let start = Instant::now();
    api.create(&pod).await?;
    while !is_running(&next(&mut events, start + PATIENCE).await?.0) {}
    let taken = start.elapsed().as_secs_f64() * 1e3;
    api.delete::<Pod>(Some(NAMESPACE), &name, &DeleteParams::default()).await?;
    while !next(&mut events, Instant::now() + PATIENCE).await?.1 {}
    Ok(taken)
}

/// A ClusterIP Service over the Deployment's pods; its address and port.
pub async fn expose(api: &Client) -> anyhow::Result<String> {
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": NAMESPACE },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    }))?;
    let address = api.create(&service).await?.spec.and_then(|spec| spec.cluster_ip).context("the Service got no address")?;
    Ok(format!("{address}:80"))
}

/// Seconds from before the Deployment is sent, and each pod's milliseconds from its Added event to Running.
pub struct Burst {
    pub running: f64,
    pub answering: f64,
    each: Vec<f64>,
}

pub async fn burst(api: &Client, replicas: usize, service: &str) -> anyhow::Result<Burst> {
    let mut events = watch(api).await?;
    let labels = json!({ "app": "web" });
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": NAMESPACE },
        "spec": { "replicas": replicas, "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": spec() } },
    }))?;
    let start = Instant::now();
    api.create(&deployment).await?;
    let (mut seen, mut running) = (HashMap::new(), HashMap::new());
    while running.len() < replicas {
        let (pod, _) = next(&mut events, start + PATIENCE).await.with_context(|| format!("{} of {replicas} run", running.len()))?;
        let name = pod.metadata.name.clone().unwrap_or_default();
        let added = *seen.entry(name.clone()).or_insert_with(Instant::now);
        if is_running(&pod) {
            running.entry(name).or_insert_with(|| added.elapsed().as_secs_f64() * 1e3);
        }
    }
    let all = start.elapsed().as_secs_f64();
    let mut answered = BTreeSet::new();
    let mut clients = JoinSet::new();
    while answered.len() < replicas {
        anyhow::ensure!(start.elapsed() < PATIENCE, "{} of {replicas} answered through the Service", answered.len());
        while clients.len() < CLIENTS {
            let service = service.to_owned();
            clients.spawn(async move { hostname(&service).await });
        }
        if let Some(Ok(Ok(name))) = clients.join_next().await {
            answered.extend(Some(name).filter(|name| running.contains_key(name)));
        }
    }
    Ok(Burst { running: all, answering: start.elapsed().as_secs_f64(), each: running.into_values().collect() })
}

/// Which pod answers behind `address`.
pub async fn hostname(address: &str) -> anyhow::Result<String> {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(b"GET /hostname HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(1), ask).await??;
    Ok(answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim().to_owned())
}

/// Deletes the Deployment and waits until no pod is left.
async fn clear(api: &Client) -> anyhow::Result<()> {
    api.delete::<Deployment>(Some(NAMESPACE), "web", &DeleteParams::background()).await?;
    let start = Instant::now();
    loop {
        let pods = api.list::<Pod>(&ListParams::in_namespace(NAMESPACE)).await?.items.len();
        if pods == 0 {
            return Ok(());
        }
        anyhow::ensure!(start.elapsed() < PATIENCE, "{pods} pods are still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
