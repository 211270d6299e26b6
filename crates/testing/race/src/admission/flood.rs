//! What one tenant's flood does to another, over HTTPS: each tenant's clients are a process of their own, as a judge's would be.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use apiserver::{Config, Server};
use auth::pki::{Names, Pki};
use client::kubeconfig::Access;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{MAPS, STORED, make};
use crate::api::constant::Constant;
use crate::api::wire::{Call, Protocol, Remote};
use crate::measure::quantile;

/// Under this name the measuring program starts itself as a tenant.
pub const NAME: &str = "tenant";
const TENANT_CLIENTS: usize = 4;
/// Between two requests of one of the tenant's clients: a tenant who floods too is none to compare with.
const TENANT_PAUSE: Duration = Duration::from_millis(1);
const FLOOD_CLIENTS: usize = 200;
/// The flood's clients have the processors only when nobody else wants them.
const NICEST: i32 = 19;
/// Bytes of the other server's answers: a single object's.
const ANSWER: usize = 1_200;
/// Until the flood's connections are all there.
const FLOOD_GROWS: Duration = Duration::from_millis(700);

/// What a tenant's process is told on its standard input.
#[derive(Clone, Serialize, Deserialize)]
struct Orders {
    server: String,
    /// None: nobody vouches for the server.
    ca: Option<String>,
    /// Certificate and key, PEM; None for a server that knows no users.
    identity: Option<(String, String)>,
    /// Each client asks for these in turn.
    paths: Vec<String>,
    clients: usize,
    pause_micros: u64,
    seconds: f64,
    nice: i32,
    h2: bool,
}

/// What it tells on its standard output. Milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Told {
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    /// Answers that sent it away.
    pub refused: u64,
}

/// How the flood comes.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub name: &'static str,
    nice: i32,
    h2: bool,
    lists: bool,
}

/// Every other request of a mixed flood is a list.
pub const MANNERS: [Manner; 4] = [
    Manner { name: "single objects", nice: NICEST, h2: false, lists: false },
    Manner { name: "every other a list", nice: NICEST, h2: false, lists: true },
    Manner { name: "the same, HTTP/2", nice: NICEST, h2: true, lists: true },
    Manner { name: "the same, its clients with equal priority", nice: 0, h2: false, lists: true },
];

/// A server with two tenants.
pub struct Shared {
    pki: Pki,
    address: std::net::SocketAddr,
    /// What the same flood is sent to for comparison.
    elsewhere: Constant,
    pub drain: stdx::Drain,
}

/// The tenant's legs alone, beside a flood on another server, and beside the flood on its own; and what that flood got through.
pub struct Leg {
    pub alone: Told,
    pub elsewhere: Told,
    pub beside: Told,
    pub flood: Told,
}

impl Shared {
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        let names = Names {
            api_hosts: Vec::new(),
            api_addresses: Vec::new(),
            cluster_domain: "cluster.local".into(),
            node_name: "race".into(),
            node_addresses: Vec::new(),
        };
        let pki = Pki::open(&dir.join("pki"), &names)?;
        let tls = auth::tls::Server::new(&pki.api_server, &pki.ca)?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let config = Config { tls: Some(tls.clone()), audit_file: Some(dir.join("audit.log")), ..Config::default() };
        let server = Server::new(config, Arc::new(store::memory::Memory::new()))?;
        server.bootstrap().await?;
        fill(&server).await?;
        let (drain, config) = (stdx::drain(), tls.config()?);
        let stop = drain.clone();
        tokio::spawn(async move { server.serve(listener, Some(config), stop).await });
        Ok(Self { pki, address, elsewhere: Constant::start()?, drain })
    }

    pub async fn flooded(&self, manner: Manner, length: Duration) -> anyhow::Result<Leg> {
        let one: Vec<String> = (0..STORED).map(|number| format!("{MAPS}/m-{number}")).collect();
        let mixed = |path: &String| [path.clone(), format!("{MAPS}?labelSelector=app%3Dnone")];
        let asked = if manner.lists { one.iter().flat_map(mixed).collect() } else { one.clone() };
        let tenant = |seconds: f64| self.orders("tenant", one.clone(), (TENANT_CLIENTS, TENANT_PAUSE), seconds);
        let alone = Process::start(&tenant(length.as_secs_f64())?)?.told().await?;
        let mut orders = self.orders("flood", asked, (FLOOD_CLIENTS, Duration::ZERO), (length + 2 * FLOOD_GROWS).as_secs_f64())?;
        (orders.nice, orders.h2) = (manner.nice, manner.h2);
        let mut apart = orders.clone();
        (apart.server, apart.ca, apart.identity) = (format!("https://{}", self.elsewhere.remote.address()), None, None);
        apart.paths = vec![format!("/{ANSWER}")];
        let (elsewhere, _) = Self::both(&apart, &tenant(length.as_secs_f64())?).await?;
        let (beside, flood) = Self::both(&orders, &tenant(length.as_secs_f64())?).await?;
        Ok(Leg { alone, elsewhere, beside, flood })
    }

    /// What the tenant is told while there is a flood, and what the flood is told.
    async fn both(flood: &Orders, tenant: &Orders) -> anyhow::Result<(Told, Told)> {
        let flood = Process::start(flood)?;
        tokio::time::sleep(FLOOD_GROWS).await;
        let tenant = Process::start(tenant)?.told().await?;
        Ok((tenant, flood.told().await?))
    }

    fn orders(&self, user: &str, paths: Vec<String>, (clients, pause): (usize, Duration), seconds: f64) -> anyhow::Result<Orders> {
        let (certificate, key) = crate::auth::identity(&self.pki, user)?;
        Ok(Orders {
            server: format!("https://{}", self.address),
            ca: Some(self.pki.ca.clone()),
            identity: Some((String::from_utf8(certificate)?, String::from_utf8(key)?)),
            paths,
            clients,
            pause_micros: pause.as_micros() as u64,
            seconds,
            nice: 0,
            h2: false,
        })
    }
}

/// Objects to read, and two tenants who may.
async fn fill(server: &Server) -> anyhow::Result<()> {
    for number in 0..STORED {
        make(server, MAPS, json!({"metadata": {"name": format!("m-{number}")}, "data": {"settings": "x".repeat(800)}})).await?;
    }
    let group = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]);
    make(server, &format!("{group}/clusterroles"), json!({"metadata": {"name": "reader"}, "rules": rules})).await?;
    let subjects = ["tenant", "flood"].map(|name| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}));
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"});
    let binding = json!({"metadata": {"name": "readers"}, "roleRef": role, "subjects": subjects});
    make(server, &format!("{group}/clusterrolebindings"), binding).await
}

/// A tenant's process; killed when dropped.
struct Process(Child);

impl Process {
    fn start(orders: &Orders) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let mut process = Command::new(program).arg(NAME).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a tenant")?;
        process.stdin.take().context("a tenant has no input")?.write_all(&serde_json::to_vec(orders)?)?;
        Ok(Self(process))
    }

    async fn told(mut self) -> anyhow::Result<Told> {
        let mut out = self.0.stdout.take().context("a tenant has no output")?;
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).map(|_| text)
        });
        Ok(serde_json::from_str(&read.await??)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A tenant's process: does what it is told, and tells how it was served.
pub fn run() -> anyhow::Result<()> {
    let orders: Orders = serde_json::from_reader(std::io::stdin().lock())?;
    // Before there are threads: they inherit it.
    rustix::process::nice(orders.nice)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(tenant(orders))
}

async fn tenant(orders: Orders) -> anyhow::Result<()> {
    let access = Access {
        server: orders.server,
        insecure: orders.ca.is_none(),
        ca: orders.ca.map(String::into_bytes),
        identity: orders.identity.map(|(certificate, key)| (certificate.into_bytes(), key.into_bytes())),
        ..Access::default()
    };
    let calls: Arc<Vec<Call>> = Arc::new(orders.paths.iter().map(|path| Call::get(path)).collect());
    let protocol = if orders.h2 { Protocol::Http2 } else { Protocol::Http1 };
    let askers = Remote::of(access)?.askers(protocol, orders.clients).await?;
    let (pause, start) = (Duration::from_micros(orders.pause_micros), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for (number, mut asker) in askers.into_iter().enumerate() {
        let calls = calls.clone();
        tasks.spawn(async move {
            let (mut times, mut refused) = (Vec::new(), 0);
            for call in calls.iter().cycle().skip(number) {
                let asked = Instant::now();
                let answer = asker.ask(call).await?;
                ensure!(matches!(answer.status, 200 | 429), "status {}", answer.status);
                refused += u64::from(answer.status == 429);
                times.push(asked.elapsed().as_secs_f64() * 1e3);
                if start.elapsed().as_secs_f64() > orders.seconds {
                    break;
                }
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
            Ok((times, refused))
        });
    }
    let (mut times, mut refused) = (Vec::new(), 0);
    while let Some(ended) = tasks.join_next().await {
        let (more, sent_away) = ended??;
        times.extend(more);
        refused += sent_away;
    }
    times.sort_by(f64::total_cmp);
    let per_second = times.len() as f64 / start.elapsed().as_secs_f64();
    let told = Told { per_second, p50: quantile(&times, 0.5), p99: quantile(&times, 0.99), refused };
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}
