//! Whether a volume is what a claim asks for.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::ObjectKey;

use crate::selector;

/// The class named before there was a field for it.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, CLASS_ANNOTATION).or(field).unwrap_or_default()
}

pub(super) fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata, CLASS_ANNOTATION).or(field).unwrap_or_default()
}

pub(super) fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// The claim that a volume names.
pub(super) fn claim_of(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = claim_ref(volume)?;
    Some(ObjectKey::new(reference.namespace.clone()?, reference.name.clone()?))
}

/// The volume names this very claim, or its name before it existed.
pub(super) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = claim_ref(volume) else { return false };
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

fn bytes(quantity: Option<&Quantity>) -> Option<meta::Quantity> {
    meta::Quantity::parse(&quantity?.0).ok()
}

fn capacity(spec: &PersistentVolumeSpec) -> Option<meta::Quantity> {
    bytes(spec.capacity.as_ref()?.get("storage"))
}

fn request(spec: &PersistentVolumeClaimSpec) -> Option<meta::Quantity> {
    bytes(spec.resources.as_ref()?.requests.as_ref()?.get("storage"))
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Why a volume that a claim names does not do.
pub(super) fn objection(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (have, want) = (volume.spec.as_ref()?, claim.spec.as_ref()?);
    let modes = |modes: &Option<Vec<String>>| modes.clone().unwrap_or_default();
    if capacity(have) < request(want) {
        return Some("requested PV is too small");
    }
    if class_of_volume(volume) != class_of_claim(claim) {
        return Some("storageClassName does not match");
    }
    if mode(have.volume_mode.as_ref()) != mode(want.volume_mode.as_ref()) {
        return Some("incompatible volumeMode");
    }
    let offered = modes(&have.access_modes);
    if !modes(&want.access_modes).iter().all(|mode| offered.contains(mode)) {
        return Some("incompatible accessMode");
    }
    let attributes = |name: &Option<String>| name.clone().unwrap_or_default();
    if attributes(&have.volume_attributes_class_name) != attributes(&want.volume_attributes_class_name) {
        return Some("volume attributes class does not match");
    }
    None
}

/// The volume made for this claim, or else the smallest free one that does; only the former where `reserved_only`.
pub(super) fn best(volumes: &[Arc<PersistentVolume>], claim: &PersistentVolumeClaim, reserved_only: bool) -> Option<Arc<PersistentVolume>> {
    let alive = || volumes.iter().filter(|volume| volume.metadata.deletion_timestamp.is_none());
    let reserved = alive().find(|volume| is_for(volume, claim) && objection(volume, claim).is_none());
    if reserved.is_some() || reserved_only {
        return reserved.cloned();
    }
    let wanted = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref()).map(|wanted| selector::parse(Some(wanted)));
    let selected =
        |volume: &PersistentVolume| wanted.as_ref().is_none_or(|wanted| selector::selects(wanted, volume.metadata.labels.as_ref()));
    let is_free = |volume: &PersistentVolume| {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        claim_ref(volume).is_none() && phase == Some("Available")
    };
    let fitting = alive().filter(|volume| is_free(volume) && selected(volume) && objection(volume, claim).is_none());
    let size = |volume: &PersistentVolume| {
        let spec = volume.spec.as_ref();
        let modes = spec.and_then(|spec| spec.access_modes.as_ref()).map_or(0, Vec::len);
        (modes, spec.and_then(capacity).map(|quantity| quantity.value()), volume.metadata.name.clone())
    };
    fitting.min_by_key(|volume| size(volume)).cloned()
}
