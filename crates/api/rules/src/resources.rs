//! Names and amounts of resources (`cpu`, `hugepages-2Mi`, `example.com/gpu`), as pods, quotas, limit ranges and nodes give them.
//!
//! Source: upstream `pkg/apis/core/helper` and `ValidateResourceRequirements` in `pkg/apis/core/validation`.

use std::collections::{BTreeMap, BTreeSet};

use meta::field::{Error, Path};
use meta::quantity::Format;
use meta::{Quantity, names, quantity};
use serde_json::Value;

use crate::checks::{Errors, any, sentences};
use crate::value::{at, entries, has, list, text};

const NEGATIVE: &str = "must be greater than or equal to 0";

/// What pods ask for and quotas divide.
pub const COMPUTE: [&str; 9] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

/// Counted, never divided.
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// Whether upstream counts or divides by this name without a domain.
fn is_standard(name: &str) -> bool {
    COMPUTE.contains(&name) || COUNTED.contains(&name) || matches!(name, "storage" | "requests.storage")
}

pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Without a domain, or of Kubernetes' own.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

pub fn allows_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// What a quota may bound.
pub fn is_quota_name(name: &str) -> bool {
    is_huge_page(name) || name.starts_with("requests.hugepages-") || name != "storage" && is_standard(name)
}

/// Any resource: a qualified name, or one of the standard ones.
pub fn name(name: &str, path: &Path) -> Errors {
    let errors = sentences(path, name, names::qualified_name(name));
    if errors.is_empty() && !name.contains('/') && !is_huge_page(name) && !is_standard(name) {
        return vec![Error::invalid(path, name, "must be a standard resource type or fully qualified")];
    }
    errors
}

/// What a container may ask for.
pub fn container_name(name: &str, path: &Path) -> Errors {
    let mut errors = self::name(name, path);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_huge_page(name) {
            errors.push(Error::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(Error::invalid(path, name, "doesn't follow extended resource name standard"));
    }
    errors
}

/// What a quota may bound.
pub fn quota_name(name: &str, path: &Path) -> Errors {
    let mut errors = self::name(name, path);
    if !name.contains('/') && !is_quota_name(name) {
        errors.push(Error::invalid(path, name, "must be a standard resource for quota"));
    }
    errors
}

/// What a pod as a whole may ask for (KEP-2837).
fn pod_level_name(name: &str, path: &Path) -> Errors {
    let errors = self::name(name, path);
    if errors.is_empty() && !is_pod_level(name) {
        return vec![Error::not_supported(path, name, &["cpu", "hugepages-", "memory"])];
    }
    errors
}

fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge_page(name)
}

/// Not negative, and whole where the resource is counted.
pub fn amount(name: &str, amount: Quantity, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if amount.is_negative() {
        errors.push(Error::invalid(path, amount.to_string(), NEGATIVE));
    }
    if (COUNTED.contains(&name) || is_extended(name)) && amount.milli_value() % 1000 != 0 {
        errors.push(Error::invalid(path, amount.to_string(), "must be an integer"));
    }
    errors
}

pub fn positive(amount: Quantity, path: &Path) -> Errors {
    if amount.is_zero() || amount.is_negative() {
        return vec![Error::invalid(path, amount.to_string(), "must be greater than zero")];
    }
    Errors::new()
}

type NameCheck = fn(&str, &Path) -> Errors;

/// The requests and limits of a container. `claims` are the names of the pod's resource claims.
pub fn of_container(resources: &Value, claims: &BTreeSet<&str>, path: &Path) -> Errors {
    requirements(resources, container_name, claims, path)
}

/// The requests and limits of a pod as a whole, against those of its containers.
pub fn of_pod(spec: &Value, path: &Path) -> Errors {
    let resources = at(spec, "resources");
    if resources.is_null() {
        return Errors::new();
    }
    let mut errors = Errors::new();
    if has(resources, "claims") {
        errors.push(Error::forbidden(&path.child("claims"), "claims cannot be set for Resources at pod-level"));
    }
    errors.extend(requirements(resources, pod_level_name, &BTreeSet::new(), path));
    for (name, wanted) in of_containers(spec, "requests") {
        let given = amount_of(resources, "requests", &name).unwrap_or_default();
        if wanted > given && is_pod_level(&name) {
            let sentence = format!("must be greater than or equal to aggregate container requests of {wanted}");
            errors.push(Error::invalid(&path.child("requests").key(&name), given.to_string(), sentence));
        }
    }
    for (index, container) in list(spec, "containers").iter().enumerate() {
        for (name, limit) in entries(container, "resources.limits") {
            let bounds = (quantity::from_json(limit), amount_of(resources, "limits", name));
            if let (Some(limit), Some(pod)) = bounds
                && limit > pod
            {
                let here = path.child("containers").index(index).key(name).child("limits");
                errors.push(Error::invalid(&here, limit.to_string(), format!("must be less than or equal to pod limits of {pod}")));
            }
        }
    }
    errors
}

fn amount_of(resources: &Value, kind: &str, name: &str) -> Option<Quantity> {
    quantity::from_json(at(resources, kind).get(name)?)
}

/// What all containers of a pod together ask for at the worst moment: sidecars run with the rest, other init containers alone
/// (upstream: `AggregateContainerRequests`, `AggregateContainerLimits`). `kind` is `requests` or `limits`.
pub fn of_containers(spec: &Value, kind: &str) -> BTreeMap<String, Quantity> {
    let of = |container: &Value| -> BTreeMap<String, Quantity> {
        let amounts = entries(at(container, "resources"), kind);
        amounts.filter_map(|(name, amount)| Some((name.clone(), quantity::from_json(amount)?))).collect()
    };
    let add = |sum: &mut BTreeMap<String, Quantity>, more: &BTreeMap<String, Quantity>| {
        for (name, amount) in more {
            let before = sum.get(name).copied();
            sum.insert(name.clone(), before.map_or(*amount, |before| before + *amount));
        }
    };
    let mut total = BTreeMap::new();
    list(spec, "containers").iter().for_each(|container| add(&mut total, &of(container)));
    let (mut sidecars, mut peak) = (BTreeMap::new(), BTreeMap::<String, Quantity>::new());
    for container in list(spec, "initContainers") {
        let mut during = of(container);
        if text(container, "restartPolicy") == "Always" {
            add(&mut total, &during);
            add(&mut sidecars, &during);
            during = sidecars.clone();
        } else {
            add(&mut during, &sidecars);
        }
        keep_larger(&mut peak, during);
    }
    keep_larger(&mut total, peak);
    total
}

fn keep_larger(kept: &mut BTreeMap<String, Quantity>, other: BTreeMap<String, Quantity>) {
    for (name, amount) in other {
        if kept.get(&name).is_none_or(|before| *before < amount) {
            kept.insert(name, amount);
        }
    }
}

fn requirements(resources: &Value, check_name: NameCheck, claims: &BTreeSet<&str>, path: &Path) -> Errors {
    if resources.is_null() {
        return Errors::new();
    }
    let mut errors = Errors::new();
    for kind in ["limits", "requests"] {
        let parent = path.child(kind);
        for (name, given) in entries(resources, kind) {
            let here = parent.key(name);
            errors.extend(check_name(name, &here));
            let Some(given) = quantity::from_json(given) else { continue };
            errors.extend(amount(name, given, &here));
            if kind == "requests" {
                errors.extend(within_limit(name, given, resources, path));
            }
            if !is_whole_pages(name, given) {
                errors.push(Error::invalid(&here, given.to_string(), format!("{given} is not positive integer multiple of {name}")));
            }
        }
    }
    let names = || ["limits", "requests"].into_iter().flat_map(|kind| entries(resources, kind)).map(|(name, _)| name.as_str());
    if names().any(is_huge_page) && !names().any(|name| matches!(name, "cpu" | "memory")) {
        errors.push(Error::forbidden(path, "HugePages require cpu or memory"));
    }
    errors.extend(claim_names(list(resources, "claims"), claims, &path.child("claims")));
    errors
}

fn within_limit(name: &str, request: Quantity, resources: &Value, path: &Path) -> Option<Error> {
    let requests = path.child("requests");
    match amount_of(resources, "limits", name) {
        Some(limit) if !allows_overcommit(name) && request != limit => {
            Some(Error::invalid(&requests, request.to_string(), format!("must be equal to {name} limit of {limit}")))
        }
        Some(limit) if request > limit => {
            Some(Error::invalid(&requests, request.to_string(), format!("must be less than or equal to {name} limit of {limit}")))
        }
        None if !allows_overcommit(name) => {
            Some(Error::required(&path.child("limits"), "Limit must be set for non overcommitable resources"))
        }
        _ => None,
    }
}

/// An amount of `hugepages-2Mi` is a multiple of 2Mi.
fn is_whole_pages(name: &str, amount: Quantity) -> bool {
    let Some(size) = name.strip_prefix("hugepages-") else { return true };
    let Ok(size) = Quantity::parse(size) else { return false };
    size > Quantity::new(0, Format::BinarySi) && size.is_integer() && amount.value() % size.value() == 0
}

fn claim_names(used: &[Value], claims: &BTreeSet<&str>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (index, claim) in used.iter().enumerate() {
        let here = path.index(index);
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            errors.push(Error::required(&here, ""));
            continue;
        }
        if !request.is_empty() {
            errors.extend(sentences(&here.child("request"), request, names::dns1123_label(request)));
        }
        let whole = seen.contains(&(name, ""));
        if whole || request.is_empty() && seen.iter().any(|(before, _)| *before == name) {
            errors.push(Error::duplicate(&here, name));
        } else if !seen.insert((name, request)) {
            errors.push(Error::duplicate(&here, format!("{name}/{request}")));
        }
        seen.insert((name, request));
        if !claims.contains(name) {
            let known: Vec<&str> = claims.iter().copied().collect();
            let mut error = Error::not_found(&here, name);
            error.detail = match known.is_empty() {
                true => "must be one of the names in pod.spec.resourceClaims which is empty".to_owned(),
                false => format!("must be one of the names in pod.spec.resourceClaims: {}", known.join(", ")),
            };
            errors.push(error);
        }
    }
    errors
}

/// Fills the pod's own requests and limits from those of its containers (upstream: `defaultHugePagePodLimits`,
/// `defaultPodRequests`, `defaultPodLimits`).
pub fn default_pod_level(spec: &mut Value) {
    if !has(spec, "resources") {
        return;
    }
    let given = |spec: &Value, kind: &str| any(at(at(spec, "resources"), kind));
    let limits = of_containers(spec, "limits");
    if given(spec, "limits") || given(spec, "requests") {
        let pages = limits.iter().filter(|(name, _)| is_huge_page(name) && amount_of(at(spec, "resources"), "requests", name).is_none());
        let pages: Vec<_> = pages.map(|(name, amount)| (name.clone(), *amount)).collect();
        fill(spec, "limits", pages);
    }
    if given(spec, "limits") {
        let requests = of_containers(spec, "requests").into_iter();
        let requests: Vec<_> = requests.filter(|(name, _)| is_pod_level(name) && allows_overcommit(name)).collect();
        fill(spec, "requests", requests);
        let own: Vec<_> = entries(spec, "resources.limits")
            .filter(|(name, _)| is_pod_level(name))
            .filter_map(|(name, amount)| Some((name.clone(), quantity::from_json(amount)?)))
            .collect();
        fill(spec, "requests", own);
    } else if given(spec, "requests") {
        let all_have = |name: &str| {
            let mut lasting = list(spec, "containers")
                .iter()
                .chain(list(spec, "initContainers").iter().filter(|container| text(container, "restartPolicy") == "Always"));
            lasting.all(|container| amount_of(at(container, "resources"), "limits", name).is_some())
        };
        let bounded = limits.iter().filter(|(name, _)| is_pod_level(name) && allows_overcommit(name) && all_have(name));
        let bounded: Vec<_> = bounded.map(|(name, amount)| (name.clone(), *amount)).collect();
        fill(spec, "limits", bounded);
    }
}

fn fill(spec: &mut Value, kind: &str, amounts: Vec<(String, Quantity)>) {
    if amounts.is_empty() {
        return;
    }
    if let Some(target) = crate::value::object_at(spec, &format!("resources.{kind}")) {
        for (name, amount) in amounts {
            target.entry(name).or_insert_with(|| amount.to_string().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn requests_and_limits_are_explained() {
        let cases = [
            (json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}), vec![]),
            (
                json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
                vec!["r.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
            ),
            (json!({"limits": {"cpu": "-1"}}), vec!["r.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"]),
            (
                json!({"limits": {"gpus": "1"}}),
                vec![
                    "r.limits[gpus]: Invalid value: \"gpus\": must be a standard resource type or fully qualified",
                    "r.limits[gpus]: Invalid value: \"gpus\": must be a standard resource for containers",
                ],
            ),
            (json!({"limits": {"pods": "1"}}), vec!["r.limits[pods]: Invalid value: \"pods\": must be a standard resource for containers"]),
            (json!({"requests": {"a.b/c": "1"}}), vec!["r.limits: Required value: Limit must be set for non overcommitable resources"]),
            (json!({"limits": {"a.b/c": "500m"}}), vec!["r.limits[a.b/c]: Invalid value: \"500m\": must be an integer"]),
            (
                json!({"limits": {"a.b/c": "2"}, "requests": {"a.b/c": "1"}}),
                vec!["r.requests: Invalid value: \"1\": must be equal to a.b/c limit of 2"],
            ),
            (json!({"limits": {"hugepages-2Mi": "2Mi"}}), vec!["r: Forbidden: HugePages require cpu or memory"]),
            (
                json!({"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}}),
                vec!["r.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi"],
            ),
            (
                json!({"claims": [{"name": "x"}]}),
                vec!["r.claims[0]: Not found: \"x\": must be one of the names in pod.spec.resourceClaims which is empty"],
            ),
        ];
        for (resources, expected) in cases {
            assert_eq!(lines(of_container(&resources, &BTreeSet::new(), &Path::new("r"))), expected, "{resources}");
        }
    }

    #[test]
    fn a_pods_own_resources_cover_those_of_its_containers() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        let mut spec = json!({"resources": {"limits": {"cpu": "4", "memory": "1Gi"}}, "containers": [container("1"), container("500m")],
            "initContainers": [container("3")]});
        default_pod_level(&mut spec);
        assert_eq!(spec["resources"]["requests"], json!({"cpu": "3", "memory": "1Gi"}));
        assert_eq!(lines(of_pod(&spec, &Path::new("r"))), Vec::<String>::new());
        spec["resources"]["requests"]["cpu"] = "1".into();
        spec["resources"]["limits"]["cpu"] = "1".into();
        spec["containers"][0]["resources"]["limits"]["cpu"] = "2".into();
        assert_eq!(
            lines(of_pod(&spec, &Path::new("r"))),
            [
                "r.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 3",
                "r.containers[0][cpu].limits: Invalid value: \"2\": must be less than or equal to pod limits of 1",
            ]
        );
    }
}
