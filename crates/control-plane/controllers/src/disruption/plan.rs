//! The status that a budget shall have.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use reconcile::EventKind;
use reconcile::object::controller_of;

use super::observe::World;
use crate::{intstr, pods, selector};

/// An evicted pod counts as gone so long, although it is still there.
const EVICTION_TAKES: SignedDuration = SignedDuration::from_secs(120);

#[derive(Default)]
pub(super) struct Plan {
    /// `None` where nothing changed.
    pub status: Option<PodDisruptionBudgetStatus>,
    pub look_again: Option<Duration>,
    /// What the user should know about the budget's pods; told when the status changes.
    pub event: Option<(EventKind, &'static str, String)>,
}

/// Of the pods of a budget: how many there shall be, and how many of them healthy.
struct Bounds {
    expected: i32,
    desired: i32,
}

pub(super) fn plan(world: &World) -> Plan {
    let Some(spec) = &world.budget.spec else { return Plan::default() };
    let old = world.budget.status.clone().unwrap_or_default();
    let disrupted = disrupted(world, &old);
    let mut status = PodDisruptionBudgetStatus { observed_generation: world.budget.metadata.generation, ..old.clone() };
    match bounds(world, spec) {
        Ok(bounds) => {
            let healthy = world.pods.iter().filter(|pod| is_healthy(pod, &disrupted)).count() as i32;
            let allowed = if bounds.expected > 0 { (healthy - bounds.desired).max(0) } else { 0 };
            status.current_healthy = Some(healthy);
            status.desired_healthy = Some(bounds.desired);
            status.expected_pods = Some(bounds.expected);
            status.disruptions_allowed = Some(allowed);
            let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
            judge(&mut status, allowed > 0, reason, "", world.now);
        }
        Err(why) => {
            status.disruptions_allowed = Some(0);
            judge(&mut status, false, "SyncFailed", &why, world.now);
        }
    }
    let first = disrupted.values().min().map(|since| world.now.duration_until(since.saturating_add(EVICTION_TAKES).unwrap_or(*since)));
    status.disrupted_pods = (!disrupted.is_empty()).then(|| disrupted.into_iter().map(|(name, since)| (name, Time(since))).collect());
    let look_again = first.map(|left| Duration::try_from(left).unwrap_or_default().max(Duration::from_secs(1)));
    let status = (status != old).then_some(status);
    Plan { event: event(world, spec).filter(|_| status.is_some()), status, look_again }
}

fn event(world: &World, spec: &PodDisruptionBudgetSpec) -> Option<(EventKind, &'static str, String)> {
    let counts_owners = spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)));
    if world.pods.is_empty() {
        return Some((EventKind::Normal, "NoPods", "No matching pods found".into()));
    }
    if let (Err(why), true) = (&world.sizes, counts_owners) {
        let message = format!("Failed to calculate the number of expected pods: {why}");
        return Some((EventKind::Warning, "CalculateExpectedPodCountFailed", message));
    }
    let unmanaged = world.pods.iter().any(|pod| controller_of(&pod.metadata).is_none());
    let selector = selector::parse(spec.selector.as_ref());
    let message = format!(
        "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB \
         cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \
         \".spec.minAvailable\" field of the PDB to an integer value."
    );
    (unmanaged && counts_owners).then_some((EventKind::Warning, "UnmanagedPods", message))
}

/// The evictions that are still under way.
fn disrupted(world: &World, old: &PodDisruptionBudgetStatus) -> BTreeMap<String, Timestamp> {
    let going = |name: &String| {
        let pod = world.pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(name));
        pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none())
    };
    let noted = old.disrupted_pods.iter().flatten().map(|(name, since)| (name.clone(), since.0));
    noted.filter(|(name, since)| going(name) && world.now.duration_since(*since) < EVICTION_TAKES).collect()
}

fn is_healthy(pod: &Pod, disrupted: &BTreeMap<String, Timestamp>) -> bool {
    let leaving = pod.metadata.name.as_ref().is_some_and(|name| disrupted.contains_key(name));
    pod.metadata.deletion_timestamp.is_none() && !leaving && pods::is_ready(pod)
}

fn bounds(world: &World, spec: &PodDisruptionBudgetSpec) -> Result<Bounds, String> {
    let total = || world.sizes.clone().map(|sizes| sizes.values().sum::<i32>());
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(missing), _) => {
            let expected = total()?;
            Ok(Bounds { expected, desired: (expected - share(missing, expected)).max(0) })
        }
        (None, Some(IntOrString::Int(least))) => Ok(Bounds { expected: world.pods.len() as i32, desired: *least }),
        (None, Some(least)) => {
            let expected = total()?;
            Ok(Bounds { expected, desired: share(least, expected) })
        }
        (None, None) => Ok(Bounds { expected: world.pods.len() as i32, desired: 0 }),
    }
}

/// Percentages are rounded up, for both bounds.
fn share(value: &IntOrString, total: i32) -> i32 {
    intstr::scaled(value, total, intstr::Round::Up)
}

fn judge(status: &mut PodDisruptionBudgetStatus, on: bool, reason: &str, message: &str, now: Timestamp) {
    let word = if on { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let before = conditions.iter().position(|condition| condition.type_ == "DisruptionAllowed").map(|at| conditions.remove(at));
    let since = before.filter(|before| before.status == word).map(|before| before.last_transition_time);
    conditions.push(Condition {
        type_: "DisruptionAllowed".into(),
        status: word.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: since.unwrap_or_else(|| Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
        observed_generation: status.observed_generation,
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-01-01T00:10:00Z";

    fn world(spec: Value, pods: &[(&str, bool)], size: Result<i32, &str>, disrupted: Value) -> World {
        let pod = |(name, ready): &(&str, bool)| {
            let status = if *ready { "True" } else { "False" };
            let pod = json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": status}]}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let budget = json!({"metadata": {"name": "b", "generation": 2}, "spec": spec, "status": {"disruptionsAllowed": 0,
            "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptedPods": disrupted}});
        World {
            budget: Arc::new(serde_json::from_value(budget).unwrap()),
            pods: pods.iter().map(pod).collect(),
            sizes: size.map(|size| [("uid".to_owned(), size)].into()).map_err(str::to_owned),
            now: NOW.parse().unwrap(),
        }
    }

    #[test]
    fn as_many_may_go_as_are_healthy_beyond_the_bound() {
        let three = [("a", true), ("b", true), ("c", true)];
        let one_sick = [("a", true), ("b", true), ("c", false)];
        // spec, pods, size of the owner; healthy, desired, expected, allowed
        let cases = [
            (json!({"minAvailable": 2}), &three[..], Ok(3), [3, 2, 3, 1]),
            (json!({"minAvailable": 2}), &one_sick[..], Ok(3), [2, 2, 3, 0]),
            (json!({"minAvailable": "50%"}), &three[..], Ok(3), [3, 2, 3, 1]),
            (json!({"maxUnavailable": 1}), &three[..], Ok(3), [3, 2, 3, 1]),
            (json!({"maxUnavailable": "34%"}), &three[..], Ok(3), [3, 1, 3, 2]),
            (json!({"maxUnavailable": 1}), &three[..], Ok(4), [3, 3, 4, 0]),
            (json!({"maxUnavailable": 1}), &[][..], Ok(0), [0, 0, 0, 0]),
        ];
        for (spec, pods, size, expected) in cases {
            let status = plan(&world(spec.clone(), pods, size, json!({}))).status.expect("a new status");
            let found = [status.current_healthy, status.desired_healthy, status.expected_pods, status.disruptions_allowed];
            assert_eq!(found, expected.map(Some), "{spec}");
            assert_eq!(status.observed_generation, Some(2));
            let condition = &status.conditions.unwrap()[0];
            let word = if expected[3] > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), word, "{spec}");
        }
    }

    #[test]
    fn a_pod_that_is_being_evicted_is_gone_for_two_minutes() {
        let pods = [("a", true), ("b", true)];
        let disrupted = json!({"a": "2026-01-01T00:09:00Z", "b": "2026-01-01T00:07:00Z", "gone": "2026-01-01T00:09:59Z"});
        let plan = plan(&world(json!({"minAvailable": 1}), &pods, Ok(2), disrupted));
        let status = plan.status.unwrap();
        assert_eq!((status.current_healthy, status.disruptions_allowed), (Some(1), Some(0)));
        assert_eq!(status.disrupted_pods.unwrap().keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(plan.look_again, Some(Duration::from_secs(60)));
    }

    #[test]
    fn an_owner_without_a_size_allows_nothing_and_says_why() {
        let status = plan(&world(json!({"maxUnavailable": 1}), &[("a", true)], Err("no scale"), json!({}))).status.unwrap();
        let condition = &status.conditions.unwrap()[0];
        assert_eq!(
            (status.disruptions_allowed, condition.reason.as_str(), condition.message.as_str()),
            (Some(0), "SyncFailed", "no scale")
        );
    }

    #[test]
    fn a_budget_without_pods_or_over_pods_without_owners_says_so() {
        let told = |spec: Value, pods: &[(&str, bool)], size| {
            plan(&world(spec, pods, size, json!({}))).event.map(|(_, reason, _)| reason).unwrap_or_default()
        };
        assert_eq!(told(json!({"maxUnavailable": 1}), &[], Ok(0)), "NoPods");
        assert_eq!(told(json!({"maxUnavailable": 1}), &[("a", true)], Err("no scale")), "CalculateExpectedPodCountFailed");
        assert_eq!(told(json!({"minAvailable": "50%"}), &[("a", true)], Ok(0)), "UnmanagedPods");
        assert_eq!(told(json!({"minAvailable": 1}), &[("a", true)], Ok(0)), "");
    }
}
