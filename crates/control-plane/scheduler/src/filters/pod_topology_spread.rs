//! Spread constraints with `whenUnsatisfiable: DoNotSchedule` (KEP-895).

use std::collections::HashMap;

use crate::class::Class;
use crate::snapshot::{Details, Snapshot};

/// Per constraint: matching pods by domain, and the fewest of any domain.
#[derive(Default)]
pub struct Prepared(Vec<(HashMap<String, i64>, i64)>);

pub fn prepare(snapshot: &Snapshot, class: &Class) -> Prepared {
    let own = &class.neighbour;
    let counted = |node: &Details, honours: bool| {
        own.spread.iter().all(|constraint| node.label(&constraint.topology_key).is_some())
            && (!honours || super::node_affinity::matches(class, node))
    };
    let of = |constraint: &crate::neighbours::Spread| {
        let mut domains: HashMap<String, i64> = HashMap::new();
        for slot in snapshot.slots() {
            let node = &snapshot.details[slot];
            let Some(value) = node.label(&constraint.topology_key).filter(|_| counted(node, constraint.honours_node_affinity)) else {
                continue;
            };
            let pods = node.pods.iter().filter(|pod| constraint.counts(&pod.neighbour, &own.namespace)).count();
            *domains.entry(value.to_owned()).or_default() += pods as i64;
        }
        let fewest = if domains.len() < constraint.min_domains { 0 } else { domains.values().copied().min().unwrap_or(0) };
        (domains, fewest)
    };
    Prepared(own.spread.iter().map(of).collect())
}

pub fn why_not(prepared: &Prepared, class: &Class, node: &Details) -> Vec<String> {
    let own = &class.neighbour;
    for (constraint, (domains, fewest)) in own.spread.iter().zip(&prepared.0) {
        let Some(value) = node.label(&constraint.topology_key) else {
            return super::because("node(s) didn't match pod topology spread constraints (missing required label)");
        };
        let itself = i64::from(constraint.counts(own, &own.namespace));
        if domains.get(value).copied().unwrap_or(0) + itself - fewest > constraint.max_skew {
            return super::because("node(s) didn't match pod topology spread constraints");
        }
    }
    Vec::new()
}
