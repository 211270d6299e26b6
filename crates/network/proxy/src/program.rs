//! What is programmed, and the smallest change from one plan to the next. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::plan::{Action, Balance, Cidr, Endpoint, Family, Frontend, Masquerade, Owner, Plan};

/// Endpoints for outside clients only have indexes from here on, in the same map.
pub const LOCAL_INDEX: u32 = 1 << 31;

/// A plain frontend has so many endpoints at most. More are rare, and finding out how many takes the longer the more there are.
pub const PLAIN_MAX: usize = 16;

/// A frontend that needs nothing but a choice among few endpoints. One chain serves all of a kind, and finds out how many endpoints there are by
/// which indexes there are. No verdict changes when that number does: the kernel would walk all that lead to chains after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Plain {
    NonPods,
    Always,
}

impl Plain {
    pub const ALL: [Plain; 2] = [Plain::NonPods, Plain::Always];

    fn of(balance: &Balance) -> Option<Self> {
        if balance.local.is_some() || balance.affinity_seconds.is_some() || balance.endpoints.len() > PLAIN_MAX {
            return None;
        }
        match balance.masquerade {
            Masquerade::NonPods => Some(Plain::NonPods),
            Masquerade::Always => Some(Plain::Always),
            Masquerade::Never => None,
        }
    }

    pub fn masquerade(self) -> Masquerade {
        match self {
            Plain::NonPods => Masquerade::NonPods,
            Plain::Always => Masquerade::Always,
        }
    }
}

/// A chain serves every other frontend with these properties, whichever Service it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chain {
    pub family: Family,
    /// For frontends on any address of the node: their endpoints are stored under the unspecified address.
    pub any_address: bool,
    pub masquerade: Masquerade,
    /// Endpoints to choose from, at least 1.
    pub endpoints: u32,
    /// Endpoints for outside clients, when those get others.
    pub local: Option<u32>,
    pub affinity_seconds: Option<u32>,
}

impl Chain {
    fn of(frontend: &Frontend, balance: &Balance) -> Self {
        let count = |endpoints: &Vec<Endpoint>| u32::try_from(endpoints.len()).unwrap_or(u32::MAX).min(LOCAL_INDEX - 1);
        Self {
            family: frontend.family,
            any_address: frontend.address.is_none(),
            masquerade: balance.masquerade,
            endpoints: count(&balance.endpoints),
            local: balance.local.as_ref().map(count),
            affinity_seconds: balance.affinity_seconds,
        }
    }
}

/// An element of one of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Chooses the chain.
    Frontend(Frontend),
    /// Is in the set of those whose chain is always there.
    Plain(Frontend, Plain),
    /// Frontends without endpoints.
    Refusal(Frontend),
    /// Endpoint by index.
    Endpoint(Frontend, u32),
    /// An address on this node that may reach itself.
    Hairpin(IpAddr),
    /// A frontend for some sources only, and such a network.
    Guard(Frontend),
    Source(Frontend, Cidr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Chain(Chain),
    Endpoint(Endpoint),
    Reject,
    Drop,
    Present,
}

/// What one batch has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub delete: BTreeSet<Key>,
    pub add: BTreeMap<Key, Value>,
    pub new_chains: BTreeSet<Chain>,
    pub unused_chains: BTreeSet<Chain>,
    /// Frontends whose endpoints changed, with all that are left: what remembers another one (session affinity, UDP connections)
    /// is to be forgotten.
    pub forget: BTreeMap<Frontend, BTreeSet<Endpoint>>,
    /// One of those has session affinity.
    pub forget_affinity: bool,
    /// A frontend that these owners also wanted is free again: plan them anew.
    pub retry: BTreeSet<Owner>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }
}

/// What the kernel holds, as far as we told it.
#[derive(Clone, Debug, Default)]
pub struct Program {
    plans: HashMap<Owner, Plan>,
    /// The first to claim a frontend has it; upstream leaves it to chance.
    claims: HashMap<Frontend, Owner>,
    /// Who else wanted a claimed frontend.
    waiting: HashMap<Frontend, BTreeSet<Owner>>,
    chains: HashMap<Chain, usize>,
    hairpins: HashMap<IpAddr, usize>,
}

impl Program {
    pub fn chains(&self) -> impl Iterator<Item = &Chain> {
        self.chains.keys()
    }

    /// Makes `plans`, of an owner each, the owners' own and returns the change. An owner without frontends is forgotten.
    pub fn update(&mut self, plans: Vec<(Owner, Plan)>) -> Change {
        let mut change = Change::default();
        let before: BTreeSet<Chain> = self.chains.keys().copied().collect();
        for (owner, plan) in &plans {
            self.release_claims(owner, plan, &mut change);
        }
        for (owner, plan) in plans {
            self.update_one(owner, plan, &mut change);
        }
        change.new_chains = self.chains.keys().filter(|chain| !before.contains(chain)).copied().collect();
        change.unused_chains = before.into_iter().filter(|chain| !self.chains.contains_key(chain)).collect();
        change
    }

    fn update_one(&mut self, owner: Owner, mut plan: Plan, change: &mut Change) {
        let old = self.plans.remove(&owner).unwrap_or_default();
        self.claim(&owner, &mut plan);
        keep_places(&old, &mut plan);
        forget(&old, &plan, change);
        self.count(&old, &plan, change);
        let (before, after) = (rows(&old), rows(&plan));
        change.delete.extend(before.iter().filter(|(key, value)| after.get(key) != Some(value)).map(|(key, _)| *key));
        change.add.extend(after.into_iter().filter(|(key, value)| before.get(key) != Some(value)));
        if plan != Plan::default() {
            self.plans.insert(owner, plan);
        }
    }

    /// Gives up what the owner's new plan does not want, and wakes who waits for it.
    fn release_claims(&mut self, owner: &Owner, plan: &Plan, change: &mut Change) {
        let Some(old) = self.plans.get(owner) else { return };
        for frontend in old.frontends.keys().filter(|frontend| !plan.frontends.contains_key(frontend)) {
            self.claims.remove(frontend);
            change.retry.extend(self.waiting.remove(frontend).into_iter().flatten());
        }
    }

    /// Drops from `plan` what another owner has.
    fn claim(&mut self, owner: &Owner, plan: &mut Plan) {
        plan.frontends.retain(|frontend, _| {
            let holder = self.claims.entry(*frontend).or_insert_with(|| owner.clone());
            if holder != owner {
                tracing::warn!(?frontend, %owner, %holder, "two owners want the same address and port; the first keeps it");
                self.waiting.entry(*frontend).or_default().insert(owner.clone());
            }
            holder == owner
        });
        plan.sources.retain(|frontend, _| plan.frontends.contains_key(frontend));
    }

    /// Keeps the reference counts of chains and hairpin addresses; notes the first and last reference of the latter.
    fn count(&mut self, old: &Plan, new: &Plan, change: &mut Change) {
        for chain in chains(new) {
            let count = self.chains.entry(chain).or_default();
            *count += 1;
        }
        for chain in chains(old) {
            release(&mut self.chains, &chain);
        }
        for address in &new.local_addresses {
            let count = self.hairpins.entry(*address).or_default();
            *count += 1;
            if *count == 1 && !change.delete.remove(&Key::Hairpin(*address)) {
                change.add.insert(Key::Hairpin(*address), Value::Present);
            }
        }
        for address in &old.local_addresses {
            let key = Key::Hairpin(*address);
            if release(&mut self.hairpins, address) && change.add.remove(&key).is_none() {
                change.delete.insert(key);
            }
        }
    }
}

/// True when that was the last reference.
fn release<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) -> bool {
    let Some(count) = counts.get_mut(key) else { return false };
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
    !counts.contains_key(key)
}

fn chains(plan: &Plan) -> impl Iterator<Item = Chain> {
    plan.frontends.iter().filter_map(|(frontend, action)| match action {
        Action::Balance(balance) if Plain::of(balance).is_none() => Some(Chain::of(frontend, balance)),
        Action::Balance(_) | Action::Reject | Action::Drop => None,
    })
}

/// The elements of a plan, but for the hairpin addresses, which are shared and counted.
fn rows(plan: &Plan) -> BTreeMap<Key, Value> {
    let mut rows = BTreeMap::new();
    for (frontend, networks) in &plan.sources {
        rows.insert(Key::Guard(*frontend), Value::Present);
        rows.extend(networks.iter().map(|network| (Key::Source(*frontend, *network), Value::Present)));
    }
    for (frontend, action) in &plan.frontends {
        match action {
            Action::Reject => drop(rows.insert(Key::Refusal(*frontend), Value::Reject)),
            Action::Drop => drop(rows.insert(Key::Refusal(*frontend), Value::Drop)),
            Action::Balance(balance) => {
                match Plain::of(balance) {
                    Some(plain) => rows.insert(Key::Plain(*frontend, plain), Value::Present),
                    None => rows.insert(Key::Frontend(*frontend), Value::Chain(Chain::of(frontend, balance))),
                };
                let indexed = (0..).zip(&balance.endpoints).chain((LOCAL_INDEX..).zip(balance.local.iter().flatten()));
                rows.extend(indexed.map(|(index, endpoint)| (Key::Endpoint(*frontend, index), Value::Endpoint(*endpoint))));
            }
        }
    }
    rows
}

/// Orders the new plan's endpoints so that those that stay keep their index and holes are filled from the end.
fn keep_places(old: &Plan, new: &mut Plan) {
    for (frontend, action) in &mut new.frontends {
        if let (Action::Balance(new), Some(Action::Balance(old))) = (action, old.frontends.get(frontend)) {
            place(&old.endpoints, &mut new.endpoints);
            if let (Some(old), Some(new)) = (&old.local, &mut new.local) {
                place(old, new);
            }
        }
    }
}

fn place(old: &[Endpoint], new: &mut Vec<Endpoint>) {
    let wanted: BTreeSet<Endpoint> = new.iter().copied().collect();
    let known: BTreeSet<Endpoint> = old.iter().copied().collect();
    let mut added = wanted.difference(&known).copied();
    let mut places: Vec<Option<Endpoint>> =
        old.iter().map(|endpoint| if wanted.contains(endpoint) { Some(*endpoint) } else { added.next() }).collect();
    places.extend(added.map(Some));
    let mut index = 0;
    while index < places.len() {
        if places[index].is_some() {
            index += 1;
        } else {
            places.swap_remove(index);
        }
    }
    *new = places.into_iter().flatten().collect();
}

/// Notes frontends that lost an endpoint, or (for UDP, where a client may have been talking into the void) got their first ones.
fn forget(old: &Plan, new: &Plan, change: &mut Change) {
    const UDP: u8 = 17;
    let empty = BTreeSet::new();
    let (before, after) = (endpoints(old), endpoints(new));
    for frontend in before.keys().chain(after.keys()) {
        let (had, has) = (before.get(frontend).unwrap_or(&empty), after.get(frontend).unwrap_or(&empty));
        let affinity = affinity(old, frontend);
        let lost = !had.is_subset(has);
        if lost && affinity || frontend.protocol == UDP && (lost || had.is_empty() != has.is_empty()) {
            change.forget.insert(*frontend, has.clone());
            change.forget_affinity |= affinity;
        }
    }
}

fn affinity(plan: &Plan, frontend: &Frontend) -> bool {
    matches!(plan.frontends.get(frontend), Some(Action::Balance(balance)) if balance.affinity_seconds.is_some())
}

fn endpoints(plan: &Plan) -> BTreeMap<Frontend, BTreeSet<Endpoint>> {
    let of = |action: &Action| match action {
        Action::Balance(balance) => balance.endpoints.iter().chain(balance.local.iter().flatten()).copied().collect(),
        Action::Reject | Action::Drop => BTreeSet::new(),
    };
    plan.frontends.iter().map(|(frontend, action)| (*frontend, of(action))).collect()
}

#[cfg(test)]
mod tests;
