//! The plan in nftables, and the batches that change it.
//!
//! ```text
//! pol-egress, pol-ingress (filter, forward)   answers and errors about what was let through: accept
//!                                             ip saddr vmap @pol-egress4, or ip daddr vmap @pol-ingress4
//! pol-i-<hash>                                the steps of one pod's, or one policy's, ingress
//! pol-m-<hash>4                               addresses that a rule's selectors choose
//! pol-p-<hash>4                               address . protocol . port behind a named port
//! ```
//! and all again for IPv6. Every packet in a connection's first direction is looked at, not only its first: that is how established
//! connections follow a new policy. What the node itself sends to its pods, and they to it, does not pass the forward hook and is always
//! allowed, as upstream specifies. Accepting in one base chain leaves the other its say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nft::Expression as E;
use nft::{
    Batch, CT_STATE_ESTABLISHED, CT_STATE_RELATED, ChainKind, Ct, Element, Family, Field, Hook, HookPoint, MapsTo, Meta, Register, Set,
    Socket, Table, Value,
};

use crate::Error;
use crate::model::Direction;
use crate::plan::{Plan, Step, Verdict, What, Whom};

const PREFIX: &str = "pol-";
const SELF_SET: &str = "pol-self";
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];
const R: Register = Register::at(0);

/// Programs one network namespace: that of the thread which opened it. Blocking.
#[derive(Debug)]
pub struct Enforcer {
    table: Table,
    socket: Socket,
    plan: Plan,
    /// The base chains are there, and the kernel holds `plan`.
    installed: bool,
    /// The kernel may hold something else than we think: nothing was programmed yet, or a batch was refused.
    unsure: bool,
}

impl Enforcer {
    /// Changes nothing yet: what a previous run programmed keeps holding.
    pub fn open(table: &str) -> Result<Self, Error> {
        let socket = Socket::netfilter().map_err(Error::Socket)?;
        Ok(Self { table: Table::inet(table), socket, plan: Plan::default(), installed: false, unsure: true })
    }

    /// Programs exactly this plan, in one transaction. Without any policy nothing is left that packets would pass.
    pub fn apply(&mut self, plan: Plan) -> Result<(), Error> {
        if !self.unsure && (plan == self.plan || plan.is_empty() && !self.installed) {
            return Ok(());
        }
        let mut batch = Batch::new(&self.table);
        let from_scratch = self.unsure || !self.installed || plan.is_empty();
        if from_scratch {
            batch.add_table();
            self.remove_previous(&mut batch)?;
        }
        let before = if from_scratch { Plan::default() } else { self.plan.clone() };
        if !plan.is_empty() {
            if from_scratch {
                install(&mut batch);
            }
            change(&before, &plan, &mut batch);
        }
        self.unsure = true;
        batch.commit(&mut self.socket)?;
        (self.unsure, self.installed, self.plan) = (false, !plan.is_empty(), plan);
        Ok(())
    }

    fn remove_previous(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let ours = |names: Vec<String>| names.into_iter().filter(|name| name.starts_with(PREFIX)).collect::<Vec<_>>();
        let chains = ours(self.table.chains(&mut self.socket)?);
        let sets = ours(self.table.sets(&mut self.socket)?);
        chains.iter().for_each(|chain| batch.flush_chain(chain));
        sets.iter().for_each(|set| batch.flush_set(set));
        chains.iter().for_each(|chain| batch.delete_chain(chain));
        sets.iter().for_each(|set| batch.delete_set(set));
        Ok(())
    }
}

fn with_family(name: &str, family: Family) -> String {
    format!("{name}{}", if family == Family::Ipv4 { 4 } else { 6 })
}

fn base_chain(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "pol-ingress",
        Direction::Egress => "pol-egress",
    }
}

fn set(name: String, key: Vec<Field>, maps_to: Option<MapsTo>) -> Set {
    Set { name, key, maps_to, dynamic: false, intervals: false }
}

/// The base chains and their maps.
fn install(batch: &mut Batch) {
    for (direction, priority) in DIRECTIONS.into_iter().zip([-5, -4]) {
        let chain = base_chain(direction);
        batch.add_chain(chain, Some(Hook { kind: ChainKind::Filter, point: HookPoint::Forward, priority }));
        answers(batch, chain);
        for family in FAMILIES {
            let map = with_family(chain, family);
            batch.add_set(&set(map.clone(), vec![family.address_field()], Some(MapsTo::Verdict)));
            let mut rule = E::is_family(family, R).to_vec();
            rule.push(if direction == Direction::Ingress { E::destination(family, R) } else { E::source(family, R) });
            rule.push(E::LookupVerdict { map, key: R });
            batch.add_rule(chain, &rule);
        }
    }
    for family in FAMILIES {
        batch.add_set(&set(with_family(SELF_SET, family), vec![family.address_field(); 2], None));
    }
}

/// What answers a packet that was let through, and errors about it.
fn answers(batch: &mut Batch, chain: &str) {
    const REPLY: u8 = 1;
    let in_state = |bit: u32| {
        [
            E::Ct { key: Ct::State, to: R },
            E::Bitwise { from: R, to: R, mask: bit.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            E::NotEqual { register: R, value: vec![0; 4] },
        ]
    };
    let mut reply = in_state(CT_STATE_ESTABLISHED).to_vec();
    reply.extend([E::Ct { key: Ct::Direction, to: R }, E::Equal { register: R, value: vec![REPLY] }, E::Verdict(nft::Verdict::Accept)]);
    batch.add_rule(chain, &reply);
    let mut related = in_state(CT_STATE_RELATED).to_vec();
    related.push(E::Verdict(nft::Verdict::Accept));
    batch.add_rule(chain, &related);
}

/// From one plan to the next. Order matters: what is referred to comes first and goes last.
fn change(before: &Plan, after: &Plan, batch: &mut Batch) {
    for direction in DIRECTIONS {
        let gone = not_in(after.heads(direction), before.heads(direction));
        by_family(
            batch,
            &gone,
            |(address, _)| *address,
            |batch, family, rows| {
                let keys: Vec<Element> = rows.iter().map(|(address, _)| Element::key(Value::new().address(*address))).collect();
                batch.delete_elements(&with_family(base_chain(direction), family), &keys);
            },
        );
    }
    let itself = |address: &IpAddr| Element::key(Value::new().address(*address).address(*address));
    difference(batch, SELF_SET, &subjects(before), &subjects(after), |address| *address, itself);
    members(before, after, batch);
    chains(before, after, batch);
    for direction in DIRECTIONS {
        let come = not_in(before.heads(direction), after.heads(direction));
        by_family(
            batch,
            &come,
            |(address, _)| *address,
            |batch, family, rows| {
                let verdict = |chain: &String| nft::Verdict::Goto(chain.clone());
                let elements = rows.iter().map(|(address, chain)| Element::verdict(Value::new().address(*address), verdict(chain)));
                batch.add_elements(&with_family(base_chain(direction), family), &elements.collect::<Vec<_>>());
            },
        );
    }
    let stale: Vec<&String> = before.chains.keys().filter(|name| !after.chains.contains_key(*name)).collect();
    stale.iter().for_each(|name| batch.flush_chain(name));
    stale.iter().for_each(|name| batch.delete_chain(name));
    for family in FAMILIES {
        let stale = before.members.keys().filter(|name| !after.members.contains_key(*name));
        let stale = stale.chain(before.named.keys().filter(|name| !after.named.contains_key(*name)));
        stale.for_each(|name| batch.delete_set(&with_family(name, family)));
    }
}

/// The rows of `map` that `other` does not have so.
fn not_in(other: &BTreeMap<IpAddr, String>, map: &BTreeMap<IpAddr, String>) -> Vec<(IpAddr, String)> {
    map.iter().filter(|(address, chain)| other.get(*address) != Some(*chain)).map(|(address, chain)| (*address, chain.clone())).collect()
}

fn by_family<T>(batch: &mut Batch, rows: &[T], address: impl Fn(&T) -> IpAddr, mut each: impl FnMut(&mut Batch, Family, &[&T])) {
    for family in FAMILIES {
        let rows: Vec<&T> = rows.iter().filter(|row| Family::of(address(row)) == family).collect();
        if !rows.is_empty() {
            each(batch, family, &rows);
        }
    }
}

fn subjects(plan: &Plan) -> BTreeSet<IpAddr> {
    plan.ingress.keys().chain(plan.egress.keys()).copied().collect()
}

fn difference<T: Ord + Copy>(
    batch: &mut Batch,
    name: &str,
    before: &BTreeSet<T>,
    after: &BTreeSet<T>,
    address: impl Fn(&T) -> IpAddr,
    element: impl Fn(&T) -> Element,
) {
    let gone: Vec<T> = before.difference(after).copied().collect();
    by_family(batch, &gone, &address, |batch, family, rows| {
        batch.delete_elements(&with_family(name, family), &rows.iter().map(|row| element(row)).collect::<Vec<_>>());
    });
    let come: Vec<T> = after.difference(before).copied().collect();
    by_family(batch, &come, &address, |batch, family, rows| {
        batch.add_elements(&with_family(name, family), &rows.iter().map(|row| element(row)).collect::<Vec<_>>());
    });
}

fn members(before: &Plan, after: &Plan, batch: &mut Batch) {
    let (no_members, no_named) = Default::default();
    for (name, wanted) in &after.members {
        let there = before.members.get(name);
        if there.is_none() {
            FAMILIES.iter().for_each(|family| batch.add_set(&set(with_family(name, *family), vec![family.address_field()], None)));
        }
        let element = |address: &IpAddr| Element::key(Value::new().address(*address));
        difference(batch, name, there.unwrap_or(&no_members), wanted, |address| *address, element);
    }
    for (name, wanted) in &after.named {
        let there = before.named.get(name);
        if there.is_none() {
            let key = |family: &Family| vec![family.address_field(), Field::Protocol, Field::Port];
            FAMILIES.iter().for_each(|family| batch.add_set(&set(with_family(name, *family), key(family), None)));
        }
        let element =
            |(address, protocol, port): &(IpAddr, u8, u16)| Element::key(Value::new().address(*address).protocol(*protocol).port(*port));
        difference(batch, name, there.unwrap_or(&no_named), wanted, |row| row.0, element);
    }
}

fn chains(before: &Plan, after: &Plan, batch: &mut Batch) {
    let fresh: Vec<_> = after.chains.iter().filter(|(name, _)| !before.chains.contains_key(*name)).collect();
    fresh.iter().for_each(|(name, _)| batch.add_chain(name, None));
    for (name, (direction, steps)) in fresh {
        for rule in steps.iter().flat_map(|step| rules(*direction, step)) {
            batch.add_rule(name, &rule);
        }
    }
}

/// A rule where the step knows no family, one for each where it does.
fn rules(direction: Direction, step: &Step) -> Vec<Vec<E>> {
    let families: &[Option<Family>] = match (&step.whom, &step.what) {
        (Whom::Within { network, .. }, _) => &[Some(Family::of(network.0))],
        (Whom::Anyone, What::Anything | What::Ports { .. }) => &[None],
        _ => &[Some(Family::Ipv4), Some(Family::Ipv6)],
    };
    families.iter().map(|family| rule(direction, step, *family)).collect()
}

fn rule(direction: Direction, step: &Step, family: Option<Family>) -> Vec<E> {
    let mut rule = Vec::new();
    if let Some(family) = family {
        rule.extend(E::is_family(family, R));
        rule.extend(whom(direction, &step.whom, family));
        if let What::Named(name) = &step.what {
            let protocol = Register::at(family.address_field().registers());
            let port = Register::at(family.address_field().registers() + 1);
            rule.extend([
                E::destination(family, R),
                E::Meta { key: Meta::Protocol, to: protocol },
                E::destination_port(port),
                E::Contains { set: with_family(name, family), key: R, invert: false },
            ]);
        }
    }
    if let What::Ports { protocol, first, last } = step.what {
        rule.extend(ports(protocol, first, last));
    }
    rule.push(E::Verdict(match &step.verdict {
        Verdict::Accept => nft::Verdict::Accept,
        Verdict::Drop => nft::Verdict::Drop,
        Verdict::Jump(chain) => nft::Verdict::Jump(chain.clone()),
        Verdict::Goto(chain) => nft::Verdict::Goto(chain.clone()),
    }));
    rule
}

fn whom(direction: Direction, whom: &Whom, family: Family) -> Vec<E> {
    let other_end = || if direction == Direction::Ingress { E::source(family, R) } else { E::destination(family, R) };
    match whom {
        Whom::Anyone => Vec::new(),
        Whom::Itself => {
            let second = Register::at(family.address_field().registers());
            let set = with_family(SELF_SET, family);
            vec![E::source(family, R), E::destination(family, second), E::Contains { set, key: R, invert: false }]
        }
        Whom::Among(name) => vec![other_end(), E::Contains { set: with_family(name, family), key: R, invert: false }],
        Whom::Within { network, except } => {
            let inside = [(network, false)].into_iter().chain(except.iter().map(|network| (network, true)));
            // An exception of the other family excepts nothing.
            inside
                .filter(|(network, _)| Family::of(network.0) == family)
                .flat_map(|(network, invert)| [vec![other_end()], E::in_network(R, *network, invert).to_vec()].concat())
                .collect()
        }
    }
}

fn ports(protocol: u8, first: u16, last: u16) -> Vec<E> {
    let mut steps = vec![E::Meta { key: Meta::Protocol, to: R }, E::Equal { register: R, value: vec![protocol] }];
    if first == last {
        steps.extend([E::destination_port(R), E::Equal { register: R, value: first.to_be_bytes().to_vec() }]);
    } else if (first, last) != (0, u16::MAX) {
        steps.push(E::destination_port(R));
        steps.push(E::AtLeast { register: R, value: first.to_be_bytes().to_vec() });
        steps.push(E::AtMost { register: R, value: last.to_be_bytes().to_vec() });
    }
    steps
}
