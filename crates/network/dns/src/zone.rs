//! The records of the cluster domain, by Service. Pure: objects in, records out.
//!
//! Records are not stored but made when asked, from a few strings and addresses per Service: a question's labels say where to look.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Seconds; kubeadm's setting of CoreDNS.
pub const TTL: u32 = 30;
/// The version of the specification, as upstream answers it.
const SCHEMA_VERSION: &str = "1.1.0";

/// What the zone says to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// An ExternalName Service: the rest is to be asked under the other name.
    Alias {
        record: Box<Record>,
        target: Name,
    },
    /// The name exists without such records.
    NoData,
    NoName,
    /// Outside the cluster domain.
    NotOurs,
}

/// One Service's part of the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRecords {
    ClusterIps { addresses: Vec<IpAddr>, ports: Vec<Port> },
    Headless(Vec<Endpoint>),
    ExternalName(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Empty for the only port of a Service.
    pub name: String,
    /// Lower case.
    pub protocol: String,
    pub port: u16,
}

/// An endpoint of a headless Service, under its own name `hostname.service.namespace.svc.domain`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's, or the address with dashes.
    pub hostname: String,
    pub address: IpAddr,
    pub ports: Vec<Port>,
}

/// Namespace and name.
type Key = (String, String);

/// The whole zone.
#[derive(Debug)]
pub struct Zone {
    domain: Name,
    /// The domain's labels, lower case.
    suffix: Vec<Vec<u8>>,
    services: HashMap<Key, ServiceRecords>,
    namespaces: HashSet<String>,
    /// Reverse: address → names relative to `svc.<domain>`.
    by_address: HashMap<IpAddr, BTreeMap<Key, Vec<String>>>,
}

impl Zone {
    /// `None` when `domain` is not a domain name.
    pub fn new(domain: &str) -> Option<Self> {
        let mut domain = Name::from_ascii(domain).ok().filter(|domain| domain.num_labels() > 0)?.to_lowercase();
        domain.set_fqdn(true);
        let suffix = domain.iter().map(<[u8]>::to_vec).collect();
        Some(Self { domain, suffix, services: HashMap::new(), namespaces: HashSet::new(), by_address: HashMap::new() })
    }

    pub fn add_namespace(&mut self, name: &str) {
        self.namespaces.insert(name.to_owned());
    }
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Replaces the records of one Service; `None` removes them. False where they are the same: most changes of endpoints change no name.
    pub fn set_service(&mut self, namespace: &str, name: &str, records: Option<ServiceRecords>) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        if self.services.get(&key) == records.as_ref() {
            return false;
        }
        if let Some(old) = self.services.remove(&key) {
            for (address, _) in reverse(&key, &old) {
                if let Some(names) = self.by_address.get_mut(&address) {
                    names.remove(&key);
                    if names.is_empty() {
                        self.by_address.remove(&address);
                    }
                }
            }
        }
        if let Some(records) = records {
            for (address, name) in reverse(&key, &records) {
                self.by_address.entry(address).or_default().entry(key.clone()).or_default().push(name);
            }
            self.services.insert(key, records);
        }
        true
    }

    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// `name` may have any case; answers repeat it as it was asked.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let labels: Vec<Vec<u8>> = name.iter().map(<[u8]>::to_ascii_lowercase).collect();
        if let Some(relative) = labels.strip_suffix(&self.suffix[..]) {
            return match relative.iter().map(|label| std::str::from_utf8(label)).collect::<Result<Vec<&str>, _>>() {
                Ok(relative) => self.relative(name, &relative, kind),
                Err(_) => Answer::NoName,
            };
        }
        reverse_address(&labels).map_or(Answer::NotOurs, |address| self.pointer(name, address, kind))
    }

    /// The further names that a pod of `namespace` would try after this one, where it is a name of two or more labels below the first domain of the
    /// pod's search path: `web.prod.default.svc.cluster.local` in `default` may mean `web.prod.svc.cluster.local` or `web.prod`.
    pub fn search_path(&self, name: &Name, namespace: &str) -> Vec<Name> {
        let labels: Vec<&[u8]> = name.iter().collect();
        let suffix: Vec<&[u8]> = self.suffix.iter().map(Vec::as_slice).collect();
        let first = [&[namespace.as_bytes(), b"svc"][..], &suffix].concat();
        let Some(split) = labels.len().checked_sub(first.len()).filter(|split| *split >= 2) else { return Vec::new() };
        let (head, tail) = labels.split_at(split);
        if !tail.iter().zip(&first).all(|(label, wanted)| label.eq_ignore_ascii_case(wanted)) {
            return Vec::new();
        }
        let whole = |tail: &[&[u8]]| {
            let mut name = Name::from_labels([head, tail].concat()).ok()?;
            name.set_fqdn(true);
            Some(name)
        };
        [&first[1..], &suffix, &[]].into_iter().filter_map(whole).collect()
    }

    /// For the authority section of negative answers; its minimum is how long they may be cached.
    pub fn soa(&self) -> Record {
        let under = |label: &str| self.name(label).unwrap_or_else(|| self.domain.clone());
        // The serial has no meaning: there are no secondaries.
        let soa = SOA::new(under("ns.dns"), under("hostmaster"), 1, 7200, 1800, 86_400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    fn relative(&self, name: &Name, labels: &[&str], kind: RecordType) -> Answer {
        let any = kind == RecordType::ANY;
        match labels {
            [] if kind == RecordType::SOA || any => records(vec![self.soa()]),
            [] | ["svc"] | ["pod"] => Answer::NoData,
            ["dns-version"] if kind == RecordType::TXT || any => {
                records(vec![Record::from_rdata(name.clone(), TTL, RData::TXT(TXT::new(vec![SCHEMA_VERSION.into()])))])
            }
            ["dns-version"] => Answer::NoData,
            [namespace, "svc" | "pod"] => self.namespace(namespace),
            [address, namespace, "pod"] => self.pod(name, address, namespace, kind),
            [service, namespace, "svc"] => self.service(name, namespace, service, kind),
            [hostname, service, namespace, "svc"] => self.endpoint(name, namespace, service, hostname, kind),
            [port, protocol, service, namespace, "svc"] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) => self.port(name, namespace, service, Some((port, protocol)), kind),
                _ => Answer::NoName,
            },
            _ => Answer::NoName,
        }
    }

    fn namespace(&self, namespace: &str) -> Answer {
        if self.namespaces.contains(namespace) { Answer::NoData } else { Answer::NoName }
    }

    /// `10-244-0-7.namespace.pod.domain`: any address, as long as the namespace exists.
    fn pod(&self, name: &Name, address: &str, namespace: &str, kind: RecordType) -> Answer {
        match dashed_address(address).filter(|_| self.namespaces.contains(namespace)) {
            Some(address) => addresses(name, &[address], kind),
            None => Answer::NoName,
        }
    }

    fn service(&self, name: &Name, namespace: &str, service: &str, kind: RecordType) -> Answer {
        match self.get(namespace, service) {
            None => Answer::NoName,
            Some(ServiceRecords::ExternalName(target)) => alias(name, target),
            Some(_) if kind == RecordType::SRV => self.port(name, namespace, service, None, kind),
            Some(ServiceRecords::ClusterIps { addresses: ips, .. }) => addresses(name, ips, kind),
            Some(ServiceRecords::Headless(endpoints)) => {
                let mut ips: Vec<IpAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
                ips.sort();
                ips.dedup();
                addresses(name, &ips, kind)
            }
        }
    }

    fn endpoint(&self, name: &Name, namespace: &str, service: &str, hostname: &str, kind: RecordType) -> Answer {
        let Some(ServiceRecords::Headless(endpoints)) = self.get(namespace, service) else { return Answer::NoName };
        let mut ips: Vec<IpAddr> =
            endpoints.iter().filter(|endpoint| endpoint.hostname == hostname).map(|endpoint| endpoint.address).collect();
        ips.sort();
        ips.dedup();
        addresses(name, &ips, kind)
    }

    /// SRV of one port (`_name._protocol`) or of all.
    fn port(&self, name: &Name, namespace: &str, service: &str, wanted: Option<(&str, &str)>, kind: RecordType) -> Answer {
        let matches = |port: &&Port| wanted.is_none_or(|(name, protocol)| port.name == name && port.protocol == protocol);
        let targets: Vec<(String, Vec<IpAddr>, u16)> = match self.get(namespace, service) {
            Some(ServiceRecords::ClusterIps { addresses, ports }) => {
                let target = format!("{service}.{namespace}.svc");
                ports.iter().filter(matches).map(|port| (target.clone(), addresses.clone(), port.port)).collect()
            }
            Some(ServiceRecords::Headless(endpoints)) => endpoints
                .iter()
                .flat_map(|endpoint| {
                    let target = format!("{}.{service}.{namespace}.svc", endpoint.hostname);
                    endpoint.ports.iter().filter(matches).map(move |port| (target.clone(), vec![endpoint.address], port.port))
                })
                .collect(),
            _ => Vec::new(),
        };
        if targets.is_empty() {
            return Answer::NoName;
        }
        if !matches!(kind, RecordType::SRV | RecordType::ANY) {
            return Answer::NoData;
        }
        let weight = u16::try_from(100 / targets.len().min(100)).unwrap_or(1);
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        for (target, ips, port) in targets {
            let Some(target) = self.name(&target) else { continue };
            answers.push(Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, weight, port, target.clone()))));
            let hints = ips.into_iter().map(|ip| Record::from_rdata(target.clone(), TTL, data(ip)));
            additionals.extend(hints.filter(|hint| !additionals.contains(hint)).collect::<Vec<_>>());
        }
        Answer::Records { answers, additionals }
    }

    /// A reverse question that we cannot answer may be about anything: it goes to the host's resolvers.
    fn pointer(&self, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        let Some(names) = self.by_address.get(&address).filter(|_| matches!(kind, RecordType::PTR | RecordType::ANY)) else {
            return Answer::NotOurs;
        };
        let targets = names.values().flatten().filter_map(|target| self.name(&format!("{target}.svc")));
        records(targets.map(|target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))).collect())
    }

    fn get(&self, namespace: &str, service: &str) -> Option<&ServiceRecords> {
        self.services.get(&(namespace.to_owned(), service.to_owned()))
    }
    /// `relative` under the domain.
    fn name(&self, relative: &str) -> Option<Name> {
        Name::from_ascii(relative).ok()?.append_domain(&self.domain).ok()
    }
}

fn records(answers: Vec<Record>) -> Answer {
    Answer::Records { answers, additionals: Vec::new() }
}

fn alias(name: &Name, target: &str) -> Answer {
    let Ok(mut target) = Name::from_ascii(target) else { return Answer::NoData };
    target.set_fqdn(true);
    Answer::Alias { record: Box::new(alias_record(name, target.clone())), target }
}

pub fn alias_record(name: &Name, target: Name) -> Record {
    Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target)))
}

/// An existing name's addresses of the asked family. A name without any address does not exist (a headless Service without endpoints).
fn addresses(name: &Name, ips: &[IpAddr], kind: RecordType) -> Answer {
    if ips.is_empty() {
        return Answer::NoName;
    }
    let found = address_records(name, ips, kind);
    if found.is_empty() { Answer::NoData } else { records(found) }
}

/// Those of the asked family.
pub fn address_records(name: &Name, ips: &[IpAddr], kind: RecordType) -> Vec<Record> {
    let wanted = |ip: &&IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    ips.iter().filter(wanted).map(|ip| Record::from_rdata(name.clone(), TTL, data(*ip))).collect()
}

fn data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

/// The addresses of a Service and the names they have, relative to `svc.<domain>`.
fn reverse((namespace, name): &Key, records: &ServiceRecords) -> Vec<(IpAddr, String)> {
    match records {
        ServiceRecords::ClusterIps { addresses, .. } => addresses.iter().map(|address| (*address, format!("{name}.{namespace}"))).collect(),
        ServiceRecords::Headless(endpoints) => {
            endpoints.iter().map(|endpoint| (endpoint.address, format!("{}.{name}.{namespace}", endpoint.hostname))).collect()
        }
        ServiceRecords::ExternalName(_) => Vec::new(),
    }
}

/// `10-244-0-7` or `fd00--1`.
fn dashed_address(text: &str) -> Option<IpAddr> {
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>();
    v4.map(IpAddr::V4).or_else(|_| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

fn dashes(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address of a whole name below in-addr.arpa or ip6.arpa.
fn reverse_address(labels: &[Vec<u8>]) -> Option<IpAddr> {
    let text = |label: &Vec<u8>| std::str::from_utf8(label).ok().map(str::to_owned);
    match labels {
        [d, c, b, a, zone, arpa] if zone == b"in-addr" && arpa == b"arpa" => {
            let octets = [text(a)?, text(b)?, text(c)?, text(d)?].map(|octet| octet.parse::<u8>().ok());
            let [Some(a), Some(b), Some(c), Some(d)] = octets else { return None };
            Some(Ipv4Addr::new(a, b, c, d).into())
        }
        [nibbles @ .., zone, arpa] if nibbles.len() == 32 && zone == b"ip6" && arpa == b"arpa" => {
            let digits = nibbles.iter().rev().map(|nibble| text(nibble).filter(|nibble| nibble.len() == 1)).collect::<Option<String>>()?;
            u128::from_str_radix(&digits, 16).ok().map(|bits| Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

/// The zone's part for a Service with its EndpointSlices; `None` where it has no address yet.
pub fn service_records<'a>(service: &Service, slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Option<ServiceRecords> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return spec.external_name.clone().map(ServiceRecords::ExternalName);
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return Some(ServiceRecords::Headless(endpoints(slices)));
    }
    let mut addresses: Vec<IpAddr> = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(spec.cluster_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    if addresses.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().flatten().filter_map(|port| to_port(port.name.as_ref(), port.protocol.as_ref(), port.port)).collect();
    Some(ServiceRecords::ClusterIps { addresses, ports })
}

/// Those that are ready; publishNotReadyAddresses makes the slices say so of all.
fn endpoints<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let ports: Vec<Port> =
            slice.ports.iter().flatten().filter_map(|port| to_port(port.name.as_ref(), port.protocol.as_ref(), port.port?)).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            for address in endpoint.addresses.iter().filter(|_| ready).filter_map(|address| address.parse().ok()) {
                let hostname = endpoint.hostname.clone().filter(|hostname| !hostname.is_empty()).unwrap_or_else(|| dashes(address));
                found.push(Endpoint { hostname: hostname.to_ascii_lowercase(), address, ports: ports.clone() });
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn to_port(name: Option<&String>, protocol: Option<&String>, port: i32) -> Option<Port> {
    let protocol = protocol.map_or("tcp".to_owned(), |protocol| protocol.to_ascii_lowercase());
    Some(Port { name: name.cloned().unwrap_or_default(), protocol, port: u16::try_from(port).ok()? })
}

#[cfg(test)]
mod tests;
