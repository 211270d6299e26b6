//! Devices that several claims share: how much of each capacity a share takes (KEP-5075).

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, CapacityRequestPolicyRange, Device, DeviceCapacity};
use meta::Quantity;
use meta::quantity::Format;

/// Amounts by the names under which the device publishes them.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// What the request takes of each of the device's capacities; `None` where the device cannot give it even when nobody else uses it.
pub(crate) fn share(wanted: &Amounts, device: &Device, driver: &str) -> Option<Amounts> {
    let none = BTreeMap::new();
    let published = device.capacity.as_ref().unwrap_or(&none);
    let mut asked: BTreeMap<&str, Quantity> = BTreeMap::new();
    for (name, amount) in wanted {
        asked.insert(published_name(name, published, driver)?, *amount);
    }
    let taken = published.iter().map(|(name, capacity)| {
        let total = quantity(&capacity.value)?;
        let amount = amount(asked.get(name.as_str()).copied(), total, capacity.request_policy.as_ref())?;
        (amount <= total && !amount.is_negative()).then(|| (name.clone(), amount))
    });
    taken.collect()
}

/// Whether the share fits beside what is taken.
pub(crate) fn fits(share: &Amounts, device: &Device, taken: &[&Amounts]) -> bool {
    share.iter().all(|(name, amount)| {
        let total = device.capacity.as_ref().and_then(|all| quantity(&all.get(name)?.value));
        let used = taken.iter().filter_map(|other| other.get(name)).fold(*amount, |sum, other| sum + *other);
        total.is_some_and(|total| used <= total)
    })
}

/// A name without a domain is in the driver's, on both sides.
fn published_name<'a>(name: &str, published: &'a BTreeMap<String, DeviceCapacity>, driver: &str) -> Option<&'a str> {
    let of_driver = match name.split_once('/') {
        Some((domain, id)) if domain == driver => id.to_owned(),
        Some(_) => name.to_owned(),
        None => format!("{driver}/{name}"),
    };
    let found = published.get_key_value(name).or_else(|| published.get_key_value(&of_driver));
    found.map(|(name, _)| name.as_str())
}

/// The request rounded up to what the device's policy allows; `None` where it allows nothing so large.
fn amount(asked: Option<Quantity>, total: Quantity, policy: Option<&CapacityRequestPolicy>) -> Option<Quantity> {
    let Some(policy) = policy else { return Some(asked.unwrap_or(total)) };
    let Some(asked) = asked else { return policy.default.as_ref().map_or(Some(total), quantity) };
    if let Some(range) = &policy.valid_range {
        return in_range(asked, range);
    }
    match &policy.valid_values {
        Some(values) => values.iter().filter_map(quantity).filter(|value| *value >= asked).min(),
        None => Some(asked),
    }
}

fn in_range(asked: Quantity, range: &CapacityRequestPolicyRange) -> Option<Quantity> {
    let min = quantity(&range.min)?;
    let rounded = match range.step.as_ref().and_then(quantity) {
        _ if asked <= min => min,
        Some(step) => next_step(asked, min, step)?,
        None => asked,
    };
    let max = range.max.as_ref().and_then(quantity);
    max.is_none_or(|max| rounded <= max).then_some(rounded)
}

/// The smallest `min + n * step` that is not below `asked`.
fn next_step(asked: Quantity, min: Quantity, step: Quantity) -> Option<Quantity> {
    let whole = [asked, min, step].iter().all(Quantity::is_integer);
    let number = |quantity: Quantity| if whole { quantity.value() } else { quantity.milli_value() };
    let (asked, min, step) = (number(asked), number(min), number(step));
    if step <= 0 {
        return None;
    }
    let above = asked.checked_sub(min)?;
    let steps = above.checked_add(step - 1)? / step;
    let rounded = min.checked_add(steps.checked_mul(step)?)?;
    Some(if whole { Quantity::new(rounded, Format::BinarySi) } else { Quantity::from_milli(rounded, Format::DecimalSi) })
}

fn quantity(quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Option<Quantity> {
    Quantity::parse(&quantity.0).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_rounded_up_to_what_the_device_offers() {
        let range = json!({ "default": "1Gi", "validRange": { "min": "1Gi", "max": "8Gi", "step": "2Gi" } });
        let values = json!({ "default": "1Gi", "validValues": ["1Gi", "4Gi"] });
        let cases = [
            (json!(null), None, Some("10Gi")),
            (json!(null), Some("3Gi"), Some("3Gi")),
            (json!(null), Some("11Gi"), None),
            (range.clone(), None, Some("1Gi")),
            (range.clone(), Some("500Mi"), Some("1Gi")),
            (range.clone(), Some("2Gi"), Some("3Gi")),
            (range, Some("8Gi"), None),
            (values.clone(), Some("2Gi"), Some("4Gi")),
            (values, Some("5Gi"), None),
        ];
        for (policy, asked, expected) in cases {
            let device = json!({ "name": "d", "capacity": { "memory": { "value": "10Gi", "requestPolicy": policy.clone() } } });
            let device: Device = serde_json::from_value(device).unwrap();
            let wanted: Amounts = asked.map(|amount| ("a.io/memory".to_owned(), amount.parse().unwrap())).into_iter().collect();
            let taken = share(&wanted, &device, "a.io").map(|amounts| amounts["memory"]);
            assert_eq!(taken, expected.map(|amount| amount.parse().unwrap()), "{policy} {asked:?}");
        }
    }

    #[test]
    fn shares_add_up_to_the_capacity_and_an_unknown_capacity_is_nobodys() {
        let device: Device = serde_json::from_value(json!({ "name": "d", "capacity": { "b.io/bandwidth": { "value": "10" } } })).unwrap();
        let four: Amounts = [("b.io/bandwidth".to_owned(), "4".parse().unwrap())].into();
        let share = share(&four, &device, "a.io").unwrap();
        assert!(fits(&share, &device, &[&share]));
        assert!(!fits(&share, &device, &[&share, &share]));
        assert!(super::share(&[("memory".to_owned(), "1".parse().unwrap())].into(), &device, "a.io").is_none());
    }
}
