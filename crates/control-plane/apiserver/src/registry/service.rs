//! Cluster addresses and node ports of Services.
//!
//! Which ones are taken is kept in memory and filled from the Services at start: the objects themselves are the record. A write
//! reserves what it needs; the [`Reservation`] gives it back unless the write succeeded.
//!
//! Source: `pkg/registry/core/service/storage/alloc.go`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use meta::field::{self, Path};
use serde_json::{Value, json};

use super::catalog::Kind;

/// The ranges from which addresses and ports are given out.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// The network's first address and its prefix length.
    pub network: Ipv4Addr,
    pub prefix: u8,
    pub node_ports: std::ops::RangeInclusive<u16>,
}

impl Default for Ranges {
    fn default() -> Self {
        Self { network: Ipv4Addr::new(10, 96, 0, 0), prefix: 16, node_ports: 30_000..=32_767 }
    }
}

impl Ranges {
    /// The first usable address: the `kubernetes` Service's.
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }
    fn size(&self) -> u32 {
        1_u32.checked_shl(32 - u32::from(self.prefix.clamp(1, 32))).unwrap_or(u32::MAX)
    }
    fn contains(&self, address: Ipv4Addr) -> bool {
        let (at, first) = (u32::from(address), u32::from(self.network));
        at > first && at - first < self.size().saturating_sub(1)
    }
    fn words(&self) -> String {
        format!("{}/{}", self.network, self.prefix)
    }
}

pub struct Allocators {
    pub ranges: Ranges,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    addresses: BTreeSet<u32>,
    ports: BTreeSet<u16>,
}

/// What a write took; given back when dropped, unless kept.
pub struct Reservation<'a> {
    allocators: &'a Allocators,
    addresses: Vec<Ipv4Addr>,
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
                taken.addresses.remove(&u32::from(*address));
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
        taken.addresses.extend(addresses(service).into_iter().map(u32::from));
        taken.ports.extend(ports(service));
    }

    /// Gives the Service what it needs and lacks. What `old` has is its own already. A dry run shows what would be given and does not keep it.
    pub fn reserve(&self, kind: &Kind, service: &mut Value, old: Option<&Value>) -> Result<Reservation<'_>, Vec<field::Error>> {
        let mut reserved = Reservation { allocators: self, addresses: Vec::new(), ports: Vec::new(), kept: false };
        if kind.facts.plural != "services" {
            return Ok(reserved);
        }
        self.reserve_address(service, old, &mut reserved).map_err(|error| vec![error])?;
        self.reserve_ports(service, old, &mut reserved).map_err(|error| vec![error])?;
        Ok(reserved)
    }

    fn reserve_address(&self, service: &mut Value, old: Option<&Value>, reserved: &mut Reservation<'_>) -> Result<(), field::Error> {
        let given = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
        if service["spec"]["type"] == "ExternalName" {
            return Ok(());
        }
        if given == "None" {
            self.describe(service, "None");
            return Ok(());
        }
        let before = old.map(addresses).unwrap_or_default();
        let path = Path::new("spec").child("clusterIPs");
        let refuse = |text: &str, why: String| field::Error::invalid(&path, json!([text]), format!("failed to allocate IP {text}: {why}"));
        if given.is_empty() {
            let address = self
                .free_address()
                .ok_or_else(|| field::Error::invalid(&path, json!([]), "failed to allocate a serviceIP: range is full"))?;
            reserved.addresses.push(address);
            self.describe(service, &address.to_string());
            return Ok(());
        }
        let Ok(address) = given.parse::<Ipv4Addr>() else {
            return Err(refuse(&given, "the provided IP is not an IPv4 address".into()));
        };
        if !before.contains(&address) {
            if !self.ranges.contains(address) {
                let why = format!("the provided IP ({given}) is not in the valid range. The range of valid IPs is {}", self.ranges.words());
                return Err(refuse(&given, why));
            }
            if !self.lock().addresses.insert(u32::from(address)) {
                return Err(refuse(&given, "provided IP is already allocated".into()));
            }
            reserved.addresses.push(address);
        }
        self.describe(service, &given);
        Ok(())
    }

    /// Sets the fields that say the same thing in several ways. IPv4 single stack is what there is.
    fn describe(&self, service: &mut Value, address: &str) {
        let spec = &mut service["spec"];
        spec["clusterIP"] = address.into();
        spec["clusterIPs"] = json!([address]);
        let has_selector = spec["selector"].as_object().is_some_and(|selector| !selector.is_empty());
        if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
            spec["ipFamilies"] = json!(["IPv4"]);
        }
        if spec["ipFamilyPolicy"].as_str().is_none_or(str::is_empty) {
            let policy = if address == "None" && !has_selector { "RequireDualStack" } else { "SingleStack" };
            spec["ipFamilyPolicy"] = policy.into();
        }
    }

    /// At random in the upper part of the range first; the lower part is for addresses that people choose (KEP-3070).
    fn free_address(&self) -> Option<Ipv4Addr> {
        let size = self.ranges.size();
        let reserved = (size / 16).clamp(16, 256).min(size / 2);
        let mut taken = self.lock();
        let first = u32::from(self.ranges.network);
        let start = reserved + random_below(size.saturating_sub(reserved + 1).max(1));
        let upper = (start..size.saturating_sub(1)).chain(reserved..start);
        let offset = upper.chain(1..reserved).find(|offset| !taken.addresses.contains(&(first + offset)))?;
        taken.addresses.insert(first + offset);
        Some(Ipv4Addr::from(first + offset))
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
            taken.addresses.remove(&u32::from(address));
        }
        for port in ports(old).into_iter().filter(|port| !kept_ports.contains(port)) {
            taken.ports.remove(&port);
        }
    }
}

fn addresses(service: &Value) -> Vec<Ipv4Addr> {
    let list = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    let all = list.chain(service["spec"].get("clusterIP"));
    let mut found: Vec<Ipv4Addr> = all.filter_map(|text| text.as_str()?.parse().ok()).collect();
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
