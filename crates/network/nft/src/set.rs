//! Named sets and maps: what their keys are made of, and the elements in them.

use std::net::IpAddr;
use std::time::Duration;

use crate::wire::Encoder;

/// A field of a key or of a map's value. The type id is the one user space prints by; the kernel only keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Ipv4,
    Ipv6,
    /// An IP protocol number.
    Protocol,
    /// A transport port, network byte order.
    Port,
    /// A 32-bit number in host byte order. Not "integer": `nft list` fails an assertion on such a key made without its own hints.
    Mark,
    /// An interface name, zero-padded.
    InterfaceName,
}

impl Field {
    fn type_id(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::InterfaceName => 41,
        }
    }
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Mark => 4,
            Self::Ipv6 | Self::InterfaceName => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
    /// 32-bit registers it takes in a concatenation.
    pub fn registers(self) -> u32 {
        self.bytes().div_ceil(4)
    }
}

/// What a map's elements lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapsTo {
    Verdict,
    Fields(Vec<Field>),
}

/// A named set, or a map when `maps_to` is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub key: Vec<Field>,
    pub maps_to: Option<MapsTo>,
    /// Elements are added by rules and leave after their timeout.
    pub dynamic: bool,
    /// Elements are ranges: their last field goes from `key` to `key_end`, both included.
    pub intervals: bool,
}

const FLAG_INTERVAL: u32 = 0x4;
const FLAG_MAP: u32 = 0x8;
const FLAG_TIMEOUT: u32 = 0x10;
const FLAG_EVAL: u32 = 0x20;
const FLAG_CONCAT: u32 = 0x80;
const TYPE_VERDICT: u32 = 0xffff_ff00;
/// Elements a dynamic set holds at most: clients behind session affinity.
const DYNAMIC_ELEMENTS_MAX: u32 = 1 << 16;

mod attribute {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const KEY_TYPE: u16 = 4;
    pub const KEY_LEN: u16 = 5;
    pub const DATA_TYPE: u16 = 6;
    pub const DATA_LEN: u16 = 7;
    pub const DESC: u16 = 9;
    pub const ID: u16 = 10;
    pub const DESC_SIZE: u16 = 1;
    pub const DESC_CONCAT: u16 = 2;
    pub const LIST_ELEM: u16 = 1;
    pub const FIELD_LEN: u16 = 1;
}

impl Set {
    pub(crate) fn encode(&self, table: &str, id: u32, into: &mut Encoder) {
        into.string(attribute::TABLE, table);
        into.string(attribute::NAME, &self.name);
        into.u32_be(attribute::FLAGS, self.flags());
        into.u32_be(attribute::KEY_TYPE, type_id(&self.key));
        into.u32_be(attribute::KEY_LEN, length(&self.key));
        match &self.maps_to {
            None => {}
            Some(MapsTo::Verdict) => {
                into.u32_be(attribute::DATA_TYPE, TYPE_VERDICT);
            }
            Some(MapsTo::Fields(fields)) => {
                into.u32_be(attribute::DATA_TYPE, type_id(fields));
                into.u32_be(attribute::DATA_LEN, length(fields));
            }
        }
        into.u32_be(attribute::ID, id);
        into.nested(attribute::DESC, |desc| {
            if self.dynamic {
                desc.u32_be(attribute::DESC_SIZE, DYNAMIC_ELEMENTS_MAX);
            }
            if self.key.len() > 1 {
                desc.nested(attribute::DESC_CONCAT, |list| {
                    for field in &self.key {
                        list.nested(attribute::LIST_ELEM, |element| element.u32_be(attribute::FIELD_LEN, field.bytes()));
                    }
                });
            }
        });
    }
    fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.maps_to.is_some() {
            flags |= FLAG_MAP;
        }
        if self.dynamic {
            flags |= FLAG_TIMEOUT | FLAG_EVAL;
        }
        if self.intervals {
            flags |= FLAG_INTERVAL;
        }
        if self.key.len() > 1 {
            flags |= FLAG_CONCAT;
        }
        flags
    }
}

/// Concatenated types are six bits each, the first highest.
fn type_id(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |id, field| id << 6 | field.type_id())
}

fn length(fields: &[Field]) -> u32 {
    match fields {
        [only] => only.bytes(),
        _ => fields.iter().map(|field| field.registers() * 4).sum(),
    }
}

/// Key or value bytes as the kernel lays them out: every field of a concatenation padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub Vec<u8>);

impl Value {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn address(mut self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.0.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => self.0.extend_from_slice(&address.octets()),
        }
        self
    }
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.0.extend_from_slice(&[protocol, 0, 0, 0]);
        self
    }
    pub fn port(mut self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.0.extend_from_slice(&[high, low, 0, 0]);
        self
    }
    pub fn mark(mut self, mark: u32) -> Self {
        self.0.extend_from_slice(&mark.to_ne_bytes());
        self
    }
}

/// What a packet does next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    pub(crate) fn encode(&self, into: &mut Encoder) {
        const DATA_VERDICT: u16 = 2;
        const CODE: u16 = 1;
        const CHAIN: u16 = 2;
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        into.nested(DATA_VERDICT, |verdict| {
            verdict.u32_be(CODE, i32::cast_unsigned(code));
            if let Some(chain) = chain {
                verdict.string(CHAIN, chain);
            }
        });
    }
}

/// What an element of a map leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Value(Value),
    Verdict(Verdict),
}

/// An element of a set (`data` is `None`) or of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub key: Value,
    /// For sets of intervals (concatenated keys only).
    pub key_end: Option<Value>,
    pub data: Option<Data>,
    pub timeout: Option<Duration>,
}

impl Element {
    pub fn key(key: Value) -> Self {
        Self { key, key_end: None, data: None, timeout: None }
    }
    /// The range from `key` to `end`.
    pub fn range(key: Value, end: Value) -> Self {
        Self { key_end: Some(end), ..Self::key(key) }
    }
    pub fn verdict(key: Value, verdict: Verdict) -> Self {
        Self { key, key_end: None, data: Some(Data::Verdict(verdict)), timeout: None }
    }
    pub fn value(key: Value, value: Value) -> Self {
        Self { key, key_end: None, data: Some(Data::Value(value)), timeout: None }
    }
    /// An upper bound of its encoded length, so that lists can be cut below 64 KB.
    pub(crate) fn encoded_bytes_max(&self) -> usize {
        let data = match &self.data {
            None => 0,
            Some(Data::Value(value)) => 12 + value.0.len(),
            Some(Data::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => 32 + chain.len(),
            Some(Data::Verdict(_)) => 24,
        };
        let end = self.key_end.as_ref().map_or(0, |end| 12 + end.0.len());
        40 + self.key.0.len() + end + data
    }
    pub(crate) fn encode(&self, into: &mut Encoder) {
        const KEY: u16 = 1;
        const DATA: u16 = 2;
        const TIMEOUT: u16 = 4;
        const KEY_END: u16 = 10;
        const DATA_VALUE: u16 = 1;
        into.nested(KEY, |key| key.attribute(DATA_VALUE, &self.key.0));
        if let Some(end) = &self.key_end {
            into.nested(KEY_END, |key| key.attribute(DATA_VALUE, &end.0));
        }
        match &self.data {
            None => {}
            Some(Data::Value(value)) => into.nested(DATA, |data| data.attribute(DATA_VALUE, &value.0)),
            Some(Data::Verdict(verdict)) => into.nested(DATA, |data| verdict.encode(data)),
        }
        if let Some(timeout) = self.timeout {
            into.u64_be(TIMEOUT, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        }
    }
}
