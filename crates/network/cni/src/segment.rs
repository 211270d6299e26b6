//! A wire on one machine: a bridge, and nodes in network namespaces of their own that are plugged into it, so that a cluster of many
//! nodes with real links can be had, and cut, on one host.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;

use nft::Socket;
use rustix::io::Errno;

use crate::links::{self, Mac, Refused, Requests};
use crate::routed::in_namespace;
use crate::{Cidr, Error};

const DEFAULT_MTU: u32 = 1500;

/// The bridge, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Segment {
    socket: Socket,
    bridge: u32,
    /// This machine's way out: what is larger would not get there.
    mtu: u32,
    gateways: Vec<IpAddr>,
}

impl Segment {
    /// Makes the bridge `name` with the host's own addresses on it (one of each IP family), unless it is there.
    pub fn open(name: &str, gateways: &[Cidr]) -> Result<Self, Error> {
        let mut socket = Socket::route().map_err(at("open rtnetlink socket"))?;
        let mtu = links::default_mtu(&mut socket).map_err(at("read the default route's MTU"))?.unwrap_or(DEFAULT_MTU);
        let mut requests = Requests::new(&mut socket, 1);
        requests.add_bridge(name);
        requests.send(&[Errno::EXIST]).map_err(refused)?;
        let bridge = index(&mut socket, name)?;
        let mut requests = Requests::new(&mut socket, 3);
        gateways.iter().for_each(|gateway| requests.add_network_address(bridge, *gateway));
        requests.up(bridge);
        requests.send(&[]).map_err(refused)?;
        Ok(Self { socket, bridge, mtu, gateways: gateways.iter().map(|gateway| gateway.0).collect() })
    }

    /// Gives the namespace an `eth0` with these addresses whose other end, `link`, is in the bridge, and the host as its gateway. The
    /// first address tells the node's hardware address from others'.
    pub fn plug(&mut self, link: &str, netns: BorrowedFd<'_>, addresses: &[Cidr]) -> Result<(), Error> {
        if links::index_of(&mut self.socket, link).map_err(at("find link"))?.is_none() {
            let mut requests = Requests::new(&mut self.socket, 1);
            let [near, far] = macs(addresses.first().map_or(Ipv4Addr::UNSPECIFIED.into(), |address| address.0));
            requests.add_veth(link, near, self.mtu, netns, far);
            requests.send(&[]).map_err(refused)?;
        }
        let near = index(&mut self.socket, link)?;
        let mut requests = Requests::new(&mut self.socket, 2);
        requests.set_master(near, self.bridge);
        requests.up(near);
        requests.send(&[]).map_err(refused)?;
        let gateways = self.gateways.clone();
        in_namespace(netns, move |socket| {
            const LO: u32 = 1;
            let eth = index(socket, "eth0")?;
            let mut requests = Requests::new(socket, 8);
            requests.up(LO);
            addresses.iter().for_each(|address| requests.add_network_address(eth, *address));
            requests.up(eth);
            gateways.iter().for_each(|gateway| requests.add_default_route(eth, *gateway));
            requests.send(&[]).map_err(refused)
        })
        .map_err(at("enter the node's namespace"))?
    }
}

/// Takes the link down, or brings it up: a cable that is pulled. False when there is no such link.
pub fn set_link(link: &str, up: bool) -> Result<bool, Error> {
    let mut socket = Socket::route().map_err(at("open rtnetlink socket"))?;
    let Some(index) = links::index_of(&mut socket, link).map_err(at("find link"))? else { return Ok(false) };
    let mut requests = Requests::new(&mut socket, 1);
    if up {
        requests.up(index)
    } else {
        requests.down(index)
    }
    requests.send(&[]).map_err(refused)?;
    Ok(true)
}

/// Deletes a link of that name, where there is one.
pub fn delete_link(link: &str) -> Result<(), Error> {
    let mut socket = Socket::route().map_err(at("open rtnetlink socket"))?;
    let Some(index) = links::index_of(&mut socket, link).map_err(at("find link"))? else { return Ok(()) };
    let mut requests = Requests::new(&mut socket, 1);
    requests.delete_link(index);
    requests.send(&[Errno::NODEV]).map_err(refused)
}

fn index(socket: &mut Socket, name: &str) -> Result<u32, Error> {
    let found = links::index_of(socket, name).map_err(at("find link"))?;
    found.ok_or_else(|| at("find link")(Errno::NODEV.into()))
}

/// Locally administered, told apart by the node's address.
fn macs(address: IpAddr) -> [Mac; 2] {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => (address.to_bits() as u32).to_be_bytes(),
    };
    [[0x06, 0x58, a, b, c, d], [0x02, 0x58, a, b, c, d]]
}

fn at(step: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Node { step, source }
}

fn refused(Refused { step, source }: Refused) -> Error {
    Error::Node { step, source }
}
