//! The nodes as the scheduler sees them: hot amounts in rows, topology values in columns, the rest beside them.
//!
//! Every change is also kept for a while in a log, so that what was computed for a class of pods ([`crate::board`]) catches up by
//! looking at the nodes that changed and at no others.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use reconcile::ObjectKey;

use crate::class::{Class, HostPort};
use crate::neighbours::Namespaces;

mod node;
mod topology;

pub use node::Details;
pub use topology::{NO_VALUE, Topology};

/// A node's position in the columns; stable while the node exists.
pub type Slot = usize;

/// What one scan over all nodes reads: 64 bytes a node.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub struct Row {
    pub free_milli_cpu: i64,
    pub free_memory: i64,
    pub free_storage: i64,
    pub free_pods: i64,
    pub present: bool,
    /// Pods are nominated to the node and count before they are bound.
    pub nominated: bool,
}

/// A pod on a node, bound or assumed.
#[derive(Clone, Debug)]
pub struct Resident {
    pub key: Arc<ObjectKey>,
    pub uid: Arc<str>,
    pub class: Arc<Class>,
    /// When it started, in seconds of the epoch; `i64::MAX` while it has not.
    pub started: i64,
}

/// A pod that waits for room that preemption makes on a node.
#[derive(Clone, Debug)]
pub struct Nomination {
    pub key: Arc<ObjectKey>,
    pub class: Arc<Class>,
}

/// One change, for whoever keeps something computed.
#[derive(Clone, Debug)]
pub enum Change {
    /// The node itself: its labels, taints, amounts; or it came or went.
    Node(Slot),
    /// Its amounts or nominations alone.
    Room(Slot),
    /// A pod came (1) or went (-1).
    Pod(Slot, Arc<Class>, i32),
}

#[derive(Default)]
pub struct Snapshot {
    pub rows: Vec<Row>,
    pub details: Vec<Details>,
    /// In a dense range from 0; a class asks for its keys once.
    pub topologies: Vec<Topology>,
    namespaces: Namespaces,
    /// Placed pods with wishes about neighbours.
    pods_with_terms: usize,
    by_name: HashMap<String, Slot>,
    free: Vec<Slot>,
    /// Pods whose node is not known: it was not seen yet, or it left and may return. By node name.
    early: HashMap<String, Vec<Resident>>,
    nominations: HashMap<Slot, Vec<Nomination>>,
    log: VecDeque<Change>,
    /// The number of the first change in the log.
    log_start: u64,
    /// Raised when domains themselves change: everything counted by domain is counted anew.
    layout: u64,
    /// Raised when the number of nodes or what images they have changes.
    images: u64,
}

impl Snapshot {
    /// Present nodes.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.rows.iter().enumerate().filter(|(_, row)| row.present).map(|(slot, _)| slot)
    }
    pub fn len(&self) -> usize {
        self.by_name.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied()
    }
    pub fn name(&self, slot: Slot) -> &str {
        &self.details[slot].name
    }
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Whether any pod that is placed has affinity or anti-affinity to pods.
    pub fn has_pods_with_terms(&self) -> bool {
        self.pods_with_terms > 0
    }

    /// The number of changes so far.
    pub fn position(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }
    pub fn layout(&self) -> u64 {
        self.layout
    }
    pub fn images(&self) -> u64 {
        self.images
    }

    /// The changes from `position` on; `None` where the log no longer reaches back that far.
    pub fn changes_since(&self, position: u64) -> Option<impl Iterator<Item = &Change>> {
        let from = position.checked_sub(self.log_start)?;
        Some(self.log.range(usize::try_from(from).ok()?.min(self.log.len())..))
    }

    /// The column of a topology key, made when it is first asked for.
    pub fn topology(&mut self, key: &str) -> usize {
        if let Some(at) = self.topologies.iter().position(|topology| topology.key == key) {
            return at;
        }
        let mut topology = Topology::new(key);
        for (slot, details) in self.details.iter().enumerate().filter(|(slot, _)| self.rows[*slot].present) {
            topology.set(slot, details.label(key));
        }
        self.topologies.push(topology);
        self.topologies.len() - 1
    }

    /// A namespace's labels; `None`: it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<std::collections::BTreeMap<String, String>>) {
        let before = self.namespaces.get(name);
        if before == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
        self.layout += 1;
    }

    /// A node appeared or changed; `None` where nothing changed that placement depends on.
    pub fn set_node(&mut self, node: &Node) -> Option<Slot> {
        let name = node.metadata.name.clone().unwrap_or_default();
        let known = self.slot(&name);
        let facts = node::facts(node);
        let slot = match known {
            Some(slot) if self.details[slot].facts == facts => return None,
            Some(slot) => slot,
            None => self.take_slot(&name),
        };
        if known.is_none() || self.details[slot].facts.images != facts.images {
            self.images += 1;
        }
        self.details[slot].facts = facts;
        let mut moved = known.is_none() && !self.details[slot].pods.is_empty();
        for topology in &mut self.topologies {
            moved |= topology.set(slot, self.details[slot].facts.labels.get(&topology.key).map(String::as_str));
        }
        if moved || known.is_none() {
            self.layout += 1;
        }
        self.refresh(slot);
        self.record(Change::Node(slot));
        Some(slot)
    }

    /// A node is gone; its pods count again should it return before they are removed.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.remove(name) else { return };
        let gone = std::mem::take(&mut self.details[slot]);
        self.pods_with_terms -= gone.pods.iter().filter(|pod| pod.class.neighbour.has_terms()).count();
        if !gone.pods.is_empty() {
            self.early.insert(name.to_owned(), gone.pods);
        }
        self.nominations.remove(&slot);
        for topology in &mut self.topologies {
            topology.set(slot, None);
        }
        self.rows[slot] = Row::default();
        self.free.push(slot);
        self.layout += 1;
        self.images += 1;
        self.record(Change::Node(slot));
    }

    /// Makes the columns that the class's terms and constraints ask for.
    pub fn register(&mut self, class: &Class) {
        let own = &class.neighbour;
        let terms = own.affinity.iter().chain(&own.anti_affinity).chain(own.preferred.iter().map(|(_, term)| term));
        let spreads = own.spread.iter().chain(&own.soft_spread);
        for key in terms.map(|term| &term.topology_key).chain(spreads.map(|spread| &spread.topology_key)) {
            self.topology(key);
        }
    }

    /// A pod occupies the node (assumed or bound).
    pub fn add_pod(&mut self, node: &str, resident: Resident) {
        if resident.class.neighbour.has_terms() {
            self.register(&resident.class);
        }
        let Some(slot) = self.slot(node) else {
            self.early.entry(node.to_owned()).or_default().push(resident);
            return;
        };
        let class = resident.class.clone();
        self.occupy(slot, resident);
        self.refresh(slot);
        self.record(Change::Pod(slot, class, 1));
    }

    pub fn remove_pod(&mut self, node: &str, key: &ObjectKey) -> Option<Resident> {
        let Some(slot) = self.slot(node) else {
            let waiting = self.early.get_mut(node)?;
            let at = waiting.iter().position(|other| *other.key == *key)?;
            let gone = waiting.swap_remove(at);
            if waiting.is_empty() {
                self.early.remove(node);
            }
            return Some(gone);
        };
        let gone = self.details[slot].release(key)?;
        self.pods_with_terms -= usize::from(gone.class.neighbour.has_terms());
        self.refresh(slot);
        self.record(Change::Pod(slot, gone.class.clone(), -1));
        Some(gone)
    }

    /// The pods that wait for room on the node, with at least that priority, but not `but`.
    pub fn nominated(&self, slot: Slot, priority: i32, but: Option<&ObjectKey>) -> impl Iterator<Item = &Nomination> {
        let all = self.nominations.get(&slot).map(Vec::as_slice).unwrap_or_default();
        all.iter().filter(move |one| one.class.priority >= priority && but.is_none_or(|but| *one.key != *but))
    }

    /// Those that wait on the node with less priority.
    pub fn nominated_below(&self, slot: Slot, priority: i32) -> Vec<Nomination> {
        let all = self.nominations.get(&slot).map(Vec::as_slice).unwrap_or_default();
        all.iter().filter(|one| one.class.priority < priority).cloned().collect()
    }

    pub fn nominate(&mut self, node: &str, nomination: Nomination) {
        let Some(slot) = self.slot(node) else { return };
        let all = self.nominations.entry(slot).or_default();
        if !all.iter().any(|one| one.key == nomination.key) {
            all.push(nomination);
            self.refresh(slot);
            self.record(Change::Room(slot));
        }
    }

    pub fn forget_nomination(&mut self, node: &str, key: &ObjectKey) {
        let Some(slot) = self.slot(node) else { return };
        let Some(all) = self.nominations.get_mut(&slot) else { return };
        all.retain(|one| *one.key != *key);
        if all.is_empty() {
            self.nominations.remove(&slot);
        }
        self.refresh(slot);
        self.record(Change::Room(slot));
    }

    fn take_slot(&mut self, name: &str) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.rows.push(Row::default());
            self.details.push(Details::default());
            self.rows.len() - 1
        });
        self.by_name.insert(name.to_owned(), slot);
        self.details[slot].name = name.to_owned();
        for resident in self.early.remove(name).unwrap_or_default() {
            self.occupy(slot, resident);
        }
        slot
    }

    fn occupy(&mut self, slot: Slot, resident: Resident) {
        self.pods_with_terms += usize::from(resident.class.neighbour.has_terms());
        self.details[slot].occupy(resident);
    }

    fn refresh(&mut self, slot: Slot) {
        let details = &self.details[slot];
        self.rows[slot] = Row {
            free_milli_cpu: details.facts.allocatable.milli_cpu - details.requested.milli_cpu,
            free_memory: details.facts.allocatable.memory - details.requested.memory,
            free_storage: details.facts.allocatable.ephemeral_storage - details.requested.ephemeral_storage,
            free_pods: details.facts.pods_max - details.pods.len() as i64,
            present: true,
            nominated: self.nominations.contains_key(&slot),
        };
    }

    fn record(&mut self, change: Change) {
        // As long as replaying is cheaper than computing anew.
        let kept = (4 * self.rows.len()).max(4096);
        if self.log.len() >= kept {
            self.log.pop_front();
            self.log_start += 1;
        }
        self.log.push_back(change);
    }
}

/// Host ports of the node's pods that stand in the way of `wanted`.
pub fn port_taken(taken: &[HostPort], wanted: &[HostPort]) -> bool {
    wanted.iter().any(|port| taken.iter().any(|other| port.conflicts(other)))
}
