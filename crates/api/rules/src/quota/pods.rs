//! What pods cost.

use std::collections::{BTreeMap, BTreeSet};

use meta::{Quantity, time};
use serde_json::Value;

use super::{Amounts, add, amounts, one};
use crate::resources::{COMPUTE, is_extended, is_huge_page};
use crate::value::{entries, int, list, text};

/// Where a quota bounds these, every container must say them itself. (Upstream calls it a mistake that stays.)
const DEMANDED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

pub fn counts(name: &str) -> bool {
    let huge = is_huge_page(name) || name.starts_with("requests.hugepages-");
    let extended = name.strip_prefix("requests.").is_some_and(is_extended);
    name == "pods" || COMPUTE.contains(&name) || huge || extended
}

/// A pod that ended, or should have been gone by now, costs nothing but its place.
fn lives(pod: &Value, now: i64) -> bool {
    if matches!(text(pod, "status.phase"), "Succeeded" | "Failed") {
        return false;
    }
    match (time::epoch(text(pod, "metadata.deletionTimestamp")), int(pod, "metadata.deletionGracePeriodSeconds")) {
        // The time of deletion includes the grace period; upstream adds it once more.
        (Some(deleted), Some(grace)) => now <= deleted.saturating_add(grace),
        _ => true,
    }
}

pub fn usage(pod: &Value, now: i64, usage: &mut Amounts) {
    if !lives(pod, now) {
        return;
    }
    compute(&total(pod, "requests"), &total(pod, "limits"), usage);
}

/// A quota's names for requests and limits.
fn compute(requests: &Amounts, limits: &Amounts, usage: &mut Amounts) {
    usage.insert("pods".into(), one());
    for (name, amount) in requests {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                usage.insert(name.clone(), *amount);
                usage.insert(format!("requests.{name}"), *amount);
            }
            huge if is_huge_page(huge) => {
                usage.insert(name.clone(), *amount);
                usage.insert(format!("requests.{name}"), *amount);
            }
            other if is_extended(other) => drop(usage.insert(format!("requests.{name}"), *amount)),
            _ => {}
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            usage.insert(format!("limits.{name}"), *amount);
        }
    }
}

/// All containers together, or the start where it needs more; then the overhead (`k8s.io/component-helpers/resource`).
fn total(pod: &Value, part: &str) -> Amounts {
    let of = |container: &Value| {
        let mut asked = amounts(container, &format!("resources.{part}"));
        if part == "requests" {
            most(&mut asked, &allocated(pod, text(container, "name")));
        }
        asked
    };
    let mut sum = Amounts::new();
    for container in list(pod, "spec.containers") {
        add(&mut sum, &of(container));
    }
    let (mut sidecars, mut start) = (Amounts::new(), Amounts::new());
    for container in list(pod, "spec.initContainers") {
        let mut here = of(container);
        if text(container, "restartPolicy") == "Always" {
            add(&mut sum, &here);
            add(&mut sidecars, &here);
            here = sidecars.clone();
        } else {
            add(&mut here, &sidecars);
        }
        most(&mut start, &here);
    }
    most(&mut sum, &start);
    // What the pod says of itself as a whole takes the containers' place (KEP-2837).
    for (name, amount) in amounts(pod, &format!("spec.resources.{part}")) {
        sum.insert(name, amount);
    }
    let overhead = amounts(pod, "spec.overhead");
    for (name, amount) in overhead {
        match sum.get_mut(&name) {
            Some(present) => *present = *present + amount,
            // Without a limit there is none to add to.
            None if part == "requests" => drop(sum.insert(name, amount)),
            None => {}
        }
    }
    sum
}

/// While a pod is being resized it costs the larger of both.
fn allocated(pod: &Value, name: &str) -> Amounts {
    let mut statuses = list(pod, "status.containerStatuses").iter();
    statuses.find(|status| text(status, "name") == name).map(|status| amounts(status, "allocatedResources")).unwrap_or_default()
}

fn most(a: &mut Amounts, b: &Amounts) {
    for (name, amount) in b {
        let larger: Quantity = a.get(name).map_or(*amount, |present| (*present).max(*amount));
        a.insert(name.clone(), larger);
    }
}

pub fn missing<'a>(pod: &Value, bounded: impl Iterator<Item = &'a String>) -> Option<String> {
    let demanded: BTreeSet<&str> = bounded.map(String::as_str).filter(|name| DEMANDED.contains(name)).collect();
    let mut lacking: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    // Who speaks for the pod as a whole speaks for its containers.
    let whole = |part: &str, name: &str| entries(pod, &format!("spec.resources.{part}")).any(|(key, _)| key == name);
    for container in list(pod, "spec.containers").iter().chain(list(pod, "spec.initContainers")) {
        let mut own = Amounts::new();
        compute(&amounts(container, "resources.requests"), &amounts(container, "resources.limits"), &mut own);
        for name in demanded.iter().copied().filter(|name| !own.contains_key(*name)) {
            let (part, resource) = name.split_once('.').unwrap_or(("requests", name));
            if !whole(part, resource) {
                lacking.entry(name).or_default().insert(text(container, "name"));
            }
        }
    }
    if lacking.is_empty() {
        return None;
    }
    let words = lacking.iter().map(|(name, containers)| {
        let containers: Vec<&str> = containers.iter().copied().collect();
        format!("{name} for: {}", containers.join(","))
    });
    Some(format!("must specify {}", words.collect::<Vec<_>>().join("; ")))
}
