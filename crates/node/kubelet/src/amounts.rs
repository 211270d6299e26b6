//! What pods and containers ask for and may use, in milli-units of a processor and in bytes or pieces of everything else. Pure.
//!
//! Source: upstream's `k8s.io/component-helpers/resource` (`PodRequests`, `PodLimits`), KEP-753 (sidecars), KEP-2837 (pod-level resources),
//! KEP-688 (overhead).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::podspec::{self, Role};

type List = BTreeMap<String, ApiQuantity>;

/// Milli-units for `cpu`, units for the rest.
pub fn amount(resource: &str, quantity: &ApiQuantity) -> i64 {
    podspec::quantity(quantity).map_or(0, |quantity| if resource == "cpu" { quantity.milli_value() } else { quantity.value() })
}

fn of(list: Option<&List>, resource: &str) -> Option<i64> {
    list?.get(resource).map(|quantity| amount(resource, quantity))
}

/// The request, or the limit where there is none.
pub fn requested(resources: Option<&ResourceRequirements>, resource: &str) -> Option<i64> {
    let resources = resources?;
    of(resources.requests.as_ref(), resource).or_else(|| of(resources.limits.as_ref(), resource))
}

pub fn limited(resources: Option<&ResourceRequirements>, resource: &str) -> Option<i64> {
    of(resources?.limits.as_ref(), resource)
}

/// Resources that a pod may ask for as a whole.
fn is_pod_level(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-")
}

/// What the pod as a whole asks for: the most that it needs at any time of its life, with its overhead.
pub fn pod_request(pod: &Pod, resource: &str) -> i64 {
    let spec = podspec::spec(pod);
    let own = spec.resources.as_ref().filter(|_| is_pod_level(resource)).and_then(|own| requested(Some(own), resource));
    let overhead = of(spec.overhead.as_ref(), resource).unwrap_or(0);
    let amount = own.unwrap_or_else(|| most(pod, |container| requested(container.resources.as_ref(), resource).unwrap_or(0)));
    amount.saturating_add(overhead)
}

/// What the pod as a whole may use; `None` where any part of it is unlimited.
pub fn pod_limit(pod: &Pod, resource: &str) -> Option<i64> {
    let spec = podspec::spec(pod);
    let overhead = of(spec.overhead.as_ref(), resource).unwrap_or(0);
    if let Some(own) = spec.resources.as_ref().filter(|_| is_pod_level(resource)).and_then(|own| limited(Some(own), resource)) {
        return Some(own.saturating_add(overhead));
    }
    let containers = podspec::containers(pod);
    let counted = || containers.iter().filter(|(role, _)| *role != Role::Ephemeral);
    let all = counted().all(|(_, container)| limited(container.resources.as_ref(), resource).is_some_and(|limit| limit > 0));
    (all && counted().next().is_some())
        .then(|| most(pod, |container| limited(container.resources.as_ref(), resource).unwrap_or(0)).saturating_add(overhead))
}

/// Main containers and sidecars together, or an init container with the sidecars before it, whichever is more.
fn most(pod: &Pod, of: impl Fn(&Container) -> i64) -> i64 {
    let (mut sidecars, mut init, mut running) = (0_i64, 0_i64, 0_i64);
    for (role, container) in podspec::containers(pod) {
        let amount = of(&container);
        match role {
            Role::Sidecar => {
                sidecars = sidecars.saturating_add(amount);
                init = init.max(sidecars);
            }
            Role::Init => init = init.max(sidecars.saturating_add(amount)),
            Role::Main => running = running.saturating_add(amount),
            Role::Ephemeral => {}
        }
    }
    init.max(running.saturating_add(sidecars))
}

/// Every resource that any part of the pod asks for.
pub fn names(pod: &Pod) -> BTreeSet<String> {
    let spec = podspec::spec(pod);
    let mut names = BTreeSet::new();
    let mut add = |resources: Option<&ResourceRequirements>| {
        let lists = resources.into_iter().flat_map(|resources| [resources.requests.as_ref(), resources.limits.as_ref()]);
        names.extend(lists.flatten().flat_map(|list| list.keys().cloned()));
    };
    add(spec.resources.as_ref());
    podspec::containers(pod).iter().for_each(|(_, container)| add(container.resources.as_ref()));
    names.extend(spec.overhead.iter().flat_map(|overhead| overhead.keys().cloned()));
    names
}

/// A container's own limit, or the pod's where it has none (KEP-2837).
pub fn container_limit(pod: &Pod, container: &Container, resource: &str) -> Option<i64> {
    let own = limited(container.resources.as_ref(), resource).filter(|limit| *limit > 0);
    own.or_else(|| limited(podspec::spec(pod).resources.as_ref().filter(|_| is_pod_level(resource)), resource))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::podspec::tests::pod;

    #[test]
    fn a_pod_needs_the_most_of_its_phases_and_its_overhead() {
        let cpu = |request: &str| json!({"requests": {"cpu": request}});
        let pod = pod(json!({
            "overhead": {"cpu": "100m"},
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": cpu("200m")},
                {"name": "init", "resources": cpu("2")}],
            "containers": [{"name": "a", "resources": cpu("500m")}, {"name": "b", "resources": {"limits": {"cpu": "1"}}}],
        }));
        assert_eq!(pod_request(&pod, "cpu"), 2300);
        assert_eq!(pod_request(&pod, "memory"), 0);
        assert_eq!(pod_limit(&pod, "cpu"), None);
    }

    #[test]
    fn what_the_pod_says_as_a_whole_counts_before_its_containers() {
        let pod = pod(json!({
            "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "64Mi"}}}, {"name": "b"}],
        }));
        assert_eq!((pod_request(&pod, "cpu"), pod_request(&pod, "memory")), (1000, 1 << 30));
        assert_eq!((pod_limit(&pod, "cpu"), pod_limit(&pod, "memory")), (None, Some(1 << 30)));
        let containers = &podspec::spec(&pod).containers;
        assert_eq!(container_limit(&pod, &containers[0], "memory"), Some(64 << 20));
        assert_eq!(container_limit(&pod, &containers[1], "memory"), Some(1 << 30));
        assert_eq!(container_limit(&pod, &containers[1], "cpu"), None);
    }
}
