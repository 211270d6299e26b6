//! Tracked connections: found and forgotten. Needed for UDP, where a removed endpoint would otherwise stay the target of a
//! client that keeps its source port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::socket::Socket;
use crate::wire::{self, Attributes, Encoder};
use crate::{Error, Family, message, nfgenmsg};

/// A connection as its first packet was sent and as its answers come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: u8,
    pub original: Tuple,
    /// Its source is where packets really go: the endpoint after translation.
    pub reply: Tuple,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub source: IpAddr,
    pub source_port: u16,
    pub destination: IpAddr,
    pub destination_port: u16,
}

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;

/// Forgets the connections of `protocol` for which `stale` is true; says how many.
pub fn forget(socket: &mut Socket, family: Family, protocol: u8, mut stale: impl FnMut(&Connection) -> bool) -> Result<usize, Error> {
    let refused = |step: &str, source| Error::Refused { object: step.to_owned(), table: "conntrack".to_owned(), source };
    let mut found = Vec::new();
    socket
        .dump(
            message::conntrack(message::CT_GET),
            |body| body.raw(&nfgenmsg(family.number(), 0)),
            |message| {
                if let Some(connection) = connection(message.attributes(4))
                    && connection.protocol == protocol
                    && stale(&connection)
                {
                    found.push(connection);
                }
            },
        )
        .map_err(|source| refused("list connections", source))?;
    for connection in &found {
        match delete(socket, family, connection) {
            // It ended meanwhile.
            Err(source) if source.raw_os_error() == Some(libc::ENOENT) => {}
            other => other.map_err(|source| refused("delete connection", source))?,
        }
    }
    Ok(found.len())
}

fn delete(socket: &mut Socket, family: Family, connection: &Connection) -> std::io::Result<()> {
    let sequence = socket.sequences(1);
    let mut encoder = Encoder::new();
    encoder.message(message::conntrack(message::CT_DELETE), wire::REQUEST | wire::ACK, sequence, |body| {
        body.raw(&nfgenmsg(family.number(), 0));
        body.nested(TUPLE_ORIG, |tuple| encode(&connection.original, connection.protocol, tuple));
    });
    socket.send(&encoder)?;
    let mut errno = 0;
    socket.receive(|message| {
        errno = message.errno().unwrap_or(0);
        message.sequence == sequence
    })?;
    if errno == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(errno)) }
}

fn encode(tuple: &Tuple, protocol: u8, into: &mut Encoder) {
    into.nested(1, |ip| {
        for (v4, v6, address) in [(1, 3, tuple.source), (2, 4, tuple.destination)] {
            match address {
                IpAddr::V4(address) => ip.attribute(v4, &address.octets()),
                IpAddr::V6(address) => ip.attribute(v6, &address.octets()),
            }
        }
    });
    into.nested(2, |proto| {
        proto.attribute(1, &[protocol]);
        proto.attribute(2, &tuple.source_port.to_be_bytes());
        proto.attribute(3, &tuple.destination_port.to_be_bytes());
    });
}

fn connection(attributes: Attributes<'_>) -> Option<Connection> {
    let original = attributes.nested(TUPLE_ORIG);
    Some(Connection {
        protocol: *original.nested(2).get(1)?.first()?,
        original: tuple(original)?,
        reply: tuple(attributes.nested(TUPLE_REPLY))?,
    })
}

fn tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let (ip, proto) = (attributes.nested(1), attributes.nested(2));
    Some(Tuple {
        source: address(ip.get(1).or(ip.get(3))?)?,
        destination: address(ip.get(2).or(ip.get(4))?)?,
        source_port: proto.u16_be(2)?,
        destination_port: proto.u16_be(3)?,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}
