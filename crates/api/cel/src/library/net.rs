//! IP addresses and CIDR ranges.

use std::fmt;
use std::net::IpAddr;

use super::{Called, Opaque};
use crate::error::EvalError;
use crate::value::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip(pub IpAddr);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Ip {
    /// Zones and IPv4-mapped IPv6 addresses are refused, as upstream.
    fn parse(text: &str) -> Result<Self, EvalError> {
        let address: IpAddr = text.parse().map_err(|_| {
            EvalError::failed(format!(
                "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
            ))
        })?;
        match address {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
                Err(EvalError::failed(format!("IPv4-mapped IPv6 address {text:?} is not allowed")))
            }
            address => Ok(Ip(address)),
        }
    }
    pub fn bytes(self) -> u64 {
        if self.0.is_ipv4() { 4 } else { 16 }
    }
}

impl Cidr {
    fn parse(text: &str) -> Result<Self, EvalError> {
        let wrong = || EvalError::failed(format!("network address parse error during conversion from string: {text:?}"));
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = Ip::parse(address).map_err(|_| wrong())?.0;
        let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit()) && (prefix == "0" || !prefix.starts_with('0'));
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if !digits || prefix > most { Err(wrong()) } else { Ok(Cidr { address, prefix }) }
    }

    fn masked(self) -> Self {
        Self { address: mask(self.address, self.prefix), ..self }
    }
    fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && mask(address, self.prefix) == mask(self.address, self.prefix)
    }
    fn contains_range(self, other: Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let keep = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & keep).into())
        }
        IpAddr::V6(v6) => {
            let keep = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & keep).into())
        }
    }
}

fn ip<'a>(address: IpAddr) -> Value<'a> {
    Value::Opaque(Opaque::Ip(Ip(address)))
}

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    Some(match (function, args) {
        ("ip", [Value::String(text)]) => Ip::parse(text).map(|found| ip(found.0)),
        ("ip", [Value::Opaque(Opaque::Cidr(cidr))]) => Ok(ip(cidr.address)),
        ("isIP", [Value::String(text)]) => Ok(Value::Bool(Ip::parse(text).is_ok())),
        ("ip.isCanonical", [Value::String(text)]) => Ip::parse(text).map(|found| Value::Bool(found.to_string() == **text)),
        ("cidr", [Value::String(text)]) => Cidr::parse(text).map(|cidr| Value::Opaque(Opaque::Cidr(cidr))),
        ("isCIDR", [Value::String(text)]) => Ok(Value::Bool(Cidr::parse(text).is_ok())),
        (_, [Value::Opaque(Opaque::Ip(address))]) => return property(function, address.0).map(Ok),
        (_, [Value::Opaque(Opaque::Cidr(cidr)), rest @ ..]) => return range(function, *cidr, rest),
        _ => return None,
    })
}

fn property<'a>(function: &str, address: IpAddr) -> Option<Value<'a>> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_local_multicast = match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    Some(match function {
        "family" => Value::Int(if address.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(address.is_unspecified()),
        "isLoopback" => Value::Bool(address.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(link_local_multicast),
        "isLinkLocalUnicast" => Value::Bool(link_local),
        "isGlobalUnicast" => {
            Value::Bool(!address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !link_local && !broadcast)
        }
        _ => return None,
    })
}

fn range<'a>(function: &str, cidr: Cidr, rest: &[Value<'a>]) -> Option<Called<'a>> {
    Some(match (function, rest) {
        ("containsIP", [Value::Opaque(Opaque::Ip(address))]) => Ok(Value::Bool(cidr.contains(address.0))),
        ("containsIP", [Value::String(text)]) => Ip::parse(text).map(|address| Value::Bool(cidr.contains(address.0))),
        ("containsCIDR", [Value::Opaque(Opaque::Cidr(other))]) => Ok(Value::Bool(cidr.contains_range(*other))),
        ("containsCIDR", [Value::String(text)]) => Cidr::parse(text).map(|other| Value::Bool(cidr.contains_range(other))),
        ("masked", []) => Ok(Value::Opaque(Opaque::Cidr(cidr.masked()))),
        ("prefixLength", []) => Ok(Value::Int(cidr.prefix.into())),
        _ => return None,
    })
}
