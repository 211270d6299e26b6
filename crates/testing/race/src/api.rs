//! What the API server answers over HTTPS, and what objects and watches cost it in memory.
//!
//! Reading order: [`requests`], [`fanout`] and [`inside`] (the loads), [`wire`] (the client), [`constant`] (the floor), [`memory`].

pub mod constant;
mod fanout;
mod inside;
mod memory;
pub mod requests;
pub mod wire;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::Options;
use crate::cluster::Cluster;
use crate::etcd::Etcd;
use crate::measure::{self, Spread, quantile};
use crate::processes::footprint;
use crate::report::{Outcome, number, spread};
use constant::Constant;
use requests::{Leg, Make, NAMESPACE, closed_loop};
use wire::{Call, Protocol, Remote};

const METHOD: &str = "\
Keep-alive over TLS 1.3 with a client certificate, JSON; HTTP/1.1 with a connection per client, HTTP/2 with one per 16; each client has one request under \
way; answers are counted, not decoded; client and server share the processors. The floor is a process with the same TLS and HTTP libraries, set up as ours, that \
answers as many bytes and does nothing else: what a server can do here beside this client. A round is ours, floor, floor, ours. etcd is Debian's 3.4, asked in gRPC \
without TLS, linearizable reads. GET and CREATE are of ConfigMaps of 1 KiB, writes are durable in both; LIST 500 selects by a label among all ConfigMaps; the large \
lists are of pods of about 2.8 KiB, whole. Fan-out: so many watch connections see every write of the writers; a delay is from before the write to the \
delivery; the floor sends lines of the same size without end. “µs” is processor time of the server per request (or delivery, or MB). A pod's memory is what the server's \
anonymous memory grew by while they were made, the caches of controllers and scheduler in the same process included, “API server and store alone” without those; \
an idle watch's, over HTTP/2 with 250 on a connection.";
const HEAD: [&str; 8] = ["what", "clients", "ours, a second", "floor", "ours / floor", "etcd", "p50 / p99 ms", "µs: ours / floor"];
const ENDLESS: u64 = u64::MAX;
/// What an event of the fan-out has on the wire, about.
const EVENT_BYTES: usize = 1_000;

/// The servers of a race.
struct Servers {
    cluster: Option<Cluster>,
    ours: Remote,
    floor: Constant,
    etcd: Option<Etcd>,
}

/// A load of single requests.
struct Load {
    what: &'static str,
    protocol: Protocol,
    clients: usize,
    make: Make,
    /// What it is for etcd.
    peer: Option<Peer>,
}

#[derive(Clone, Copy)]
enum Peer {
    Get,
    Put,
}

fn loads() -> Vec<Load> {
    let load = |what, protocol, clients, make, peer| Load { what, protocol, clients, make, peer };
    let (h1, h2) = (Protocol::Http1, Protocol::Http2);
    vec![
        load("GET one", h1, 1, requests::get_one(), Some(Peer::Get)),
        load("GET one", h1, 64, requests::get_one(), Some(Peer::Get)),
        load("GET one", h2, 1, requests::get_one(), None),
        load("GET one", h2, 64, requests::get_one(), None),
        load("LIST 500", h1, 8, requests::list_maps(), None),
        load("CREATE", h1, 1, requests::create("made"), Some(Peer::Put)),
        load("CREATE", h1, 64, requests::create("made"), Some(Peer::Put)),
        load("server-side apply of a pod", h1, 1, requests::apply_pod(), None),
        load("server-side apply of a pod", h1, 16, requests::apply_pod(), None),
    ]
}

#[derive(Default)]
struct Table {
    rows: Vec<Vec<String>>,
    figures: Vec<Value>,
}

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let mut servers = Servers::start(options, dir).await?;
    prepare(&servers.ours).await?;
    let mut table = Table::default();
    // First: later, what earlier loads have given back would make room for them.
    if let Some(cluster) = servers.cluster.as_ref().filter(|_| options.wants("memory")) {
        memory::idle_watches(cluster, 4 * options.watchers, &mut table).await?;
    }
    for load in loads().iter().filter(|load| options.wants(load.what)) {
        table.requests(options, &servers, load).await.with_context(|| load.what.to_owned())?;
    }
    if options.wants("in process") {
        inside::race(options, dir, &mut table).await.context("in process")?;
    }
    for (rate, writers) in [(Some(100.0), 4), (Some(400.0), 16), (None, 16)] {
        let what = rate.map_or("deliveries, as many as go".to_owned(), |rate| format!("deliveries, {rate:.0} events a second"));
        if options.wants(&what) {
            table.deliveries(options, &servers, &what, writers, rate).await.with_context(|| what.clone())?;
        }
    }
    let sizes = [10_000.min(options.objects), options.objects];
    let mut there = 0;
    for size in sizes.into_iter().filter(|size| *size > 0) {
        if size > there && (options.wants("memory") || options.wants("LIST of all pods")) {
            memory::pods(options, &servers, there..size, &mut table).await?;
            there = size;
            table.large_list(options, &servers, size).await.context("LIST of all pods")?;
        }
    }
    if let Some(cluster) = servers.cluster.take() {
        cluster.purge()?;
    }
    Ok(Outcome { method: METHOD.into(), head: HEAD.into(), rows: table.rows, figures: table.figures.into() })
}

impl Servers {
    async fn start(options: &Options, dir: &Path) -> anyhow::Result<Self> {
        let (cluster, kubeconfig) = match &options.kubeconfig {
            Some(path) => (None, path.clone()),
            None => {
                let cluster = Cluster::new(dir)?;
                cluster.up()?;
                let kubeconfig = cluster.kubeconfig()?;
                (Some(cluster), kubeconfig)
            }
        };
        let etcd = if options.no_etcd { None } else { Some(Etcd::start(options.etcd.as_deref(), &dir.join("etcd")).await?) };
        Ok(Self { cluster, ours: Remote::from_kubeconfig(&kubeconfig)?, floor: Constant::start()?, etcd })
    }

    /// Processor seconds that our server and the floor have used; NaN of a server that is not ours to look at.
    fn cpu_seconds(&self) -> [f64; 2] {
        let ours = self.cluster.as_ref().map_or(f64::NAN, |cluster| footprint(&cluster.program).cpu_seconds);
        [ours, footprint(&self.floor.program).cpu_seconds]
    }
}

async fn prepare(remote: &Remote) -> anyhow::Result<()> {
    let mut connection = remote.connect().await?;
    let answer = connection.ask(&requests::namespace()).await?;
    ensure!(matches!(answer.status, 201 | 409), "the namespace: status {}", answer.status);
    let account = json!({"metadata": {"name": "default"}}).to_string();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
    connection.ask(&Call::new("POST", &path, "application/json", &account)).await?;
    let listed = requests::create("listed");
    for number in 0..requests::LISTED as u64 {
        connection.ask(&listed(number)).await?;
    }
    Ok(())
}

/// Legs of one server and what they cost it.
#[derive(Default)]
struct Side {
    legs: Vec<Leg>,
    cpu_seconds: f64,
}

impl Side {
    fn requests(&self) -> f64 {
        self.legs.iter().map(|leg| leg.latencies.len() as f64).sum()
    }
    fn megabytes(&self) -> f64 {
        self.legs.iter().map(|leg| leg.bytes_per_second / 1e6 * leg.latencies.len() as f64 / leg.per_second).sum()
    }
    fn spread(&self, of: impl Fn(&Leg) -> f64) -> Spread {
        Spread::of(&self.legs.iter().map(of).collect::<Vec<_>>())
    }
    fn waits(&self) -> String {
        quantiles(self.legs.iter().map(|leg| leg.latencies.as_slice()))
    }
}

impl Table {
    async fn requests(&mut self, options: &Options, servers: &Servers, load: &Load) -> anyhow::Result<()> {
        let sample = (load.make)(sample_number());
        let answer = servers.ours.connect().await?.ask(&sample).await?;
        ensure!((200..300).contains(&answer.status), "status {}", answer.status);
        let floored = requests::always(sample.to(&format!("/{}", answer.body_bytes)));
        let [ours, floor] = sides(options, servers, load.protocol, load.clients, [&load.make, &floored]).await?;
        let etcd = match (&servers.etcd, load.peer) {
            (Some(etcd), Some(peer)) => Some(peer_legs(options, etcd, peer, load.clients).await?),
            _ => None,
        };
        let what = format!("{}, {}", load.what, load.protocol.word());
        let micros = |side: &Side| side.cpu_seconds / side.requests() * 1e6;
        self.row(&what, load.clients, [&ours, &floor], etcd, |leg| leg.per_second, micros);
        Ok(())
    }

    /// The whole collection as often as it goes; figures are MB/s.
    async fn large_list(&mut self, options: &Options, servers: &Servers, size: usize) -> anyhow::Result<()> {
        let make = requests::list_pods();
        let mut first = servers.ours.connect().await?;
        let bytes = first.ask(&make(0)).await?.body_bytes;
        let floored = requests::always(Call::get(&format!("/{bytes}")));
        for clients in [1, 4] {
            let [ours, floor] = sides(options, servers, Protocol::Http1, clients, [&make, &floored]).await?;
            let etcd = match &servers.etcd {
                Some(etcd) if clients == 1 => Some(memory::peer_list(options, etcd, size).await?),
                _ => None,
            };
            let micros = |side: &Side| side.cpu_seconds / side.megabytes() * 1e6;
            self.row(
                &format!("LIST of all {} pods, MB/s", number(size as f64)),
                clients,
                [&ours, &floor],
                etcd,
                |leg| leg.bytes_per_second / 1e6,
                micros,
            );
        }
        Ok(())
    }

    async fn deliveries(
        &mut self,
        options: &Options,
        servers: &Servers,
        what: &str,
        writers: usize,
        rate: Option<f64>,
    ) -> anyhow::Result<()> {
        let (mut legs, mut floors, mut used) = (Vec::new(), Vec::new(), [0.0; 2]);
        let length = seconds(options, 2.0);
        for round in 1..=options.rounds {
            let before = servers.cpu_seconds();
            let leg = fanout::leg(&servers.ours, options.watchers, writers, rate, length).await?;
            let between = servers.cpu_seconds();
            if rate.is_none() {
                floors.push(fanout::floor(&servers.floor.remote, options.watchers, EVENT_BYTES, length).await?);
            }
            let after = servers.cpu_seconds();
            eprintln!("round {round}, {what}: {:.0} events, {:.0} deliveries a second", leg.events_per_second, leg.deliveries_per_second);
            used[0] += (between[0] - before[0]) / leg.deliveries;
            used[1] += (after[1] - between[1]) / (floors.last().copied().unwrap_or(f64::NAN) * length.as_secs_f64());
            legs.push(leg);
        }
        let ours = Spread::of(&legs.iter().map(|leg| leg.deliveries_per_second).collect::<Vec<_>>());
        let floor = Spread::of(&floors);
        let waits = quantiles(legs.iter().map(|leg| leg.delays.as_slice()));
        let used = used.map(|sum| sum / options.rounds as f64 * 1e6);
        self.rows.push(vec![
            what.to_owned(),
            options.watchers.to_string(),
            spread(&ours),
            number(floor.median),
            number(ours.median / floor.median),
            "–".into(),
            waits.clone(),
            format!("{} / {}", number(used[0]), number(used[1])),
        ]);
        self.figures.push(
            json!({"what": what, "watchers": options.watchers, "per_second": ours, "floor": floor, "p50_p99_ms": waits, "micros": used}),
        );
        Ok(())
    }

    fn row(
        &mut self,
        what: &str,
        clients: usize,
        [ours, floor]: [&Side; 2],
        etcd: Option<Spread>,
        figure: impl Fn(&Leg) -> f64 + Copy,
        micros: impl Fn(&Side) -> f64,
    ) {
        let (own, least) = (ours.spread(figure), floor.spread(figure));
        self.rows.push(vec![
            what.to_owned(),
            clients.to_string(),
            spread(&own),
            spread(&least),
            number(own.median / least.median),
            etcd.as_ref().map_or("–".into(), spread),
            ours.waits(),
            format!("{} / {}", number(micros(ours)), number(micros(floor))),
        ]);
        eprintln!(
            "{what} × {clients}: {} of {}; {} of {} µs",
            number(own.median),
            number(least.median),
            number(micros(ours)),
            number(micros(floor))
        );
        self.figures.push(json!({"what": what, "clients": clients, "ours": own, "floor": least, "etcd": etcd, "p50_p99_ms": ours.waits(),
            "micros": {"ours": micros(ours), "floor": micros(floor)}}));
    }

    /// Rates that have nothing beside them, and what a request costs.
    fn alone_spread(&mut self, what: &str, clients: usize, rate: &Spread, micros: &Spread) {
        eprintln!("{what} × {clients}: {} a second, {} µs", number(rate.median), number(micros.median));
        let none = || "–".to_owned();
        let (clients, cost) = (clients.to_string(), number(micros.median));
        self.rows.push(vec![what.to_owned(), clients, spread(rate), none(), none(), none(), none(), cost]);
        self.figures.push(json!({"what": what, "per_second": rate, "micros": micros}));
    }

    /// A figure that has nothing beside it.
    fn alone(&mut self, what: &str, clients: &str, value: f64) {
        eprintln!("{what}: {}", number(value));
        let mut row = vec![what.to_owned(), clients.to_owned(), number(value)];
        row.resize(HEAD.len(), "–".to_owned());
        self.rows.push(row);
        self.figures.push(json!({"what": what, "value": value}));
    }
}

/// Ours, floor, floor, ours, as many times as there are rounds.
async fn sides(options: &Options, servers: &Servers, protocol: Protocol, clients: usize, makes: [&Make; 2]) -> anyhow::Result<[Side; 2]> {
    let mut sides = [Side::default(), Side::default()];
    let length = seconds(options, 4.0);
    for _ in 0..options.rounds {
        for at in [0, 1, 1, 0] {
            let remote = [&servers.ours, &servers.floor.remote][at];
            let askers = remote.askers(protocol, clients).await?;
            let before = servers.cpu_seconds();
            sides[at].legs.push(closed_loop(askers, length, ENDLESS, makes[at]).await?);
            sides[at].cpu_seconds += servers.cpu_seconds()[at] - before[at];
        }
    }
    Ok(sides)
}

/// A part of a usual leg: there are so many legs here that whole ones would take a quarter of an hour.
fn seconds(options: &Options, parts: f64) -> Duration {
    Duration::from_secs_f64(options.leg_seconds / parts)
}

/// A number that no leg uses.
fn sample_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(u64::MAX >> 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

async fn peer_legs(options: &Options, etcd: &Etcd, peer: Peer, clients: usize) -> anyhow::Result<Spread> {
    const CLIENTS_PER_CONNECTION: usize = 16;
    let key = |number: u64| Bytes::from(format!("/registry/configmaps/race/made-{:06}", number % 10_000));
    let value = Bytes::from("x".repeat(1_024));
    let mut connections = Vec::new();
    for _ in 0..clients.div_ceil(CLIENTS_PER_CONNECTION) {
        connections.push(etcd.connect().await?);
    }
    if let (Peer::Get, Some(first)) = (peer, connections.first_mut()) {
        for number in 0..requests::LISTED as u64 {
            first.put(key(number), value.clone()).await?;
        }
    }
    let (connections, mut rates) = (Arc::new(connections), Vec::new());
    for _ in 0..options.rounds {
        let (connections, value) = (connections.clone(), value.clone());
        let leg = measure::closed_loop(clients, seconds(options, 4.0), move |client, number| {
            let (mut connection, value) = (connections[client / CLIENTS_PER_CONNECTION].clone(), value.clone());
            async move {
                match peer {
                    Peer::Get => connection.range(key(number % requests::LISTED as u64), Bytes::new()).await.map(drop),
                    Peer::Put => connection.put(key(number), value).await,
                }
            }
        });
        rates.push(leg.await?.per_second);
    }
    Ok(Spread::of(&rates))
}

fn quantiles<'a>(legs: impl Iterator<Item = &'a [f64]> + Clone) -> String {
    let wait = |q: f64| number(Spread::of(&legs.clone().map(|leg| quantile(leg, q)).collect::<Vec<_>>()).median);
    format!("{} / {}", wait(0.5), wait(0.99))
}
