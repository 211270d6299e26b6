//! Whether a node can take a pod: upstream's default filter plugins, a file each, in upstream's order.

mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod pod_topology_spread;
mod taint_toleration;

pub use node_affinity::matches_term;
pub use taint_toleration::tolerates;

use crate::class::Class;
use crate::snapshot::{Details, Row, Snapshot};

/// Says why not, in upstream's words; several for one node where it counts each (resources).
pub struct Filter {
    pub name: &'static str,
    pub why_not: fn(&Class, &Row, &Details) -> Vec<String>,
}

/// Every filter that looks at one node alone, in upstream's order; those that look at all pods follow in [`objection`].
pub fn all() -> &'static [Filter] {
    &[
        Filter { name: "NodeUnschedulable", why_not: node_unschedulable::why_not },
        Filter { name: "NodeName", why_not: node_name::why_not },
        Filter { name: "TaintToleration", why_not: taint_toleration::why_not },
        Filter { name: "NodeAffinity", why_not: node_affinity::why_not },
        Filter { name: "NodePorts", why_not: node_ports::why_not },
        Filter { name: "NodeResourcesFit", why_not: node_resources::why_not },
    ]
}

/// What the filters that look at all pods found out once, for one pod.
#[derive(Default)]
pub struct Prepared {
    spread: pod_topology_spread::Prepared,
    affinity: inter_pod_affinity::Prepared,
}

/// Looks at the whole cluster once before the nodes are gone through.
pub fn prepare(snapshot: &Snapshot, class: &Class) -> Prepared {
    Prepared { spread: pod_topology_spread::prepare(snapshot, class), affinity: inter_pod_affinity::prepare(snapshot, class) }
}

/// The first objection to the node: the filter's name and its sentences.
pub fn objection(prepared: &Prepared, class: &Class, row: &Row, node: &Details) -> Option<(&'static str, Vec<String>)> {
    let own = all().iter().map(|filter| (filter.name, (filter.why_not)(class, row, node)));
    let others = [
        ("PodTopologySpread", pod_topology_spread::why_not(&prepared.spread, class, node)),
        ("InterPodAffinity", inter_pod_affinity::why_not(&prepared.affinity, class, node)),
    ];
    own.chain(others).find(|(_, reasons)| !reasons.is_empty())
}

fn because(reason: &str) -> Vec<String> {
    vec![reason.to_owned()]
}
