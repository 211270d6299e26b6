//! Services on a real kernel: pods of the routed network in namespaces made here, real sockets through the Service's addresses. Needs
//! root; everything dies with its namespace.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cni::{PodNetwork, Routed};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nft::Socket;
use nft::wire::{ACK, CREATE, Encoder, REQUEST};
use proxy::{Caches, Config, Node, Owner, Proxier, plan};
use reconcile::Cache;
use serde_json::{Value, json};
use testkit::netns::{inside, namespace};

const VIP: &str = "10.96.0.5:80";
const NODE_IP: &str = "192.0.2.1";

/// `lo` up and a link with the node's address and a default route, as a machine has them; nobody is behind that.
fn node() -> OwnedFd {
    let netns = namespace().expect("unshare needs root");
    inside(&netns, || {
        let up = |index: u8| [0, 0, 0, 0, index, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
        let mut encoder = Encoder::new();
        encoder.message(19, REQUEST, 1, |body| body.raw(&up(1)));
        encoder.message(16, REQUEST | CREATE, 2, |body| {
            body.raw(&[0, 0, 0, 0, 90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            body.string(3, "uplink");
            body.nested(18, |info| info.string(1, "veth"));
        });
        encoder.message(19, REQUEST, 3, |body| body.raw(&up(90)));
        encoder.message(20, REQUEST | CREATE, 4, |body| {
            body.raw(&[2, 24, 0, 0, 90, 0, 0, 0]);
            body.attribute(2, &[192, 0, 2, 1]);
        });
        encoder.message(24, REQUEST | ACK | CREATE, 5, |body| {
            body.raw(&[2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0]);
            body.attribute(5, &[192, 0, 2, 254]);
            body.u32_ne(4, 90);
        });
        let mut socket = Socket::route().unwrap();
        socket.send(&encoder).unwrap();
        socket.receive(|message| message.sequence == 5 && message.errno() == Some(0)).unwrap();
    });
    netns
}

struct Cluster {
    node: OwnedFd,
    routed: Routed,
    proxier: Proxier,
    _state: tempfile::TempDir,
}

fn config() -> Config {
    Config::new("here", vec![([10, 244, 0, 0].into(), 16)])
}

impl Cluster {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let node = node();
        let mut network = cni::Config::new(([10, 244, 0, 0].into(), 24), state.path().to_owned());
        network.cluster_cidrs = vec![([10, 244, 0, 0].into(), 16), ([10, 96, 0, 0].into(), 16)];
        let (routed, proxier) = inside(&node, || (Routed::open(network).unwrap(), Proxier::open(config()).unwrap()));
        Self { node, routed, proxier, _state: state }
    }
    /// A pod that answers on port 8080, TCP and UDP, with its own address and the client's.
    fn pod(&self, name: &str) -> Pod {
        let netns = namespace().expect("unshare needs root");
        let address = self.routed.attach(name, netns.as_fd()).unwrap().addresses[0];
        let (listener, socket) =
            inside(&netns, || (TcpListener::bind((address, 8080)).unwrap(), UdpSocket::bind((address, 8080)).unwrap()));
        serve_address(listener, socket, address);
        Pod { netns, address }
    }
    fn serve(&mut self, spec: Value, endpoints: &[IpAddr]) {
        let plan = service_plan(spec, endpoints);
        let owner = Owner::Service("a".into(), "web".into());
        if self.proxier.needs_full_sync() {
            self.proxier.replace(vec![(owner, plan)]).unwrap();
        } else {
            self.proxier.update(vec![(owner, plan)]).unwrap();
        }
    }
}

/// Answers with its address and the client's; the threads end with the test's process.
fn serve_address(listener: TcpListener, socket: UdpSocket, address: IpAddr) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let client = stream.peer_addr().unwrap().ip();
            let _ = stream.write_all(format!("{address} {client}").as_bytes());
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{address} {}", client.ip()).as_bytes(), client);
        }
    });
}

struct Pod {
    netns: OwnedFd,
    address: IpAddr,
}

fn service_plan(spec: Value, endpoints: &[IpAddr]) -> plan::Plan {
    let ports = json!([{"name": "t", "port": 80, "nodePort": 30080}, {"name": "u", "port": 80, "protocol": "UDP"}]);
    let mut service = json!({"metadata": {"namespace": "a", "name": "web"}, "spec": {
        "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "externalIPs": ["198.51.100.9"], "ports": ports}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    if service["spec"]["type"] == "LoadBalancer" {
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.10"}]}});
    }
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|address| {
            let node = if address.to_string().starts_with("10.244.0.") { "here" } else { "there" };
            json!({"addresses": [address.to_string()], "nodeName": node})
        })
        .collect();
    let slice = json!({"addressType": "IPv4", "metadata": {}, "endpoints": endpoints, "ports": [
        {"name": "t", "port": 8080, "protocol": "TCP"}, {"name": "u", "port": 8080, "protocol": "UDP"}]});
    let service: Service = serde_json::from_value(service).unwrap();
    let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
    let node = Node { name: "here".into(), zone: None, pod_cidrs: vec![([10, 244, 0, 0].into(), 16)] };
    plan::plan(&service, [&slice], &node)
}

/// (who answered, whom it saw)
fn ask(netns: &OwnedFd, server: &str) -> std::io::Result<(IpAddr, IpAddr)> {
    let server: SocketAddr = server.parse().unwrap();
    inside(netns, || {
        let mut answer = String::new();
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(3))?;
        stream.read_to_string(&mut answer)?;
        let (server, client) = answer.split_once(' ').unwrap();
        Ok((server.parse().unwrap(), client.parse().unwrap()))
    })
}

fn ask_udp(socket: &UdpSocket, server: &str) -> std::io::Result<IpAddr> {
    let mut buffer = [0; 64];
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.send_to(b"?", server)?;
    let (length, _) = socket.recv_from(&mut buffer)?;
    Ok(std::str::from_utf8(&buffer[..length]).unwrap().split_once(' ').unwrap().0.parse().unwrap())
}

fn node_ip() -> IpAddr {
    NODE_IP.parse().unwrap()
}

#[test]
fn a_service_spreads_connections_over_its_endpoints_from_pods_and_from_the_node() {
    let mut cluster = Cluster::new();
    let backends: Vec<Pod> = (0..3).map(|index| cluster.pod(&format!("backend-{index}"))).collect();
    let client = cluster.pod("client");
    cluster.serve(json!({}), &backends.iter().map(|pod| pod.address).collect::<Vec<_>>());
    for (from, expected_source) in [(&client.netns, client.address), (&cluster.node, node_ip())] {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for _ in 0..150 {
            let (server, seen) = ask(from, VIP).unwrap();
            assert_eq!(seen, expected_source);
            *counts.entry(server).or_default() += 1;
        }
        assert_eq!(counts.len(), 3, "{counts:?}");
        assert!(counts.values().all(|count| *count > 20), "{counts:?}");
    }
    let sockets: Vec<UdpSocket> = inside(&client.netns, || (0..60).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect());
    let mut answered: Vec<IpAddr> = sockets.iter().map(|socket| ask_udp(socket, VIP).unwrap()).collect();
    answered.sort();
    answered.dedup();
    assert_eq!(answered.len(), 3, "UDP");
}

#[test]
fn every_endpoint_gets_its_share_however_many_there_are() {
    let mut cluster = Cluster::new();
    let client = cluster.pod("client");
    let pods: Vec<Pod> = (0..17).map(|number| cluster.pod(&format!("pod-{number}"))).collect();
    let addresses: Vec<IpAddr> = pods.iter().map(|pod| pod.address).collect();
    for count in [1, 2, 3, 8, 9, 16, 17, 9, 3] {
        cluster.serve(json!({}), &addresses[..count]);
        let answers: Vec<IpAddr> = (0..30 * count).map(|_| ask(&client.netns, VIP).unwrap().0).collect();
        for address in &addresses[..count] {
            let share = answers.iter().filter(|answer| *answer == address).count();
            assert!((5..=75).contains(&share), "{share} of {} to one of {count}", answers.len());
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut cluster = Cluster::new();
    let pod = cluster.pod("only");
    cluster.serve(json!({}), &[pod.address]);
    let (server, seen) = ask(&pod.netns, VIP).unwrap();
    assert_eq!(server, pod.address);
    assert_ne!(seen, pod.address, "its own address would be answered past the translation");
}

#[test]
fn node_ports_and_external_addresses_lead_to_the_endpoints() {
    let mut cluster = Cluster::new();
    let (backend, client) = (cluster.pod("backend"), cluster.pod("client"));
    cluster.serve(json!({"type": "NodePort"}), &[backend.address]);
    for address in ["192.0.2.1:30080", "198.51.100.9:80"] {
        for from in [&client.netns, &cluster.node] {
            let (server, seen) = ask(from, address).unwrap();
            assert_eq!((server, seen), (backend.address, node_ip()), "{address}");
        }
    }
}

#[test]
fn external_policy_local_keeps_the_source_of_outside_clients_and_uses_endpoints_here_only() {
    let mut cluster = Cluster::new();
    let (backend, client) = (cluster.pod("backend"), cluster.pod("client"));
    // Someone outside the cluster, on another link of the node.
    let mut outside_config = cni::Config::new(([203, 0, 113, 0].into(), 24), cluster._state.path().join("outside"));
    outside_config.link_prefix = "ex".into();
    outside_config.table = "outside".into();
    outside_config.cluster_cidrs = vec![([0, 0, 0, 0].into(), 0)];
    let outside_network = inside(&cluster.node, || Routed::open(outside_config).unwrap());
    let outside = namespace().expect("unshare needs root");
    let outside_address = outside_network.attach("outside", outside.as_fd()).unwrap().addresses[0];
    let nowhere: IpAddr = "10.244.9.9".parse().unwrap();
    let local = json!({"type": "NodePort", "externalTrafficPolicy": "Local"});
    cluster.serve(local.clone(), &[backend.address, nowhere]);
    for _ in 0..20 {
        let (server, seen) = ask(&outside, "192.0.2.1:30080").unwrap();
        assert_eq!((server, seen), (backend.address, outside_address));
    }
    cluster.serve(local, &[nowhere]);
    let dropped = inside(&outside, || TcpStream::connect_timeout(&"192.0.2.1:30080".parse().unwrap(), Duration::from_millis(300)));
    assert_eq!(dropped.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    cluster.serve(json!({"type": "NodePort"}), &[backend.address]);
    assert_eq!(ask(&client.netns, "192.0.2.1:30080").unwrap().0, backend.address);
}

#[test]
fn a_load_balancers_address_answers_only_the_ranges_it_is_for() {
    let mut cluster = Cluster::new();
    let (backend, client) = (cluster.pod("backend"), cluster.pod("client"));
    for (ranges, allowed) in
        [(json!(["192.0.2.0/24", "10.0.0.0/8", "10.244.0.0/16"]), true), (json!(["203.0.113.0/24"]), false), (json!([]), true)]
    {
        cluster.serve(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}), &[backend.address]);
        let balancer = SocketAddr::from(([198, 51, 100, 10], 80));
        let patience = Duration::from_millis(if allowed { 10_000 } else { 300 });
        let connected = inside(&client.netns, || TcpStream::connect_timeout(&balancer, patience).is_ok());
        assert_eq!(connected, allowed, "{ranges}");
        assert!(ask(&client.netns, VIP).is_ok(), "the cluster's own address is not restricted");
    }
}

#[test]
fn without_endpoints_a_connection_is_refused_at_once() {
    let mut cluster = Cluster::new();
    let client = cluster.pod("client");
    cluster.serve(json!({"type": "NodePort"}), &[]);
    for address in [VIP, "192.0.2.1:30080", "198.51.100.9:80"] {
        for (who, from) in [("pod", &client.netns), ("node", &cluster.node)] {
            let error = ask(from, address).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{who} to {address}");
        }
    }
}

#[test]
fn a_client_with_affinity_stays_with_its_endpoint_until_that_is_gone() {
    let mut cluster = Cluster::new();
    let backends: Vec<Pod> = (0..3).map(|index| cluster.pod(&format!("backend-{index}"))).collect();
    let client = cluster.pod("client");
    let mut addresses: Vec<IpAddr> = backends.iter().map(|pod| pod.address).collect();
    let affinity = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    cluster.serve(affinity.clone(), &addresses);
    let (first, _) = ask(&client.netns, VIP).unwrap();
    for _ in 0..30 {
        assert_eq!(ask(&client.netns, VIP).unwrap().0, first);
    }
    addresses.retain(|address| *address != first);
    cluster.serve(affinity, &addresses);
    let (second, _) = ask(&client.netns, VIP).unwrap();
    assert_ne!(second, first);
    assert_eq!(ask(&client.netns, VIP).unwrap().0, second);
}

#[test]
fn a_udp_client_that_keeps_its_port_follows_when_its_endpoint_is_removed() {
    let mut cluster = Cluster::new();
    let (first, second, client) = (cluster.pod("first"), cluster.pod("second"), cluster.pod("client"));
    cluster.serve(json!({}), &[first.address]);
    let socket = inside(&client.netns, || UdpSocket::bind("0.0.0.0:0").unwrap());
    assert_eq!(ask_udp(&socket, VIP).unwrap(), first.address);
    cluster.serve(json!({}), &[second.address]);
    assert_eq!(ask_udp(&socket, VIP).unwrap(), second.address);
}

#[test]
fn a_new_proxy_replaces_what_a_killed_one_left_and_keeps_the_pod_networks_rules() {
    let mut cluster = Cluster::new();
    let (backend, client) = (cluster.pod("backend"), cluster.pod("client"));
    cluster.serve(json!({}), &[backend.address]);
    let stream = inside(&client.netns, || TcpStream::connect(VIP).unwrap());
    cluster.proxier = inside(&cluster.node, || Proxier::open(config()).unwrap());
    assert_eq!(ask(&client.netns, VIP).unwrap().0, backend.address, "still served before the first sync");
    let moved = service_plan(json!({"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.6"]}), &[backend.address]);
    cluster.proxier.replace(vec![(Owner::Service("a".into(), "moved".into()), moved)]).unwrap();
    assert_eq!(ask(&client.netns, "10.96.0.6:80").unwrap().0, backend.address);
    assert!(inside(&client.netns, || TcpStream::connect_timeout(&VIP.parse().unwrap(), Duration::from_millis(300))).is_err());
    let mut answer = String::new();
    (&stream).read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with(&backend.address.to_string()), "an open connection survives");
    let chains = inside(&cluster.node, || nft::Table::inet("sternpost").chains(&mut Socket::netfilter().unwrap())).unwrap();
    assert!(chains.contains(&"pods-masquerade".to_owned()), "{chains:?}");
    // Others of the machine list all tables with their own nft, where there is one: 1.0.6 gives up on some expressions.
    if let Ok(listed) = inside(&cluster.node, || Command::new("nft").args(["list", "ruleset"]).output()) {
        let text = String::from_utf8_lossy(&listed.stdout);
        assert!(listed.status.success() && text.contains("vmap @svc-frontends4") && text.contains("map @svc-endpoints4 !="), "{listed:?}");
    }
}

#[test]
fn thousands_of_services_fit_and_one_endpoint_is_a_small_batch() {
    let mut cluster = Cluster::new();
    let plan_of = |service: u16, endpoints: u8| {
        let [high, low] = service.to_be_bytes();
        let ip = format!("10.96.{high}.{low}");
        let endpoints: Vec<IpAddr> = (1..=endpoints).map(|index| [10, 244, high + 1, index].into()).collect();
        let spec = json!({"clusterIP": ip, "clusterIPs": [ip], "externalIPs": [], "ports": [{"name": "t", "port": 80}]});
        (Owner::Service("a".into(), format!("s{service}")), service_plan(spec, &endpoints))
    };
    let plans: Vec<_> = (0..5000).map(|service| plan_of(service, 10)).collect();
    let started = Instant::now();
    cluster.proxier.replace(plans).unwrap();
    println!("5,000 services of 10 endpoints: {:?}", started.elapsed());
    assert_eq!(cluster.proxier.frontends().unwrap(), 5000);
    let updates: Vec<_> = (0..200).map(|service| plan_of(service, 9)).collect();
    let started = Instant::now();
    for update in updates {
        cluster.proxier.update(vec![update]).unwrap();
    }
    println!("one endpoint: {:?}", started.elapsed() / 200);
    let started = Instant::now();
    cluster.proxier.replace(Vec::new()).unwrap();
    println!("all removed: {:?}", started.elapsed());
    assert_eq!(cluster.proxier.frontends().unwrap(), 0);
}

/// In the node's namespace: the runtime's threads are born there.
fn runtime(node: &OwnedFd, work: impl Future<Output = ()> + Send) {
    inside(node, || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work));
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen");
}

#[test]
fn the_running_proxy_follows_its_caches() {
    let cluster = Cluster::new();
    let (backend, client) = (cluster.pod("backend"), cluster.pod("client"));
    let object = |kind: &str, revision: &str, spec: Value| {
        let mut object = json!({"metadata": {"namespace": "a", "name": kind, "resourceVersion": revision, "uid": kind, "labels": {"kubernetes.io/service-name": "web"}}});
        object.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        object
    };
    let slice = |revision: &str, endpoints: Value| -> EndpointSlice {
        let spec = json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080, "protocol": "TCP"}]});
        serde_json::from_value(object("web-1", revision, spec)).unwrap()
    };
    let caches = Caches { services: Cache::detached(), slices: Cache::detached(), pods: Some(Cache::detached()), nodes: None };
    let service = object("web", "1", json!({"spec": {"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ports": [{"port": 80}]}}));
    caches.services.apply(serde_json::from_value::<Service>(service).unwrap());
    caches.services.mark_synced("1");
    caches.slices.mark_synced("1");
    let pods = caches.pods.clone().unwrap();
    pods.mark_synced("1");
    let drain = stdx::drain();
    runtime(&cluster.node, async {
        let proxy = tokio::spawn(proxy::run(config(), caches.clone(), drain.clone()));
        let refused = || ask(&client.netns, VIP).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        eventually("a refusal without endpoints", refused).await;
        caches.slices.apply(slice("2", json!([{"addresses": [backend.address.to_string()]}])));
        eventually("an answer of the new endpoint", || ask(&client.netns, VIP).is_ok()).await;
        caches.slices.apply(slice("3", json!([])));
        eventually("a refusal after the endpoint went", refused).await;
        let pod = json!({"metadata": {"namespace": "a", "name": "p", "resourceVersion": "4", "uid": "p"},
            "spec": {"nodeName": "here", "containers": [{"name": "c", "ports": [{"containerPort": 8080, "hostPort": 8088}]}]},
            "status": {"phase": "Running", "podIP": backend.address.to_string()}});
        pods.apply(serde_json::from_value(pod).unwrap());
        eventually("an answer on the host port", || ask(&client.netns, "192.0.2.1:8088").is_ok()).await;
        drain.stop();
        proxy.await.unwrap().unwrap();
    });
    assert!(ask(&client.netns, "192.0.2.1:8088").is_ok(), "what is programmed stays when the proxy ends");
}

#[test]
fn an_endpoint_on_the_nodes_own_address_serves_pods_and_the_node() {
    // As cluster DNS and the API server are reached.
    let mut cluster = Cluster::new();
    let client = cluster.pod("client");
    let address = node_ip();
    let (listener, socket) =
        inside(&cluster.node, || (TcpListener::bind((address, 8080)).unwrap(), UdpSocket::bind((address, 8080)).unwrap()));
    serve_address(listener, socket, address);
    cluster.serve(json!({}), &[address]);
    assert_eq!(ask(&client.netns, VIP).unwrap(), (address, client.address));
    assert_eq!(ask(&cluster.node, VIP).unwrap(), (address, address));
    for netns in [&client.netns, &cluster.node] {
        let socket = inside(netns, || UdpSocket::bind("0.0.0.0:0").unwrap());
        assert_eq!(ask_udp(&socket, VIP).unwrap(), address);
    }
}
