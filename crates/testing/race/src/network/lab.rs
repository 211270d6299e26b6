//! Namespaces, and nodes with pods in them.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use cni::{PodNetwork, Routed};
use testkit::netns;
pub use testkit::netns::namespace;

pub const TABLE: &str = "race";

/// Runs `work` on a thread of that namespace.
pub fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    netns::inside(netns, work)
}

/// A node on the wire, with the pod network.
pub struct Node {
    pub netns: OwnedFd,
    routed: Routed,
    _state: tempfile::TempDir,
}

/// Nodes 1 to `count` on one wire: node `n` is 192.0.2.n and has the pods 10.244.n.0/24.
pub fn nodes(count: u8) -> anyhow::Result<(OwnedFd, Vec<Node>)> {
    let wire = namespace()?;
    let address = |number: u8| IpAddr::from([192, 0, 2, number]);
    let range = |number: u8| (IpAddr::from([10, 244, number, 0]), 24);
    let mut nodes = Vec::new();
    for number in 1..=count {
        let netns = namespace()?;
        inside(&wire, || {
            let mut segment = cni::segment::Segment::open("wire", &[(address(254), 24)])?;
            Ok(segment.plug(&format!("n{number}"), netns.as_fd(), &[(address(number), 24)])?)
        })?;
        let state = tempfile::tempdir()?;
        let mut config = cni::Config::new(range(number), state.path().to_owned());
        config.table = TABLE.to_owned();
        config.cluster_cidrs = vec![([10, 244, 0, 0].into(), 16)];
        let routed = inside(&netns, || {
            let others = (1..=count).filter(|other| *other != number);
            let peers: Vec<_> =
                others.map(|other| cni::Peer { address: address(other), pod_cidr: range(other), primary: range(other) }).collect();
            cni::Peers::open("rc", address(number), vec![range(number)], vec![([10, 244, 0, 0].into(), 16)])?.sync(&peers)?;
            Ok(Routed::open(config)?)
        })?;
        nodes.push(Node { netns, routed, _state: state });
    }
    Ok((wire, nodes))
}

impl Node {
    pub fn pod(&self, name: &str) -> anyhow::Result<(OwnedFd, IpAddr)> {
        let netns = namespace()?;
        let attachment = self.routed.attach(name, netns.as_fd())?;
        Ok((netns, *attachment.addresses.first().context("a pod without an address")?))
    }
}
