//! Whether a namespace is empty, and what its conditions say (upstream: `NamespaceConditionUpdater`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observe::World;

/// The finalizer of our work.
pub(super) const FINALIZER: &str = "kubernetes";

/// On its way out, and waiting for us.
pub(super) fn is_ours(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    namespace.metadata.deletion_timestamp.is_some() && finalizers.is_some_and(|list| list.iter().any(|name| name == FINALIZER))
}

pub(super) fn is_empty(world: &World) -> bool {
    world.left.is_empty() && world.discovery_errors.is_empty() && world.deletion_errors.is_empty()
}

/// The five conditions, each with its good and its bad sentence; those whose status stays keep their transition time.
pub(super) fn conditions(world: &World, current: &[NamespaceCondition], now: Timestamp) -> Vec<NamespaceCondition> {
    let joined = |errors: &[String]| (!errors.is_empty()).then(|| errors.join(", "));
    let rows: [(&str, Option<String>, (&str, &str), &str); 5] = [
        (
            "NamespaceDeletionDiscoveryFailure",
            joined(&world.discovery_errors)
                .map(|errors| format!("Discovery failed for some groups, {} failing: {errors}", world.discovery_errors.len())),
            ("ResourcesDiscovered", "All resources successfully discovered"),
            "DiscoveryFailed",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            "GroupVersionParsingFailed",
        ),
        (
            "NamespaceDeletionContentFailure",
            joined(&world.deletion_errors)
                .map(|errors| format!("Failed to delete all resource types, {} remaining: {errors}", world.deletion_errors.len())),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            "ContentDeletionFailed",
        ),
        ("NamespaceContentRemaining", remaining(world), ("ContentRemoved", "All content successfully removed"), "SomeResourcesRemain"),
        (
            "NamespaceFinalizersRemaining",
            finalizers(world),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            "SomeFinalizersRemain",
        ),
    ];
    let row = |(kind, problem, good, bad): (&str, Option<String>, (&str, &str), &str)| {
        let (status, reason, message) = match problem {
            Some(message) => ("True", bad, message),
            None => ("False", good.0, good.1.to_owned()),
        };
        let known = current.iter().find(|condition| condition.type_ == kind && condition.status == status);
        NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: known.and_then(|known| known.last_transition_time.clone()).or(Some(Time(now))),
        }
    };
    rows.into_iter().map(row).collect()
}

fn remaining(world: &World) -> Option<String> {
    let count = |left: &super::observe::Left| {
        format!("{}.{} has {} resource instances", left.resource.resource.plural, left.resource.resource.group, left.finalizers.len())
    };
    let mut words: Vec<String> = world.left.iter().filter(|left| !left.finalizers.is_empty()).map(count).collect();
    words.sort();
    (!words.is_empty()).then(|| format!("Some resources are remaining: {}", words.join(", ")))
}

fn finalizers(world: &World) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let all = world.left.iter().flat_map(|left| left.finalizers.iter().flatten());
    all.for_each(|name| *counts.entry(name).or_insert(0) += 1);
    let words: Vec<String> = counts.into_iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    (!words.is_empty()).then(|| format!("Some content in the namespace has finalizers remaining: {}", words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_namespace_has_only_good_conditions_and_an_unchanged_one_keeps_its_times() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let first = conditions(&World::default(), &[], now);
        assert!(is_empty(&World::default()) && first.iter().all(|condition| condition.status == "False"));
        let broken = World { discovery_errors: vec!["metrics.k8s.io/v1: down".into()], ..World::default() };
        let next = conditions(&broken, &first, "2026-01-01T00:01:00Z".parse().unwrap());
        assert!(!is_empty(&broken));
        assert_eq!((next[0].status.as_str(), next[0].reason.as_deref()), ("True", Some("DiscoveryFailed")));
        assert_eq!(next[1].last_transition_time, first[1].last_transition_time);
        assert_ne!(next[0].last_transition_time, first[0].last_transition_time);
    }
}
