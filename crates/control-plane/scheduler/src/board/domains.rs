//! Pods counted by topology domain, as one class's affinity, anti-affinity and spread constraints ask for it.

mod judge;
mod spread;

use std::collections::HashMap;
use std::sync::Arc;

pub(super) use judge::{Judge, Scratch};
use spread::{Hard, Soft};

use crate::class::Class;
use crate::filters::Objection;
use crate::neighbours::Term;
use crate::profile::{Plugin, Profile};
use crate::snapshot::{NO_VALUE, Slot, Snapshot};

#[derive(Default)]
pub(crate) struct Domains {
    keys: Vec<Key>,
    hard: Vec<Hard>,
    soft: Vec<Soft>,
    /// What each class of placed pods means for this one; `None`: nothing.
    relations: HashMap<u64, Option<Arc<Relation>>>,
    /// Pods in some domain that match all of the class's affinity terms, once per term.
    wanted: i64,
    /// The class matches its own affinity terms: the first of a group may go anywhere.
    wants_itself: bool,
    /// Placed pods whose own terms speak of the class.
    foreign: i64,
}

/// Counts by the values of one topology key.
struct Key {
    topology: usize,
    /// Pods that match all of the class's affinity terms; those that match one of its anti-affinity terms; those whose anti-affinity
    /// speaks of the class.
    wanted: Vec<i64>,
    unwanted: Vec<i64>,
    refusing: Vec<i64>,
    /// The sum of the weights of preferred terms, the class's own and placed pods'.
    score: Vec<i64>,
}

/// What a pod of another class means for this one. Keys, and constraints, by their position.
#[derive(Default)]
struct Relation {
    wanted: Vec<usize>,
    unwanted: Vec<usize>,
    refusing: Vec<usize>,
    score: Vec<(usize, i64)>,
    hard: Vec<usize>,
    soft: Vec<usize>,
    /// Its terms speak of this class.
    foreign: bool,
}

impl Domains {
    pub fn new(snapshot: &Snapshot, class: &Class, profile: &Profile) -> Self {
        let own = &class.neighbour;
        let spreads = profile.filters.has(Plugin::PodTopologySpread);
        let keys: Vec<&str> = own.spread.iter().map(|constraint| constraint.topology_key.as_str()).collect();
        let hard = own.spread.iter().filter(|_| spreads).map(|constraint| Hard::new(snapshot, class, constraint, &keys));
        let scores = profile.weights.pod_topology_spread != 0;
        let soft_keys: Vec<&str> = own.soft_spread.iter().map(|constraint| constraint.topology_key.as_str()).collect();
        let soft = own.soft_spread.iter().filter(|_| scores).map(|constraint| Soft::new(snapshot, class, constraint, &soft_keys));
        let mut domains = Self {
            hard: hard.collect(),
            soft: soft.collect(),
            wants_itself: own.affinity.iter().all(|term| term.matches(own, snapshot.namespaces())),
            ..Self::default()
        };
        if own.has_terms() || own.has_spread() || snapshot.has_pods_with_terms() {
            for slot in snapshot.slots() {
                for pod in &snapshot.details[slot].pods {
                    domains.count(snapshot, class, profile, slot, &pod.class, 1);
                }
            }
        }
        domains
    }

    /// Whether other pods decide where the class may go or goes best.
    pub fn is_active(&self, class: &Class) -> bool {
        self.foreign > 0 || !self.hard.is_empty() || !self.soft.is_empty() || class.neighbour.has_terms()
    }

    /// Pods of `other` came to the node (or went, with a negative count).
    pub fn count(&mut self, snapshot: &Snapshot, class: &Class, profile: &Profile, slot: Slot, other: &Arc<Class>, count: i32) {
        if !class.neighbour.has_terms() && !class.neighbour.has_spread() && !other.neighbour.has_terms() {
            return;
        }
        let relation = match self.relations.get(&other.id) {
            Some(known) => known.clone(),
            None => {
                let relation = self.relate(snapshot, class, profile, other).map(Arc::new);
                self.relations.insert(other.id, relation.clone());
                relation
            }
        };
        let Some(relation) = relation else { return };
        let count = i64::from(count);
        self.foreign += if relation.foreign { count } else { 0 };
        for at in &relation.wanted {
            self.wanted += self.keys[*at].add(snapshot, slot, count, |key| &mut key.wanted);
        }
        for at in &relation.unwanted {
            self.keys[*at].add(snapshot, slot, count, |key| &mut key.unwanted);
        }
        for at in &relation.refusing {
            self.keys[*at].add(snapshot, slot, count, |key| &mut key.refusing);
        }
        for (at, weight) in &relation.score {
            self.keys[*at].add(snapshot, slot, weight * count, |key| &mut key.score);
        }
        relation.hard.iter().for_each(|at| self.hard[*at].count(snapshot, slot, count));
        relation.soft.iter().for_each(|at| self.soft[*at].count(snapshot, slot, count));
    }

    fn relate(&mut self, snapshot: &Snapshot, class: &Class, profile: &Profile, other: &Class) -> Option<Relation> {
        let (own, theirs, spaces) = (&class.neighbour, &other.neighbour, snapshot.namespaces());
        let mut relation = Relation::default();
        if profile.filters.has(Plugin::InterPodAffinity) {
            if !own.affinity.is_empty() && own.affinity.iter().all(|term| term.matches(theirs, spaces)) {
                relation.wanted = own.affinity.iter().filter_map(|term| self.key(snapshot, term)).collect();
            }
            let unwanted = own.anti_affinity.iter().filter(|term| term.matches(theirs, spaces));
            relation.unwanted = unwanted.filter_map(|term| self.key(snapshot, term)).collect();
            let refusing = theirs.anti_affinity.iter().filter(|term| term.matches(own, spaces));
            relation.refusing = refusing.filter_map(|term| self.key(snapshot, term)).collect();
        }
        if profile.weights.inter_pod_affinity != 0 {
            let mine = own.preferred.iter().filter(|(_, term)| term.matches(theirs, spaces)).map(|(weight, term)| (*weight, term));
            let hard = theirs.affinity.iter().map(|term| (profile.hard_pod_affinity_weight, term));
            let soft = theirs.preferred.iter().map(|(weight, term)| (*weight, term));
            let foreign = hard.chain(soft.filter(|_| !profile.ignore_preferred_terms_of_existing_pods));
            let foreign = foreign.filter(|(weight, term)| *weight != 0 && term.matches(own, spaces));
            let weighted: Vec<(i64, &Term)> = mine.chain(foreign.clone()).collect();
            relation.foreign = foreign.count() > 0;
            relation.score = weighted.into_iter().filter_map(|(weight, term)| Some((self.key(snapshot, term)?, weight))).collect();
        }
        relation.foreign |= !relation.refusing.is_empty();
        let counted = |constraint: &crate::neighbours::Spread| constraint.counts(theirs, &own.namespace);
        relation.hard = (0..self.hard.len()).filter(|at| counted(&own.spread[*at])).collect();
        relation.soft = (0..self.soft.len()).filter(|at| counted(&own.soft_spread[*at])).collect();
        let nothing = relation.wanted.is_empty()
            && relation.unwanted.is_empty()
            && relation.refusing.is_empty()
            && relation.score.is_empty()
            && relation.hard.is_empty()
            && relation.soft.is_empty();
        (!nothing).then_some(relation)
    }

    /// The counts of a term's topology key; `None`: no node ever had the label asked for.
    fn key(&mut self, snapshot: &Snapshot, term: &Term) -> Option<usize> {
        let topology = snapshot.topologies.iter().position(|topology| topology.key == term.topology_key)?;
        Some(self.keys.iter().position(|key| key.topology == topology).unwrap_or_else(|| {
            self.keys.push(Key { topology, wanted: vec![], unwanted: vec![], refusing: vec![], score: vec![] });
            self.keys.len() - 1
        }))
    }

    pub fn judge<'a>(&'a self, snapshot: &'a Snapshot, class: &'a Class, profile: &'a Profile) -> Judge<'a> {
        Judge::new(self, snapshot, class, profile)
    }

    /// What other pods' places say against the node.
    pub fn objection(&self, snapshot: &Snapshot, class: &Class, profile: &Profile, slot: Slot) -> Option<Objection> {
        if !self.is_active(class) {
            return None;
        }
        self.judge(snapshot, class, profile).objection(slot)
    }
}

impl Key {
    /// Returns what was added: nothing where the node lacks the label.
    fn add(&mut self, snapshot: &Snapshot, slot: Slot, count: i64, column: fn(&mut Self) -> &mut Vec<i64>) -> i64 {
        let value = snapshot.topologies[self.topology].at(slot);
        if value == NO_VALUE {
            return 0;
        }
        bump(column(self), value, count);
        count
    }
}

fn bump(counts: &mut Vec<i64>, value: u32, count: i64) {
    let at = value as usize;
    if counts.len() <= at {
        counts.resize(at + 1, 0);
    }
    counts[at] += count;
}

fn counted(counts: &[i64], value: u32) -> i64 {
    counts.get(value as usize).copied().unwrap_or(0)
}
