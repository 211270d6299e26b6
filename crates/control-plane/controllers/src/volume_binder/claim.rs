//! What becomes of a claim (upstream: `syncClaim`).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::{EventKind, reference_to};

use super::matching::{self, annotation, class_of_claim};
use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER, DEFAULT_CLASS, PROVISIONER, PROVISIONER_BETA, Plan, SELECTED_NODE};

pub(super) struct World {
    pub claim: Arc<PersistentVolumeClaim>,
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub classes: Vec<Arc<StorageClass>>,
    pub now: Timestamp,
}

impl World {
    fn volume(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.volumes.iter().find(|volume| volume.metadata.name.as_deref() == Some(name))
    }
    fn class(&self, name: &str) -> Option<&Arc<StorageClass>> {
        self.classes.iter().find(|class| class.metadata.name.as_deref() == Some(name))
    }
}

pub(super) fn plan(world: &World) -> Plan {
    let claim = &*world.claim;
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    match (annotation(&claim.metadata, BIND_COMPLETED).is_some(), wanted) {
        (true, wanted) => keep(world, claim, wanted),
        (false, "") => find(world, claim),
        (false, wanted) => take(world, claim, wanted),
    }
}

/// A claim that was bound stays bound, or has lost its data.
fn keep(world: &World, claim: &PersistentVolumeClaim, wanted: &str) -> Plan {
    let volume = world.volume(wanted);
    let misbound = volume.is_some_and(|volume| matching::claim_ref(volume).is_some() && !matching::is_for(volume, claim));
    let (reason, message) = match volume {
        _ if wanted.is_empty() => ("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"),
        None => ("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
        Some(_) if misbound => ("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"),
        Some(volume) => return bind(world, volume, claim),
    };
    let lost = phase(claim, "Lost");
    let event = lost.is_some().then(|| (EventKind::Warning, reason, message.to_owned()));
    Plan { claim_status: lost, event, ..Plan::default() }
}

fn find(world: &World, claim: &PersistentVolumeClaim) -> Plan {
    let class = class_of_claim(claim);
    let unset = claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_none()) && class.is_empty();
    if let Some(default) = default_class(world).filter(|_| unset) {
        let mut next = claim.clone();
        next.spec.get_or_insert_default().storage_class_name = default.metadata.name.clone();
        return Plan { claim: Some(next), ..Plan::default() };
    }
    let waits = world.class(class).is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let waits = waits && annotation(&claim.metadata, SELECTED_NODE).is_none();
    if let Some(volume) = matching::best(&world.volumes, claim, waits) {
        return bind(world, &volume, claim);
    }
    let mut plan = Plan { claim_status: phase(claim, "Pending"), ..Plan::default() };
    plan.event = Some(match world.class(class) {
        _ if class.is_empty() => {
            let message = "no persistent volumes available for this claim and no storage class is set";
            (EventKind::Normal, "FailedBinding", message.into())
        }
        _ if waits => (EventKind::Normal, "WaitForFirstConsumer", "waiting for first consumer to be created before binding".into()),
        None => (EventKind::Warning, "ProvisioningFailed", format!("storageclass.storage.k8s.io {class:?} not found")),
        Some(class) if class.provisioner == "kubernetes.io/no-provisioner" => {
            let message = "storageclass has no provisioner; waiting for a volume to be created by the system administrator";
            (EventKind::Normal, "FailedBinding", message.into())
        }
        Some(class) => {
            plan.claim = provisioned_by(claim, &class.provisioner);
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
                class.provisioner
            );
            (EventKind::Normal, "ExternalProvisioning", message)
        }
    });
    plan
}

/// The newest of the classes that are marked as the default.
fn default_class(world: &World) -> Option<&Arc<StorageClass>> {
    let marked = world.classes.iter().filter(|class| annotation(&class.metadata, DEFAULT_CLASS) == Some("true"));
    marked
        .max_by_key(|class| (class.metadata.creation_timestamp.as_ref().map(|time| time.0), std::cmp::Reverse(class.metadata.name.clone())))
}

/// Tells the external provisioner that the claim is its own.
fn provisioned_by(claim: &PersistentVolumeClaim, provisioner: &str) -> Option<PersistentVolumeClaim> {
    if annotation(&claim.metadata, PROVISIONER) == Some(provisioner) {
        return None;
    }
    let mut next = claim.clone();
    let annotations = next.metadata.annotations.get_or_insert_default();
    annotations.insert(PROVISIONER.into(), provisioner.into());
    annotations.insert(PROVISIONER_BETA.into(), provisioner.into());
    Some(next)
}

/// A claim that names its volume.
fn take(world: &World, claim: &PersistentVolumeClaim, wanted: &str) -> Plan {
    let refuse = |reason: &'static str, message: String| Plan {
        claim_status: phase(claim, "Pending"),
        event: Some((EventKind::Warning, reason, message)),
        ..Plan::default()
    };
    let Some(volume) = world.volume(wanted) else {
        return Plan { claim_status: phase(claim, "Pending"), ..Plan::default() };
    };
    if matching::claim_ref(volume).is_some() && !matching::is_for(volume, claim) {
        return refuse("FailedBinding", format!("volume {wanted:?} already bound to a different claim."));
    }
    match matching::objection(volume, claim) {
        Some(objection) if matching::claim_ref(volume).is_none() => {
            refuse("VolumeMismatch", format!("Cannot bind to requested volume {wanted:?}: {objection}"))
        }
        _ => bind(world, volume, claim),
    }
}

fn bind(world: &World, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Plan {
    let mut next_volume = volume.clone();
    let spec = next_volume.spec.get_or_insert_default();
    let chosen_by_us = spec.claim_ref.is_none();
    if spec.claim_ref.as_ref().and_then(|reference| reference.uid.as_ref()) != claim.metadata.uid.as_ref() {
        spec.claim_ref = Some(ObjectReference { resource_version: claim.metadata.resource_version.clone(), ..reference_to(claim) });
        if chosen_by_us {
            next_volume.metadata.annotations.get_or_insert_default().insert(BOUND_BY_CONTROLLER.into(), "yes".into());
        }
    }
    let mut next_claim = claim.clone();
    let claim_spec = next_claim.spec.get_or_insert_default();
    let annotations = next_claim.metadata.annotations.get_or_insert_default();
    if claim_spec.volume_name.as_ref().is_none_or(String::is_empty) {
        claim_spec.volume_name = volume.metadata.name.clone();
        annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    annotations.insert(BIND_COMPLETED.into(), "yes".into());
    Plan {
        volume_status: volume_phase(&next_volume, "Bound", world.now),
        volume: (next_volume != *volume).then_some(next_volume),
        claim_status: bound(&next_claim, volume),
        claim: (next_claim != *claim).then_some(next_claim),
        ..Plan::default()
    }
}

/// The volume in that phase; `None` where it is.
pub(super) fn volume_phase(volume: &PersistentVolume, phase: &str, now: Timestamp) -> Option<PersistentVolume> {
    let mut status = volume.status.clone().unwrap_or_default();
    if status.phase.as_deref() == Some(phase) {
        return None;
    }
    status.phase = Some(phase.into());
    status.message = None;
    status.reason = None;
    status.last_phase_transition_time = Some(Time(now));
    Some(PersistentVolume { status: Some(status), ..volume.clone() })
}

fn phase(claim: &PersistentVolumeClaim, phase: &str) -> Option<PersistentVolumeClaim> {
    let mut status = claim.status.clone().unwrap_or_default();
    if status.phase.as_deref() == Some(phase) {
        return None;
    }
    status.phase = Some(phase.into());
    if phase == "Pending" {
        (status.access_modes, status.capacity) = (None, None);
    }
    Some(PersistentVolumeClaim { status: Some(status), ..claim.clone() })
}

/// What a bound claim says of its volume; the capacity is only written once, because resizing is another's business.
fn bound(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<PersistentVolumeClaim> {
    let old = claim.status.clone().unwrap_or_default();
    let mut status = old.clone();
    let spec = volume.spec.clone().unwrap_or_default();
    let was_bound = old.phase.as_deref() == Some("Bound");
    status.phase = Some("Bound".into());
    status.access_modes = spec.access_modes;
    let storage = spec.capacity.unwrap_or_default().remove("storage");
    if let Some(storage) = storage.filter(|_| !was_bound || old.capacity.is_none()) {
        status.capacity = Some(BTreeMap::from([("storage".to_owned(), storage)]));
    }
    status.current_volume_attributes_class_name = spec.volume_attributes_class_name.filter(|name| !name.is_empty());
    (status != old).then(|| PersistentVolumeClaim { status: Some(status), ..claim.clone() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut value = json!({"metadata": {"name": name, "uid": name}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": ""}});
        more.as_object().into_iter().flatten().for_each(|(key, field)| value["spec"][key] = field.clone());
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn world(claim: Value, annotations: Value, volumes: Vec<Arc<PersistentVolume>>, classes: &[(&str, &str, bool)]) -> World {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""});
        claim.as_object().into_iter().flatten().for_each(|(key, value)| spec[key] = value.clone());
        let class = |(name, mode, default): &(&str, &str, bool)| {
            let annotations = json!({DEFAULT_CLASS: default.to_string()});
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": "p.io", "volumeBindingMode": mode}),
                )
                .unwrap(),
            )
        };
        let meta = json!({"name": "c", "namespace": "a", "uid": "c-uid", "annotations": annotations});
        World {
            claim: Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": {"phase": "Pending"}})).unwrap()),
            volumes,
            classes: classes.iter().map(class).collect(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    /// `v2 Bound` or the reason of the event.
    fn words(world: &World) -> String {
        let plan = plan(world);
        let volume = plan.volume.as_ref().and_then(|volume| volume.metadata.name.clone());
        let phase = plan.claim_status.as_ref().and_then(|claim| claim.status.as_ref()?.phase.clone());
        let event = plan.event.map(|(_, reason, _)| reason.to_owned());
        [volume, phase, event].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_claim_takes_the_smallest_volume_that_does() {
        let volumes = || vec![volume("v1", "10Gi", json!({})), volume("v2", "2Gi", json!({})), volume("v3", "500Mi", json!({}))];
        assert_eq!(words(&world(json!({}), json!({}), volumes(), &[])), "v2 Bound");
        assert_eq!(words(&world(json!({"volumeName": "v1"}), json!({}), volumes(), &[])), "v1 Bound");
        assert_eq!(words(&world(json!({"volumeName": "v3"}), json!({}), volumes(), &[])), "VolumeMismatch");
        assert_eq!(words(&world(json!({"accessModes": ["ReadWriteMany"]}), json!({}), volumes(), &[])), "FailedBinding");
        let reserved = json!({"claimRef": {"namespace": "a", "name": "c"}});
        assert_eq!(
            words(&world(json!({}), json!({}), vec![volume("v2", "2Gi", json!({})), volume("v1", "9Gi", reserved)], &[])),
            "v1 Bound"
        );
        let taken = json!({"claimRef": {"namespace": "a", "name": "other", "uid": "o"}});
        assert_eq!(words(&world(json!({}), json!({}), vec![volume("v1", "9Gi", taken)], &[])), "FailedBinding");
    }

    #[test]
    fn a_class_provisions_or_waits_for_the_first_consumer() {
        let of = |class: &str| json!({"storageClassName": class});
        let classes = [("fast", "Immediate", false), ("late", "WaitForFirstConsumer", true)];
        let asked = world(of("fast"), json!({}), vec![], &classes);
        assert_eq!(words(&asked), "ExternalProvisioning");
        let annotations = plan(&asked).claim.unwrap().metadata.annotations.unwrap();
        assert_eq!(annotations.get(PROVISIONER).map(String::as_str), Some("p.io"));
        assert_eq!(words(&world(of("late"), json!({}), vec![], &classes)), "WaitForFirstConsumer");
        assert_eq!(words(&world(of("late"), json!({SELECTED_NODE: "n"}), vec![], &classes)), "ExternalProvisioning");
        assert_eq!(words(&world(of("none"), json!({}), vec![], &classes)), "ProvisioningFailed");
        let defaulted = plan(&world(json!({"storageClassName": null}), json!({}), vec![], &classes)).claim.unwrap();
        assert_eq!(defaulted.spec.unwrap().storage_class_name.as_deref(), Some("late"));
    }

    #[test]
    fn a_bound_claim_whose_volume_is_gone_or_anothers_is_lost() {
        let done = json!({BIND_COMPLETED: "yes"});
        assert_eq!(words(&world(json!({"volumeName": "v"}), done.clone(), vec![], &[])), "Lost ClaimLost");
        let taken = json!({"claimRef": {"namespace": "a", "name": "c", "uid": "another"}});
        assert_eq!(words(&world(json!({"volumeName": "v"}), done, vec![volume("v", "1Gi", taken)], &[])), "Lost ClaimMisbound");
    }
}
