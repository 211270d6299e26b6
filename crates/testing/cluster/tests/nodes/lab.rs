//! Three nodes with two pods on each, and machines beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use cluster::cluster::names;
use cluster::run::{Ran, run};
use cluster::{Cluster, process};

/// Where a pod runs and how it is reached.
#[derive(Clone)]
pub struct Seat {
    pub pod: String,
    pub node: String,
    /// IPv4.
    pub address: String,
    /// Empty where pods have one family only.
    pub address_v6: String,
}

impl Seat {
    /// As they are written in a URL.
    pub fn hosts(&self) -> impl Iterator<Item = String> {
        let v6 = Some(&self.address_v6).filter(|address| !address.is_empty()).map(|address| format!("[{address}]"));
        std::iter::once(self.address.clone()).chain(v6)
    }
}

pub fn seats_of(cluster: &Cluster) -> Vec<Seat> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIPs[*].ip}{\"\\n\"}{end}";
    let listed = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", path]).ok();
    let seat = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        Seat {
            pod: words.next().unwrap(),
            node: words.next().unwrap(),
            address: words.next().unwrap(),
            address_v6: words.next().unwrap_or_default(),
        }
    };
    listed.lines().map(seat).collect()
}

/// Three nodes with two pods on each behind the Service `web`.
pub fn three_nodes() -> (Cluster, Vec<Seat>) {
    three_nodes_of(Cluster::fresh(), &[])
}

/// The same of a cluster that was prepared, with further flags.
pub fn three_nodes_of(cluster: Cluster, flags: &[&str]) -> (Cluster, Vec<Seat>) {
    configure(&cluster, "dualStack: true\n");
    let said = cluster.up_with(&[&["--nodes", "3"], flags].concat());
    assert!(said.contains("on this machine"), "{said}");
    let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"]).ok();
    assert_eq!(nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count(), 3, "{nodes}");
    let manifest = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers: [{name: web, image: sternpost.io/toolbox, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;
    cluster.kubectl_with(&["apply", "-f", "-"], manifest).ok();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let seats = seats_of(&cluster);
    let mut by_node: BTreeMap<&str, usize> = BTreeMap::new();
    seats.iter().for_each(|seat| *by_node.entry(&seat.node).or_default() += 1);
    assert_eq!(by_node.values().copied().collect::<Vec<_>>(), [2, 2, 2], "{by_node:?}");
    (cluster, seats)
}

/// Further settings, before the first start.
pub fn configure(cluster: &Cluster, lines: &str) {
    let mut file = fs::File::options().append(true).open(cluster.dir().join("config.yaml")).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
}

/// The further nodes' names.
pub fn further(cluster: &Cluster) -> Vec<String> {
    let listed = cluster.sternpost(&["node", "list"]).ok();
    listed.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

/// What `from` gets of `url`; the error's text where it gets nothing.
pub fn fetch(cluster: &Cluster, from: &Seat, url: &str) -> String {
    cluster.kubectl(&["exec", &from.pod, "--", "/toolbox", "fetch", url]).stdout.trim().to_owned()
}

/// A second machine: a network namespace with a link to this one.
pub struct Machine(&'static str);

impl Machine {
    pub fn new(name: &'static str, here: &str, there: &str) -> Self {
        let machine = Self(name);
        let link = format!("{}-m", names::LINK_PREFIX);
        for line in [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name eth0 netns {name}"),
            format!("addr add {here}/30 dev {link}"),
            format!("link set {link} up"),
            format!("-n {name} addr add {there}/30 dev eth0"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {here}"),
            format!("-6 addr add {} dev {link} nodad", v6(here)),
            format!("-6 -n {name} addr add {} dev eth0 nodad", v6(there)),
            format!("-6 -n {name} route add default via {}", v6(here).trim_end_matches("/64")),
        ] {
            run(Command::new("ip").args(line.split(' ')), "").ok();
        }
        machine
    }

    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(self.0)
    }

    /// Runs a program of ours on it. Not by `ip netns exec`, which hides the control groups.
    pub fn run(&self, cluster: &Cluster, arguments: &[&str]) -> Ran {
        let ours = cluster.command(arguments);
        let mut there = Command::new("nsenter");
        there.arg(format!("--net=/run/netns/{}", self.0)).arg(ours.get_program()).args(arguments);
        run(&mut there, "")
    }
}

/// The IPv6 companion of an address of a machine's link.
pub fn v6(address: &str) -> String {
    format!("fd5e:{}/64", address.replacen('.', ":", 2).replacen('.', "::", 1))
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", self.0]).output();
    }
}

/// What is done in another network namespace, on a thread that ends with it.
pub fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let netns = File::open(netns).unwrap_or_else(|error| panic!("{}: {error}", netns.display()));
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            rustix::thread::move_into_link_name_space(netns.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
            work()
        });
        there.join().unwrap()
    })
}

/// The network namespace of the pod with this address: that of one of its processes.
pub fn pod_netns(address: &str) -> PathBuf {
    let contained =
        |process: &process::Process| process.cgroups().iter().any(|(_, path)| path.starts_with(&format!("/{}", names::CGROUP_ROOT)));
    let mut seen = BTreeSet::new();
    for process in process::all().into_iter().filter(contained) {
        let path = PathBuf::from(format!("/proc/{}/ns/net", process.id));
        if process.namespace("net").is_some_and(|name| seen.insert(name))
            && inside(&path, || {
                nix::ifaddrs::getifaddrs()
                    .unwrap()
                    .any(|link| link.address.is_some_and(|found| found.to_string().starts_with(&format!("{address}:"))))
            })
        {
            return path;
        }
    }
    panic!("no process in a pod with the address {address}");
}
