//! Which addresses of a range are taken.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Cidr;

/// More than any node has pods.
const OFFSETS_MAX: u64 = 1 << 24;
/// Offset 0 is the network's own address, 1 is kept for a gateway, as the host-local plugin does.
const FIRST_OFFSET: u64 = 2;

/// The addresses of one range, given out in turn so that a freed one rests as long as possible.
#[derive(Debug)]
pub struct Pool {
    cidr: Cidr,
    network: u128,
    /// `FIRST_OFFSET <= next < end` unless the range is too small for any address.
    next: u64,
    end: u64,
    taken: HashSet<u64>,
}

impl Pool {
    pub fn new(cidr: Cidr) -> Self {
        let (address, prefix) = cidr;
        let (bits, value) = match address {
            IpAddr::V4(address) => (32, u128::from(address.to_bits())),
            IpAddr::V6(address) => (128, address.to_bits()),
        };
        let host_bits = u32::from(bits - prefix.min(bits));
        let size = if host_bits >= 24 { OFFSETS_MAX } else { 1 << host_bits };
        let network = value.checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0);
        // The last IPv4 address is the broadcast address.
        let end = if address.is_ipv4() { size - 1 } else { size };
        Self { cidr, network, next: FIRST_OFFSET, end, taken: HashSet::new() }
    }
    /// The next free one in turn.
    pub fn take(&mut self) -> Option<IpAddr> {
        let usable = self.end.saturating_sub(FIRST_OFFSET);
        for _ in 0..usable {
            let offset = self.next;
            self.advance(offset);
            if self.taken.insert(offset) {
                return Some(self.address(offset));
            }
        }
        None
    }
    /// Takes this very one (from a state file). False when it is not of this range.
    pub fn claim(&mut self, address: IpAddr) -> bool {
        match self.offset(address) {
            Some(offset) => {
                self.taken.insert(offset);
                true
            }
            None => false,
        }
    }
    pub fn release(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.taken.remove(&offset);
        }
    }
    /// Continue after `address`, the last one that was ever given out.
    pub fn resume_after(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.advance(offset);
        }
    }
    pub fn name(&self) -> String {
        format!("{}/{}", self.cidr.0, self.cidr.1)
    }
    fn advance(&mut self, from: u64) {
        self.next = if from + 1 < self.end { from + 1 } else { FIRST_OFFSET };
    }
    fn address(&self, offset: u64) -> IpAddr {
        let value = self.network + u128::from(offset);
        match self.cidr.0 {
            IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(value).unwrap_or(u32::MAX)).into(),
            IpAddr::V6(_) => Ipv6Addr::from_bits(value).into(),
        }
    }
    fn offset(&self, address: IpAddr) -> Option<u64> {
        let value = match (address, self.cidr.0) {
            (IpAddr::V4(address), IpAddr::V4(_)) => u128::from(address.to_bits()),
            (IpAddr::V6(address), IpAddr::V6(_)) => address.to_bits(),
            _ => return None,
        };
        let offset = u64::try_from(value.checked_sub(self.network)?).ok()?;
        (FIRST_OFFSET..self.end).contains(&offset).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str) -> Pool {
        let (address, prefix) = cidr.split_once('/').unwrap();
        Pool::new((address.parse().unwrap(), prefix.parse().unwrap()))
    }

    #[test]
    fn network_gateway_and_broadcast_addresses_are_never_given_out() {
        for (cidr, expected) in [
            ("10.244.0.0/30", vec!["10.244.0.2"]),
            ("10.244.0.8/29", vec!["10.244.0.10", "10.244.0.11", "10.244.0.12", "10.244.0.13", "10.244.0.14"]),
            ("10.244.0.0/31", vec![]),
            ("10.244.0.1/32", vec![]),
            ("fd00::/126", vec!["fd00::2", "fd00::3"]),
        ] {
            let mut pool = pool(cidr);
            let given: Vec<String> = std::iter::from_fn(|| pool.take()).map(|address| address.to_string()).collect();
            assert_eq!(given, expected, "{cidr}");
        }
    }

    #[test]
    fn a_freed_address_rests_until_all_others_had_their_turn() {
        let mut pool = pool("10.244.0.0/29");
        let first = pool.take().unwrap();
        pool.release(first);
        let next: Vec<IpAddr> = (0..4).map(|_| pool.take().unwrap()).collect();
        assert!(!next.contains(&first));
        assert_eq!(pool.take(), Some(first));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn addresses_of_another_range_are_not_claimed() {
        let mut pool = pool("10.244.1.0/24");
        assert!(pool.claim("10.244.1.9".parse().unwrap()));
        for foreign in ["10.244.2.9", "10.244.1.0", "fd00::9", "0.0.0.0"] {
            assert!(!pool.claim(foreign.parse().unwrap()), "{foreign}");
        }
    }
}
