//! Two closer looks at a pool: how many more devices of each partition type fit, and how much of the shared devices is left.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{Device, DeviceCounterConsumption};
use k8s_openapi::api::resource::v1alpha3::{PartitionTypeStatus, ShareableCapacityStatus, ShareableSummaryStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::plan::Used;
use crate::devices::Pool;

/// Of counters by their set and name.
type Counters = BTreeMap<(String, String), meta::Quantity>;

/// `None` for a pool without shared counters or without an attribute that names the types. `fallback` is for slices that name none.
pub(super) fn partitions(
    pool: &Pool,
    used: &Used,
    driver: &str,
    fallback: Option<&str>,
) -> Result<Option<Vec<PartitionTypeStatus>>, String> {
    let mut left = Counters::new();
    for set in pool.slices.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten()) {
        left.extend(set.counters.iter().filter_map(|(name, counter)| Some(((set.name.clone(), name.clone()), quantity(&counter.value)?))));
    }
    if left.is_empty() {
        return Ok(None);
    }
    let mut groups: BTreeMap<(&str, &str), Vec<&Device>> = BTreeMap::new();
    for slice in &pool.slices {
        let Some(attribute) = slice.spec.partition_type_attribute.as_deref().or(fallback) else { continue };
        for device in slice.spec.devices.iter().flatten().filter(|device| device.consumes_counters.is_some()) {
            let Some(kind) = attribute_of(device, driver, attribute) else {
                return Err(format!(
                    "PartitionTypeMissing: device {:?} does not carry partition type attribute {attribute:?}",
                    device.name
                ));
            };
            groups.entry((attribute, kind)).or_default().push(device);
        }
    }
    for device in pool.devices().filter(|device| used.devices.contains(&device.name)) {
        take(&mut left, device);
    }
    let summary = groups.into_iter().map(|((attribute, kind), devices)| {
        let cost = |device: &Device| costs(device).collect::<Counters>();
        if devices.windows(2).any(|pair| cost(pair[0]) != cost(pair[1])) {
            return Err(format!("PartitionCostMismatch: devices of partition type {kind:?} consume different counters"));
        }
        let mut left = left.clone();
        let free = devices.iter().filter(|device| !used.devices.contains(&device.name));
        let allocatable = free.filter(|device| fits(&left, device).then(|| take(&mut left, device)).is_some()).count();
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let (total, allocatable) = (number(devices.len()), number(allocatable));
        Ok(PartitionTypeStatus { attribute: attribute.to_owned(), type_: kind.to_owned(), total, allocatable })
    });
    let summary = summary.collect::<Result<Vec<_>, String>>()?;
    Ok((!summary.is_empty()).then_some(summary))
}

fn quantity(quantity: &Quantity) -> Option<meta::Quantity> {
    meta::Quantity::parse(&quantity.0).ok()
}

/// The domain of an attribute without one is the driver's.
fn attribute_of<'a>(device: &'a Device, driver: &str, wanted: &str) -> Option<&'a str> {
    let is_it = |name: &str| name == wanted || wanted.strip_prefix(driver).and_then(|rest| rest.strip_prefix('/')) == Some(name);
    let (_, value) = device.attributes.iter().flatten().find(|(name, _)| is_it(name))?;
    value.string.as_deref()
}

fn costs(device: &Device) -> impl Iterator<Item = ((String, String), meta::Quantity)> {
    let of = |cost: &DeviceCounterConsumption| {
        let set = cost.counter_set.clone();
        cost.counters.clone().into_iter().filter_map(move |(name, counter)| Some(((set.clone(), name), quantity(&counter.value)?)))
    };
    device.consumes_counters.iter().flatten().flat_map(of).collect::<Vec<_>>().into_iter()
}

fn fits(left: &Counters, device: &Device) -> bool {
    costs(device).all(|(counter, cost)| left.get(&counter).is_some_and(|left| *left >= cost))
}

fn take(left: &mut Counters, device: &Device) {
    for (counter, cost) in costs(device) {
        if let Some(left) = left.get_mut(&counter) {
            *left = *left - cost;
        }
    }
}

/// `None` for a pool without devices that several claims may share.
pub(super) fn shareable(pool: &Pool, used: &Used) -> Option<ShareableSummaryStatus> {
    let shared: Vec<&Device> = pool.devices().filter(|device| device.allow_multiple_allocations == Some(true)).collect();
    if shared.is_empty() {
        return None;
    }
    let mut totals: BTreeMap<&String, meta::Quantity> = BTreeMap::new();
    for (name, capacity) in shared.iter().flat_map(|device| device.capacity.iter().flatten()) {
        let Some(value) = quantity(&capacity.value) else { continue };
        totals.entry(name).and_modify(|total| *total = *total + value).or_insert(value);
    }
    let capacity = totals.into_iter().map(|(name, total)| {
        let none = meta::Quantity::new(0, total.format());
        let consumed = used.capacity.get(name).copied().unwrap_or(none);
        let rest = total - consumed;
        let available = if rest.is_negative() { none } else { rest };
        let text = |quantity: meta::Quantity| Quantity(quantity.to_string());
        ShareableCapacityStatus { name: name.clone(), total: text(total), consumed: text(consumed), available: text(available) }
    });
    let touched = shared.iter().filter(|device| used.devices.contains(&device.name)).count();
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    Some(ShareableSummaryStatus {
        capacity: Some(capacity.collect()),
        fully_available_devices: number(shared.len() - touched),
        partially_available_devices: number(touched),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pool(slices: Vec<Value>) -> Pool {
        let slice = |mut spec: Value| {
            spec["driver"] = json!("d.example");
            spec["pool"] = json!({"name": "p", "generation": 1, "resourceSliceCount": 1});
            std::sync::Arc::new(serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap())
        };
        Pool { slices: slices.into_iter().map(slice).collect(), generation: 1 }
    }

    fn device(name: &str, kind: &str, cost: &str) -> Value {
        let counters = json!([{"counterSet": "gpu", "counters": {"memory": {"value": cost}}}]);
        json!({"name": name, "attributes": {"profile": {"string": kind}}, "consumesCounters": counters})
    }

    #[test]
    fn partitions_fit_as_long_as_their_counters_last() {
        let counters = json!({"sharedCounters": [{"name": "gpu", "counters": {"memory": {"value": "40Gi"}}}]});
        let devices = [device("full", "Full", "40Gi"), device("h1", "Half", "20Gi"), device("h2", "Half", "20Gi")];
        let typed = json!({"partitionTypeAttribute": "d.example/profile", "devices": devices});
        let told = |slices: Vec<Value>, used: &[&str], fallback| {
            let used = Used { devices: used.iter().map(|name| name.to_string()).collect(), ..Used::default() };
            let found = partitions(&pool(slices), &used, "d.example", fallback);
            found.map(|found| {
                found.map(|all| all.iter().map(|of| format!("{} {}/{}", of.type_, of.allocatable, of.total)).collect::<Vec<_>>().join(", "))
            })
        };
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(told(vec![counters.clone(), typed.clone()], &[], None), some("Full 1/1, Half 2/2"));
        assert_eq!(told(vec![counters.clone(), typed.clone()], &["h1"], None), some("Full 0/1, Half 1/2"));
        assert_eq!(told(vec![counters.clone(), typed.clone()], &["full"], None), some("Full 0/1, Half 0/2"));
        assert_eq!(told(vec![typed], &[], None), Ok(None));
        let untyped = json!({"devices": devices});
        assert_eq!(told(vec![counters.clone(), untyped.clone()], &[], None), Ok(None));
        assert_eq!(told(vec![counters.clone(), untyped], &[], Some("d.example/profile")), some("Full 1/1, Half 2/2"));
        let mixed =
            json!({"partitionTypeAttribute": "d.example/profile", "devices": [device("a", "Half", "20Gi"), device("b", "Half", "10Gi")]});
        assert!(told(vec![counters, mixed], &[], None).unwrap_err().starts_with("PartitionCostMismatch"));
    }

    #[test]
    fn what_is_left_of_shared_devices_is_summed_by_capacity() {
        let devices = json!([
            {"name": "a", "allowMultipleAllocations": true, "capacity": {"memory": {"value": "10Gi"}}},
            {"name": "b", "allowMultipleAllocations": true, "capacity": {"memory": {"value": "10Gi"}}},
            {"name": "c", "capacity": {"memory": {"value": "10Gi"}}},
        ]);
        let used =
            Used { devices: ["a".to_owned()].into(), capacity: [("memory".to_owned(), meta::Quantity::parse("4Gi").unwrap())].into() };
        let summary = shareable(&pool(vec![json!({"devices": devices})]), &used).unwrap();
        let memory = &summary.capacity.unwrap()[0];
        assert_eq!((memory.total.0.as_str(), memory.consumed.0.as_str(), memory.available.0.as_str()), ("20Gi", "4Gi", "16Gi"));
        assert_eq!((summary.fully_available_devices, summary.partially_available_devices), (1, 1));
        assert_eq!(shareable(&pool(vec![json!({"devices": [{"name": "c"}]})]), &used), None);
    }
}
