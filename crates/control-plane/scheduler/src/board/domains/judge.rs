//! One look at the counts: which nodes other pods allow, and how they score.

use super::{Domains, Key, counted};
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
    /// By slot.
    pub fits: Vec<bool>,
    raw: Vec<i64>,
    seen: Vec<bool>,
    scaled: Vec<i64>,
}

impl Scratch {
    pub fn clear(&mut self) {
        self.slots.clear();
        self.totals.clear();
        self.fits.clear();
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
    /// The constraints that forbid: counts, and how many a domain may have before the pod comes.
    hard: Vec<(Column<'a>, i64)>,
    /// The class's own affinity terms; `None`: no node has the label.
    affinity: Vec<Option<Column<'a>>>,
    /// The class's terms hold where there is nobody yet.
    first_of_group: bool,
    /// Where somebody is whom the class avoids, and who avoids it.
    unwanted: Vec<Column<'a>>,
    refusing: Vec<Column<'a>>,
}

/// Counts by the values of a topology key, and each node's value.
#[derive(Clone, Copy)]
struct Column<'a> {
    values: &'a [u32],
    counts: &'a [i64],
}

impl<'a> Column<'a> {
    fn new(snapshot: &'a Snapshot, topology: usize, counts: &'a [i64]) -> Self {
        Self { values: snapshot.topologies.get(topology).map_or(&[], |topology| &topology.of), counts }
    }
    /// [`NO_VALUE`] where the node lacks the label.
    fn value(&self, slot: Slot) -> u32 {
        self.values.get(slot).copied().unwrap_or(NO_VALUE)
    }
    fn retain(&self, fits: &mut [bool], admits: impl Fn(u32) -> bool) {
        let known = self.values.len().min(fits.len());
        let (here, beyond) = fits.split_at_mut(known);
        here.iter_mut().zip(self.values).for_each(|(fits, value)| *fits &= admits(*value));
        beyond.iter_mut().for_each(|fits| *fits &= admits(NO_VALUE));
    }
    /// 0 where the node lacks the label.
    fn count(&self, slot: Slot) -> i64 {
        // No count stands at [`NO_VALUE`].
        counted(self.counts, self.value(slot))
    }
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
        let hard = domains.hard.iter().map(|hard| {
            let most = hard.max_skew - hard.itself + hard.fewest();
            (Column::new(snapshot, hard.topology, &hard.counts), most)
        });
        let wanted = |key: &str| {
            let topology = snapshot.topologies.iter().position(|topology| topology.key == key)?;
            let known = domains.keys.iter().find(|key| key.topology == topology);
            Some(Column::new(snapshot, topology, known.map_or(&[], |key| &key.wanted)))
        };
        let affinity = match profile.filters.has(Plugin::InterPodAffinity) {
            true => class.neighbour.affinity.iter().map(|term| wanted(&term.topology_key)).collect(),
            false => Vec::new(),
        };
        let counted = |counts: fn(&'a Key) -> &'a Vec<i64>| {
            let some = domains.keys.iter().filter(move |key| !counts(key).is_empty());
            some.map(move |key| Column::new(snapshot, key.topology, counts(key))).collect()
        };
        Self {
            domains,
            snapshot,
            class,
            profile,
            hard: hard.collect(),
            affinity,
            first_of_group: domains.wanted == 0 && domains.wants_itself,
            unwanted: counted(|key| &key.unwanted),
            refusing: counted(|key| &key.refusing),
        }
    }

    /// Takes out the nodes that other pods forbid: as [`Judge::objection`] for each of them, but column by column, which is several times as
    /// fast over all nodes.
    pub fn retain(&self, fits: &mut [bool]) {
        for (column, most) in &self.hard {
            column.retain(fits, |value| value != NO_VALUE && counted(column.counts, value) <= *most);
        }
        for term in &self.affinity {
            match term {
                None => fits.fill(false),
                Some(column) if self.first_of_group => column.retain(fits, |value| value != NO_VALUE),
                Some(column) => column.retain(fits, |value| counted(column.counts, value) > 0),
            }
        }
        for column in self.unwanted.iter().chain(&self.refusing) {
            column.retain(fits, |value| counted(column.counts, value) <= 0);
        }
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
        for (column, most) in &self.hard {
            let value = column.value(slot);
            if value == NO_VALUE {
                return Verdict::LacksLabel;
            }
            if counted(column.counts, value) > *most {
                return Verdict::Skewed;
            }
        }
        if !self.affinity.is_empty() && !self.finds_neighbours(slot) {
            return Verdict::NoNeighbour;
        }
        if self.unwanted.iter().any(|column| column.count(slot) > 0) {
            return Verdict::Unwanted;
        }
        if self.refusing.iter().any(|column| column.count(slot) > 0) {
            return Verdict::Refused;
        }
        Verdict::Fits
    }

    fn finds_neighbours(&self, slot: Slot) -> bool {
        let has_labels = self.affinity.iter().all(|term| term.is_some_and(|column| column.value(slot) != NO_VALUE));
        has_labels && (self.first_of_group || self.affinity.iter().flatten().all(|column| column.count(slot) > 0))
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
        let columns: Vec<Column<'_>> = soft.iter().map(|soft| Column::new(self.snapshot, soft.topology, &soft.counts)).collect();
        let needs_all = self.class.neighbour.soft_needs_all_keys;
        let ignored = |slot: Slot| needs_all && columns.iter().any(|column| column.value(slot) == NO_VALUE);
        let scored = scratch.slots.iter().filter(|slot| !ignored(**slot)).count();
        let mut weights = Vec::with_capacity(soft.len());
        for (constraint, column) in soft.iter().zip(&columns) {
            let size = match constraint.hostname {
                true => scored,
                false => distinct(&mut scratch.seen, scratch.slots.iter().filter(|slot| !ignored(**slot)).map(|slot| column.value(*slot))),
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
            for ((constraint, column), weight) in soft.iter().zip(&columns).zip(&weights) {
                let value = column.value(*slot);
                if value != NO_VALUE {
                    let pods = if constraint.hostname { constraint.on_node[*slot] } else { counted(column.counts, value) };
                    score += pods as f64 * weight + (constraint.max_skew - 1) as f64;
                }
            }
            scratch.raw.push(rounded(score));
        }
        let valid = || scratch.raw.iter().copied().filter(|raw| *raw >= 0);
        let (least, most) = (valid().min().unwrap_or(i64::MAX), valid().max().unwrap_or(0));
        let weight = self.profile.weights.pod_topology_spread;
        let scale = |raw: i64| match (raw, most) {
            (-1, _) => 0,
            (_, 0) => weight * MAX,
            (raw, most) => weight * (MAX * (most + least - raw) / most),
        };
        scratch.add_scaled(scale);
    }

    /// Upstream's InterPodAffinity: the sum of the weights in the node's domains, scaled between the least and the most.
    fn score_affinity(&self, scratch: &mut Scratch) {
        let some = self.domains.keys.iter().filter(|key| !key.score.is_empty());
        let columns: Vec<Column<'_>> = some.map(|key| Column::new(self.snapshot, key.topology, &key.score)).collect();
        scratch.raw.clear();
        match &columns[..] {
            [] => return,
            [column] => scratch.raw.extend(scratch.slots.iter().map(|slot| column.count(*slot))),
            columns => {
                let of = |slot: &Slot| -> i64 { columns.iter().map(|column| column.count(*slot)).sum() };
                scratch.raw.extend(scratch.slots.iter().map(of));
            }
        }
        let (Some(least), Some(most)) = (scratch.raw.iter().min().copied(), scratch.raw.iter().max().copied()) else { return };
        if most == least {
            return;
        }
        let weight = self.profile.weights.inter_pod_affinity;
        scratch.add_scaled(|raw| weight * (MAX as f64 * ((raw - least) as f64 / (most - least) as f64)) as i64);
    }
}

impl Scratch {
    /// Adds to each total what its raw score is scaled to. There are few different ones: each is scaled once, a division for each node would
    /// cost more than all the rest.
    fn add_scaled(&mut self, scale: impl Fn(i64) -> i64) {
        let (Some(least), Some(most)) = (self.raw.iter().min().copied(), self.raw.iter().max().copied()) else { return };
        let nodes = self.raw.len();
        match usize::try_from(most.saturating_sub(least)).ok().filter(|range| *range < nodes) {
            Some(range) => {
                self.scaled.clear();
                self.scaled.extend((0..=range as i64).map(|above| scale(least + above)));
                for (total, raw) in self.totals.iter_mut().zip(&self.raw) {
                    *total += self.scaled[(raw - least) as usize];
                }
            }
            None => self.totals.iter_mut().zip(&self.raw).for_each(|(total, raw)| *total += scale(*raw)),
        }
    }
}

/// To the nearest, halves up, of a number that is not below zero.
fn rounded(number: f64) -> i64 {
    let whole = number as i64;
    whole + i64::from(number - whole as f64 >= 0.5)
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
