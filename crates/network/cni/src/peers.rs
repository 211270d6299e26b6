//! The way to the pods of other nodes.
//!
//! A node on the same link is the gateway of its pods' range. Every other one is reached through one VXLAN link, whose tables are told and
//! never learn: the tunnel's end on a node has the range's own address, and a MAC address made of it, so that a Node object says
//! everything that its peers must know. Both ends decide by the same rule, so a pair never has two different ways.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use nft::Socket;
use rustix::io::Errno;

use crate::links::{self, Mac, Refused, Requests, Vxlan};
use crate::{Cidr, Error};

/// The one that Linux took before 4789 was assigned, which is what firewalls know for pod networks.
const VXLAN_PORT: u16 = 8472;
/// Outer Ethernet, IP, UDP and VXLAN headers: 14 + 20 + 8 + 8, with an outer IPv6 header 20 more.
const OVERHEAD: u32 = 50;
const OVERHEAD_V6: u32 = 70;
const DEFAULT_MTU: u32 = 1500;

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: IpAddr,
    pub pod_cidr: Cidr,
    /// The node's first range, which its tunnel's end has its hardware address from: `pod_cidr`, or of the other IP family.
    pub primary: Cidr,
}

/// How a peer's pods are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    Direct,
    Tunnel,
}

/// The routes of one node to all others, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Peers {
    socket: Socket,
    link: String,
    vxlan: Vxlan,
    cluster: Vec<Cidr>,
    /// At most one of each IP family.
    own: Vec<Cidr>,
    /// What is programmed, by the range.
    known: BTreeMap<Cidr, (Peer, Via)>,
}

impl Peers {
    /// `link_prefix` names the tunnel's link; `own` are this node's ranges, the primary one first, and `address` its own address. Routes of an earlier run within
    /// `cluster` are known to [`Peers::sync`] and go with the first one that does not want them.
    pub fn open(link_prefix: &str, address: IpAddr, own: Vec<Cidr>, cluster: Vec<Cidr>) -> Result<Self, Error> {
        let mut socket = Socket::route().map_err(at("open rtnetlink socket"))?;
        let underlay = links::default_mtu(&mut socket).map_err(at("read the default route's MTU"))?.unwrap_or(DEFAULT_MTU).min(9_000);
        let mtu = underlay - if address.is_ipv4() { OVERHEAD } else { OVERHEAD_V6 };
        let mac = own.first().map_or([0; 6], |primary| mac_of(*primary));
        let vxlan = Vxlan { id: vxlan_id(&cluster), port: VXLAN_PORT, local: address, mac, mtu };
        Ok(Self { socket, link: link_name(link_prefix), vxlan, cluster, own, known: BTreeMap::new() })
    }

    /// Makes the routes to exactly these peers.
    pub fn sync(&mut self, peers: &[Peer]) -> Result<(), Error> {
        let mut wanted = BTreeMap::new();
        let own = self.own.clone();
        for peer in peers.iter().filter(|peer| !own.contains(&peer.pod_cidr)) {
            let via = self.via(peer)?;
            wanted.insert(peer.pod_cidr, (peer.clone(), via));
        }
        self.drop_stale(&wanted)?;
        let tunnel = match wanted.values().any(|(_, via)| *via == Via::Tunnel) {
            true => Some(self.tunnel()?),
            false => None,
        };
        for (cidr, (peer, via)) in wanted {
            if self.known.get(&cidr) == Some(&(peer.clone(), via)) {
                continue;
            }
            self.add(&peer, via, tunnel)?;
            self.known.insert(cidr, (peer, via));
        }
        Ok(())
    }

    /// The tunnel's link, and who is behind it: the node's own address, and that of its end.
    pub fn tunnelled(&self) -> (&str, impl Iterator<Item = (IpAddr, IpAddr)>) {
        let behind = self.known.values().filter(|(_, via)| *via == Via::Tunnel).map(|(peer, _)| (peer.address, peer.pod_cidr.0));
        (&self.link, behind)
    }

    fn add(&mut self, peer: &Peer, via: Via, tunnel: Option<u32>) -> Result<(), Error> {
        let mut requests = Requests::new(&mut self.socket, 3);
        match (via, tunnel) {
            (Via::Tunnel, Some(index)) => {
                let (end, mac) = (peer.pod_cidr.0, mac_of(peer.primary));
                requests.add_forwarding(index, mac, peer.address);
                requests.add_neighbour(index, end, mac);
                requests.add_peer_route(peer.pod_cidr, end, Some(index));
            }
            _ => requests.add_peer_route(peer.pod_cidr, peer.address, None),
        }
        requests.send(&[]).map_err(refused)
    }

    /// On one link, seen from the address that the peer knows us by. Pods of the other IP family than the nodes' addresses go by the tunnel,
    /// which carries both.
    fn via(&mut self, peer: &Peer) -> Result<Via, Error> {
        if peer.pod_cidr.0.is_ipv4() != peer.address.is_ipv4() {
            return Ok(Via::Tunnel);
        }
        let way = links::way_to(&mut self.socket, peer.address).map_err(at("look for the way to a node"))?;
        Ok(if way.is_some_and(|way| !way.gateway && way.source == Some(self.vxlan.local)) { Via::Direct } else { Via::Tunnel })
    }

    /// Removes what is not wanted, from this run or an earlier one.
    fn drop_stale(&mut self, wanted: &BTreeMap<Cidr, (Peer, Via)>) -> Result<(), Error> {
        let there = links::peer_routes(&mut self.socket).map_err(at("list routes"))?;
        let stale: Vec<Cidr> = there.into_iter().filter(|cidr| is_within(*cidr, &self.cluster) && !wanted.contains_key(cidr)).collect();
        let changed = |(cidr, entry): &(&Cidr, &(Peer, Via))| wanted.get(*cidr) != Some(*entry);
        let gone: Vec<(Peer, Via)> = self.known.iter().filter(changed).map(|(_, entry)| entry.clone()).collect();
        let tunnel = links::index_of(&mut self.socket, &self.link).map_err(at("find the tunnel"))?;
        let mut requests = Requests::new(&mut self.socket, u32::try_from(stale.len() + 2 * gone.len()).unwrap_or(u32::MAX));
        stale.iter().for_each(|cidr| requests.delete_peer_route(*cidr));
        for (peer, via) in &gone {
            if let (Via::Tunnel, Some(index)) = (via, tunnel) {
                let shared =
                    |(other, via): &(Peer, Via)| *via == Via::Tunnel && (other.primary, other.address) == (peer.primary, peer.address);
                if !wanted.values().any(shared) {
                    requests.delete_forwarding(index, mac_of(peer.primary), peer.address);
                }
                requests.delete_neighbour(index, peer.pod_cidr.0);
            }
            self.known.remove(&peer.pod_cidr);
        }
        requests.send(&[Errno::SRCH, Errno::NOENT]).map_err(refused)
    }

    /// The tunnel's link as it has to be; one of an earlier run keeps carrying.
    fn tunnel(&mut self) -> Result<u32, Error> {
        let found = links::vxlan(&mut self.socket, &self.link).map_err(at("find the tunnel"))?;
        if let Some((index, there)) = found {
            if (Vxlan { mtu: self.vxlan.mtu, ..there }) == self.vxlan {
                return Ok(index);
            }
            let mut requests = Requests::new(&mut self.socket, 1);
            requests.delete_link(index);
            requests.send(&[Errno::NODEV]).map_err(refused)?;
            self.known.retain(|_, (_, via)| *via == Via::Direct);
        }
        let mut requests = Requests::new(&mut self.socket, 1);
        requests.add_vxlan(&self.link, &self.vxlan);
        requests.send(&[Errno::EXIST]).map_err(refused)?;
        let index = links::index_of(&mut self.socket, &self.link).map_err(at("find the tunnel"))?;
        let index = index.ok_or_else(|| at("find the tunnel")(Errno::NODEV.into()))?;
        let mut requests = Requests::new(&mut self.socket, 5);
        requests.no_link_local(index);
        self.own.iter().for_each(|own| requests.add_address(index, own.0));
        requests.make_router_end(index);
        requests.up(index);
        requests.send(&[Errno::AFNOSUPPORT]).map_err(refused)?;
        Ok(index)
    }

    /// Removes the tunnel and every route within `cluster`, for a node that ends.
    pub fn remove(link_prefix: &str, cluster: &[Cidr]) -> Result<(), Error> {
        let mut socket = Socket::route().map_err(at("open rtnetlink socket"))?;
        let routes = links::peer_routes(&mut socket).map_err(at("list routes"))?;
        let tunnel = links::index_of(&mut socket, &link_name(link_prefix)).map_err(at("find the tunnel"))?;
        let mut requests = Requests::new(&mut socket, u32::try_from(routes.len() + 1).unwrap_or(u32::MAX));
        routes.into_iter().filter(|cidr| is_within(*cidr, cluster)).for_each(|cidr| requests.delete_peer_route(cidr));
        tunnel.into_iter().for_each(|index| requests.delete_link(index));
        requests.send(&[Errno::SRCH, Errno::NODEV]).map_err(refused)
    }
}

/// Not with the prefix first: what begins with it is a pod's link, whose packets must have that pod's source.
pub(crate) fn link_name(prefix: &str) -> String {
    format!("vx-{prefix}")
}

/// Made of the cluster's first range: clusters whose nodes share a host, or a network, stay apart.
fn vxlan_id(cluster: &[Cidr]) -> u32 {
    let [_, id @ ..] = match cluster.first() {
        Some((IpAddr::V4(address), _)) => (address.to_bits() >> 8).to_be_bytes(),
        Some((IpAddr::V6(address), _)) => ((address.to_bits() >> 72) as u32).to_be_bytes(),
        None => [0; 4],
    };
    u32::from_be_bytes([0, id[0], id[1], id[2]]).max(1)
}

fn mac_of((address, _): Cidr) -> Mac {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        // The last bits of a range are zero; the ones before tell ranges apart.
        IpAddr::V6(address) => ((address.to_bits() >> 64) as u32).to_be_bytes(),
    };
    [0x0e, 0x58, a, b, c, d]
}

fn is_within((address, prefix): Cidr, cluster: &[Cidr]) -> bool {
    cluster.iter().any(|(network, length)| prefix >= *length && masked(address, *length) == masked(*network, *length))
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

fn at(step: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Node { step, source }
}

fn refused(Refused { step, source }: Refused) -> Error {
    Error::Node { step, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_of_our_own_cluster_are_ours() {
        let cluster = [([10, 244, 0, 0].into(), 16)];
        let cases = [([10, 244, 8, 0], 21, true), ([10, 244, 0, 0], 16, true), ([10, 245, 0, 0], 21, false), ([10, 0, 0, 0], 8, false)];
        for (address, prefix, ours) in cases {
            assert_eq!(is_within((address.into(), prefix), &cluster), ours, "{address:?}/{prefix}");
        }
    }

    #[test]
    fn clusters_of_different_ranges_have_different_tunnels() {
        let id = |text: &str| vxlan_id(&[crate::parse_cidr(text).unwrap()]);
        assert_eq!(id("10.244.0.0/16"), 0x0a_f4_00);
        assert_ne!(id("10.158.0.0/16"), id("10.159.0.0/16"));
        assert_ne!(id("fd00:10:158::/56"), id("fd00:10:159::/56"));
        assert!(id("::/0") > 0 && id("fd00:10:158::/56") < 1 << 24);
    }

    #[test]
    fn tunnel_ends_of_neighbouring_ranges_have_different_hardware_addresses() {
        assert_ne!(mac_of(([10, 244, 0, 0].into(), 21)), mac_of(([10, 244, 8, 0].into(), 21)));
        assert_ne!(mac_of(("fd00:0:0:1::".parse().unwrap(), 64)), mac_of(("fd00:0:0:2::".parse().unwrap(), 64)));
    }
}
