//! The steps of a rule: load into registers, compare, look up, decide.

use std::net::IpAddr;
use std::time::Duration;

use crate::set::{Field, Verdict};
use crate::wire::Encoder;

/// One of the sixteen 32-bit registers. Longer values take consecutive ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u32);

impl Register {
    /// Register `index`, 0 to 15.
    pub const fn at(index: u32) -> Self {
        Self(8 + index)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
    /// NFPROTO_*, which equals AF_* here.
    pub fn number(self) -> u8 {
        match self {
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
        }
    }
    pub fn address_field(self) -> Field {
        match self {
            Self::Ipv4 => Field::Ipv4,
            Self::Ipv6 => Field::Ipv6,
        }
    }
    pub fn address_bytes(self) -> u32 {
        self.address_field().bytes()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    Mark = 3,
    /// Index of the incoming interface.
    IncomingIndex = 4,
    /// 16 bytes, zero-padded.
    IncomingName = 6,
    OutgoingName = 7,
    /// NFPROTO_*, one byte.
    Nfproto = 15,
    /// IP protocol, one byte.
    Protocol = 16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ct {
    State = 0,
    /// One byte: 0 as the connection's first packet, 1 against it.
    Direction = 1,
    Status = 2,
    Mark = 3,
}

/// Bits of [`Ct::State`].
pub const CT_STATE_INVALID: u32 = 1;
pub const CT_STATE_ESTABLISHED: u32 = 2;
pub const CT_STATE_RELATED: u32 = 4;
pub const CT_STATE_NEW: u32 = 8;
/// Bit of [`Ct::Status`]: destination was translated.
pub const CT_STATUS_DNAT: u32 = 0x20;
/// Values of [`FibResult::AddressType`].
pub const ADDRESS_TYPE_LOCAL: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FibResult {
    /// Index of the interface a packet would leave by, 0 for none.
    OutgoingIndex = 1,
    AddressType = 3,
}

/// Inputs of a fib lookup.
pub const FIB_SOURCE: u32 = 1;
pub const FIB_DESTINATION: u32 = 2;
pub const FIB_INCOMING: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Network = 1,
    Transport = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The ICMP error of the packet's own family.
    PortUnreachable,
    TcpReset,
}

/// A step of a rule. A comparison or lookup that fails ends the rule; the next rule of the chain follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    Meta {
        key: Meta,
        to: Register,
    },
    SetMeta {
        key: Meta,
        from: Register,
    },
    Ct {
        key: Ct,
        to: Register,
    },
    Payload {
        header: Header,
        offset: u32,
        bytes: u32,
        to: Register,
    },
    Equal {
        register: Register,
        value: Vec<u8>,
    },
    NotEqual {
        register: Register,
        value: Vec<u8>,
    },
    /// Compared byte by byte: numbers in network byte order.
    AtLeast {
        register: Register,
        value: Vec<u8>,
    },
    AtMost {
        register: Register,
        value: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`
    Bitwise {
        from: Register,
        to: Register,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Immediate {
        to: Register,
        value: Vec<u8>,
    },
    /// In the set, or not in it.
    Contains {
        set: String,
        key: Register,
        invert: bool,
    },
    /// Loads what the map says.
    Lookup {
        map: String,
        key: Register,
        to: Register,
    },
    /// Does what the verdict map says.
    LookupVerdict {
        map: String,
        key: Register,
    },
    /// A random number in `offset..offset + modulus`.
    Random {
        to: Register,
        modulus: u32,
        offset: u32,
    },
    /// Adds or refreshes an element; `data` for maps.
    Remember {
        set: String,
        key: Register,
        data: Option<Register>,
        timeout: Duration,
    },
    Fib {
        result: FibResult,
        inputs: u32,
        to: Register,
    },
    Dnat {
        family: Family,
        address: Register,
        port: Option<Register>,
    },
    Masquerade,
    Reject(Reject),
    Counter,
    Notrack,
    Verdict(Verdict),
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Ct { .. } => "ct",
            Self::Payload { .. } => "payload",
            Self::Equal { .. } | Self::NotEqual { .. } | Self::AtLeast { .. } | Self::AtMost { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Contains { .. } | Self::Lookup { .. } | Self::LookupVerdict { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::Remember { .. } => "dynset",
            Self::Fib { .. } => "fib",
            Self::Dnat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject(_) => "reject",
            Self::Counter => "counter",
            Self::Notrack => "notrack",
        }
    }

    /// One NFTA_LIST_ELEM of a rule.
    pub(crate) fn encode(&self, into: &mut Encoder) {
        const LIST_ELEM: u16 = 1;
        const NAME: u16 = 1;
        const DATA: u16 = 2;
        into.nested(LIST_ELEM, |element| {
            element.string(NAME, self.name());
            element.nested(DATA, |data| self.encode_data(data));
        });
    }

    /// Attribute numbers are those of `linux/netfilter/nf_tables.h`, enum by enum.
    fn encode_data(&self, into: &mut Encoder) {
        match self {
            Self::Meta { key, to } => {
                into.u32_be(1, to.0);
                into.u32_be(2, *key as u32);
            }
            Self::SetMeta { key, from } => {
                into.u32_be(2, *key as u32);
                into.u32_be(3, from.0);
            }
            Self::Ct { key, to } => {
                into.u32_be(1, to.0);
                into.u32_be(2, *key as u32);
            }
            Self::Payload { header, offset, bytes, to } => {
                into.u32_be(1, to.0);
                into.u32_be(2, *header as u32);
                into.u32_be(3, *offset);
                into.u32_be(4, *bytes);
            }
            Self::Equal { register, value } => compare(*register, 0, value, into),
            Self::NotEqual { register, value } => compare(*register, 1, value, into),
            Self::AtLeast { register, value } => compare(*register, 5, value, into),
            Self::AtMost { register, value } => compare(*register, 3, value, into),
            Self::Bitwise { from, to, mask, xor } => {
                into.u32_be(1, from.0);
                into.u32_be(2, to.0);
                into.u32_be(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                into.nested(4, |data| data.attribute(1, mask));
                into.nested(5, |data| data.attribute(1, xor));
            }
            Self::Immediate { to, value } => {
                into.u32_be(1, to.0);
                into.nested(2, |data| data.attribute(1, value));
            }
            Self::Verdict(verdict) => {
                into.u32_be(1, 0);
                into.nested(2, |data| verdict.encode(data));
            }
            Self::Contains { set, key, invert } => {
                into.string(1, set);
                into.u32_be(2, key.0);
                if *invert {
                    into.u32_be(5, 1);
                }
            }
            Self::Lookup { map, key, to } => {
                into.string(1, map);
                into.u32_be(2, key.0);
                into.u32_be(3, to.0);
            }
            Self::LookupVerdict { map, key } => {
                into.string(1, map);
                into.u32_be(2, key.0);
                into.u32_be(3, 0);
            }
            Self::Random { to, modulus, offset } => {
                into.u32_be(1, to.0);
                into.u32_be(2, *modulus);
                into.u32_be(3, 1);
                into.u32_be(4, *offset);
            }
            Self::Remember { set, key, data, timeout } => {
                const UPDATE: u32 = 1;
                into.string(1, set);
                into.u32_be(3, UPDATE);
                into.u32_be(4, key.0);
                if let Some(data) = data {
                    into.u32_be(5, data.0);
                }
                into.u64_be(6, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
            }
            Self::Fib { result, inputs, to } => {
                into.u32_be(1, to.0);
                into.u32_be(2, *result as u32);
                into.u32_be(3, *inputs);
            }
            Self::Dnat { family, address, port } => {
                const DESTINATION: u32 = 1;
                into.u32_be(1, DESTINATION);
                into.u32_be(2, u32::from(family.number()));
                into.u32_be(3, address.0);
                if let Some(port) = port {
                    into.u32_be(5, port.0);
                }
            }
            Self::Reject(reject) => {
                let (kind, code) = match reject {
                    Reject::PortUnreachable => (2, 1),
                    Reject::TcpReset => (1, 0),
                };
                into.u32_be(1, kind);
                into.attribute(2, &[code]);
            }
            Self::Masquerade | Self::Counter | Self::Notrack => {}
        }
    }

    /// Ends the rule unless the packet is of `family` (an `inet` chain sees both).
    pub fn is_family(family: Family, scratch: Register) -> [Self; 2] {
        [Self::Meta { key: Meta::Nfproto, to: scratch }, Self::Equal { register: scratch, value: vec![family.number()] }]
    }
    pub fn source(family: Family, to: Register) -> Self {
        let offset = if family == Family::Ipv4 { 12 } else { 8 };
        Self::Payload { header: Header::Network, offset, bytes: family.address_bytes(), to }
    }
    pub fn destination(family: Family, to: Register) -> Self {
        let offset = if family == Family::Ipv4 { 16 } else { 24 };
        Self::Payload { header: Header::Network, offset, bytes: family.address_bytes(), to }
    }
    pub fn destination_port(to: Register) -> Self {
        Self::Payload { header: Header::Transport, offset: 2, bytes: 2, to }
    }
    /// Ends the rule unless the address in `register` lies in the network (or lies in it, with `invert`). Overwrites the register.
    pub fn in_network(register: Register, (network, prefix): (IpAddr, u8), invert: bool) -> [Self; 2] {
        let (address, mask) = network_bytes(network, prefix);
        let xor = vec![0; mask.len()];
        let compare = if invert { Self::NotEqual { register, value: address } } else { Self::Equal { register, value: address } };
        [Self::Bitwise { from: register, to: register, mask, xor }, compare]
    }
}

fn compare(register: Register, operation: u32, value: &[u8], into: &mut Encoder) {
    into.u32_be(1, register.0);
    into.u32_be(2, operation);
    into.nested(3, |data| data.attribute(1, value));
}

/// The network's address with host bits cleared, and its mask.
fn network_bytes(network: IpAddr, prefix: u8) -> (Vec<u8>, Vec<u8>) {
    let address = match network {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mask: Vec<u8> = (0..address.len())
        .map(|index| {
            let bits = usize::from(prefix).saturating_sub(index * 8).min(8);
            !(0xffu16 >> bits) as u8
        })
        .collect();
    (address.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect(), mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_masks_cover_exactly_the_prefix() {
        for (network, prefix, address, mask) in [
            ("10.244.3.9", 24, [10, 244, 3, 0], [255, 255, 255, 0]),
            ("10.255.0.0", 12, [10, 240, 0, 0], [255, 240, 0, 0]),
            ("1.2.3.4", 0, [0, 0, 0, 0], [0, 0, 0, 0]),
            ("1.2.3.4", 32, [1, 2, 3, 4], [255, 255, 255, 255]),
        ] {
            assert_eq!(network_bytes(network.parse().unwrap(), prefix), (address.to_vec(), mask.to_vec()), "{network}/{prefix}");
        }
    }
}
