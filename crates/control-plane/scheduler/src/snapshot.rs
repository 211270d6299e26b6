//! The nodes as the scheduler sees them: hot amounts in rows, the rest beside them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::class::{Class, HostPort, Resources};
use crate::neighbours::Namespaces;

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
    /// Changes whenever anything about the node changes.
    pub generation: u64,
    pub present: bool,
}

/// The rest of a node.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub node: Arc<Node>,
    pub name: String,
    pub allocatable: Resources,
    pub requested: Resources,
    /// As `requested`, with scoring's assumptions.
    pub scored: Resources,
    pub ports: Vec<HostPort>,
    /// The pods of the node, bound or assumed.
    pub pods: Vec<Arc<Class>>,
}

impl Details {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }
}

#[derive(Default)]
pub struct Snapshot {
    pub rows: Vec<Row>,
    pub details: Vec<Details>,
    pub namespaces: Namespaces,
    /// Pods on nodes that refuse neighbours.
    anti_affinity: usize,
    by_name: HashMap<String, Slot>,
    free: Vec<Slot>,
    /// Pods whose node is not known: it was not seen yet, or it left and may return. By node name.
    early: HashMap<String, Vec<Arc<Class>>>,
    generation: u64,
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

    /// Whether any pod that is placed has required anti-affinity.
    pub fn has_anti_affinity(&self) -> bool {
        self.anti_affinity > 0
    }

    /// A node appeared or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let slot = self.slot(&name).unwrap_or_else(|| self.take_slot(&name));
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let details = &mut self.details[slot];
        details.allocatable = allocatable.map(Resources::of).unwrap_or_default();
        let pods = allocatable.and_then(|amounts| meta::quantity::Quantity::parse(&amounts.get("pods")?.0).ok());
        let pods = pods.map_or(0, |quantity| quantity.value());
        details.allocatable.extended.insert(PODS.to_owned(), pods);
        details.node = node;
        self.refresh(slot);
    }

    /// A node is gone; its pods count again should it return before they are removed.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.remove(name) else { return };
        self.rows[slot].present = false;
        let gone = std::mem::take(&mut self.details[slot]);
        self.anti_affinity -= gone.pods.iter().filter(|pod| !pod.neighbour.anti_affinity.is_empty()).count();
        if !gone.pods.is_empty() {
            self.early.insert(name.to_owned(), gone.pods);
        }
        self.free.push(slot);
    }

    /// A pod of this class occupies the node (assumed or bound).
    pub fn add_pod(&mut self, node: &str, class: &Arc<Class>) {
        let Some(slot) = self.slot(node) else {
            self.early.entry(node.to_owned()).or_default().push(class.clone());
            return;
        };
        self.occupy(slot, class);
        self.refresh(slot);
    }

    pub fn remove_pod(&mut self, node: &str, class: &Arc<Class>) {
        let Some(slot) = self.slot(node) else {
            if let Some(waiting) = self.early.get_mut(node)
                && let Some(at) = waiting.iter().position(|other| same(other, class))
            {
                waiting.swap_remove(at);
            }
            return;
        };
        let details = &mut self.details[slot];
        details.requested.sub(&class.requests);
        details.scored.sub(&class.scored);
        *details.requested.extended.entry(PODS.to_owned()).or_default() -= 1;
        for port in &class.host_ports {
            if let Some(at) = details.ports.iter().position(|other| other == port) {
                details.ports.swap_remove(at);
            }
        }
        if let Some(at) = details.pods.iter().position(|other| same(other, class)) {
            details.pods.swap_remove(at);
            self.anti_affinity -= usize::from(!class.neighbour.anti_affinity.is_empty());
        }
        self.refresh(slot);
    }

    fn take_slot(&mut self, name: &str) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.rows.push(Row::default());
            self.details.push(Details::default());
            self.rows.len() - 1
        });
        self.by_name.insert(name.to_owned(), slot);
        self.details[slot].name = name.to_owned();
        for class in self.early.remove(name).unwrap_or_default() {
            self.occupy(slot, &class);
        }
        slot
    }

    fn occupy(&mut self, slot: Slot, class: &Arc<Class>) {
        let details = &mut self.details[slot];
        details.requested.add(&class.requests);
        details.scored.add(&class.scored);
        *details.requested.extended.entry(PODS.to_owned()).or_default() += 1;
        details.ports.extend(class.host_ports.iter().cloned());
        details.pods.push(class.clone());
        self.anti_affinity += usize::from(!class.neighbour.anti_affinity.is_empty());
    }

    fn refresh(&mut self, slot: Slot) {
        self.generation += 1;
        let details = &self.details[slot];
        let extended = |of: &BTreeMap<String, i64>| of.get(PODS).copied().unwrap_or(0);
        self.rows[slot] = Row {
            free_milli_cpu: details.allocatable.milli_cpu - details.requested.milli_cpu,
            free_memory: details.allocatable.memory - details.requested.memory,
            free_storage: details.allocatable.ephemeral_storage - details.requested.ephemeral_storage,
            free_pods: extended(&details.allocatable.extended) - extended(&details.requested.extended),
            generation: self.generation,
            present: true,
        };
    }
}

/// Where the number of pods is counted among the extended amounts.
const PODS: &str = "pods";

fn same(left: &Arc<Class>, right: &Arc<Class>) -> bool {
    Arc::ptr_eq(left, right) || left == right
}
