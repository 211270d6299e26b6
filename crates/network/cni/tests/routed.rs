//! The routed network on a real kernel. Needs root. Every namespace, link and rule lives in a namespace made here and dies with it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use cni::{Attachment, Config, PodNetwork, Routed};
use nft::Socket;
use nft::wire::{ACK, CREATE, Encoder, REQUEST};
use testkit::netns::{inside, namespace};

/// A node: its namespace has `lo` up with 192.0.2.1, as a machine has its own address.
fn node() -> OwnedFd {
    let netns = namespace().expect("unshare needs root");
    inside(&netns, || {
        let mut encoder = Encoder::new();
        encoder.message(19, REQUEST, 1, |body| body.raw(&[0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]));
        encoder.message(20, REQUEST | ACK | CREATE, 2, |body| {
            body.raw(&[2, 32, 0, 0, 1, 0, 0, 0]);
            body.attribute(2, &[192, 0, 2, 1]);
        });
        let mut socket = Socket::route().unwrap();
        socket.send(&encoder).unwrap();
        socket.receive(|message| message.sequence == 2).unwrap();
    });
    netns
}

struct Network {
    node: OwnedFd,
    routed: Routed,
    state: tempfile::TempDir,
}

fn config(state: &tempfile::TempDir) -> Config {
    let mut config = Config::new(([10, 244, 0, 0].into(), 22), state.path().join("pods"));
    config.cluster_cidrs = vec![([10, 244, 0, 0].into(), 16), ([10, 96, 0, 0].into(), 16)];
    config
}

fn network() -> Network {
    let state = tempfile::tempdir().unwrap();
    let node = node();
    let config = config(&state);
    let routed = inside(&node, || Routed::open(config)).unwrap();
    Network { node, routed, state }
}

impl Network {
    fn pod(&self, id: &str) -> (OwnedFd, IpAddr) {
        let netns = namespace().expect("unshare needs root");
        let attachment = self.routed.attach(id, netns.as_fd()).unwrap();
        (netns, attachment.addresses[0])
    }
}

fn link_names(netns: &OwnedFd) -> Vec<String> {
    inside(netns, || {
        let mut names = Vec::new();
        Socket::route()
            .unwrap()
            .dump(18, |body| body.raw(&[0; 16]), |message| names.extend(message.attributes(16).string(3).map(str::to_owned)))
            .unwrap();
        names.sort();
        names
    })
}

/// Answers every connection with the client's address as seen there.
fn serve(netns: &OwnedFd, address: IpAddr, connections: usize) -> (SocketAddr, thread::JoinHandle<()>) {
    let listener = inside(netns, || TcpListener::bind((address, 0)).unwrap());
    let served = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        for _ in 0..connections {
            let (mut stream, client) = listener.accept().unwrap();
            stream.write_all(client.ip().to_string().as_bytes()).unwrap();
        }
    });
    (served, server)
}

fn ask(netns: &OwnedFd, server: SocketAddr) -> String {
    inside(netns, || {
        let mut answer = String::new();
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5)).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

#[test]
fn pods_and_node_reach_each_other_with_their_own_addresses() {
    let network = network();
    let (first, first_address) = network.pod("first");
    let (second, second_address) = network.pod("second");
    let (server, task) = serve(&first, first_address, 3);
    assert_eq!(ask(&second, server), second_address.to_string());
    assert_eq!(ask(&network.node, server), "192.0.2.1");
    assert_eq!(ask(&first, server), first_address.to_string(), "a pod reaches itself: lo is up");
    task.join().unwrap();
    let (server, task) = serve(&network.node, "192.0.2.1".parse().unwrap(), 1);
    assert_eq!(ask(&second, server), second_address.to_string());
    task.join().unwrap();
}

#[test]
fn traffic_that_leaves_the_cluster_carries_the_nodes_address() {
    let network = network();
    let (pod, _) = network.pod("pod");
    let mut outside_config = Config::new(([203, 0, 113, 0].into(), 24), network.state.path().join("outside"));
    outside_config.link_prefix = "ex".into();
    outside_config.table = "outside".into();
    let outside_network = inside(&network.node, || Routed::open(outside_config)).unwrap();
    let outside = namespace().expect("unshare needs root");
    let address = outside_network.attach("outside", outside.as_fd()).unwrap().addresses[0];
    let (server, task) = serve(&outside, address, 1);
    assert_eq!(ask(&pod, server), "192.0.2.1");
    task.join().unwrap();
}

#[test]
fn a_forged_source_address_is_dropped() {
    let network = network();
    let (liar, liar_address) = network.pod("liar");
    let (victim, victim_address) = network.pod("victim");
    let forged: Ipv4Addr = "10.244.0.99".parse().unwrap();
    inside(&liar, || {
        let mut encoder = Encoder::new();
        encoder.message(20, REQUEST | ACK | CREATE, 1, |body| {
            body.raw(&[2, 32, 0, 0, 1, 0, 0, 0]);
            body.attribute(2, &forged.octets());
        });
        let mut socket = Socket::route().unwrap();
        socket.send(&encoder).unwrap();
        socket.receive(|message| message.errno() == Some(0)).unwrap();
    });
    let receiver = inside(&victim, || UdpSocket::bind((victim_address, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let target = receiver.local_addr().unwrap();
    for source in [IpAddr::V4(forged), liar_address] {
        inside(&liar, || UdpSocket::bind((source, 0)).unwrap().send_to(b"x", target).unwrap());
    }
    let (_, from) = receiver.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(from.ip(), liar_address, "the forged one came first and must not arrive");
}

#[test]
fn attach_is_idempotent_and_detach_leaves_nothing() {
    let network = network();
    let netns = namespace().expect("unshare needs root");
    let first = network.routed.attach("a", netns.as_fd()).unwrap();
    assert_eq!(network.routed.attach("a", netns.as_fd()).unwrap(), first);
    assert_eq!(link_names(&network.node), ["lo", &first.host_link]);
    network.routed.detach("a").unwrap();
    network.routed.detach("a").unwrap();
    assert_eq!(link_names(&network.node), ["lo"]);
    assert_eq!(link_names(&netns), ["lo"]);
    let second = network.routed.attach("b", netns.as_fd()).unwrap();
    assert_ne!(second.addresses, first.addresses, "a freed address rests");
}

#[test]
fn after_a_crash_the_living_stay_connected_and_the_dead_are_removed() {
    let mut network = network();
    let (pods, attachments): (Vec<OwnedFd>, Vec<Attachment>) = (0..6)
        .map(|index| {
            let netns = namespace().expect("unshare needs root");
            let attachment = network.routed.attach(&format!("pod-{index}"), netns.as_fd()).unwrap();
            (netns, attachment)
        })
        .unzip();
    // One file was lost: its link belongs to nobody.
    std::fs::remove_file(network.state.path().join("pods/pod-5.json")).unwrap();
    let config = config(&network.state);
    network.routed = inside(&network.node, || Routed::open(config)).unwrap();
    network.routed.retain(&["pod-0".into(), "pod-1".into()]).unwrap();
    let mut expected = vec!["lo".to_owned(), attachments[0].host_link.clone(), attachments[1].host_link.clone()];
    expected.sort();
    assert_eq!(link_names(&network.node), expected);
    assert_eq!(network.routed.attach("pod-0", pods[0].as_fd()).unwrap(), attachments[0]);
    let (server, task) = serve(&pods[0], attachments[0].addresses[0], 1);
    assert_eq!(ask(&pods[1], server), attachments[1].addresses[0].to_string());
    task.join().unwrap();
    let (_, next) = network.pod("next");
    assert!(attachments.iter().all(|attachment| attachment.addresses[0] != next), "the turn continues after a restart");
}

#[test]
fn hundreds_of_pods_attach_and_detach_in_parallel() {
    const PODS: usize = 300;
    let network = network();
    let namespaces: Vec<OwnedFd> = (0..PODS).map(|_| namespace().expect("unshare needs root")).collect();
    let started = Instant::now();
    let each = |work: &(dyn Fn(usize) + Sync)| {
        thread::scope(|scope| {
            for worker in 0..8 {
                scope.spawn(move || (worker..PODS).step_by(8).for_each(work));
            }
        });
    };
    each(&|index| {
        network.routed.attach(&format!("pod-{index}"), namespaces[index].as_fd()).unwrap();
    });
    println!("{PODS} pods attached in {:?}", started.elapsed());
    let mut addresses: Vec<IpAddr> = network.routed.attachments().iter().map(|attachment| attachment.addresses[0]).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), PODS);
    assert_eq!(link_names(&network.node).len(), PODS + 1);
    let started = Instant::now();
    each(&|index| network.routed.detach(&format!("pod-{index}")).unwrap());
    println!("{PODS} pods detached in {:?}", started.elapsed());
    assert_eq!(link_names(&network.node), ["lo"]);
}

#[test]
fn dual_stack_pods_reach_each_other_over_ipv6() {
    let state = tempfile::tempdir().unwrap();
    let node = node();
    let mut config = config(&state);
    config.pod_cidr_secondary = Some(("fd00:10:244::".parse().unwrap(), 64));
    let routed = inside(&node, || Routed::open(config)).unwrap();
    let (first, second) = (namespace().expect("unshare needs root"), namespace().expect("unshare needs root"));
    let first_address = routed.attach("first", first.as_fd()).unwrap().addresses[1];
    let second_address = routed.attach("second", second.as_fd()).unwrap().addresses[1];
    let (server, task) = serve(&first, first_address, 1);
    assert_eq!(ask(&second, server), second_address.to_string());
    task.join().unwrap();
}

#[test]
fn a_limited_pod_receives_and_sends_no_faster_than_it_may() {
    let network = network();
    let (limited, address) = network.pod("limited");
    let (other, other_address) = network.pod("other");
    // 8 Mbit/s each way: 400 KB take at least a quarter of a second, whatever passes at once.
    let bandwidth = cni::Bandwidth { ingress: Some(1_000_000), egress: Some(1_000_000) };
    for _ in 0..2 {
        network.routed.limit("limited", limited.as_fd(), bandwidth).unwrap();
    }
    for (from, to, to_address) in [(&other, &limited, address), (&limited, &other, other_address)] {
        let listener = inside(to, || TcpListener::bind((to_address, 0)).unwrap());
        let server = listener.local_addr().unwrap();
        let receiver = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            bytes.len()
        });
        let started = std::time::Instant::now();
        inside(from, || TcpStream::connect(server).unwrap().write_all(&vec![7; 400_000]).unwrap());
        assert_eq!(receiver.join().unwrap(), 400_000);
        // Never less than the limit allows: a floor of the kernel's own clock, not a measurement.
        assert!(started.elapsed() > Duration::from_millis(250), "{:?}", started.elapsed());
    }
}

#[test]
fn a_tunnel_knows_who_is_behind_it_and_its_checksums_can_be_left_to_the_processor() {
    let netns = node();
    inside(&netns, || {
        let cluster = vec![([10, 244, 0, 0].into(), 16)];
        let range = |number: u8| (IpAddr::from([10, 244, number, 0]), 24);
        let mut peers = cni::Peers::open("t", [192, 0, 2, 1].into(), vec![range(1)], cluster).unwrap();
        let far = cni::Peer { address: [198, 51, 100, 7].into(), pod_cidr: range(2), primary: range(2) };
        peers.sync(&[far]).unwrap();
        let (link, behind) = peers.tunnelled();
        assert_eq!(behind.collect::<Vec<_>>(), [([198, 51, 100, 7].into(), [10, 244, 2, 0].into())]);
        assert!(cni::offload::leaves_checksums(link).unwrap(), "as the kernel makes it");
        for to_device in [false, true] {
            cni::offload::leave_checksums(link, to_device).unwrap();
            assert_eq!(cni::offload::leaves_checksums(link).unwrap(), to_device);
        }
        assert!(cni::offload::leaves_checksums("no-such-link").is_err());
        assert!(cni::offload::leave_checksums("a-name-that-is-too-long", true).is_err());
    });
}
