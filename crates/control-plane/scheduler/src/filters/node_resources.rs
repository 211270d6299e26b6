use crate::class::Class;
use crate::snapshot::{Details, Row};

/// What is asked for must be free; nothing asked for always fits, even on an overcommitted node.
pub(super) fn why_not(class: &Class, row: &Row, node: &Details) -> Vec<String> {
    let asked = &class.requests;
    let mut reasons = Vec::new();
    let mut lacking = |name: &str, wanted: i64, free: i64| {
        if wanted > 0 && wanted > free {
            reasons.push(if name == "pods" { "Too many pods".to_owned() } else { format!("Insufficient {name}") });
        }
    };
    lacking("pods", 1, row.free_pods);
    lacking("cpu", asked.milli_cpu, row.free_milli_cpu);
    lacking("memory", asked.memory, row.free_memory);
    lacking("ephemeral-storage", asked.ephemeral_storage, row.free_storage);
    for (name, wanted) in &asked.extended {
        let amount = |of: &crate::class::Resources| of.extended.get(name).copied().unwrap_or(0);
        lacking(name, *wanted, amount(&node.allocatable) - amount(&node.requested));
    }
    reasons
}
