use std::collections::BTreeMap;

use super::Context;
use crate::class::Class;
use crate::filters::matches_term;
use crate::snapshot::Details;

/// The sum of the weights of the preferred terms that match.
pub(super) fn score(class: &Class, node: &Details, _: &Context) -> i64 {
    let none = BTreeMap::new();
    let labels = node.node.metadata.labels.as_ref().unwrap_or(&none);
    let preferred =
        class.node_affinity.iter().flat_map(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten());
    preferred.filter(|term| matches_term(&term.preference, labels, &node.name)).map(|term| i64::from(term.weight)).sum()
}
