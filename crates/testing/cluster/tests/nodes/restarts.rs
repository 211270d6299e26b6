//! Daemons that end and start again while everybody talks to everybody.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cluster::cluster::names;
use cluster::process::Process;
use cluster::run::{ensure, run};
use cluster::{Cluster, http, wait_for};

use crate::lab::{Seat, further, pod_netns, three_nodes};

/// One kind of request from one place, again and again.
#[derive(Default)]
struct Count {
    asked: AtomicU64,
    failed: AtomicU64,
    /// Of those that did not fail, in milliseconds.
    longest: AtomicU64,
}

/// Clients that go on until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    rows: Vec<(String, Arc<Count>, JoinHandle<Vec<String>>)>,
}

impl Load {
    pub fn new() -> Self {
        Self { stop: Arc::default(), rows: Vec::new() }
    }

    /// A client in that network namespace.
    pub fn add(&mut self, what: String, netns: &Path, mut request: impl FnMut() -> Result<(), String> + Send + 'static) {
        let netns = File::open(netns).unwrap();
        let (count, stop) = (Arc::<Count>::default(), self.stop.clone());
        let counted = count.clone();
        let client = std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(netns.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
            let mut errors = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                let result = request();
                counted.asked.fetch_add(1, Ordering::Relaxed);
                match result {
                    Ok(()) => drop(counted.longest.fetch_max(started.elapsed().as_millis() as u64, Ordering::Relaxed)),
                    Err(error) => {
                        counted.failed.fetch_add(1, Ordering::Relaxed);
                        errors.push(format!("after {:?}: {error}", started.elapsed()));
                    }
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            errors
        });
        self.rows.push((what, count, client));
    }

    /// Prints the counts; what failed.
    pub fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for (what, count, client) in self.rows {
            let errors = client.join().unwrap();
            let [asked, failed, longest] = [&count.asked, &count.failed, &count.longest].map(|number| number.load(Ordering::Relaxed));
            println!("{what:<52} {asked:>6} asked {failed:>4} failed, the longest {longest} ms");
            assert!(asked > 10, "{what}: too few to say anything");
            failures.extend(errors.into_iter().map(|error| format!("{what}: {error}")));
        }
        failures
    }
}

/// A question for a name as glibc asks it: twice, five seconds each, and a refusal is an answer.
fn look_up(server: &str, name: &str) -> Result<(), String> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let ask = || -> io::Result<bool> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(&question)?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer)?;
        // No error, and an answer.
        Ok(length > 12 && buffer[3] & 15 == 0 && buffer[7] > 0)
    };
    let mut last = String::new();
    for _ in 0..2 {
        match ask() {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(format!("{name}: no address")),
            Err(error) => last = format!("{name}: {error}"),
        }
    }
    Err(last)
}

/// From a pod on every node: every other pod, the Service and its name. From outside: every node's port.
fn everybody(cluster: &Cluster, seats: &[Seat]) -> Load {
    let mut load = Load::new();
    let get = |host: String| move || http::get(&host, "/hostname").map(drop);
    let services = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}"]).ok();
    let dns = cluster.kubectl(&["get", "service", "kube-dns", "-n", "kube-system", "-o", "jsonpath={.spec.clusterIP}"]).ok();
    let mut nodes: Vec<&str> = Vec::new();
    for from in seats {
        if nodes.contains(&from.node.as_str()) {
            continue;
        }
        nodes.push(&from.node);
        let netns = pod_netns(&from.address);
        for to in seats.iter().filter(|to| to.pod != from.pod) {
            for host in to.hosts() {
                load.add(
                    format!("{} → pod on {} by {}", from.node, to.node, if host.starts_with('[') { 6 } else { 4 }),
                    &netns,
                    get(format!("{host}:8080")),
                );
            }
        }
        for ip in services.split(' ') {
            let host = if ip.contains(':') { format!("[{ip}]:80") } else { format!("{ip}:80") };
            load.add(format!("{} → Service {ip}", from.node), &netns, get(host));
        }
        let dns = dns.clone();
        load.add(format!("{} → name of the Service", from.node), &netns, move || look_up(&dns, "web.default.svc.cluster.local"));
    }
    let port = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"]).ok();
    for node in nodes {
        let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        let addresses = cluster.kubectl(&["get", "node", node, "-o", path]).ok();
        let address = addresses.split(' ').next().unwrap();
        load.add(format!("host → node port of {node}"), Path::new("/proc/self/ns/net"), get(format!("{address}:{port}")));
    }
    load
}

fn agent(cluster: &Cluster, node: &str) -> Process {
    let listed = cluster.sternpost(&["node", "list"]).ok();
    let line = listed.lines().find(|line| line.starts_with(node)).unwrap();
    Process::of(line.rsplit(' ').next().unwrap().parse().unwrap()).unwrap()
}

fn end(process: &Process, gently: bool) {
    if !gently {
        return process.kill();
    }
    run(Command::new("kill").arg(process.id.to_string()), "").ok();
    wait_for("the daemon ends", 20, || ensure(!process.is_alive(), "not yet"));
}

#[test]
fn no_request_to_a_healthy_endpoint_fails_while_each_daemon_is_ended_or_killed_and_started_again() {
    let (cluster, seats) = three_nodes();
    let load = everybody(&cluster, &seats);
    for gently in [true, false] {
        for node in further(&cluster) {
            end(&agent(&cluster, &node), gently);
            cluster.sternpost(&["node", "start", &node]).ok();
            wait_for("the agent is back", 30, || {
                ensure(cluster.kubectl(&["exec", &on(&seats, &node).pod, "--", "/toolbox", "true"]).succeeded(), "not yet")
            });
        }
        end(&cluster.daemon(), gently);
        cluster.up();
        wait_for("the API is back", 30, || ensure(cluster.kubectl(&["get", "nodes"]).succeeded(), "not yet"));
    }
    let failures = load.end();
    assert!(failures.is_empty(), "{} requests failed: {:#?}", failures.len(), &failures[..failures.len().min(20)]);
    assert_eq!(crate::lab::seats_of(&cluster).len(), 6, "{}", names::POD_CIDR);
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}

fn on<'a>(seats: &'a [Seat], node: &str) -> &'a Seat {
    seats.iter().find(|seat| seat.node == node).unwrap()
}
