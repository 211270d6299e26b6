//! What a quota's status should say.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use meta::quantity;
use rules::quota::{self, Amounts, Resource};
use serde::Serialize;
use serde_json::Value;

pub(super) struct World<'a> {
    pub quota: &'a ResourceQuota,
    pub pods: Vec<Arc<Pod>>,
    pub services: Vec<Arc<Service>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub device_claims: Vec<Arc<ResourceClaim>>,
    /// How many objects there are of what is counted by number alone.
    pub numbers: HashMap<String, usize>,
    /// Seconds since the epoch.
    pub now: i64,
}

/// The quota with its next status; `None` where that says it all already.
pub(super) fn plan(world: &World<'_>) -> Option<ResourceQuota> {
    let hard = world.quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    // Scopes and bounds are those that are wanted now.
    let mut asked = serde_json::to_value(world.quota).unwrap_or_default();
    asked["status"] = serde_json::json!({ "hard": hard });
    let mut sum = Amounts::new();
    let counted = [
        ("", "pods", values(&world.pods)),
        ("", "services", values(&world.services)),
        ("", "persistentvolumeclaims", values(&world.claims)),
        ("resource.k8s.io", "resourceclaims", values(&world.device_claims)),
    ];
    for (group, plural, objects) in counted {
        let resource = Resource { group, plural };
        for object in objects.iter().filter(|object| resource.matches(&asked, object)) {
            quota::add(&mut sum, &resource.usage(object, world.now));
        }
    }
    for (name, number) in &world.numbers {
        let scoped = !quota::scopes_of(&asked).is_empty();
        let number = if scoped { 0 } else { i64::try_from(*number).unwrap_or(i64::MAX) };
        sum.insert(name.clone(), meta::Quantity::new(number, quantity::Format::DecimalSi));
    }
    let used = hard.iter().filter_map(|(name, bound)| {
        let bound = meta::Quantity::parse(&bound.0).ok()?;
        let zero = meta::Quantity::new(0, bound.format());
        Some((name.clone(), Quantity(sum.get(name).copied().unwrap_or(zero).to_string())))
    });
    let used: BTreeMap<String, Quantity> = used.collect();
    let before = world.quota.status.as_ref();
    let same = |one: Option<&BTreeMap<String, Quantity>>, other: &BTreeMap<String, Quantity>| {
        let amounts = |map: &BTreeMap<String, Quantity>| {
            map.iter().map(|(name, amount)| (name.clone(), meta::Quantity::parse(&amount.0).ok())).collect::<Vec<_>>()
        };
        one.map(amounts).unwrap_or_default() == amounts(other)
    };
    if before.is_some()
        && same(before.and_then(|status| status.hard.as_ref()), &hard)
        && same(before.and_then(|status| status.used.as_ref()), &used)
    {
        return None;
    }
    Some(ResourceQuota { status: Some(ResourceQuotaStatus { hard: Some(hard), used: Some(used) }), ..world.quota.clone() })
}

fn values<K: Serialize>(objects: &[Arc<K>]) -> Vec<Value> {
    objects.iter().filter_map(|object| serde_json::to_value(&**object).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn used(quota: Value, pods: &[Value], numbers: &[(&str, usize)]) -> Value {
        let quota: ResourceQuota = of(quota);
        let world = World {
            quota: &quota,
            pods: pods.iter().map(|pod| Arc::new(of(pod.clone()))).collect(),
            services: vec![Arc::new(of(json!({"spec": {"type": "NodePort", "ports": [{"port": 1}]}})))],
            claims: Vec::new(),
            device_claims: Vec::new(),
            numbers: numbers.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect(),
            now: 0,
        };
        plan(&world).map_or(Value::Null, |next| json!(next.status.unwrap().used))
    }

    #[test]
    fn the_status_counts_what_is_there() {
        let pod = |cpu: &str, phase: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}, "status": {"phase": phase}});
        let pods = [pod("1", "Running"), pod("500m", "Pending"), pod("4", "Succeeded")];
        let hard = json!({"pods": "5", "requests.cpu": "4", "count/pods": "9", "services.nodeports": "3", "count/deployments.apps": "2", "limits.memory": "1Gi"});
        let expected = json!({"pods": "2", "requests.cpu": "1500m", "count/pods": "3", "services.nodeports": "1", "count/deployments.apps": "7", "limits.memory": "0"});
        let numbers = [("count/deployments.apps", 7)];
        assert_eq!(used(json!({"spec": {"hard": hard}}), &pods, &numbers), expected);
        let done = json!({"spec": {"hard": hard}, "status": {"hard": hard, "used": expected}});
        assert_eq!(used(done, &pods, &numbers), Value::Null, "nothing to write");
        let scoped = json!({"spec": {"hard": {"pods": "5"}, "scopes": ["BestEffort"]}});
        assert_eq!(used(scoped, &pods, &[]), json!({"pods": "0"}), "none of them is of best effort");
    }
}
