//! Cluster addresses and node ports of Services.
//!
//! Which ones are taken is kept in memory and filled from the Services at start: the objects themselves are the record. A write
//! reserves what it needs; the [`Reservation`] gives it back unless the write succeeded.
//!
//! Source: `pkg/registry/core/service/storage/alloc.go`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use meta::field::{self, Path};
use serde_json::{Value, json};

use super::catalog::Kind;
use crate::cache::Caches;

mod families;
mod ranges;

/// The ranges from which addresses and ports are given out.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// One, or one of each IP family; Services that do not choose get the first's.
    pub networks: Vec<Network>,
    pub node_ports: std::ops::RangeInclusive<u16>,
}

/// A range of Services' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub first: IpAddr,
    pub prefix: u8,
}

/// More addresses of one range are never given out; upstream refuses IPv6 ranges that are larger than this many bits.
const OFFSET_BITS_MAX: u32 = 20;

impl Default for Ranges {
    fn default() -> Self {
        Self { networks: vec![Network { first: Ipv4Addr::new(10, 96, 0, 0).into(), prefix: 16 }], node_ports: 30_000..=32_767 }
    }
}

impl Ranges {
    /// The first usable address: the `kubernetes` Service's.
    pub fn first(&self) -> IpAddr {
        self.networks.first().map_or(Ipv4Addr::UNSPECIFIED.into(), |network| network.nth(1))
    }
    fn of(&self, family: &str) -> Option<Network> {
        self.networks.iter().copied().find(|network| network.family() == family)
    }
}

impl Network {
    /// As `spec.ipFamilies` has it.
    pub fn family(&self) -> &'static str {
        family_of(self.first)
    }
    fn bits(&self) -> u32 {
        if self.first.is_ipv4() { 32 } else { 128 }
    }
    fn size(&self) -> u32 {
        1 << (self.bits() - u32::from(self.prefix).min(self.bits())).min(if self.first.is_ipv4() { 31 } else { OFFSET_BITS_MAX })
    }
    fn nth(&self, offset: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().wrapping_add(offset)).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().wrapping_add(offset.into())).into(),
        }
    }
    /// The network's own address and the last one are nobody's.
    fn contains(&self, address: IpAddr) -> bool {
        let (at, first) = match (address, self.first) {
            (IpAddr::V4(address), IpAddr::V4(first)) => (u128::from(address.to_bits()), u128::from(first.to_bits())),
            (IpAddr::V6(address), IpAddr::V6(first)) => (address.to_bits(), first.to_bits()),
            _ => return false,
        };
        let host_bits = self.bits() - u32::from(self.prefix).min(self.bits());
        let last = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        at > first && at - first < last
    }
}

fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

pub struct Allocators {
    pub ranges: Ranges,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
}

/// What a write took; given back when dropped, unless kept.
pub struct Reservation<'a> {
    allocators: &'a Allocators,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    kept: bool,
}

impl Reservation<'_> {
    /// The write succeeded.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let mut taken = self.allocators.lock();
            for address in &self.addresses {
                taken.addresses.remove(address);
            }
            for port in &self.ports {
                taken.ports.remove(port);
            }
        }
    }
}

impl Allocators {
    pub fn new(ranges: Ranges) -> Self {
        Self { ranges, taken: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a stored Service in.
    pub fn occupy(&self, service: &Value) {
        let mut taken = self.lock();
        taken.addresses.extend(addresses(service));
        taken.ports.extend(ports(service));
    }

    /// Gives the Service what it needs and lacks. What `old` has is its own already. A dry run shows what would be given and does not keep it.
    pub fn reserve(
        &self,
        kind: &Kind,
        service: &mut Value,
        old: Option<&Value>,
        caches: &Caches,
    ) -> Result<Reservation<'_>, Vec<field::Error>> {
        let mut reserved = Reservation { allocators: self, addresses: Vec::new(), ports: Vec::new(), kept: false };
        if kind.facts.plural != "services" {
            return Ok(reserved);
        }
        self.reserve_addresses(service, old, caches, &mut reserved)?;
        self.reserve_ports(service, old, &mut reserved).map_err(|error| vec![error])?;
        Ok(reserved)
    }

    fn reserve_addresses(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        caches: &Caches,
        reserved: &mut Reservation<'_>,
    ) -> Result<(), Vec<field::Error>> {
        if service["spec"]["type"] == "ExternalName" {
            return Ok(());
        }
        families::settle(&mut service["spec"], old.map(|old| &old["spec"]), &self.ranges)?;
        let spec = &mut service["spec"];
        if spec["clusterIP"] == "None" {
            spec["clusterIPs"] = json!(["None"]);
            return Ok(());
        }
        let before = old.map(addresses).unwrap_or_default();
        let families: Vec<String> = strings(&spec["ipFamilies"]);
        let given = strings(&spec["clusterIPs"]);
        let mut all = Vec::new();
        for (index, family) in families.iter().enumerate() {
            let address = match given.get(index) {
                Some(text) => self.reserve_given(text, &before, caches, reserved),
                None => self.reserve_free(family, caches, reserved),
            };
            all.push(address.map_err(|error| vec![error])?);
        }
        spec["clusterIP"] = json!(all.first());
        spec["clusterIPs"] = json!(all);
        Ok(())
    }

    fn reserve_free(&self, family: &str, caches: &Caches, reserved: &mut Reservation<'_>) -> Result<String, field::Error> {
        let full = || field::Error::invalid(&addresses_path(), json!([]), "failed to allocate a serviceIP: range is full");
        let networks = ranges::ready(&self.ranges.networks, caches).into_iter().filter(|network| network.family() == family);
        let address = networks.into_iter().find_map(|network| self.free_address(network, caches)).ok_or_else(full)?;
        reserved.addresses.push(address);
        Ok(address.to_string())
    }

    fn reserve_given(
        &self,
        text: &str,
        before: &[IpAddr],
        caches: &Caches,
        reserved: &mut Reservation<'_>,
    ) -> Result<String, field::Error> {
        let refuse = |why: &str| field::Error::invalid(&addresses_path(), json!([text]), format!("failed to allocate IP {text}: {why}"));
        let Ok(address) = text.parse::<IpAddr>() else { return Err(refuse("the provided IP is not an IP address")) };
        if before.contains(&address) {
            return Ok(text.to_owned());
        }
        if !ranges::ready(&self.ranges.networks, caches).iter().any(|network| network.contains(address)) {
            return Err(refuse("the provided network does not match the current range"));
        }
        if ranges::is_anothers(address, caches) || !self.lock().addresses.insert(address) {
            return Err(refuse("provided IP is already allocated"));
        }
        reserved.addresses.push(address);
        Ok(text.to_owned())
    }

    /// At random in the upper part of the range first; the lower part is for addresses that people choose (KEP-3070).
    fn free_address(&self, network: Network, caches: &Caches) -> Option<IpAddr> {
        let size = network.size();
        let reserved = (size / 16).clamp(16, 256).min(size / 2);
        let mut taken = self.lock();
        let start = reserved + random_below(size.saturating_sub(reserved + 1).max(1));
        let upper = (start..size.saturating_sub(1)).chain(reserved..start);
        let mut all = upper.chain(1..reserved).map(|offset| network.nth(offset)).filter(|address| network.contains(*address));
        let address = all.find(|address| !taken.addresses.contains(address) && !ranges::is_anothers(*address, caches))?;
        taken.addresses.insert(address);
        Some(address)
    }

    fn reserve_ports(&self, service: &mut Value, old: Option<&Value>, reserved: &mut Reservation<'_>) -> Result<(), field::Error> {
        if !matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
            return Ok(());
        }
        let before: BTreeSet<u16> = old.map(ports).unwrap_or_default().into_iter().collect();
        let allocate = service["spec"]["allocateLoadBalancerNodePorts"] != json!(false) || service["spec"]["type"] == "NodePort";
        let mut own = before;
        for (index, port) in service["spec"]["ports"].as_array_mut().into_iter().flatten().enumerate() {
            let path = Path::new("spec").child("ports").index(index).child("nodePort");
            let wanted = port["nodePort"].as_u64().and_then(|number| u16::try_from(number).ok()).unwrap_or(0);
            match wanted {
                0 if allocate => {
                    let number =
                        self.free_port().ok_or_else(|| field::Error::invalid(&path, 0, "failed to allocate a nodePort: range is full"))?;
                    reserved.ports.push(number);
                    own.insert(number);
                    port["nodePort"] = number.into();
                }
                0 => {}
                // The same number may stand for TCP and UDP of one Service.
                number if own.contains(&number) => {}
                number => {
                    if !self.ranges.node_ports.contains(&number) {
                        let (low, high) = (self.ranges.node_ports.start(), self.ranges.node_ports.end());
                        let why = format!("provided port is not in the valid range. The range of valid ports is {low}-{high}");
                        return Err(field::Error::invalid(&path, number, why));
                    }
                    if !self.lock().ports.insert(number) {
                        return Err(field::Error::invalid(&path, number, "provided port is already allocated"));
                    }
                    reserved.ports.push(number);
                    own.insert(number);
                }
            }
        }
        self.reserve_health_port(service, old, reserved)
    }

    fn reserve_health_port(&self, service: &mut Value, old: Option<&Value>, reserved: &mut Reservation<'_>) -> Result<(), field::Error> {
        let spec = &service["spec"];
        let needs = spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local";
        let wanted = spec["healthCheckNodePort"].as_u64().unwrap_or(0);
        let kept = old.is_some_and(|old| old["spec"]["healthCheckNodePort"].as_u64() == Some(wanted));
        if !needs || (wanted != 0 && kept) {
            return Ok(());
        }
        let path = Path::new("spec").child("healthCheckNodePort");
        let number = match u16::try_from(wanted) {
            Ok(0) => self.free_port(),
            Ok(number) => self.lock().ports.insert(number).then_some(number),
            Err(_) => None,
        };
        let number = number.ok_or_else(|| field::Error::invalid(&path, wanted, "provided port is already allocated"))?;
        reserved.ports.push(number);
        service["spec"]["healthCheckNodePort"] = number.into();
        Ok(())
    }

    fn free_port(&self) -> Option<u16> {
        let (low, high) = (u32::from(*self.ranges.node_ports.start()), u32::from(*self.ranges.node_ports.end()));
        let start = low + random_below(high - low + 1);
        let mut taken = self.lock();
        let number = (start..=high)
            .chain(low..start)
            .filter_map(|number| u16::try_from(number).ok())
            .find(|number| !taken.ports.contains(number))?;
        taken.ports.insert(number);
        Some(number)
    }

    /// After a write: what `old` had and `new` (`None`: deleted) has not is free again.
    pub fn release_unused(&self, kind: &Kind, old: &Value, new: Option<&Value>) {
        if kind.facts.plural != "services" {
            return;
        }
        let (kept_addresses, kept_ports) = (new.map(addresses).unwrap_or_default(), new.map(ports).unwrap_or_default());
        let mut taken = self.lock();
        for address in addresses(old).into_iter().filter(|address| !kept_addresses.contains(address)) {
            taken.addresses.remove(&address);
        }
        for port in ports(old).into_iter().filter(|port| !kept_ports.contains(port)) {
            taken.ports.remove(&port);
        }
    }
}

fn addresses_path() -> Path {
    Path::new("spec").child("clusterIPs")
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn addresses(service: &Value) -> Vec<IpAddr> {
    let list = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    let all = list.chain(service["spec"].get("clusterIP"));
    let mut found: Vec<IpAddr> = all.filter_map(|text| text.as_str()?.parse().ok()).collect();
    found.sort();
    found.dedup();
    found
}

fn ports(service: &Value) -> Vec<u16> {
    let own = service["spec"]["ports"].as_array().into_iter().flatten().filter_map(|port| port["nodePort"].as_u64());
    let health = service["spec"]["healthCheckNodePort"].as_u64();
    own.chain(health).filter_map(|number| u16::try_from(number).ok()).filter(|number| *number != 0).collect()
}

/// Uniform enough below `bound`, which is not 0.
fn random_below(bound: u32) -> u32 {
    let mut bytes = [0_u8; 4];
    // Without randomness the lowest free one is given, which is correct too.
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes) % bound.max(1)
}
