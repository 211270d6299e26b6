use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm};

use super::{Judged, Objection};
use crate::class::Class;
use crate::profile::Plugin;
use crate::snapshot::Details;

/// `spec.nodeSelector` and the required node affinity, and what the profile adds.
pub(super) fn objection(judged: &Judged<'_>) -> Option<Objection> {
    let node = &judged.snapshot.details[judged.slot];
    if !required(judged.profile.added_affinity.as_ref(), node) {
        return Some(Objection::unresolvable(Plugin::NodeAffinity, "node(s) didn't match scheduler-enforced node affinity"));
    }
    (!selects(judged.class, node))
        .then(|| Objection::unresolvable(Plugin::NodeAffinity, "node(s) didn't match Pod's node affinity/selector"))
}

/// Whether the pod's own selector and affinity allow the node.
pub(crate) fn selects(class: &Class, node: &Details) -> bool {
    class.node_selector.iter().all(|(key, value)| node.facts.labels.get(key) == Some(value)) && required(class.node_affinity.as_ref(), node)
}

fn required(affinity: Option<&NodeAffinity>, node: &Details) -> bool {
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| matches_term(term, &node.facts.labels, &node.name)))
}

/// Whether a node with these labels and this name matches the term; an empty term matches nothing.
pub fn matches_term(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |key: &str| (key == "metadata.name").then_some(name);
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|requirement| holds(requirement, labels.get(&requirement.key).map(String::as_str)))
        && fields.iter().all(|requirement| holds(requirement, field(&requirement.key)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = |value: &str| values.iter().any(|wanted| wanted == value);
    let compare = |holds: fn(&i64, &i64) -> bool| match (value.and_then(|value| value.parse().ok()), values) {
        (Some(number), [limit]) => limit.parse().is_ok_and(|limit| holds(&number, &limit)),
        _ => false,
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}
