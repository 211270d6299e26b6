//! What controllers ask of devices (DRA, KEP-4381 and KEP-5055): which pool they are of, which taints they carry and who tolerates them.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{Device, DeviceTaint, DeviceTaintRule, DeviceToleration, ResourceSlice};

/// A device by driver, pool and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DeviceId {
    pub driver: String,
    pub pool: String,
    pub name: String,
}

/// Without a selector a rule is of no device; an empty one is of all.
pub(crate) fn selects(rule: &DeviceTaintRule, device: &DeviceId) -> bool {
    let Some(selector) = &rule.spec.device_selector else { return false };
    let fits = |wanted: &Option<String>, have: &str| wanted.as_deref().is_none_or(|wanted| wanted == have);
    fits(&selector.driver, &device.driver) && fits(&selector.pool, &device.pool) && fits(&selector.device, &device.name)
}

pub(crate) fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let any_or = |wanted: &Option<String>, have: &str| wanted.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == have);
    let value = || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    let operator = match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => value(),
        "Exists" => true,
        _ => false,
    };
    any_or(&toleration.effect, &taint.effect) && any_or(&toleration.key, &taint.key) && operator
}

/// The slices of one pool that count: those of its newest generation.
pub(crate) struct Pool {
    pub slices: Vec<Arc<ResourceSlice>>,
    pub generation: i64,
}

impl Pool {
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten())
    }
}

/// The pools by driver and name.
pub(crate) fn pools(slices: Vec<Arc<ResourceSlice>>) -> HashMap<(String, String), Pool> {
    let mut pools: HashMap<(String, String), Pool> = HashMap::new();
    for slice in slices {
        let generation = slice.spec.pool.generation;
        let key = (slice.spec.driver.clone(), slice.spec.pool.name.clone());
        let pool = pools.entry(key).or_insert(Pool { slices: Vec::new(), generation });
        if generation > pool.generation {
            (pool.slices, pool.generation) = (Vec::new(), generation);
        }
        if generation == pool.generation {
            pool.slices.push(slice);
        }
    }
    pools
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_toleration_matches_by_key_value_and_effect_and_a_rule_by_all_that_its_selector_says() {
        let taint: DeviceTaint = serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoExecute"})).unwrap();
        let cases = [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "other"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), true),
            (json!({"key": "k", "operator": "Unheard"}), false),
        ];
        for (toleration, expected) in cases {
            assert_eq!(tolerates(&serde_json::from_value(toleration.clone()).unwrap(), &taint), expected, "{toleration}");
        }
        let device = DeviceId { driver: "d".into(), pool: "p".into(), name: "gpu-0".into() };
        let rule = |selector: Value| -> DeviceTaintRule {
            let spec = json!({"deviceSelector": selector, "taint": {"key": "k", "effect": "NoExecute"}});
            serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).unwrap()
        };
        let cases = [
            (Value::Null, false),
            (json!({}), true),
            (json!({"driver": "d", "device": "gpu-0"}), true),
            (json!({"driver": "d", "device": "gpu-1"}), false),
            (json!({"pool": "q"}), false),
        ];
        for (selector, expected) in cases {
            assert_eq!(selects(&rule(selector.clone()), &device), expected, "{selector}");
        }
    }

    #[test]
    fn only_the_newest_generation_of_a_pool_counts() {
        let slice = |generation: i64, device: &str| -> Arc<ResourceSlice> {
            let pool = json!({"name": "p", "generation": generation, "resourceSliceCount": 1});
            let spec = json!({"driver": "d", "pool": pool, "devices": [{"name": device}]});
            Arc::new(serde_json::from_value(json!({"metadata": {"name": device}, "spec": spec})).unwrap())
        };
        let pools = pools(vec![slice(1, "old"), slice(2, "a"), slice(1, "older"), slice(2, "b")]);
        let pool = &pools[&("d".to_owned(), "p".to_owned())];
        let names: Vec<&str> = pool.devices().map(|device| device.name.as_str()).collect();
        assert_eq!((pool.generation, names), (2, vec!["a", "b"]));
    }
}
