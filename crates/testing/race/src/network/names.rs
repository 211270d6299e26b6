//! Questions a second: ours, and the name servers that are there.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use reconcile::Cache;
use serde_json::json;

use super::{Rows, note};
use crate::Options;
use crate::measure::{quantile, sorted};

const SERVICES: u32 = 10_000;
const THREADS: usize = 2;
const UNDER_WAY: usize = 32;
/// With so many under way all the time an answer's time is mostly its wait for the others. So it is also taken while questions come at a steady
/// rate, a second, whatever the server does.
const RATES: [u32; 2] = [100_000, 200_000];

pub fn measure(options: &Options, dir: &Path, rows: &mut Rows) -> anyhow::Result<()> {
    let ours = Ours::start()?;
    ask_all("ours", ours.address, options, rows)?;
    drop(ours);
    for peer in [unbound(dir)?, knot(dir)?].into_iter().flatten() {
        ask_all(peer.name, peer.address, options, rows)?;
    }
    Ok(())
}

fn ask_all(who: &str, server: SocketAddr, options: &Options, rows: &mut Rows) -> anyhow::Result<()> {
    let length = Duration::from_secs_f64(options.leg_seconds);
    let clients: Vec<_> = (0..THREADS).map(|number| thread::spawn(move || ask(server, number, length))).collect();
    let (mut answered, mut latencies) = (0.0, Vec::new());
    for client in clients {
        let (count, times) = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        answered += count as f64;
        latencies.extend(times);
    }
    let latencies = sorted(&latencies);
    note(rows, &format!("DNS with {SERVICES} Services, {who}: answers/s"), answered / length.as_secs_f64());
    note(rows, &format!("DNS with {SERVICES} Services, {who}: p99 µs"), quantile(&latencies, 0.99));
    for rate in RATES {
        let clients: Vec<_> = (0..THREADS).map(|number| thread::spawn(move || ask_steadily(server, number, rate, length))).collect();
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        let latencies = sorted(&latencies);
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            note(rows, &format!("DNS with {SERVICES} Services, {who}: {name} µs at {rate} questions/s"), quantile(&latencies, share));
        }
    }
    Ok(())
}

/// Our server with its Services, on a runtime of its own.
struct Ours {
    address: SocketAddr,
    drain: stdx::Drain,
    _runtime: tokio::runtime::Runtime,
}

impl Ours {
    fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        let _entered = runtime.enter();
        let mut config = dns::Config::new(vec![(Ipv4Addr::LOCALHOST, 0).into()], "cluster.local");
        config.sockets = THREADS;
        let server = Arc::new(dns::Server::bind(config)?);
        let address = server.addresses().first().copied().context("no socket")?;
        let caches = dns::Caches { services: Cache::detached(), slices: Cache::detached(), namespaces: Cache::detached() };
        for number in 0..SERVICES {
            let ip = Ipv4Addr::from(0x0a60_0000 + number + 1);
            let service = json!({"metadata": {"namespace": "default", "name": format!("s{number}"), "resourceVersion": "1"},
                "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]}});
            caches.services.apply(serde_json::from_value::<Service>(service)?);
        }
        caches.services.mark_synced("1");
        caches.slices.mark_synced("1");
        caches.namespaces.mark_synced("1");
        let drain = stdx::drain();
        runtime.spawn(server.run(caches, drain.clone()));
        drop(_entered);
        Ok(Self { address, drain, _runtime: runtime })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

/// A question for an A record, with `id` and Service `number`.
fn question(id: u16, number: u32) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [format!("s{number}").as_str(), "default", "svc", "cluster", "local"] {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// Keeps so many questions under way; answers, and the microseconds of each.
fn ask(server: SocketAddr, client: usize, length: Duration) -> anyhow::Result<(usize, Vec<f64>)> {
    // Several sockets, so that the kernel spreads them over the server's.
    let sockets = (0..4).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>()?;
    let mut sent_at = vec![vec![None; UNDER_WAY]; sockets.len()];
    let (mut next, mut times, started) = (client as u32 * 977, Vec::new(), Instant::now());
    let mut send = |socket: &UdpSocket, slot: usize, sent: &mut Option<Instant>| -> anyhow::Result<()> {
        next = (next + 7919) % SERVICES;
        *sent = Some(Instant::now());
        socket.send(&question(slot as u16, next))?;
        Ok(())
    };
    for (socket, slots) in sockets.iter().zip(&mut sent_at) {
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        for (slot, sent) in slots.iter_mut().enumerate().take(UNDER_WAY / sockets.len()) {
            send(socket, slot, sent)?;
        }
    }
    let mut buffer = [0; 1500];
    while started.elapsed() < length {
        for (socket, slots) in sockets.iter().zip(&mut sent_at) {
            for _ in 0..UNDER_WAY / 4 {
                match socket.recv(&mut buffer) {
                    Ok(_) => {
                        let slot = usize::from(u16::from_be_bytes([buffer[0], buffer[1]])) % UNDER_WAY;
                        times.extend(slots[slot].take().map(|sent: Instant| sent.elapsed().as_secs_f64() * 1e6));
                        send(socket, slot, &mut slots[slot])?;
                    }
                    // Lost: all are sent again.
                    Err(_) => {
                        for (slot, sent) in slots.iter_mut().enumerate().take(UNDER_WAY / 4) {
                            send(socket, slot, sent)?;
                        }
                    }
                }
            }
        }
    }
    Ok((times.len(), times))
}

/// Asks at its share of the rate; the microseconds of each question from when it was due, of those without an answer until now.
fn ask_steadily(server: SocketAddr, client: usize, rate: u32, length: Duration) -> anyhow::Result<Vec<f64>> {
    const AT_ONCE: usize = 16;
    let sockets = (0..4).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>()?;
    for socket in &sockets {
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
    }
    let pause = Duration::from_secs(THREADS as u64) / rate;
    let mut due_of: Vec<Option<Instant>> = vec![None; 1 << 16];
    let (mut id, mut number, mut times, mut buffer) = (0_u16, client as u32 * 977, Vec::new(), [0; 1500]);
    let micros = |due: Instant| due.elapsed().as_secs_f64() * 1e6;
    let started = Instant::now();
    let mut due = started;
    while started.elapsed() < length {
        for _ in 0..AT_ONCE {
            if Instant::now() < due {
                break;
            }
            number = (number + 7919) % SERVICES;
            // A full queue is the server's, or the kernel's: the question counts as one without an answer.
            let _ = sockets[usize::from(id) % sockets.len()].send(&question(id, number));
            times.extend(due_of[usize::from(id)].replace(due).map(micros));
            (id, due) = (id.wrapping_add(1), due + pause);
        }
        for socket in &sockets {
            while socket.recv(&mut buffer).is_ok() {
                let id = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
                times.extend(due_of[id].take().map(micros));
            }
        }
    }
    times.extend(due_of.into_iter().flatten().map(micros));
    Ok(times)
}

/// A name server of others, ended when dropped.
struct Peer {
    name: &'static str,
    address: SocketAddr,
    process: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn start(name: &'static str, port: u16, command: &mut Command) -> anyhow::Result<Option<Peer>> {
    let Ok(process) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else { return Ok(None) };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let peer = Peer { name, address, process };
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    for _ in 0..100 {
        let _ = socket.send_to(&question(1, 1), address);
        if socket.recv(&mut [0; 512]).is_ok() {
            return Ok(Some(peer));
        }
        thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("{name} does not answer")
}

fn unbound(dir: &Path) -> anyhow::Result<Option<Peer>> {
    let port = free_port()?;
    let mut text = format!(
        "server:\n interface: 127.0.0.1@{port}\n num-threads: {THREADS}\n so-reuseport: yes\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n \
         pidfile: \"\"\n directory: \"{}\"\n use-syslog: no\n local-zone: \"cluster.local.\" static\n",
        dir.display()
    );
    for number in 0..SERVICES {
        writeln!(text, " local-data: \"s{number}.default.svc.cluster.local. 30 IN A {}\"", Ipv4Addr::from(0x0a60_0000 + number + 1))?;
    }
    let file = dir.join("unbound.conf");
    std::fs::write(&file, text)?;
    start("unbound", port, Command::new("unbound").arg("-d").arg("-c").arg(&file))
}

fn knot(dir: &Path) -> anyhow::Result<Option<Peer>> {
    let port = free_port()?;
    let mut zone = String::from("$ORIGIN cluster.local.\n@ 30 IN SOA ns.dns hostmaster 1 7200 1800 86400 30\n@ 30 IN NS ns.dns\n");
    for number in 0..SERVICES {
        writeln!(zone, "s{number}.default.svc 30 IN A {}", Ipv4Addr::from(0x0a60_0000 + number + 1))?;
    }
    std::fs::write(dir.join("cluster.local.zone"), zone)?;
    let text = format!(
        "server:\n  listen: 127.0.0.1@{port}\n  udp-workers: {THREADS}\n  rundir: {0}\ndatabase:\n  storage: {0}\n\
         zone:\n  - domain: cluster.local\n    storage: {0}\n    file: cluster.local.zone\n",
        dir.display()
    );
    let file = dir.join("knot.conf");
    std::fs::write(&file, text)?;
    start("knot", port, Command::new("knotd").arg("-c").arg(&file))
}
