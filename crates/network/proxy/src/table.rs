//! The program in nftables: its chains, maps and rules, and the batches that change it.
//!
//! ```text
//! svc-prerouting, svc-output (nat, before routing)      jump svc-dispatch
//! svc-dispatch     ip daddr . l4proto . dport @svc-plain-c4     goto svc-plain-c4
//!                  ip daddr . l4proto . dport vmap @svc-frontends4
//!                  fib daddr type local, l4proto . dport @svc-plain-cn4 …, vmap @svc-nodeports4
//! svc-plain-c4     (few endpoints, ClusterIP)           source is no pod: mark;  for 8 to 1: is there an endpoint of index n - 1?
//!                                                       dnat to daddr . proto . dport . random n map @svc-endpoints4
//! svc-c4-30        (30 endpoints, ClusterIP)            the same for exactly so many; others for affinity and external policies
//! svc-filter-…     (filter, just before) ct state new   the same two lookups in @svc-refusals4, @svc-nodeport-refusals4: reject or drop
//! svc-postrouting  (nat, after routing)                 marked, or an endpoint that reaches itself: masquerade
//! ```
//! and all again for IPv6. After a change of any verdict the kernel walks everything that leads to a chain. So the many and simple frontends are
//! in sets, and a change of theirs is a few elements, however many Services there are; those in the map of verdicts are few. A map from Services to
//! numbers before a small map of chains would do it for all, but nftables 1.0.6 (Debian 12) fails an assertion when it lists such a rule, and with
//! it every table of the machine. Names of ours begin with `svc-`: the pod network's chains share the table.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nft::{Batch, Data, Element, Socket, Table, conntrack};

use crate::plan::{Endpoint, Family, Frontend, Owner, Plan};
use crate::program::{Change, Key, Plain, Program, Value};
use crate::{Config, Error};

mod rules;

/// Programs one network namespace: that of the thread which opened it. Blocking.
#[derive(Debug)]
pub struct Proxier {
    table: Table,
    config: Config,
    socket: Socket,
    program: Program,
    /// The kernel may hold something else than `program`: nothing was programmed yet, or a batch was refused.
    unsure: bool,
    retry: BTreeSet<Owner>,
}

impl Proxier {
    /// Changes nothing yet: what a previous run programmed keeps serving.
    pub fn open(config: Config) -> Result<Self, Error> {
        let socket = Socket::netfilter().map_err(Error::Socket)?;
        let table = Table::inet(&config.table);
        Ok(Self { table, config, socket, program: Program::default(), unsure: true, retry: BTreeSet::new() })
    }
    /// [`Proxier::replace`] is due before [`Proxier::update`].
    pub fn needs_full_sync(&self) -> bool {
        self.unsure
    }
    /// Owners whose conflict with another ended: to be planned again.
    pub fn take_retries(&mut self) -> BTreeSet<Owner> {
        std::mem::take(&mut self.retry)
    }

    /// Programs exactly these plans, whatever was there, in one transaction.
    pub fn replace(&mut self, plans: Vec<(Owner, Plan)>) -> Result<(), Error> {
        self.unsure = true;
        let mut program = Program::default();
        let change = program.update(plans);
        let mut batch = Batch::new(&self.table);
        batch.add_table();
        self.remove_previous(&mut batch)?;
        rules::install(&mut batch, &self.config);
        self.encode(&change, &mut batch);
        batch.commit(&mut self.socket)?;
        self.program = program;
        self.unsure = false;
        self.forget_connections(&change)
    }

    /// Programs the difference that these owners' plans make, in one transaction.
    pub fn update(&mut self, plans: Vec<(Owner, Plan)>) -> Result<(), Error> {
        // From here until the kernel has said yes, the two may differ.
        self.unsure = true;
        let change = self.program.update(plans);
        let mut batch = Batch::new(&self.table);
        self.encode(&change, &mut batch);
        batch.commit(&mut self.socket)?;
        self.unsure = false;
        self.forget_affinity(&change)?;
        self.forget_connections(&change)?;
        self.retry.extend(change.retry);
        Ok(())
    }

    /// Takes our chains and maps out of the table, leaving the pod network's.
    fn remove_previous(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let ours = |names: Vec<String>| names.into_iter().filter(|name| name.starts_with(rules::PREFIX)).collect::<Vec<_>>();
        let chains = ours(self.table.chains(&mut self.socket)?);
        let sets = ours(self.table.sets(&mut self.socket)?);
        chains.iter().for_each(|chain| batch.flush_chain(chain));
        sets.iter().for_each(|set| batch.flush_set(set));
        chains.iter().for_each(|chain| batch.delete_chain(chain));
        sets.iter().for_each(|set| batch.delete_set(set));
        Ok(())
    }

    fn encode(&self, change: &Change, batch: &mut Batch) {
        // Deletions first: a map refuses a second value for a key, and a chain in use cannot go.
        for (set, elements) in grouped(change.delete.iter().map(|key| (*key, None))) {
            batch.delete_elements(&set, &elements);
        }
        for chain in &change.new_chains {
            rules::install_chain(batch, &self.config, chain);
        }
        for (set, elements) in grouped(change.add.iter().map(|(key, value)| (*key, Some(*value)))) {
            batch.add_elements(&set, &elements);
        }
        for chain in &change.unused_chains {
            let name = rules::chain_name(chain);
            batch.flush_chain(&name);
            batch.delete_chain(&name);
        }
    }

    /// Takes clients off endpoints that are gone.
    fn forget_affinity(&mut self, change: &Change) -> Result<(), Error> {
        if !change.forget_affinity {
            return Ok(());
        }
        for family in families(change) {
            let set = rules::affinity_map(family);
            let stale: Vec<Element> = self
                .table
                .elements(&mut self.socket, &set)?
                .into_iter()
                .filter(|element| is_stale(family, element, change))
                .map(|element| Element::key(element.key))
                .collect();
            // One by one: an element may time out meanwhile, and a batch is all or nothing.
            for element in stale {
                let mut batch = Batch::new(&self.table);
                batch.delete_elements(&set, &[element]);
                if let Err(error) = batch.commit(&mut self.socket) {
                    tracing::debug!(%error, "a client's affinity ended by itself");
                }
            }
        }
        Ok(())
    }

    /// Ends tracked UDP connections to endpoints that are gone; a TCP client learns of it by itself.
    fn forget_connections(&mut self, change: &Change) -> Result<(), Error> {
        const UDP: u8 = 17;
        for family in families(change) {
            let udp: Vec<_> = change.forget.iter().filter(|(frontend, _)| frontend.family == family && frontend.protocol == UDP).collect();
            if udp.is_empty() {
                continue;
            }
            let forgotten = conntrack::forget(&mut self.socket, rules::nft_family(family), UDP, |connection| {
                let translated = connection.reply.source != connection.original.destination;
                let target = Endpoint { address: connection.reply.source, port: connection.reply.source_port };
                udp.iter().any(|(frontend, left)| {
                    frontend.port == connection.original.destination_port
                        && match frontend.address {
                            Some(address) => address == connection.original.destination,
                            None => translated,
                        }
                        && !left.contains(&target)
                })
            })?;
            tracing::debug!(forgotten, "UDP connections to removed endpoints");
        }
        Ok(())
    }
}

fn families(change: &Change) -> BTreeSet<Family> {
    change.forget.keys().map(|frontend| frontend.family).collect()
}

/// The elements by set, sets in order.
fn grouped(rows: impl Iterator<Item = (Key, Option<Value>)>) -> Vec<(String, Vec<Element>)> {
    let mut sets: std::collections::BTreeMap<String, Vec<Element>> = Default::default();
    for (key, value) in rows {
        sets.entry(set_of(&key)).or_default().push(element(&key, value));
    }
    sets.into_iter().collect()
}

fn set_of(key: &Key) -> String {
    match key {
        Key::Frontend(frontend) => rules::frontend_map(frontend),
        Key::Plain(frontend, plain) => rules::plain_set(frontend, *plain),
        Key::Refusal(frontend) => rules::refusal_map(frontend),
        Key::Endpoint(frontend, _) => rules::endpoint_map(frontend.family),
        Key::Hairpin(address) => rules::hairpin_set(Family::of(*address)),
        Key::Guard(frontend) => rules::guarded_set(frontend.family),
        Key::Source(frontend, _) => rules::source_set(frontend.family),
    }
}

fn element(key: &Key, value: Option<Value>) -> Element {
    let bytes = match key {
        Key::Source(frontend, network) => return source_element(frontend, *network),
        Key::Frontend(frontend) | Key::Plain(frontend, _) | Key::Refusal(frontend) | Key::Guard(frontend) => {
            let start = frontend.address.map_or_else(nft::Value::new, |address| nft::Value::new().address(address));
            start.protocol(frontend.protocol).port(frontend.port)
        }
        Key::Endpoint(frontend, index) => {
            let address = frontend.address.unwrap_or_else(|| unspecified(frontend.family));
            nft::Value::new().address(address).protocol(frontend.protocol).port(frontend.port).mark(*index)
        }
        Key::Hairpin(address) => nft::Value::new().address(*address).address(*address),
    };
    match value {
        None | Some(Value::Present) => Element::key(bytes),
        Some(Value::Chain(chain)) => Element::verdict(bytes, nft::Verdict::Goto(rules::chain_name(&chain))),
        Some(Value::Reject) => Element::verdict(bytes, nft::Verdict::Goto(rules::REJECT_CHAIN.to_owned())),
        Some(Value::Drop) => Element::verdict(bytes, nft::Verdict::Drop),
        Some(Value::Endpoint(endpoint)) => Element::value(bytes, nft::Value::new().address(endpoint.address).port(endpoint.port)),
    }
}

/// The frontend with every source of the network.
fn source_element(frontend: &Frontend, (network, prefix): crate::plan::Cidr) -> Element {
    let start = || {
        let address = frontend.address.unwrap_or_else(|| unspecified(frontend.family));
        nft::Value::new().address(address).protocol(frontend.protocol).port(frontend.port)
    };
    let (first, last): (IpAddr, IpAddr) = match network {
        IpAddr::V4(address) => {
            let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            (Ipv4Addr::from_bits(address.to_bits() & !hosts).into(), Ipv4Addr::from_bits(address.to_bits() | hosts).into())
        }
        IpAddr::V6(address) => {
            let hosts = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            (Ipv6Addr::from_bits(address.to_bits() & !hosts).into(), Ipv6Addr::from_bits(address.to_bits() | hosts).into())
        }
    };
    Element::range(start().address(first), start().address(last))
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Whether an affinity element (source, destination, protocol, port → endpoint) leads to an endpoint that its frontend no longer has.
fn is_stale(family: Family, element: &Element, change: &Change) -> bool {
    let Some(Data::Value(data)) = &element.data else { return false };
    let source_bytes = unspecified_bytes(family);
    change.forget.iter().filter(|(frontend, _)| frontend.family == family).any(|(frontend, left)| {
        let address = frontend.address.unwrap_or_else(|| unspecified(family));
        let key = nft::Value::new().address(address).protocol(frontend.protocol).port(frontend.port);
        element.key.0.get(source_bytes..) == Some(&key.0[..])
            && !left.iter().any(|endpoint| nft::Value::new().address(endpoint.address).port(endpoint.port) == *data)
    })
}

fn unspecified_bytes(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

/// The frontends programmed now, for people and tests.
impl Proxier {
    pub fn frontends(&mut self) -> Result<usize, Error> {
        let mut count = 0;
        for family in [Family::V4, Family::V6] {
            for address in [Some(unspecified(family)), None] {
                let frontend = Frontend { family, address, protocol: 6, port: 0 };
                let plain = Plain::ALL.map(|plain| rules::plain_set(&frontend, plain));
                for set in plain.iter().chain([&rules::frontend_map(&frontend)]) {
                    count += self.table.elements(&mut self.socket, set)?.len();
                }
            }
        }
        Ok(count)
    }
}
