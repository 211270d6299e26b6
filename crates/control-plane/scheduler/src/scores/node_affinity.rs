use k8s_openapi::api::core::v1::NodeAffinity;

use crate::class::Class;
use crate::filters::matches_term;
use crate::profile::Profile;
use crate::snapshot::Details;

/// The sum of the weights of the preferred terms that match, the pod's and the profile's.
pub(crate) fn node_affinity(profile: &Profile, class: &Class, node: &Details) -> i64 {
    let of = |affinity: Option<&NodeAffinity>| -> i64 {
        let preferred = affinity.iter().flat_map(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten());
        let matching = preferred.filter(|term| matches_term(&term.preference, &node.facts.labels, &node.name));
        matching.map(|term| i64::from(term.weight)).sum()
    };
    of(class.node_affinity.as_ref()) + of(profile.added_affinity.as_ref())
}
