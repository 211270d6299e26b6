//! Which parts of a cluster's range are given away.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::Node;

/// A range of the whole cluster, and how large a node's part of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterRange {
    pub address: IpAddr,
    pub prefix: u8,
    /// Prefix length of a node's part (upstream: `--node-cidr-mask-size`); not shorter than `prefix`.
    pub node_prefix: u8,
}

/// As many parts as are ever counted; a longer range has room enough.
const PARTS_MAX: u64 = 1 << 24;

/// The parts of one range by their number.
#[derive(Debug)]
pub(super) struct Ranges {
    range: ClusterRange,
    taken: BTreeSet<u64>,
    /// Where the search goes on: a freed part rests as long as possible.
    next: u64,
}

impl Ranges {
    pub fn new(range: ClusterRange) -> Self {
        Self { range, taken: BTreeSet::new(), next: 0 }
    }

    fn parts(&self) -> u64 {
        let bits = u32::from(self.range.node_prefix.saturating_sub(self.range.prefix));
        if bits >= 24 { PARTS_MAX } else { 1 << bits }
    }

    pub fn take(&mut self) -> Option<String> {
        let parts = self.parts();
        let free = (0..parts).map(|step| (self.next + step) % parts).find(|part| !self.taken.contains(part))?;
        self.taken.insert(free);
        self.next = (free + 1) % parts;
        Some(self.name(free))
    }

    pub fn claim(&mut self, cidr: &str) {
        if let Some(part) = self.number(cidr) {
            self.taken.insert(part);
        }
    }

    pub fn release(&mut self, cidr: &str) {
        if let Some(part) = self.number(cidr) {
            self.taken.remove(&part);
        }
    }

    /// Bits after a node's prefix.
    fn shift(&self) -> u32 {
        let bits: u8 = if self.range.address.is_ipv4() { 32 } else { 128 };
        u32::from(bits.saturating_sub(self.range.node_prefix))
    }

    fn name(&self, part: u64) -> String {
        let offset = u128::from(part).checked_shl(self.shift()).unwrap_or(0);
        let address = match self.range.address {
            IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(first.to_bits().wrapping_add(offset as u32))),
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits().wrapping_add(offset))),
        };
        format!("{address}/{}", self.range.node_prefix)
    }

    /// `None` for what is not exactly one of our parts.
    fn number(&self, cidr: &str) -> Option<u64> {
        let address = cidr.split_once('/')?.0;
        let offset = match (self.range.address, address.parse().ok()?) {
            (IpAddr::V4(first), IpAddr::V4(address)) => u128::from(address.to_bits().checked_sub(first.to_bits())?),
            (IpAddr::V6(first), IpAddr::V6(address)) => address.to_bits().checked_sub(first.to_bits())?,
            _ => return None,
        };
        let part = u64::try_from(offset.checked_shr(self.shift()).unwrap_or(0)).ok()?;
        (part < self.parts() && self.name(part) == cidr).then_some(part)
    }
}

/// What the node has; empty before it got anything.
pub(super) fn cidrs_of(node: &Node) -> &[String] {
    node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_given_once_come_back_after_the_others_and_run_out() {
        let mut ranges = Ranges::new(ClusterRange { address: [10, 244, 0, 0].into(), prefix: 16, node_prefix: 18 });
        assert_eq!(ranges.take().as_deref(), Some("10.244.0.0/18"));
        ranges.claim("10.244.64.0/18");
        // Not ours: another size, another range, nonsense.
        ["10.244.128.0/19", "10.200.0.0/18", "x", "10.244.1.0/18"].into_iter().for_each(|other| ranges.claim(other));
        assert_eq!(ranges.take().as_deref(), Some("10.244.128.0/18"));
        ranges.release("10.244.0.0/18");
        assert_eq!(ranges.take().as_deref(), Some("10.244.192.0/18"), "a freed part rests while there are others");
        assert_eq!(ranges.take().as_deref(), Some("10.244.0.0/18"));
        assert_eq!(ranges.take(), None);
    }

    #[test]
    fn a_range_of_ipv6_is_cut_the_same_way() {
        let mut ranges = Ranges::new(ClusterRange { address: "fd00:10:244::".parse().unwrap(), prefix: 56, node_prefix: 64 });
        assert_eq!(ranges.take().as_deref(), Some("fd00:10:244::/64"));
        assert_eq!(ranges.take().as_deref(), Some("fd00:10:244:1::/64"));
    }
}
