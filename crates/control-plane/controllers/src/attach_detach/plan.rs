//! What is attached to a node and what is taken from it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{AttachedVolume, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{EventKind, ObjectKey};

use super::FORCE_AFTER;
use super::observe::{Attached, Wanted, World, attachment_name, csi, in_use, is_healthy, is_out_of_service, unique_name};

#[derive(Default)]
pub(super) struct Plan {
    pub attach: Vec<VolumeAttachment>,
    /// `status.volumesAttached` as it shall be, where it is not; written before the detaches.
    pub volumes_attached: Option<Vec<AttachedVolume>>,
    pub detach: Vec<Arc<VolumeAttachment>>,
    pub events: Vec<(Arc<Pod>, EventKind, &'static str, String)>,
    /// The names of attachments that are wanted, and of those that nobody wants.
    pub wanted: Vec<String>,
    pub unwanted: Vec<String>,
    /// When a volume may be taken though it is mounted.
    pub look_again: Option<Duration>,
}

pub(super) fn plan(world: &World) -> Plan {
    let mut plan = Plan::default();
    let mut usable = Vec::new();
    for (name, wanted) in &world.wanted {
        attach(world, wanted, &mut plan);
        plan.wanted.push(attachment_name(&wanted.volume, &world.name));
        let attached = world.attachments.iter().find(|attached| volume_name(attached) == Some(name));
        if attached.is_some_and(is_usable) {
            usable.push(unique_name(&wanted.volume));
        }
    }
    for attached in &world.attachments {
        let unwanted = volume_name(attached).is_none_or(|name| !world.wanted.contains_key(name));
        if unwanted {
            detach(world, attached, &mut plan, &mut usable);
        }
    }
    publish(world, usable, &mut plan);
    plan
}

fn volume_name(attached: &Attached) -> Option<&String> {
    attached.attachment.spec.source.persistent_volume_name.as_ref()
}

/// Attached, and not on its way out.
fn is_usable(attached: &Attached) -> bool {
    let attachment = &attached.attachment;
    attachment.metadata.deletion_timestamp.is_none() && attachment.status.as_ref().is_some_and(|status| status.attached)
}

fn attach(world: &World, wanted: &Wanted, plan: &mut Plan) {
    let volume = &wanted.volume;
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    if let Some(known) = world.attachments.iter().find(|attached| volume_name(attached).is_some_and(|known| known == name)) {
        let error = known.attachment.status.as_ref().and_then(|status| status.attach_error.as_ref()?.message.clone());
        if let Some(error) = error.filter(|_| !is_usable(known)) {
            tell(
                plan,
                wanted,
                EventKind::Warning,
                "FailedAttachVolume",
                format!("AttachVolume.Attach failed for volume {name:?} : {error}"),
            );
        }
        return;
    }
    if wanted.elsewhere > 0 && !allows_several_nodes(volume) {
        let message = format!("Multi-Attach error for volume {name:?} {}", multi_attach_message(wanted));
        return tell(plan, wanted, EventKind::Warning, "FailedAttachVolume", message);
    }
    plan.attach.push(attachment(volume, &world.name));
}

fn tell(plan: &mut Plan, wanted: &Wanted, kind: EventKind, reason: &'static str, message: String) {
    plan.events.extend(wanted.pods.iter().map(|pod| (pod.clone(), kind, reason, message.clone())));
}

fn attachment(volume: &PersistentVolume, node: &str) -> VolumeAttachment {
    let metadata = ObjectMeta { name: Some(attachment_name(volume, node)), ..ObjectMeta::default() };
    let source = VolumeAttachmentSource { persistent_volume_name: volume.metadata.name.clone(), ..VolumeAttachmentSource::default() };
    let (driver, _) = csi(volume).unwrap_or_default();
    let spec = VolumeAttachmentSpec { attacher: driver.into(), node_name: node.into(), source };
    VolumeAttachment { metadata, spec, status: None }
}

/// Where a volume names no mode, the driver has to know.
fn allows_several_nodes(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    modes.is_empty() || modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

/// Pods of other namespaces are counted, not named.
fn multi_attach_message(wanted: &Wanted) -> String {
    let home = wanted.pods.first().and_then(|pod| pod.metadata.namespace.clone()).unwrap_or_default();
    let (near, far): (Vec<&ObjectKey>, Vec<&ObjectKey>) = wanted.other_users.iter().partition(|key| key.namespace == home);
    let names = near.iter().map(|key| key.name.as_str()).collect::<Vec<_>>().join(", ");
    match (near.len(), far.len()) {
        (0, 0) => "Volume is already exclusively attached to one node and can't be attached to another".into(),
        (0, far) => format!("Volume is already used by {far} pod(s) in different namespaces"),
        (_, 0) => format!("Volume is already used by pod(s) {names}"),
        (_, far) => format!("Volume is already used by pod(s) {names} and {far} pod(s) in different namespaces"),
    }
}

/// Takes an attachment that nobody wants from the node, as soon as that is safe.
fn detach(world: &World, attached: &Attached, plan: &mut Plan, usable: &mut Vec<String>) {
    let name = attached.attachment.metadata.name.clone().unwrap_or_default();
    plan.unwanted.push(name);
    if attached.attachment.metadata.deletion_timestamp.is_some() {
        return;
    }
    let unique = attached.volume.as_ref().map(|volume| unique_name(volume));
    // A node that is gone may still run.
    let mounted = world.node.as_ref().is_none_or(|node| unique.as_ref().is_some_and(|unique| in_use(node).contains(unique)));
    let out_of_service = world.node.as_ref().is_some_and(|node| is_out_of_service(node));
    let healthy = world.node.as_ref().is_some_and(|node| is_healthy(node));
    let force = out_of_service || (!healthy && attached.unwanted_for >= FORCE_AFTER);
    if !mounted || force {
        plan.detach.push(attached.attachment.clone());
        return;
    }
    let left = FORCE_AFTER.saturating_sub(attached.unwanted_for).max(Duration::from_secs(1));
    plan.look_again = Some(plan.look_again.map_or(left, |soonest| soonest.min(left)));
    usable.extend(unique.filter(|_| is_usable(attached)));
}

fn publish(world: &World, usable: Vec<String>, plan: &mut Plan) {
    let Some(node) = &world.node else { return };
    let known = node.status.as_ref().and_then(|status| status.volumes_attached.as_deref()).unwrap_or_default();
    // Others' entries are no business of ours.
    let foreign = known.iter().filter(|volume| !volume.name.starts_with("kubernetes.io/csi/")).cloned();
    let ours = usable.iter().map(|name| AttachedVolume { name: name.clone(), device_path: String::new() });
    let next: Vec<AttachedVolume> = foreign.chain(ours).collect();
    let names = |volumes: &[AttachedVolume]| volumes.iter().map(|volume| volume.name.clone()).collect::<std::collections::BTreeSet<_>>();
    if names(&next) == names(known) {
        return;
    }
    for wanted in world.wanted.values() {
        let unique = unique_name(&wanted.volume);
        if usable.contains(&unique) && !known.iter().any(|volume| volume.name == unique) {
            let name = wanted.volume.metadata.name.as_deref().unwrap_or_default();
            let message = format!("AttachVolume.Attach succeeded for volume {name:?} ");
            tell(plan, wanted, EventKind::Normal, "SuccessfulAttachVolume", message);
        }
    }
    plan.volumes_attached = Some(next);
}

#[cfg(test)]
mod tests;
