//! How full each pool is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{Device, DeviceRequestAllocationResult, DeviceTaintRule, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1alpha3::{PoolStatus, ResourcePoolStatusRequest, ResourcePoolStatusRequestStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{ANSWERED_FOR, ASKED_FOR, views};
use crate::devices::{self, DeviceId, Pool};

const LIMIT_DEFAULT: i32 = 100;
/// The longest `validationError`, in bytes.
const ERROR_BYTES_MAX: usize = 256;

pub(super) struct World<'a> {
    pub request: &'a ResourcePoolStatusRequest,
    pub slices: Vec<Arc<ResourceSlice>>,
    pub claims: Vec<Arc<ResourceClaim>>,
    pub rules: Vec<Arc<DeviceTaintRule>>,
    pub now: Timestamp,
}

/// What claims have of one pool.
#[derive(Default)]
pub(super) struct Used {
    pub devices: HashSet<String>,
    pub capacity: HashMap<String, meta::Quantity>,
}

pub(super) fn age(request: &ResourcePoolStatusRequest, now: Timestamp) -> Duration {
    request.metadata.creation_timestamp.as_ref().map_or(Duration::ZERO, |born| since(born.0, now))
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(then).try_into().unwrap_or(Duration::ZERO)
}

/// Until the request is deleted.
pub(super) fn lifetime_left(request: &ResourcePoolStatusRequest, now: Timestamp) -> Duration {
    let Some(status) = &request.status else { return ASKED_FOR.saturating_sub(age(request, now)) };
    let ended = |condition: &&Condition| condition.type_ == "Complete" || condition.type_ == "Failed";
    let answered = status.conditions.iter().flatten().find(ended).map(|condition| since(condition.last_transition_time.0, now));
    ANSWERED_FOR.saturating_sub(answered.unwrap_or_else(|| age(request, now)))
}

/// The answer, and whether a pool in it is not completely published.
pub(super) fn plan(world: &World) -> (ResourcePoolStatusRequestStatus, bool) {
    let spec = &world.request.spec;
    let is_asked = |(driver, pool): &(String, String)| *driver == spec.driver && spec.pool_name.as_ref().is_none_or(|name| name == pool);
    let asked: BTreeMap<_, _> = devices::pools(world.slices.clone()).into_iter().filter(|(key, _)| is_asked(key)).collect();
    let count = i32::try_from(asked.len()).unwrap_or(i32::MAX);
    let limit = usize::try_from(spec.limit.unwrap_or(LIMIT_DEFAULT)).unwrap_or(0);
    let used = used(&world.claims, &spec.driver);
    let nothing = Used::default();
    let pools: Vec<PoolStatus> =
        asked.iter().take(limit).map(|((_, name), pool)| pool_status(world, name, pool, used.get(name).unwrap_or(&nothing))).collect();
    let incomplete = pools.iter().any(|pool| pool.total_devices.is_none());
    let flawed = pools.iter().filter(|pool| pool.validation_error.is_some()).count();
    let message = match flawed {
        0 => format!("Calculated status for {} pools", pools.len()),
        flawed => format!("Calculated status for {} pools ({flawed} incomplete)", pools.len()),
    };
    let complete = Condition {
        type_: "Complete".into(),
        status: "True".into(),
        reason: "CalculationComplete".into(),
        message,
        last_transition_time: Time(world.now),
        observed_generation: None,
    };
    let pools = (!pools.is_empty()).then_some(pools);
    (ResourcePoolStatusRequestStatus { conditions: Some(vec![complete]), pool_count: count, pools }, incomplete)
}

/// By pool. Who only looks on (`adminAccess`) uses nothing.
fn used(claims: &[Arc<ResourceClaim>], driver: &str) -> HashMap<String, Used> {
    let mut used: HashMap<String, Used> = HashMap::new();
    let results =
        claims.iter().filter_map(|claim| claim.status.as_ref()?.allocation.as_ref()?.devices.as_ref()?.results.as_ref()).flatten();
    for result in results.filter(|result| result.driver == driver && result.admin_access != Some(true)) {
        let pool = used.entry(result.pool.clone()).or_default();
        pool.devices.insert(result.device.clone());
        add_capacity(pool, result);
    }
    used
}

fn add_capacity(pool: &mut Used, result: &DeviceRequestAllocationResult) {
    for (name, quantity) in result.consumed_capacity.iter().flatten() {
        let Ok(quantity) = meta::Quantity::parse(&quantity.0) else { continue };
        let sum = pool.capacity.get(name).map_or(quantity, |known| *known + quantity);
        pool.capacity.insert(name.clone(), sum);
    }
}

fn pool_status(world: &World, name: &str, pool: &Pool, used: &Used) -> PoolStatus {
    let driver = &world.request.spec.driver;
    let mut nodes = pool.slices.iter().map(|slice| slice.spec.node_name.as_ref());
    let first = nodes.next().flatten();
    let mut status = PoolStatus {
        driver: driver.clone(),
        pool_name: name.to_owned(),
        generation: pool.generation,
        node_name: first.filter(|first| nodes.all(|node| node == Some(first))).cloned(),
        ..PoolStatus::default()
    };
    let expected = pool.slices.first().map_or(0, |slice| slice.spec.pool.resource_slice_count);
    let found = pool.slices.len();
    if i64::try_from(found).unwrap_or(i64::MAX) < expected {
        let error = format!(
            "PoolIncomplete: pool {driver}/{name} is incomplete: observed {found}/{expected} slices at generation {}",
            pool.generation
        );
        status.validation_error = Some(shortened(error));
        return status;
    }
    let id = |device: &Device| DeviceId { driver: driver.clone(), pool: name.to_owned(), name: device.name.clone() };
    let closed = pool.devices().filter(|device| is_closed(device, &id(device), &world.rules)).count();
    let (total, taken) = (pool.devices().count(), used.devices.len());
    let number = |count: usize| Some(i32::try_from(count).unwrap_or(i32::MAX));
    status.resource_slice_count = number(found);
    status.total_devices = number(total);
    status.allocated_devices = number(taken);
    status.unavailable_devices = number(closed);
    status.available_devices = number(total.saturating_sub(taken + closed));
    match views::partitions(pool, used, driver, world.request.spec.default_partition_type_attribute.as_deref()) {
        Ok(summary) => status.partition_summary = summary,
        Err(error) => status.validation_error = Some(shortened(error)),
    }
    status.shareable_summary = views::shareable(pool, used);
    status
}

/// A taint keeps new claims from it.
fn is_closed(device: &Device, id: &DeviceId, rules: &[Arc<DeviceTaintRule>]) -> bool {
    let closes = |effect: &str| effect == "NoSchedule" || effect == "NoExecute";
    device.taints.iter().flatten().any(|taint| closes(&taint.effect))
        || rules.iter().any(|rule| closes(&rule.spec.taint.effect) && devices::selects(rule, id))
}

fn shortened(mut error: String) -> String {
    let end = (0..=ERROR_BYTES_MAX.min(error.len())).rev().find(|end| error.is_char_boundary(*end)).unwrap_or(0);
    error.truncate(end);
    error
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(pool: &str, generation: i64, count: i64, node: &str, devices: Value) -> Arc<ResourceSlice> {
        let pool = json!({"name": pool, "generation": generation, "resourceSliceCount": count});
        let spec = json!({"driver": "d", "nodeName": node, "pool": pool, "devices": devices});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap())
    }

    fn claim(results: Value) -> Arc<ResourceClaim> {
        let status = json!({"allocation": {"devices": {"results": results}}});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {}, "status": status})).unwrap())
    }

    fn answer(spec: Value, slices: Vec<Arc<ResourceSlice>>, claims: Vec<Arc<ResourceClaim>>) -> (Value, bool) {
        let request: ResourcePoolStatusRequest = serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).unwrap();
        let rule = json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": {"device": "ruled"}, "taint": {"key": "k", "effect": "NoSchedule"}}});
        let rules = vec![Arc::new(serde_json::from_value(rule).unwrap())];
        let (status, incomplete) = plan(&World { request: &request, slices, claims, rules, now: Timestamp::UNIX_EPOCH });
        (serde_json::to_value(status).unwrap(), incomplete)
    }

    #[test]
    fn a_pool_has_devices_that_are_taken_closed_or_free_and_only_its_newest_generation_counts() {
        let devices = json!([{"name": "a"}, {"name": "b"}, {"name": "ruled"}, {"name": "bad", "taints": [{"key": "k", "effect": "NoExecute"}]}, {"name": "e"}]);
        let slices =
            vec![slice("p", 2, 1, "n1", devices), slice("p", 1, 3, "n1", json!([{"name": "old"}])), slice("q", 1, 2, "n2", json!([]))];
        let result =
            |device: &str, admin: bool| json!({"driver": "d", "pool": "p", "device": device, "request": "r", "adminAccess": admin});
        let claims = vec![claim(json!([result("a", false), result("b", true)])), claim(json!([result("a", false)]))];
        let (status, incomplete) = answer(json!({"driver": "d"}), slices.clone(), claims);
        assert!(incomplete, "q misses a slice");
        let pool = &status["pools"][0];
        let counts = ["totalDevices", "allocatedDevices", "unavailableDevices", "availableDevices", "resourceSliceCount"];
        assert_eq!(counts.map(|name| pool[name].as_i64().unwrap()), [5, 1, 2, 2, 1]);
        assert_eq!((pool["nodeName"].as_str(), pool["generation"].as_i64()), (Some("n1"), Some(2)));
        assert_eq!(status["pools"][1]["validationError"], "PoolIncomplete: pool d/q is incomplete: observed 1/2 slices at generation 1");
        assert_eq!(status["conditions"][0]["message"], "Calculated status for 2 pools (1 incomplete)");
        let (one, incomplete) = answer(json!({"driver": "d", "limit": 1}), slices.clone(), vec![]);
        assert_eq!((one["poolCount"].as_i64(), one["pools"].as_array().unwrap().len(), incomplete), (Some(2), 1, false));
        let (none, _) = answer(json!({"driver": "d", "poolName": "other"}), slices, vec![]);
        assert_eq!((none["poolCount"].as_i64(), none["pools"].is_null()), (Some(0), true));
    }

    #[test]
    fn requests_live_an_hour_after_their_answer_and_a_day_without() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let left = |born: &str, answered: Option<&str>| {
            let condition = |at| json!({"conditions": [{"type": "Complete", "status": "True", "reason": "r", "message": "", "lastTransitionTime": at}], "poolCount": 0});
            let request =
                json!({"metadata": {"name": "r", "creationTimestamp": born}, "spec": {"driver": "d"}, "status": answered.map(condition)});
            lifetime_left(&serde_json::from_value(request).unwrap(), now).as_secs()
        };
        assert_eq!(left("2026-01-01T23:59:50Z", None), 86_390);
        assert_eq!(left("2026-01-01T00:00:00Z", None), 0);
        assert_eq!(left("2026-01-01T00:00:00Z", Some("2026-01-01T23:30:00Z")), 1_800);
        assert_eq!(left("2026-01-01T00:00:00Z", Some("2026-01-01T22:30:00Z")), 0);
    }
}
