//! When a pod has to go, and for which rules.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceRequestAllocationResult, DeviceTaint, DeviceTaintRule, DeviceToleration, ResourceClaim,
};
use reconcile::ObjectKey;
use reconcile::object::controller_of;

use crate::devices::{self, DeviceId, Pool};
use crate::pods;

pub(super) const NO_EXECUTE: &str = "NoExecute";

#[derive(Debug, PartialEq)]
pub(super) struct Eviction {
    pub at: Timestamp,
    /// The names of the rules among the reasons, sorted.
    pub rules: Vec<String>,
}

/// The names of the claims that a pod uses.
pub(super) fn claims(pod: &Pod) -> Vec<String> {
    let asked = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default();
    let made = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref()).unwrap_or_default();
    let given = asked.iter().filter_map(|claim| claim.resource_claim_name.clone());
    given.chain(made.iter().filter_map(|claim| claim.resource_claim_name.clone())).collect()
}

/// The pods that a claim is reserved for.
pub(super) fn users(claim: &ResourceClaim) -> impl Iterator<Item = ObjectKey> {
    let namespace = claim.metadata.namespace.clone().unwrap_or_default();
    let users = claim.status.as_ref().and_then(|status| status.reserved_for.as_ref()).into_iter().flatten();
    users.filter(|user| user.resource == "pods").map(move |user| ObjectKey::new(namespace.clone(), user.name.clone()))
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let allocation: Option<&AllocationResult> = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    allocation.and_then(|allocation| allocation.devices.as_ref()).and_then(|devices| devices.results.as_ref()).into_iter().flatten()
}

fn id_of(result: &DeviceRequestAllocationResult) -> DeviceId {
    DeviceId { driver: result.driver.clone(), pool: result.pool.clone(), name: result.device.clone() }
}

pub(super) fn allocated(claim: &ResourceClaim) -> impl Iterator<Item = DeviceId> {
    results(claim).map(id_of)
}

pub(super) fn published(pools: &HashMap<(String, String), Pool>) -> impl Iterator<Item = DeviceId> {
    pools.iter().flat_map(|((driver, pool), of)| {
        of.devices().map(move |device| DeviceId { driver: driver.clone(), pool: pool.clone(), name: device.name.clone() })
    })
}

/// `None`: the pod may stay for ever. `claims` are those that it names, `now` stands for a taint without a time.
pub(super) fn plan(
    pod: &Pod,
    claims: &[Arc<ResourceClaim>],
    pools: &HashMap<(String, String), Pool>,
    rules: &[Arc<DeviceTaintRule>],
    now: Timestamp,
) -> Option<Eviction> {
    pods::node_name(pod)?;
    let mut found: Option<Eviction> = None;
    for result in claims.iter().filter(|claim| is_used_by(claim, pod)).flat_map(|claim| results(claim)) {
        let id = id_of(result);
        let own = pools.get(&(id.driver.clone(), id.pool.clone())).and_then(|pool| pool.devices().find(|device| device.name == id.name));
        let own = own.into_iter().flat_map(|device| device.taints.iter().flatten()).map(|taint| (taint, None));
        let ruled = rules.iter().filter(|rule| devices::selects(rule, &id)).map(|rule| (&rule.spec.taint, rule.metadata.name.clone()));
        for (taint, rule) in own.chain(ruled) {
            let Some(at) = ends(taint, result.tolerations.as_deref().unwrap_or_default(), now) else { continue };
            let eviction = found.get_or_insert(Eviction { at, rules: Vec::new() });
            eviction.at = eviction.at.min(at);
            eviction.rules.extend(rule);
        }
    }
    let mut eviction = found?;
    eviction.rules.sort();
    eviction.rules.dedup();
    Some(eviction)
}

/// Reserved for the pod, and not made for another of that name.
fn is_used_by(claim: &ResourceClaim, pod: &Pod) -> bool {
    let users = claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default();
    let is_reserved = users.iter().any(|user| user.resource == "pods" && Some(&user.uid) == pod.metadata.uid.as_ref());
    let owner = controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod");
    is_reserved && owner.is_none_or(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
}

/// When the taint ends the pod; `None` where it does not.
fn ends(taint: &DeviceTaint, tolerations: &[DeviceToleration], now: Timestamp) -> Option<Timestamp> {
    if taint.effect != NO_EXECUTE {
        return None;
    }
    let since = taint.time_added.as_ref().map_or(now, |time| time.0);
    let mut shortest: Option<i64> = None;
    for toleration in tolerations.iter().filter(|toleration| devices::tolerates(toleration, taint)) {
        let seconds = toleration.toleration_seconds?.max(0);
        shortest = Some(shortest.map_or(seconds, |shortest| shortest.min(seconds)));
    }
    Some(since.saturating_add(SignedDuration::from_secs(shortest.unwrap_or(0))).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(node: &str) -> Pod {
        let claims = json!([{"name": "gpu", "resourceClaimName": "c"}]);
        let spec = json!({"containers": [], "nodeName": node, "resourceClaims": claims});
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "p", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn claim(user: &str, tolerations: Value) -> Arc<ResourceClaim> {
        let result = json!({"driver": "d", "pool": "p", "device": "gpu-0", "request": "r", "tolerations": tolerations});
        let status =
            json!({"allocation": {"devices": {"results": [result]}}, "reservedFor": [{"resource": "pods", "name": "p", "uid": user}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "c"}, "spec": {}, "status": status})).unwrap())
    }

    fn pools(taints: Value) -> HashMap<(String, String), Pool> {
        let spec = json!({"driver": "d", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "gpu-0", "taints": taints}]});
        devices::pools(vec![Arc::new(serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap())])
    }

    fn rule(name: &str, effect: &str, device: &str) -> Arc<DeviceTaintRule> {
        let taint = json!({"key": "r", "effect": effect, "timeAdded": "2026-01-01T00:00:30Z"});
        let spec = json!({"deviceSelector": {"device": device}, "taint": taint});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    #[test]
    fn a_pod_goes_at_the_first_taint_of_its_devices_that_its_claim_does_not_tolerate() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let taint = json!([{"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:10Z"}]);
        let forever = json!([{"key": "k", "operator": "Exists"}]);
        let long = json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 100}, {"operator": "Exists", "tolerationSeconds": 300}]);
        let soft = json!([{"key": "k", "effect": "NoSchedule"}]);
        let none: &[Arc<DeviceTaintRule>] = &[];
        let rules = &[rule("b", "NoExecute", "gpu-0"), rule("a", "NoExecute", "gpu-1"), rule("c", "None", "gpu-0")];
        let cases = [
            ("untainted", "n", claim("u", json!([])), json!(null), none, None),
            ("tainted", "n", claim("u", json!([])), taint.clone(), none, Some(("00:00:10", ""))),
            ("softly", "n", claim("u", json!([])), soft, none, None),
            ("tolerated for ever", "n", claim("u", forever.clone()), taint.clone(), none, None),
            ("the shortest time counts", "n", claim("u", long), taint.clone(), none, Some(("00:01:50", ""))),
            ("not scheduled", "", claim("u", json!([])), taint.clone(), none, None),
            ("another's", "n", claim("other", json!([])), taint.clone(), none, None),
            ("by a rule", "n", claim("u", forever), taint.clone(), rules, Some(("00:00:30", "b"))),
            ("by both", "n", claim("u", json!([])), taint, rules, Some(("00:00:10", "b"))),
        ];
        for (name, node, claim, taints, rules, expected) in cases {
            let found = plan(&pod(node), &[claim], &pools(taints), rules, now);
            let found = found.map(|eviction| (eviction.at.strftime("%H:%M:%S").to_string(), eviction.rules.join(" ")));
            assert_eq!(found, expected.map(|(at, rules)| (at.to_owned(), rules.to_owned())), "{name}");
        }
    }
}
