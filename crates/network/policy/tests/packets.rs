//! Policies on a real kernel: pods of the routed network in namespaces made here, real packets between them. Needs root; everything dies
//! with its namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use cni::segment::Segment;
use cni::{PodNetwork, Routed};
use nft::{Socket, Table};
use policy::model::{Pod, World};
use policy::{Enforcer, plan, read};
use serde_json::{Value, json};
use testkit::netns::{inside, namespace};

const REFUSED_AFTER: Duration = Duration::from_millis(200);

/// A node with pods, and a machine outside on the same wire that has a route to the pods.
struct Lab {
    node: OwnedFd,
    outside: OwnedFd,
    pods: Vec<(Pod, OwnedFd)>,
    enforcer: Enforcer,
    _wire: OwnedFd,
    _routed: Routed,
    _state: tempfile::TempDir,
}

const NODE: &str = "192.0.2.1";
const OUTSIDE: &str = "203.0.113.9";

impl Lab {
    /// Pods `a`, `b` and `c` in namespace `x`.
    fn new() -> Self {
        let (wire, node, outside) =
            (namespace().expect("unshare needs root"), namespace().expect("unshare needs root"), namespace().expect("unshare needs root"));
        inside(&wire, || {
            // The wire routes between the two networks on it.
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            let mut near = Segment::open("near", &[("192.0.2.254".parse().unwrap(), 24)]).unwrap();
            near.plug("n1", node.as_fd(), &[(NODE.parse().unwrap(), 24)]).unwrap();
            let mut far = Segment::open("far", &[("203.0.113.254".parse().unwrap(), 24)]).unwrap();
            far.plug("o1", outside.as_fd(), &[(OUTSIDE.parse().unwrap(), 24)]).unwrap();
            // Pods are reached through their node.
            let mut routes =
                cni::Peers::open("xx", "192.0.2.254".parse().unwrap(), vec![cidr("10.9.0.0/24")], vec![cidr("10.0.0.0/8")]).unwrap();
            routes
                .sync(&[cni::Peer { address: NODE.parse().unwrap(), pod_cidr: cidr("10.244.0.0/24"), primary: cidr("10.244.0.0/24") }])
                .unwrap();
        });
        let state = tempfile::tempdir().unwrap();
        let mut config = cni::Config::new(cidr("10.244.0.0/24"), state.path().to_owned());
        // The outside sees pods' own addresses.
        config.cluster_cidrs = vec![cidr("0.0.0.0/0")];
        let routed = inside(&node, || Routed::open(config).unwrap());
        let pods = ["a", "b", "c"].map(|name| pod(&routed, name)).into();
        let enforcer = inside(&node, || Enforcer::open("sternpost").unwrap());
        inside(&outside, || serve(OUTSIDE.parse().unwrap()));
        Self { node, outside, pods, enforcer, _wire: wire, _routed: routed, _state: state }
    }

    fn apply(&mut self, policies: &[Value]) {
        let world = World {
            node: "here".into(),
            namespaces: [("x".to_owned(), [("ns".to_owned(), "x".to_owned())].into())].into(),
            pods: self.pods.iter().map(|(pod, _)| pod.clone()).collect(),
            nodes: Vec::new(),
            policies: policies.iter().map(|policy| read::network_policy(policy).unwrap()).collect(),
        };
        self.enforcer.apply(plan::plan(&world)).unwrap();
    }

    fn address(&self, pod: usize) -> IpAddr {
        self.pods[pod].0.addresses[0]
    }
    fn tcp(&self, from: &OwnedFd, to: IpAddr, port: u16) -> bool {
        inside(from, || TcpStream::connect_timeout(&SocketAddr::new(to, port), REFUSED_AFTER).is_ok())
    }
    fn udp(&self, from: &OwnedFd, to: IpAddr, port: u16) -> bool {
        inside(from, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(REFUSED_AFTER)).unwrap();
            socket.send_to(b"?", (to, port)).is_ok() && socket.recv(&mut [0; 8]).is_ok()
        })
    }
    /// Who reaches TCP port 80 of pod 0: pod 0, 1 and 2, the node, the outside.
    fn reaching(&self) -> String {
        let netns = |pod: usize| &self.pods[pod].1;
        let clients = [("0", netns(0)), ("1", netns(1)), ("2", netns(2)), ("n", &self.node), ("o", &self.outside)];
        clients.iter().filter(|(_, from)| self.tcp(from, self.address(0), 80)).map(|(name, _)| *name).collect()
    }
}

fn cidr(text: &str) -> cni::Cidr {
    cni::parse_cidr(text).unwrap()
}

fn pod(routed: &Routed, name: &str) -> (Pod, OwnedFd) {
    let netns = namespace().expect("unshare needs root");
    let address = routed.attach(name, netns.as_fd()).unwrap().addresses[0];
    inside(&netns, || serve(address));
    let pod = Pod {
        namespace: "x".into(),
        labels: [("pod".to_owned(), name.to_owned())].into(),
        addresses: vec![address],
        node: "here".into(),
        ports: vec![("web".into(), 6, 80)],
    };
    (pod, netns)
}

/// TCP 80 and 81 that echo, UDP 53 that answers; the threads end with the test's process.
fn serve(address: IpAddr) {
    for port in [80, 81] {
        let listener = TcpListener::bind((address, port)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
                    let _ = std::io::copy(&mut reader, &mut writer);
                });
            }
        });
    }
    let socket = UdpSocket::bind((address, 53)).unwrap();
    thread::spawn(move || {
        while let Ok((_, client)) = socket.recv_from(&mut [0; 8]) {
            let _ = socket.send_to(b"!", client);
        }
    });
}

fn policy(name: &str, pods: Value, rest: Value) -> Value {
    let mut spec = rest;
    spec["podSelector"] = pods;
    json!({"metadata": {"namespace": "x", "name": name}, "spec": spec})
}

fn only(pod: &str) -> Value {
    json!({"matchLabels": {"pod": pod}})
}

#[test]
fn a_selected_pod_is_open_to_whom_its_policies_name_and_to_its_node() {
    let mut lab = Lab::new();
    assert_eq!(lab.reaching(), "012no");
    let cases = [
        (json!({"policyTypes": ["Ingress"]}), "0n"),
        (json!({"ingress": [{"from": [{"podSelector": only("b")}]}]}), "01n"),
        (json!({"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "x"}}}]}]}), "012n"),
        (json!({"ingress": [{"from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}]}), "0no"),
        (json!({"ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["203.0.113.0/28"]}}]}]}), "012n"),
        (json!({"ingress": [{"from": [{"podSelector": only("b")}], "ports": [{"port": 81}]}]}), "0n"),
        (json!({"ingress": [{"from": [{"podSelector": only("b")}], "ports": [{"port": 70, "endPort": 81}]}]}), "01n"),
        (json!({"ingress": [{"ports": [{"port": "web"}]}]}), "012no"),
        (json!({"ingress": [{"ports": [{"port": "web", "protocol": "UDP"}]}]}), "0n"),
        (json!({"ingress": [{}]}), "012no"),
        (json!({"policyTypes": ["Egress"]}), "012no"),
    ];
    for (spec, expected) in cases {
        lab.apply(&[policy("p", only("a"), spec.clone())]);
        assert_eq!(lab.reaching(), expected, "{spec}");
    }
    // The union of what several accept.
    let from = |pod: &str| json!({"ingress": [{"from": [{"podSelector": only(pod)}]}]});
    lab.apply(&[policy("p", only("a"), from("b")), policy("q", json!({}), from("c"))]);
    assert_eq!(lab.reaching(), "012n");
    lab.apply(&[]);
    assert_eq!(lab.reaching(), "012no");
    let chains = inside(&lab.node, || Table::inet("sternpost").chains(&mut Socket::netfilter().unwrap()).unwrap());
    assert!(chains.iter().all(|chain| !chain.starts_with("pol-")), "{chains:?}");
}

#[test]
fn egress_holds_for_the_destination_and_each_protocol_on_its_own() {
    let mut lab = Lab::new();
    let outside: IpAddr = OUTSIDE.parse().unwrap();
    let to_b = json!({"policyTypes": ["Egress"], "egress": [
        {"to": [{"podSelector": only("b")}], "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]},
        {"to": [{"ipBlock": {"cidr": "203.0.113.9/32"}}], "ports": [{"protocol": "UDP"}]}]});
    lab.apply(&[policy("p", only("a"), to_b)]);
    let from = &lab.pods[0].1;
    let got = [
        lab.tcp(from, lab.address(1), 80),
        lab.tcp(from, lab.address(1), 81),
        lab.udp(from, lab.address(1), 53),
        lab.tcp(from, lab.address(2), 80),
        lab.udp(from, lab.address(2), 53),
        lab.udp(from, outside, 53),
        lab.tcp(from, outside, 80),
        // Its own node is always open.
        lab.tcp(&lab.pods[1].1, lab.address(0), 80),
    ];
    assert_eq!(got, [true, false, true, false, false, true, false, true]);
}

#[test]
fn an_open_connection_follows_a_new_policy_and_goes_on_when_that_is_gone() {
    let mut lab = Lab::new();
    let target = SocketAddr::new(lab.address(0), 80);
    let mut stream = inside(&lab.pods[1].1, || TcpStream::connect(target).unwrap());
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut said = [0; 1];
    stream.write_all(b"1").unwrap();
    stream.read_exact(&mut said).unwrap();
    lab.apply(&[policy("p", only("a"), json!({"policyTypes": ["Ingress"]}))]);
    stream.write_all(b"2").unwrap();
    assert!(matches!(stream.read_exact(&mut said).unwrap_err().kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    // An allowed connection's answers are never asked about, although the other end may not open one itself.
    lab.apply(&[policy("p", only("a"), json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{}]}))]);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"2", "sent again by the kernel");
    assert!(!lab.tcp(&lab.pods[0].1, lab.address(1), 80));
}

#[test]
fn a_new_run_takes_over_what_a_killed_one_left_without_a_gap() {
    let mut lab = Lab::new();
    let closed = policy("p", only("a"), json!({"policyTypes": ["Ingress"]}));
    lab.apply(std::slice::from_ref(&closed));
    lab.enforcer = inside(&lab.node, || Enforcer::open("sternpost").unwrap());
    assert_eq!(lab.reaching(), "0n", "nothing is opened by starting");
    lab.apply(&[policy("p", only("a"), json!({"ingress": [{"from": [{"podSelector": only("c")}]}]}))]);
    assert_eq!(lab.reaching(), "02n");
    // A pod that comes with the chosen labels is let in by an element of a set.
    lab.pods[1].0.labels = [("pod".to_owned(), "c".to_owned())].into();
    lab.apply(&[policy("p", only("a"), json!({"ingress": [{"from": [{"podSelector": only("c")}]}]}))]);
    assert_eq!(lab.reaching(), "012n");
}
