//! What a search found, as claims say it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult, ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::inventory::{Inventory, Reach};
use super::search::Taken;
use super::wanted::Ask;

/// The allocation of one claim on the node. `taken` are its devices, in the order of its requests.
pub(crate) fn result(inventory: &Inventory, claim: &ResourceClaim, taken: &[&Taken<'_>], node: &str) -> AllocationResult {
    let results = taken.iter().map(|one| device(inventory, one)).collect();
    AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult { config: configurations(claim, taken), results: Some(results) }),
        node_selector: node_selector(inventory, taken, node),
    }
}

fn device(inventory: &Inventory, taken: &Taken<'_>) -> DeviceRequestAllocationResult {
    let (one, ask) = (&inventory.devices[taken.device], taken.ask);
    let published = one.published();
    let amounts = |share: &BTreeMap<String, meta::Quantity>| -> BTreeMap<String, Quantity> {
        share.iter().map(|(name, amount)| (name.clone(), Quantity(amount.to_string()))).collect()
    };
    DeviceRequestAllocationResult {
        request: ask.name.clone(),
        driver: one.id.driver.clone(),
        pool: one.id.pool.clone(),
        device: one.id.device.clone(),
        admin_access: ask.admin.then_some(true),
        tolerations: (!ask.tolerations.is_empty()).then(|| ask.tolerations.clone()),
        binding_conditions: published.binding_conditions.clone(),
        binding_failure_conditions: published.binding_failure_conditions.clone(),
        share_id: taken.share.as_ref().map(|_| share_id()),
        consumed_capacity: taken.share.as_ref().filter(|share| !share.is_empty()).map(amounts),
        ..DeviceRequestAllocationResult::default()
    }
}

/// A random uid (RFC 4122).
fn share_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    let word = || RandomState::new().hash_one(0);
    let (high, low) = (word(), word());
    let version = high & 0xffff_ffff_ffff_0fff | 0x4000;
    let variant = low & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        version >> 32,
        version >> 16 & 0xffff,
        version & 0xffff,
        variant >> 48,
        variant & 0xffff_ffff_ffff
    )
}

/// The parameters for the drivers: those of each class once, with the requests that are of it, then the claim's own.
fn configurations(claim: &ResourceClaim, taken: &[&Taken<'_>]) -> Option<Vec<DeviceAllocationConfiguration>> {
    let mut asks: Vec<&Ask> = Vec::new();
    for one in taken {
        if !asks.iter().any(|known| known.name == one.ask.name) {
            asks.push(one.ask);
        }
    }
    let mut all = Vec::new();
    let mut classes: Vec<&str> = Vec::new();
    for ask in &asks {
        let name = ask.class.metadata.name.as_deref().unwrap_or_default();
        if classes.contains(&name) {
            continue;
        }
        classes.push(name);
        let of_class = asks.iter().filter(|other| other.class.metadata.name.as_deref() == Some(name)).map(|other| other.name.clone());
        let requests: Vec<String> = of_class.collect();
        let configs = ask.class.spec.as_ref().and_then(|spec| spec.config.as_deref()).unwrap_or_default();
        all.extend(configs.iter().map(|config| DeviceAllocationConfiguration {
            opaque: config.opaque.clone(),
            requests: Some(requests.clone()),
            source: "FromClass".into(),
        }));
    }
    let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
    for config in devices.and_then(|devices| devices.config.as_deref()).unwrap_or_default() {
        if config.requests.as_ref().is_none_or(Vec::is_empty) || asks.iter().any(|ask| ask.is_named_in(config.requests.as_ref())) {
            all.push(DeviceAllocationConfiguration {
                opaque: config.opaque.clone(),
                requests: config.requests.clone(),
                source: "FromClaim".into(),
            });
        }
    }
    // What is for all requests names none.
    let requests = devices.and_then(|devices| devices.requests.as_ref()).map_or(0, Vec::len);
    for config in &mut all {
        if config.requests.as_ref().is_some_and(|names| names.is_empty() || names.len() == requests) {
            config.requests = None;
        }
    }
    (!all.is_empty()).then_some(all)
}

/// Where the devices can be reached; `None`: everywhere.
fn node_selector(inventory: &Inventory, taken: &[&Taken<'_>], node: &str) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    for one in taken {
        let device = &inventory.devices[one.device];
        let selector = match device.reach() {
            Reach::Node(_) => return Some(only(node)),
            _ if device.published().binds_to_node.unwrap_or(false) => return Some(only(node)),
            Reach::Selected(selector) => selector,
            Reach::All | Reach::Nowhere => continue,
        };
        for more in selector.node_selector_terms.iter().take(1) {
            add(&mut term.match_fields, more.match_fields.as_deref());
            add(&mut term.match_expressions, more.match_expressions.as_deref());
        }
    }
    let says = term.match_fields.is_some() || term.match_expressions.is_some();
    says.then(|| NodeSelector { node_selector_terms: vec![term] })
}

fn only(node: &str) -> NodeSelector {
    let name = NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.to_owned()]) };
    NodeSelector { node_selector_terms: vec![NodeSelectorTerm { match_fields: Some(vec![name]), ..NodeSelectorTerm::default() }] }
}

fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, more: Option<&[NodeSelectorRequirement]>) {
    for requirement in more.unwrap_or_default() {
        let known = to.get_or_insert_default();
        if !known.contains(requirement) {
            known.push(requirement.clone());
        }
    }
    if to.as_ref().is_some_and(Vec::is_empty) {
        *to = None;
    }
}
