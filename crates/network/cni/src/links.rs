//! rtnetlink requests: veth pairs, addresses, routes, neighbours. Several requests travel in one datagram, each with its own answer.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nft::Socket;
use nft::wire::{self, Encoder};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const NEWQDISC: u16 = 36;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Bytes of `ifinfomsg` and `rtmsg` before the attributes.
const IFINFO_BYTES: usize = 16;
const ROUTE_BYTES: usize = 12;

/// Who made a route (`proto` in iproute2): what we made to other nodes is found again by it.
const PEER_PROTOCOL: u8 = 86;
const AF_BRIDGE: u8 = 7;

pub type Mac = [u8; 6];

/// A VXLAN link without learning: where a MAC address lives is told, never guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub id: u32,
    pub port: u16,
    /// The outer source address.
    pub local: IpAddr,
    pub mac: Mac,
    pub mtu: u32,
}

/// Requests that are sent together.
#[derive(Debug)]
pub struct Requests<'a> {
    socket: &'a mut Socket,
    encoder: Encoder,
    steps: Vec<&'static str>,
    first: u32,
}

/// The address is usable at once: nobody else can have it.
const IFA_F_NODAD: u8 = 2;

/// The request that the kernel refused.
#[derive(Debug)]
pub struct Refused {
    pub step: &'static str,
    pub source: io::Error,
}

impl<'a> Requests<'a> {
    /// At most `count` requests will be added.
    pub fn new(socket: &'a mut Socket, count: u32) -> Self {
        let first = socket.sequences(count);
        Self { socket, encoder: Encoder::new(), steps: Vec::new(), first }
    }
    /// A veth pair whose other end, `eth0`, is born inside `netns`. IFF_UP here would be ENOTCONN: the ends come up later.
    pub fn add_veth(&mut self, name: &str, mac: Mac, mtu: u32, netns: BorrowedFd<'_>, peer_mac: Mac) {
        self.add("create veth", NEWLINK, wire::CREATE | wire::EXCL, |body| {
            body.raw(&link_header(0, 0));
            body.string(IFLA_IFNAME, name);
            body.attribute(IFLA_ADDRESS, &mac);
            body.u32_ne(IFLA_MTU, mtu);
            body.nested(IFLA_LINKINFO, |info| {
                info.string(1, "veth");
                info.nested(2, |data| {
                    data.nested(1, |peer| {
                        peer.raw(&link_header(0, 0));
                        peer.string(IFLA_IFNAME, "eth0");
                        peer.attribute(IFLA_ADDRESS, &peer_mac);
                        peer.u32_ne(IFLA_MTU, mtu);
                        peer.u32_ne(IFLA_NET_NS_FD, netns.as_raw_fd().cast_unsigned());
                    });
                });
            });
        });
    }
    pub fn up(&mut self, index: u32) {
        self.add("set link up", SETLINK, 0, |body| body.raw(&link_header(index, IFF_UP)));
    }
    /// Forwarding of IPv4 on this link; and what the node sends from 127.0.0.1 may go over it (host ports on the loopback address): the
    /// firewall drops what comes back the other way round.
    pub fn make_router_end(&mut self, index: u32) {
        const INET_CONF: u16 = 1;
        const DEVCONF_FORWARDING: u16 = 1;
        const DEVCONF_ROUTE_LOCALNET: u16 = 26;
        self.add("set link options", SETLINK, 0, |body| {
            body.raw(&link_header(index, 0));
            body.nested(IFLA_AF_SPEC, |families| {
                families.nested(u16::from(AF_INET), |inet| {
                    inet.nested(INET_CONF, |conf| {
                        conf.u32_ne(DEVCONF_FORWARDING, 1);
                        conf.u32_ne(DEVCONF_ROUTE_LOCALNET, 1);
                    });
                });
            });
        });
    }
    /// Must come before [`Requests::up`]. Fails where the kernel has no IPv6.
    pub fn no_link_local(&mut self, index: u32) {
        const ADDR_GEN_MODE: u16 = 8;
        const MODE_NONE: u8 = 1;
        self.add("set address generation", SETLINK, 0, |body| {
            body.raw(&link_header(index, 0));
            body.nested(IFLA_AF_SPEC, |families| {
                families.nested(u16::from(AF_INET6), |inet| inet.attribute(ADDR_GEN_MODE, &[MODE_NONE]));
            });
        });
    }
    /// As the only one of its network.
    pub fn add_address(&mut self, index: u32, address: IpAddr) {
        self.add("add address", NEWADDR, wire::CREATE | wire::REPLACE, |body| {
            let [a, b, c, d] = index.to_ne_bytes();
            body.raw(&[family(address), prefix(address), if address.is_ipv6() { IFA_F_NODAD } else { 0 }, 0, a, b, c, d]);
            attribute(body, 2, address);
            attribute(body, 1, address);
        });
    }
    /// To the one address, directly over the link.
    pub fn add_link_route(&mut self, index: u32, destination: IpAddr) {
        const SCOPE_LINK: u8 = 253;
        self.add("add route", NEWROUTE, wire::CREATE | wire::REPLACE, |body| {
            body.raw(&route_header(destination, prefix(destination), SCOPE_LINK));
            attribute(body, 1, destination);
            body.u32_ne(4, index);
        });
    }
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) {
        self.add("add default route", NEWROUTE, wire::CREATE | wire::REPLACE, |body| {
            body.raw(&route_header(gateway, 0, 0));
            attribute(body, 5, gateway);
            body.u32_ne(4, index);
        });
    }
    /// For ever, without asking.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) {
        const NUD_PERMANENT: u16 = 0x80;
        self.add("add neighbour", NEWNEIGH, wire::CREATE | wire::REPLACE, |body| {
            let mut header = [0; 12];
            header[0] = family(address);
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
            body.raw(&header);
            attribute(body, 1, address);
            body.attribute(2, &mac);
        });
    }
    /// As long as the link is there: frames to `mac` go to the node at `outer`.
    pub fn add_forwarding(&mut self, index: u32, mac: Mac, outer: IpAddr) {
        self.add("add forwarding entry", NEWNEIGH, wire::CREATE | wire::REPLACE, |body| forwarding(body, index, mac, outer));
    }
    pub fn delete_forwarding(&mut self, index: u32, mac: Mac, outer: IpAddr) {
        self.add("delete forwarding entry", DELNEIGH, 0, |body| forwarding(body, index, mac, outer));
    }
    pub fn delete_neighbour(&mut self, index: u32, address: IpAddr) {
        self.add("delete neighbour", DELNEIGH, 0, |body| {
            let mut header = [0; 12];
            header[0] = family(address);
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            body.raw(&header);
            attribute(body, 1, address);
        });
    }
    pub fn add_vxlan(&mut self, name: &str, vxlan: &Vxlan) {
        self.add("create vxlan", NEWLINK, wire::CREATE | wire::EXCL, |body| {
            body.raw(&link_header(0, 0));
            body.string(IFLA_IFNAME, name);
            body.attribute(IFLA_ADDRESS, &vxlan.mac);
            body.u32_ne(IFLA_MTU, vxlan.mtu);
            body.nested(IFLA_LINKINFO, |info| {
                info.string(1, "vxlan");
                info.nested(2, |data| {
                    data.u32_ne(1, vxlan.id);
                    attribute(data, if vxlan.local.is_ipv4() { 4 } else { 17 }, vxlan.local);
                    data.attribute(7, &[0]);
                    data.attribute(15, &vxlan.port.to_be_bytes());
                });
            });
        });
    }
    pub fn add_bridge(&mut self, name: &str) {
        self.add("create bridge", NEWLINK, wire::CREATE | wire::EXCL, |body| {
            body.raw(&link_header(0, 0));
            body.string(IFLA_IFNAME, name);
            body.nested(IFLA_LINKINFO, |info| info.string(1, "bridge"));
        });
    }
    /// Plugs the link into the bridge.
    pub fn set_master(&mut self, index: u32, bridge: u32) {
        const IFLA_MASTER: u16 = 10;
        self.add("plug into the bridge", SETLINK, 0, |body| {
            body.raw(&link_header(index, 0));
            body.u32_ne(IFLA_MASTER, bridge);
        });
    }
    pub fn down(&mut self, index: u32) {
        self.add("set link down", SETLINK, 0, |body| {
            let mut header = link_header(index, 0);
            header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
            body.raw(&header);
        });
    }
    /// With the network that is on the link.
    pub fn add_network_address(&mut self, index: u32, (address, length): crate::Cidr) {
        self.add("add address", NEWADDR, wire::CREATE | wire::REPLACE, |body| {
            let [a, b, c, d] = index.to_ne_bytes();
            body.raw(&[family(address), length, if address.is_ipv6() { IFA_F_NODAD } else { 0 }, 0, a, b, c, d]);
            attribute(body, 2, address);
            attribute(body, 1, address);
        });
    }
    /// What leaves by this link is held back to so many bytes a second.
    pub fn limit(&mut self, index: u32, bytes_per_second: u64, mtu: u32) {
        const ROOT: u32 = 0xffff_ffff;
        /// How long a packet may wait before it is dropped, in parts of a second.
        const WAIT: u64 = 40;
        self.add("limit the bandwidth", NEWQDISC, wire::CREATE | wire::REPLACE, |body| {
            let mut header = [0; 20];
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            header[12..16].copy_from_slice(&ROOT.to_ne_bytes());
            body.raw(&header);
            body.string(1, "tbf");
            let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
            // At least a few packets at once, or slow rates would pass none; offloaded segments are up to 64 KiB.
            let burst = word((bytes_per_second / 100).max(u64::from(mtu) * 2).max(64 << 10));
            let limit = word(bytes_per_second / WAIT).saturating_add(burst);
            body.nested(2, |options| {
                let mut parameters = [0; 36];
                parameters[8..12].copy_from_slice(&word(bytes_per_second).to_ne_bytes());
                parameters[24..28].copy_from_slice(&limit.to_ne_bytes());
                options.attribute(1, &parameters);
                if bytes_per_second > u64::from(u32::MAX) {
                    options.attribute(4, &bytes_per_second.to_ne_bytes());
                }
                options.u32_ne(6, burst);
            });
        });
    }
    pub fn delete_link(&mut self, index: u32) {
        self.add("delete link", DELLINK, 0, |body| body.raw(&link_header(index, 0)));
    }
    /// To another node's pods; over `link` although nothing says that the gateway is there, or wherever the gateway is.
    pub fn add_peer_route(&mut self, (network, length): crate::Cidr, gateway: IpAddr, link: Option<u32>) {
        const ONLINK: u8 = 4;
        self.add("add route to a node", NEWROUTE, wire::CREATE | wire::REPLACE, |body| {
            let mut header = route_header(network, length, 0);
            header[5] = PEER_PROTOCOL;
            header[8] = if link.is_some() { ONLINK } else { 0 };
            body.raw(&header);
            attribute(body, 1, network);
            attribute(body, 5, gateway);
            if let Some(index) = link {
                body.u32_ne(4, index);
            }
        });
    }
    pub fn delete_peer_route(&mut self, (network, length): crate::Cidr) {
        self.add("delete route to a node", DELROUTE, 0, |body| {
            let mut header = route_header(network, length, 0);
            header[5] = PEER_PROTOCOL;
            header[7] = 0;
            body.raw(&header);
            attribute(body, 1, network);
        });
    }
    pub fn set_group(&mut self, name: &str, group: u32) {
        self.add("set link group", SETLINK, 0, |body| {
            body.raw(&link_header(0, 0));
            body.string(IFLA_IFNAME, name);
            body.u32_ne(IFLA_GROUP, group);
        });
    }
    /// All links of the group at once: the kernel waits for its readers once, not once per link.
    pub fn delete_group(&mut self, group: u32) {
        self.add("delete links", DELLINK, 0, |body| {
            body.raw(&link_header(0, 0));
            body.u32_ne(IFLA_GROUP, group);
        });
    }

    fn add(&mut self, step: &'static str, kind: u16, flags: u16, body: impl FnOnce(&mut Encoder)) {
        let sequence = self.first + u32::try_from(self.steps.len()).unwrap_or(0);
        self.steps.push(step);
        self.encoder.message(kind, wire::REQUEST | wire::ACK | flags, sequence, body);
    }

    /// Every request is tried; answers with the first that was refused for a reason other than one of `tolerated`.
    pub fn send(self, tolerated: &[rustix::io::Errno]) -> Result<(), Refused> {
        let Self { socket, encoder, steps, first } = self;
        let Some(last) = steps.len().checked_sub(1) else { return Ok(()) };
        let exchange = |source| Refused { step: steps[0], source };
        socket.drain();
        socket.send(&encoder).map_err(exchange)?;
        let mut refused = None;
        socket
            .receive(|message| {
                let Some(errno) = message.errno() else { return false };
                let index = message.sequence.wrapping_sub(first) as usize;
                if errno != 0 && refused.is_none() && !tolerated.iter().any(|code| code.raw_os_error() == errno) {
                    let step = steps.get(index).copied().unwrap_or("netlink request");
                    refused = Some(Refused { step, source: io::Error::from_raw_os_error(errno) });
                }
                index == last
            })
            .map_err(exchange)?;
        refused.map_or(Ok(()), Err)
    }
}

/// The interface index, or `None` when there is no such link.
pub fn index_of(socket: &mut Socket, name: &str) -> io::Result<Option<u32>> {
    let sequence = socket.sequences(1);
    let mut encoder = Encoder::new();
    encoder.message(GETLINK, wire::REQUEST, sequence, |body| {
        body.raw(&link_header(0, 0));
        body.string(IFLA_IFNAME, name);
    });
    socket.drain();
    socket.send(&encoder)?;
    let mut answer = Ok(None);
    socket.receive(|message| {
        if message.sequence != sequence {
            return false;
        }
        answer = match message.errno() {
            Some(errno) if errno == rustix::io::Errno::NODEV.raw_os_error() => Ok(None),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(index(message.payload)),
        };
        true
    })?;
    answer
}

/// Names of all links.
pub fn names(socket: &mut Socket) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    socket.dump(
        GETLINK,
        |body| body.raw(&link_header(0, 0)),
        |message| {
            names.extend(message.attributes(IFINFO_BYTES).string(IFLA_IFNAME).map(str::to_owned));
        },
    )?;
    Ok(names)
}

/// The MTU of the link that the IPv4 default route leaves by.
pub fn default_mtu(socket: &mut Socket) -> io::Result<Option<u32>> {
    let mut outgoing = None;
    socket.dump(
        GETROUTE,
        |body| body.raw(&[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        |message| {
            const RTA_OIF: u16 = 4;
            let default = message.payload.get(1) == Some(&0);
            if default && outgoing.is_none() {
                outgoing = message.attributes(ROUTE_BYTES).u32_ne(RTA_OIF);
            }
        },
    )?;
    let mut mtu = None;
    socket.dump(
        GETLINK,
        |body| body.raw(&link_header(0, 0)),
        |message| {
            if outgoing.is_some() && index(message.payload) == outgoing {
                mtu = message.attributes(IFINFO_BYTES).u32_ne(IFLA_MTU);
            }
        },
    )?;
    Ok(mtu)
}

fn forwarding(body: &mut Encoder, index: u32, mac: Mac, outer: IpAddr) {
    const PERMANENT: u16 = 0x80;
    const SELF: u8 = 2;
    let mut header = [0; 12];
    header[0] = AF_BRIDGE;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    header[10] = SELF;
    body.raw(&header);
    attribute(body, 1, outer);
    body.attribute(2, &mac);
}

/// The VXLAN link of that name and its index; the MTU is not read. `None` also for a link of another kind.
pub fn vxlan(socket: &mut Socket, name: &str) -> io::Result<Option<(u32, Vxlan)>> {
    let mut found = None;
    socket.dump(
        GETLINK,
        |body| body.raw(&link_header(0, 0)),
        |message| {
            let link = message.attributes(IFINFO_BYTES);
            let info = link.nested(IFLA_LINKINFO);
            if link.string(IFLA_IFNAME) != Some(name) || info.string(1) != Some("vxlan") {
                return;
            }
            let data = info.nested(2);
            let parsed = (|| {
                let local = data.get(4).and_then(|bytes| Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)));
                let local = local.or_else(|| data.get(17).and_then(|bytes| Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?))))?;
                let mac = link.get(IFLA_ADDRESS)?.try_into().ok()?;
                Some((index(message.payload)?, Vxlan { id: data.u32_ne(1)?, port: data.u16_be(15)?, local, mac, mtu: 0 }))
            })();
            found = parsed.or(found);
        },
    )?;
    Ok(found)
}

/// The networks that we have routes to other nodes for.
pub fn peer_routes(socket: &mut Socket) -> io::Result<Vec<crate::Cidr>> {
    let mut found = Vec::new();
    for (family, length) in [(AF_INET, 4), (AF_INET6, 16)] {
        let dumped = socket.dump(
            GETROUTE,
            |body| body.raw(&[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            |message| {
                let (Some(prefix), Some(protocol)) = (message.payload.get(1), message.payload.get(5)) else { return };
                let Some(bytes) = message.attributes(ROUTE_BYTES).get(1).filter(|bytes| bytes.len() == length) else { return };
                if *protocol != PEER_PROTOCOL {
                    return;
                }
                let address = match <[u8; 4]>::try_from(bytes) {
                    Ok(octets) => IpAddr::from(octets),
                    Err(_) => <[u8; 16]>::try_from(bytes).map_or(IpAddr::from([0; 4]), IpAddr::from),
                };
                found.push((address, *prefix));
            },
        );
        match dumped {
            // A kernel without IPv6.
            Err(error) if family == AF_INET6 && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {}
            other => other?,
        }
    }
    Ok(found)
}

/// How the kernel would reach an address: through a gateway or not, and from which of its own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub gateway: bool,
    pub source: Option<IpAddr>,
}

/// `None`: there is no route.
pub fn way_to(socket: &mut Socket, address: IpAddr) -> io::Result<Option<Way>> {
    const GATEWAY: u16 = 5;
    const VIA: u16 = 18;
    const PREFERRED_SOURCE: u16 = 7;
    let sequence = socket.sequences(1);
    let mut encoder = Encoder::new();
    encoder.message(GETROUTE, wire::REQUEST, sequence, |body| {
        body.raw(&[family(address), prefix(address), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        attribute(body, 1, address);
    });
    socket.drain();
    socket.send(&encoder)?;
    let mut answer = Ok(None);
    socket.receive(|message| {
        if message.sequence != sequence {
            return false;
        }
        answer = match message.errno() {
            Some(errno) if errno == rustix::io::Errno::NETUNREACH.raw_os_error() => Ok(None),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => {
                let attributes = message.attributes(ROUTE_BYTES);
                let source = attributes.get(PREFERRED_SOURCE).and_then(|bytes| match bytes.len() {
                    4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
                    _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
                });
                Ok(Some(Way { gateway: attributes.get(GATEWAY).is_some() || attributes.get(VIA).is_some(), source }))
            }
        };
        true
    })?;
    answer
}

fn index(ifinfo: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(ifinfo.get(4..8)?.try_into().ok()?))
}

/// `ifinfomsg`; `up` is IFF_UP or 0.
fn link_header(index: u32, up: u32) -> [u8; IFINFO_BYTES] {
    let mut header = [0; IFINFO_BYTES];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&up.to_ne_bytes());
    header[12..16].copy_from_slice(&up.to_ne_bytes());
    header
}

fn route_header(destination: IpAddr, prefix: u8, scope: u8) -> [u8; ROUTE_BYTES] {
    const TABLE_MAIN: u8 = 254;
    const PROTOCOL_STATIC: u8 = 4;
    const UNICAST: u8 = 1;
    [family(destination), prefix, 0, 0, TABLE_MAIN, PROTOCOL_STATIC, scope, UNICAST, 0, 0, 0, 0]
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn attribute(into: &mut Encoder, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => into.attribute(kind, &address.octets()),
        IpAddr::V6(address) => into.attribute(kind, &address.octets()),
    }
}

/// Whether the address is on the link (used to see that a sandbox is attached already).
pub fn has_address(socket: &mut Socket, index: u32, wanted: IpAddr) -> io::Result<bool> {
    const GETADDR: u16 = 22;
    const IFA_ADDRESS: u16 = 1;
    let mut found = false;
    socket.dump(
        GETADDR,
        |body| body.raw(&[family(wanted), 0, 0, 0, 0, 0, 0, 0]),
        |message| {
            let on_link = message.payload.get(4..8) == Some(&index.to_ne_bytes()[..]);
            let bytes = message.attributes(8).get(IFA_ADDRESS);
            found |= on_link
                && match wanted {
                    IpAddr::V4(address) => bytes == Some(&address.octets()[..]),
                    IpAddr::V6(address) => bytes == Some(&address.octets()[..]),
                };
        },
    )?;
    Ok(found)
}
