//! What the API server answers over HTTPS, and what objects and watches cost it in memory.

mod fanout;
mod requests;
mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use client::{Client, WatchParams};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use serde_json::{Value, json};

use crate::Options;
use crate::cluster::Cluster;
use crate::measure::{Spread, quantile};
use crate::processes::footprint;
use crate::report::{Outcome, number, spread};
use fanout::Fanout;
use requests::{Leg, Make, NAMESPACE, closed_loop};
use wire::{Remote, request};

const METHOD: &str = "\
HTTP/1.1 with keep-alive over TLS 1.3 with a client certificate, JSON, one request under way per connection; the client counts answers without \
decoding them and runs on the same processors as the server. GET and CREATE are of ConfigMaps of 1 KiB, writes are durable; LIST 500 selects \
them by a label; the large list is of pods of about 2.5 KiB, whole. Fan-out: so many watch connections of one collection see every write of four writers; \
a delay is from before the write to the delivery. Memory is what the server's RSS grew by. There is no peer: Debian has no Kubernetes control plane.";

const ENDLESS: u64 = u64::MAX;

enum What {
    Requests(Make, usize),
    Fanout { writers: usize, rate: Option<f64> },
}

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let cluster = match &options.kubeconfig {
        Some(_) => None,
        None => {
            let cluster = Cluster::new(dir)?;
            cluster.up()?;
            Some(cluster)
        }
    };
    let kubeconfig = match (&options.kubeconfig, &cluster) {
        (Some(path), _) => path.clone(),
        (None, Some(cluster)) => cluster.kubeconfig()?,
        (None, None) => anyhow::bail!("no server"),
    };
    let remote = Remote::from_kubeconfig(&kubeconfig)?;
    prepare(&remote).await?;
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    measure(options, &remote, &mut rows, &mut figures).await?;
    if wanted(options, "memory") {
        memory(options, &remote, cluster.as_ref().map(|cluster| &cluster.program), &mut rows, &mut figures).await?;
    }
    let many = [("LIST of all pods", requests::list_pods(), 1), ("LIST of all pods", requests::list_pods(), 4)];
    for (what, make, connections) in many {
        if !wanted(options, what) {
            continue;
        }
        let mut legs = Vec::new();
        for round in 1..=options.rounds {
            let leg = closed_loop(&remote, connections, Duration::from_secs_f64(options.leg_seconds), ENDLESS, &make).await?;
            eprintln!("round {round}, {what} × {connections}: {:.0} MB/s", leg.bytes_per_second / 1e6);
            legs.push(leg);
        }
        let rate = Spread::of(&legs.iter().map(|leg| leg.bytes_per_second / 1e6).collect::<Vec<_>>());
        rows.push(vec![format!("{what} ({}), MB/s", options.objects), connections.to_string(), spread(&rate), waits(&legs)]);
        figures.push(json!({"what": what, "connections": connections, "mb_per_second": rate}));
    }
    if let Some(cluster) = cluster {
        if wanted(options, "memory") {
            idle_watches(&cluster, 4 * options.watchers, &mut rows, &mut figures).await?;
        }
        cluster.purge()?;
    }
    let head = vec!["what", "clients", "a second, median (least–most)", "p50 / p99 ms"];
    Ok(Outcome { method: METHOD.into(), head, rows, figures: figures.into() })
}

async fn prepare(remote: &Remote) -> anyhow::Result<()> {
    let mut connection = remote.connect().await?;
    let answer = connection.ask(&requests::namespace()).await?;
    ensure!(matches!(answer.status, 201 | 409), "the namespace: status {}", answer.status);
    let account = json!({"metadata": {"name": "default"}}).to_string();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
    connection.ask(&request("POST", &path, "application/json", &account)).await?;
    let listed = requests::create("listed");
    for number in 0..requests::LISTED as u64 {
        connection.ask(&listed(number)).await?;
    }
    Ok(())
}

async fn measure(options: &Options, remote: &Remote, rows: &mut Vec<Vec<String>>, figures: &mut Vec<Value>) -> anyhow::Result<()> {
    let watchers = options.watchers;
    let loads = [
        ("GET one", What::Requests(requests::get_one(), 1)),
        ("GET one", What::Requests(requests::get_one(), 64)),
        ("LIST 500", What::Requests(requests::list_maps(), 8)),
        ("CREATE", What::Requests(requests::create("made"), 1)),
        ("CREATE", What::Requests(requests::create("made"), 64)),
        ("server-side apply of a pod", What::Requests(requests::apply_pod(), 1)),
        ("server-side apply of a pod", What::Requests(requests::apply_pod(), 16)),
        ("deliveries, 100 events a second", What::Fanout { writers: 4, rate: Some(100.0) }),
        ("deliveries, as many as go", What::Fanout { writers: 4, rate: None }),
    ];
    let length = Duration::from_secs_f64(options.leg_seconds);
    for (what, load) in loads {
        if !wanted(options, what) {
            continue;
        }
        let (mut rates, mut legs, mut delays, clients) = (Vec::new(), Vec::new(), Vec::new(), load.clients(watchers));
        for round in 1..=options.rounds {
            let rate = match &load {
                What::Requests(make, connections) => {
                    let leg = closed_loop(remote, *connections, length, ENDLESS, make).await?;
                    legs.push(leg.clone());
                    leg.per_second
                }
                What::Fanout { writers, rate } => {
                    let Fanout { events_per_second, deliveries_per_second, delays: more } =
                        fanout::leg(remote, watchers, *writers, *rate, length).await.with_context(|| what.to_owned())?;
                    eprintln!("round {round}, {events_per_second:.0} events a second");
                    delays.push(more);
                    deliveries_per_second
                }
            };
            eprintln!("round {round}, {what} × {clients}: {rate:.0} a second");
            rates.push(rate);
        }
        let rate = Spread::of(&rates);
        let waited = if delays.is_empty() { waits(&legs) } else { quantiles(delays.iter().map(Vec::as_slice)) };
        rows.push(vec![what.to_owned(), clients.to_string(), spread(&rate), waited.clone()]);
        figures.push(json!({ "what": what, "clients": clients, "per_second": rate, "p50_p99_ms": waited }));
    }
    Ok(())
}

fn wanted(options: &Options, what: &str) -> bool {
    options.only.as_ref().is_none_or(|only| what.contains(only.as_str()))
}

impl What {
    fn clients(&self, watchers: usize) -> usize {
        match self {
            What::Requests(_, connections) => *connections,
            What::Fanout { .. } => watchers,
        }
    }
}

fn waits(legs: &[Leg]) -> String {
    quantiles(legs.iter().map(|leg| leg.latencies.as_slice()))
}

fn quantiles<'a>(legs: impl Iterator<Item = &'a [f64]> + Clone) -> String {
    let wait = |q: f64| number(Spread::of(&legs.clone().map(|leg| quantile(leg, q)).collect::<Vec<_>>()).median);
    format!("{} / {}", wait(0.5), wait(0.99))
}

/// What stored objects and idle watches add to the server's memory.
async fn memory(
    options: &Options,
    remote: &Remote,
    program: Option<&PathBuf>,
    rows: &mut Vec<Vec<String>>,
    figures: &mut Vec<Value>,
) -> anyhow::Result<()> {
    let rss = || program.map(|program| footprint(program).rss_mib * 1024.0 * 1024.0);
    let before = rss();
    let make = requests::create_pod();
    closed_loop(remote, 16, Duration::from_secs(600), options.objects as u64, &make).await.context("make the pods")?;
    let listed = closed_loop(remote, 1, Duration::from_secs(600), 1, &requests::list_pods()).await?;
    let wire = listed.bytes_per_second * listed.latencies.iter().sum::<f64>() / 1e3;
    if let (Some(before), Some(after)) = (before, rss()) {
        let ratio = (after - before) / wire;
        eprintln!("{} pods: {:.1} MB on the wire, RSS grew by {:.1} MB", options.objects, wire / 1e6, (after - before) / 1e6);
        rows.push(vec![format!("memory of {} pods / their size on the wire", options.objects), "–".into(), number(ratio), "–".into()]);
        figures.push(json!({"what": "memory per wire byte", "ratio": ratio, "wire_bytes": wire}));
    }
    Ok(())
}

/// Watches that nothing happens to, many on one HTTP/2 connection as Go's clients have them.
async fn idle_watches(cluster: &Cluster, number: usize, rows: &mut Vec<Vec<String>>, figures: &mut Vec<Value>) -> anyhow::Result<()> {
    const PER_CONNECTION: usize = 250;
    let rss = || footprint(&cluster.program).rss_mib * 1024.0;
    let connections: Vec<Client> = (0..number.div_ceil(PER_CONNECTION)).map(|_| cluster.client()).collect::<anyhow::Result<_>>()?;
    for connection in &connections {
        drop(connection.get::<Node>(None, "nobody").await);
    }
    let before = rss();
    let mut open = Vec::new();
    for index in 0..number {
        let params = WatchParams { label_selector: Some(format!("idle={index}")), resource_version: None, ..WatchParams::default() };
        open.push(connections[index / PER_CONNECTION].watch::<ConfigMap>(&params).await?);
    }
    let each = (rss() - before) / number as f64;
    eprintln!("{number} idle watches: {each:.2} KiB each");
    rows.push(vec!["memory of an idle watch, KiB".into(), number.to_string(), crate::report::number(each), "–".into()]);
    figures.push(json!({"what": "KiB per idle watch", "watches": number, "kib": each}));
    Ok(())
}
