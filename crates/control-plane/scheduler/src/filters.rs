//! Whether a node can take a pod: upstream's default filter plugins, a file each, in upstream's order.

mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod taint_toleration;

pub use node_affinity::matches_term;
pub use taint_toleration::tolerates;

use crate::class::Class;
use crate::snapshot::{Details, Row};

/// Says why not, in upstream's words; several for one node where it counts each (resources).
pub struct Filter {
    pub name: &'static str,
    /// The answer depends on the node object alone, not on what runs there.
    pub of_node_only: bool,
    pub why_not: fn(&Class, &Row, &Details) -> Vec<String>,
}

/// Every filter; a node's first objection is what counts.
pub fn all() -> &'static [Filter] {
    &[
        Filter { name: "NodeUnschedulable", of_node_only: true, why_not: node_unschedulable::why_not },
        Filter { name: "NodeName", of_node_only: true, why_not: node_name::why_not },
        Filter { name: "TaintToleration", of_node_only: true, why_not: taint_toleration::why_not },
        Filter { name: "NodeAffinity", of_node_only: true, why_not: node_affinity::why_not },
        Filter { name: "NodePorts", of_node_only: false, why_not: node_ports::why_not },
        Filter { name: "NodeResourcesFit", of_node_only: false, why_not: node_resources::why_not },
    ]
}

fn because(reason: &str) -> Vec<String> {
    vec![reason.to_owned()]
}
