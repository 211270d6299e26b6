//! Which volume a waiting claim could get on a node.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use meta::quantity::Quantity;
use meta::selector::LabelSelector;
use reconcile::Cached;

use super::Volumes;
use super::needs::{Waiting, reaches};
use crate::snapshot::Details;

/// The smallest volume that is free, reaches the node and satisfies the claim.
pub(super) fn find(world: &Volumes, waiting: &Waiting, node: &Details, taken: &HashSet<String>) -> Option<Arc<PersistentVolume>> {
    // Volumes of a class that makes its own are bound to their claims from the start; nothing is there to be found.
    let claim = &waiting.claim;
    let spec = claim.spec.as_ref()?;
    let wanted = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("storage"));
    let wanted = wanted.and_then(|quantity| Quantity::parse(&quantity.0).ok()).map_or(0, |quantity| quantity.value());
    let selector = spec.selector.as_ref().and_then(|selector| LabelSelector::from_object(&serde_json::to_value(selector).ok()?).ok());
    let key = claim.key();
    let mut best: Option<(i64, Arc<PersistentVolume>)> = None;
    for volume in world.volumes.list() {
        let Some(offer) = &volume.spec else { continue };
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        let ours = |reference: &k8s_openapi::api::core::v1::ObjectReference| {
            reference.name.as_deref() == Some(key.name.as_str())
                && reference.namespace.as_deref() == Some(key.namespace.as_str())
                && reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || uid == claim.uid())
        };
        let promised = world.promised(volume.name()).is_some_and(|other| other != key);
        let free = offer.claim_ref.as_ref().map_or(phase == "Available" || phase == "Pending", ours) && !promised;
        let capacity = offer.capacity.as_ref().and_then(|capacity| Quantity::parse(&capacity.get("storage")?.0).ok());
        let capacity = capacity.map_or(0, |quantity| quantity.value());
        let modes = offer.access_modes.as_deref().unwrap_or_default();
        let fits = free
            && !taken.contains(volume.name())
            && volume.metadata.deletion_timestamp.is_none()
            && offer.storage_class_name.as_deref().unwrap_or_default() == spec.storage_class_name.as_deref().unwrap_or_default()
            && offer.volume_mode.as_deref().unwrap_or("Filesystem") == spec.volume_mode.as_deref().unwrap_or("Filesystem")
            && spec.access_modes.iter().flatten().all(|mode| modes.contains(mode))
            && capacity >= wanted
            && selector
                .as_ref()
                .is_none_or(|selector| selector.matches_map(volume.metadata.labels.as_ref().unwrap_or(&Default::default())))
            && reaches(&volume, node);
        if fits && best.as_ref().is_none_or(|(least, _)| capacity < *least) {
            best = Some((capacity, volume));
        }
    }
    best.map(|(_, volume)| volume)
}

pub(super) enum Provision {
    Here,
    /// The class makes no volumes, or not in the node's topology.
    Never,
    /// The driver says how much is left, and it is not enough.
    NoSpace,
}

pub(super) fn can_provision(world: &Volumes, waiting: &Waiting, node: &Details) -> Provision {
    let class = &waiting.class;
    if class.provisioner.is_empty() || class.provisioner == "kubernetes.io/no-provisioner" {
        return Provision::Never;
    }
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    let allowed = topologies.is_empty()
        || topologies.iter().any(|term| {
            let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
            expressions.iter().all(|one| node.label(&one.key).is_some_and(|own| one.values.iter().any(|value| value == own)))
        });
    if !allowed {
        return Provision::Never;
    }
    let tracked = world.drivers.get("", &class.provisioner).and_then(|driver| driver.spec.storage_capacity).unwrap_or(false);
    if tracked && !has_space(world, waiting, node) { Provision::NoSpace } else { Provision::Here }
}

/// Some CSIStorageCapacity of the class covers the node and is large enough (KEP-1472).
fn has_space(world: &Volumes, waiting: &Waiting, node: &Details) -> bool {
    let spec = waiting.claim.spec.as_ref();
    let wanted = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let wanted = wanted.and_then(|quantity| Quantity::parse(&quantity.0).ok()).map_or(0, |quantity| quantity.value());
    world.capacities.list().iter().any(|capacity| {
        let amount = |quantity: &Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
            quantity.as_ref().and_then(|quantity| Quantity::parse(&quantity.0).ok()).map(|quantity| quantity.value())
        };
        let room = amount(&capacity.maximum_volume_size).or(amount(&capacity.capacity)).unwrap_or(0);
        let selector = capacity.node_topology.as_ref().and_then(|selector| serde_json::to_value(selector).ok());
        let covers = selector
            .and_then(|selector| LabelSelector::from_object(&selector).ok())
            .is_some_and(|selector| selector.matches_map(&node.facts.labels));
        capacity.storage_class_name == waiting.class.name() && room >= wanted && covers
    })
}
