//! Counts for topology spread constraints (KEP-895, KEP-3022, KEP-3094).

use super::bump;
use crate::class::Class;
use crate::filters;
use crate::neighbours::{HOSTNAME, Spread};
use crate::snapshot::{NO_VALUE, Slot, Snapshot, Topology};

/// A constraint that forbids.
pub(super) struct Hard {
    pub topology: usize,
    pub max_skew: i64,
    min_domains: usize,
    /// The pod itself would count.
    pub itself: i64,
    /// Matching pods, and nodes that count, by domain.
    pub counts: Vec<i64>,
    nodes: Vec<i64>,
    /// The nodes whose pods count, by slot.
    included: Vec<bool>,
}

/// A constraint that scores.
pub(super) struct Soft {
    pub topology: usize,
    pub hostname: bool,
    pub max_skew: i64,
    pub counts: Vec<i64>,
    /// Matching pods on each node, by slot; kept for the hostname only.
    pub on_node: Vec<i64>,
    included: Vec<bool>,
}

impl Hard {
    pub fn new(snapshot: &Snapshot, class: &Class, spread: &Spread, keys: &[&str]) -> Self {
        let topology = column(snapshot, &spread.topology_key);
        let included = included(snapshot, class, spread, keys, true);
        let mut nodes = Vec::new();
        let values = snapshot.topologies.get(topology);
        for slot in (0..included.len()).filter(|slot| included[*slot]) {
            if let Some(value) = values.map(|values| values.at(slot)).filter(|value| *value != NO_VALUE) {
                bump(&mut nodes, value, 1);
            }
        }
        Self {
            topology,
            max_skew: spread.max_skew,
            min_domains: spread.min_domains,
            itself: i64::from(spread.selects_itself(&class.neighbour)),
            counts: Vec::new(),
            nodes,
            included,
        }
    }

    pub fn count(&mut self, snapshot: &Snapshot, slot: Slot, count: i64) {
        let value = snapshot.topologies.get(self.topology).map_or(NO_VALUE, |topology| topology.at(slot));
        if value != NO_VALUE && self.included.get(slot) == Some(&true) {
            bump(&mut self.counts, value, count);
        }
    }

    /// The fewest pods of any domain; 0 where there are fewer domains than asked for.
    pub fn fewest(&self) -> i64 {
        let domains = self.nodes.iter().enumerate().filter(|(_, nodes)| **nodes > 0);
        let (count, fewest) = domains
            .fold((0, i64::MAX), |(count, fewest), (value, _)| (count + 1, fewest.min(self.counts.get(value).copied().unwrap_or(0))));
        if count < self.min_domains || count == 0 { 0 } else { fewest }
    }
}

impl Soft {
    pub fn new(snapshot: &Snapshot, class: &Class, spread: &Spread, keys: &[&str]) -> Self {
        let hostname = spread.topology_key == HOSTNAME;
        Self {
            topology: column(snapshot, &spread.topology_key),
            hostname,
            max_skew: spread.max_skew,
            counts: Vec::new(),
            on_node: if hostname { vec![0; snapshot.rows.len()] } else { Vec::new() },
            included: included(snapshot, class, spread, keys, class.neighbour.soft_needs_all_keys),
        }
    }

    pub fn count(&mut self, snapshot: &Snapshot, slot: Slot, count: i64) {
        if self.hostname {
            if let Some(on_node) = self.on_node.get_mut(slot) {
                *on_node += count;
            }
            return;
        }
        let value = snapshot.topologies.get(self.topology).map_or(NO_VALUE, |topology| topology.at(slot));
        if value != NO_VALUE && self.included.get(slot) == Some(&true) {
            bump(&mut self.counts, value, count);
        }
    }
}

fn column(snapshot: &Snapshot, key: &str) -> usize {
    snapshot.topologies.iter().position(|topology: &Topology| topology.key == key).unwrap_or(usize::MAX)
}

/// Which nodes the constraint counts, by slot.
fn included(snapshot: &Snapshot, class: &Class, spread: &Spread, keys: &[&str], needs_all_keys: bool) -> Vec<bool> {
    let includes = |slot: Slot| {
        let node = &snapshot.details[slot];
        snapshot.rows[slot].present
            && (!needs_all_keys || keys.iter().all(|key| node.label(key).is_some()))
            && (!spread.honours_node_affinity || filters::selects(class, node))
            && (!spread.honours_node_taints || filters::untolerated(class, node).is_none())
    };
    (0..snapshot.rows.len()).map(includes).collect()
}
