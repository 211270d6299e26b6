//! What becomes of a volume (upstream: `syncVolume`).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use reconcile::EventKind;

use super::claim::volume_phase;
use super::matching::{self, annotation};
use super::{BOUND_BY_CONTROLLER, PROVISIONED_BY, Plan};

pub(super) fn plan(volume: &Arc<PersistentVolume>, claim: Option<&PersistentVolumeClaim>, now: Timestamp) -> Plan {
    let phase = |name: &str| Plan { volume_status: volume_phase(volume, name, now), ..Plan::default() };
    let Some(reference) = matching::claim_ref(volume) else { return phase("Available") };
    // Reserved for a claim that has not come yet.
    let Some(uid) = reference.uid.as_deref().filter(|uid| !uid.is_empty()) else { return phase("Available") };
    let Some(claim) = claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)) else { return release(volume, now) };
    let bound_to = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    match bound_to {
        // The claim's own turn completes the binding.
        "" => Plan::default(),
        name if Some(name) == volume.metadata.name.as_deref() => phase("Bound"),
        _ => unbind(volume, now),
    }
}

/// Its claim is gone: what becomes of the data is the reclaim policy's to say.
fn release(volume: &Arc<PersistentVolume>, now: Timestamp) -> Plan {
    let known = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    if known == Some("Failed") {
        return Plan::default();
    }
    let mut plan = Plan { volume_status: volume_phase(volume, "Released", now), ..Plan::default() };
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let external = annotation(&volume.metadata, PROVISIONED_BY).is_some();
    // Who provisioned it deletes it, on seeing it released. Without one there is nobody to delete the data.
    let unsupported = match policy {
        Some("Delete") if !external => {
            Some(("VolumeFailedDelete", "error getting deleter volume plugin for volume: no deletable volume plugin matched"))
        }
        Some("Recycle") => Some(("VolumeFailedRecycle", "No recycler plugin found for the volume!")),
        _ => None,
    };
    if let Some((reason, message)) = unsupported {
        plan.volume_status = volume_phase(volume, "Failed", now).map(|mut failed| {
            failed.status.get_or_insert_default().message = Some(message.into());
            failed
        });
        plan.event = Some((EventKind::Warning, reason, message.into()));
    }
    plan
}

/// Chosen for a claim that then got another volume.
fn unbind(volume: &Arc<PersistentVolume>, now: Timestamp) -> Plan {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    if annotation(&volume.metadata, PROVISIONED_BY).is_some() && policy == Some("Delete") {
        return release(volume, now);
    }
    let mut next = PersistentVolume::clone(volume);
    let by_us = annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some();
    let spec = next.spec.get_or_insert_default();
    if by_us {
        spec.claim_ref = None;
        next.metadata.annotations.get_or_insert_default().remove(BOUND_BY_CONTROLLER);
    } else if let Some(reference) = &mut spec.claim_ref {
        reference.uid = None;
    }
    Plan { volume_status: volume_phase(&next, "Available", now), volume: Some(next), ..Plan::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn words(reference: Value, policy: &str, annotations: Value, claim: Option<(&str, &str)>) -> String {
        let spec = json!({"claimRef": reference, "persistentVolumeReclaimPolicy": policy});
        let volume = json!({"metadata": {"name": "v", "annotations": annotations}, "spec": spec, "status": {"phase": "Pending"}});
        let claim = claim.map(|(uid, volume)| {
            serde_json::from_value(json!({"metadata": {"name": "c", "uid": uid}, "spec": {"volumeName": volume}})).unwrap()
        });
        let plan = plan(&Arc::new(serde_json::from_value(volume).unwrap()), claim.as_ref(), "2026-01-01T00:00:00Z".parse().unwrap());
        let phase = plan.volume_status.and_then(|volume| volume.status?.phase).unwrap_or_default();
        let free = plan.volume.is_some_and(|volume| matching::claim_ref(&volume).is_none());
        format!("{phase}{}", if free { " freed" } else { "" })
    }

    #[test]
    fn a_volume_is_available_bound_released_or_failed() {
        let (bound, reserved) = (json!({"namespace": "a", "name": "c", "uid": "c"}), json!({"namespace": "a", "name": "c"}));
        let ours = json!({BOUND_BY_CONTROLLER: "yes"});
        let cases = [
            (Value::Null, "Retain", json!({}), None, "Available"),
            (reserved, "Retain", json!({}), None, "Available"),
            (bound.clone(), "Retain", json!({}), Some(("c", "v")), "Bound"),
            (bound.clone(), "Retain", json!({}), Some(("c", "")), ""),
            (bound.clone(), "Retain", json!({}), None, "Released"),
            (bound.clone(), "Retain", json!({}), Some(("another", "v")), "Released"),
            (bound.clone(), "Delete", json!({}), None, "Failed"),
            (bound.clone(), "Delete", json!({PROVISIONED_BY: "p.io"}), None, "Released"),
            (bound, "Retain", ours, Some(("c", "other")), "Available freed"),
        ];
        for (reference, policy, annotations, claim, expected) in cases {
            assert_eq!(words(reference.clone(), policy, annotations, claim), expected, "{reference} {policy} {claim:?}");
        }
    }
}
