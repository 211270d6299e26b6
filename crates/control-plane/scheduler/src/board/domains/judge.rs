//! One look at the counts: which nodes other pods allow, and how they score.

use super::{Domains, counted};
use crate::class::Class;
use crate::filters::Objection;
use crate::profile::{Plugin, Profile};
use crate::scores::MAX;
use crate::snapshot::{NO_VALUE, Slot, Snapshot};

/// Columns that live from pod to pod so that none is allocated for each.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The fitting nodes and their totals.
    pub slots: Vec<Slot>,
    pub totals: Vec<i64>,
    raw: Vec<i64>,
    seen: Vec<bool>,
}

impl Scratch {
    pub fn clear(&mut self) {
        self.slots.clear();
        self.totals.clear();
    }
    /// The first of the best.
    pub fn best(&self) -> Option<Slot> {
        let best = self.totals.iter().max()?;
        let at = self.totals.iter().position(|total| total == best)?;
        self.slots.get(at).copied()
    }
    pub fn ranking(&self) -> Vec<(Slot, i64)> {
        self.slots.iter().copied().zip(self.totals.iter().copied()).collect()
    }
}

pub(crate) struct Judge<'a> {
    domains: &'a Domains,
    snapshot: &'a Snapshot,
    class: &'a Class,
    profile: &'a Profile,
    /// By constraint that forbids.
    fewest: Vec<i64>,
    /// Positions of the keys of the class's own affinity and anti-affinity terms; `None`: no node has the label.
    affinity: Vec<Option<usize>>,
}

enum Verdict {
    Fits,
    LacksLabel,
    Skewed,
    NoNeighbour,
    Unwanted,
    Refused,
}

impl<'a> Judge<'a> {
    pub fn new(domains: &'a Domains, snapshot: &'a Snapshot, class: &'a Class, profile: &'a Profile) -> Self {
        let key = |key: &str| snapshot.topologies.iter().position(|topology| topology.key == key);
        let affinity = match profile.filters.has(Plugin::InterPodAffinity) {
            true => class.neighbour.affinity.iter().map(|term| key(&term.topology_key)).collect(),
            false => Vec::new(),
        };
        Self { domains, snapshot, class, profile, fewest: domains.hard.iter().map(|hard| hard.fewest()).collect(), affinity }
    }

    pub fn admits(&self, slot: Slot) -> bool {
        matches!(self.verdict(slot), Verdict::Fits)
    }

    pub fn objection(&self, slot: Slot) -> Option<Objection> {
        let skewed = "node(s) didn't match pod topology spread constraints";
        Some(match self.verdict(slot) {
            Verdict::Fits => return None,
            Verdict::LacksLabel => Objection::unresolvable(Plugin::PodTopologySpread, format!("{skewed} (missing required label)")),
            Verdict::Skewed => Objection::resolvable(Plugin::PodTopologySpread, skewed),
            Verdict::NoNeighbour => Objection::unresolvable(Plugin::InterPodAffinity, "node(s) didn't match pod affinity rules"),
            Verdict::Unwanted => Objection::resolvable(Plugin::InterPodAffinity, "node(s) didn't match pod anti-affinity rules"),
            Verdict::Refused => Objection::resolvable(Plugin::InterPodAffinity, "node(s) didn't satisfy existing pods anti-affinity rules"),
        })
    }

    fn verdict(&self, slot: Slot) -> Verdict {
        for (hard, fewest) in self.domains.hard.iter().zip(&self.fewest) {
            let value = self.snapshot.topologies.get(hard.topology).map_or(NO_VALUE, |topology| topology.at(slot));
            if value == NO_VALUE {
                return Verdict::LacksLabel;
            }
            if counted(&hard.counts, value) + hard.itself - fewest > hard.max_skew {
                return Verdict::Skewed;
            }
        }
        if !self.affinity.is_empty() && !self.finds_neighbours(slot) {
            return Verdict::NoNeighbour;
        }
        for key in &self.domains.keys {
            let value = self.snapshot.topologies[key.topology].at(slot);
            if value != NO_VALUE && counted(&key.unwanted, value) > 0 {
                return Verdict::Unwanted;
            }
        }
        for key in &self.domains.keys {
            let value = self.snapshot.topologies[key.topology].at(slot);
            if value != NO_VALUE && counted(&key.refusing, value) > 0 {
                return Verdict::Refused;
            }
        }
        Verdict::Fits
    }

    fn finds_neighbours(&self, slot: Slot) -> bool {
        let value = |topology: usize| self.snapshot.topologies[topology].at(slot);
        let has_labels = self.affinity.iter().all(|topology| topology.is_some_and(|topology| value(topology) != NO_VALUE));
        let first_of_group = self.domains.wanted == 0 && self.domains.wants_itself;
        let holds = |topology: &Option<usize>| {
            let key = topology.and_then(|topology| self.domains.keys.iter().find(|key| key.topology == topology));
            key.is_some_and(|key| counted(&key.wanted, value(key.topology)) > 0)
        };
        has_labels && (first_of_group || self.affinity.iter().all(holds))
    }

    /// Adds the scores of spreading and of affinity between pods to the totals.
    pub fn score(&self, scratch: &mut Scratch) {
        if !self.domains.soft.is_empty() {
            self.score_spread(scratch);
        }
        if self.profile.weights.inter_pod_affinity != 0 {
            self.score_affinity(scratch);
        }
    }

    /// Upstream's PodTopologySpread: fewer matching pods in the node's domains are better, small topologies count less.
    fn score_spread(&self, scratch: &mut Scratch) {
        let soft = &self.domains.soft;
        let columns: Vec<&[u32]> =
            soft.iter().map(|soft| self.snapshot.topologies.get(soft.topology).map(|one| &one.of[..]).unwrap_or_default()).collect();
        let value = |at: usize, slot: Slot| columns[at].get(slot).copied().unwrap_or(NO_VALUE);
        let needs_all = self.class.neighbour.soft_needs_all_keys;
        let ignored = |slot: Slot| needs_all && (0..soft.len()).any(|at| value(at, slot) == NO_VALUE);
        let scored = scratch.slots.iter().filter(|slot| !ignored(**slot)).count();
        let mut weights = Vec::with_capacity(soft.len());
        for (at, constraint) in soft.iter().enumerate() {
            let size = match constraint.hostname {
                true => scored,
                false => distinct(&mut scratch.seen, scratch.slots.iter().filter(|slot| !ignored(**slot)).map(|slot| value(at, *slot))),
            };
            weights.push(((size + 2) as f64).ln());
        }
        scratch.raw.clear();
        for slot in &scratch.slots {
            if ignored(*slot) {
                scratch.raw.push(-1);
                continue;
            }
            let mut score = 0.0;
            for (at, constraint) in soft.iter().enumerate() {
                let value = value(at, *slot);
                if value != NO_VALUE {
                    let pods = if constraint.hostname { constraint.on_node[*slot] } else { counted(&constraint.counts, value) };
                    score += pods as f64 * weights[at] + (constraint.max_skew - 1) as f64;
                }
            }
            scratch.raw.push(score.round() as i64);
        }
        let valid = || scratch.raw.iter().copied().filter(|raw| *raw >= 0);
        let (least, most) = (valid().min().unwrap_or(i64::MAX), valid().max().unwrap_or(0));
        let weight = self.profile.weights.pod_topology_spread;
        for (total, raw) in scratch.totals.iter_mut().zip(&scratch.raw) {
            *total += weight
                * match (*raw, most) {
                    (-1, _) => 0,
                    (_, 0) => MAX,
                    (raw, most) => MAX * (most + least - raw) / most,
                };
        }
    }

    /// Upstream's InterPodAffinity: the sum of the weights in the node's domains, scaled between the least and the most.
    fn score_affinity(&self, scratch: &mut Scratch) {
        let keys: Vec<(&[u32], &[i64])> = self
            .domains
            .keys
            .iter()
            .filter(|key| !key.score.is_empty())
            .map(|key| (&self.snapshot.topologies[key.topology].of[..], &key.score[..]))
            .collect();
        if keys.is_empty() {
            return;
        }
        let of =
            |slot: &Slot| -> i64 { keys.iter().map(|(values, scores)| values.get(*slot).map_or(0, |value| counted(scores, *value))).sum() };
        scratch.raw.clear();
        scratch.raw.extend(scratch.slots.iter().map(of));
        let (Some(least), Some(most)) = (scratch.raw.iter().min().copied(), scratch.raw.iter().max().copied()) else { return };
        if most == least {
            return;
        }
        let weight = self.profile.weights.inter_pod_affinity;
        for (total, raw) in scratch.totals.iter_mut().zip(&scratch.raw) {
            *total += weight * (MAX as f64 * ((raw - least) as f64 / (most - least) as f64)) as i64;
        }
    }
}

/// How many different values there are; a node without one counts as one more.
fn distinct(seen: &mut Vec<bool>, values: impl Iterator<Item = u32>) -> usize {
    seen.clear();
    let (mut count, mut without) = (0, 0);
    for value in values {
        if value == NO_VALUE {
            without = 1;
            continue;
        }
        let at = value as usize;
        if seen.len() <= at {
            seen.resize(at + 1, false);
        }
        if !std::mem::replace(&mut seen[at], true) {
            count += 1;
        }
    }
    count + without
}
