//! What a VolumeSnapshot needs next. Reasons and messages are upstream's.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use reconcile::{key_of, reference_to};
use snapshots::restore::{DataSource, data_source};
use snapshots::{
    ContentSource, ContentSpec, SnapshotError, SnapshotStatus, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, words,
};

use super::{NODE_LABEL, PROVISIONER};
use crate::volume_binder::PROVISIONED_BY;

/// Of the secret that a driver wants to see; see `csi.storage.k8s.io/snapshotter-secret-name` in classes.
const SECRET: &str = "csi.storage.k8s.io/snapshotter-secret-";

#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("{0}")]
    Api(#[from] client::Error),
    #[error("{0}")]
    Refused(String),
}

pub(super) struct World<'a> {
    pub snapshot: &'a VolumeSnapshot,
    /// Of the name that the snapshot has, names, or gives.
    pub content: Option<Arc<VolumeSnapshotContent>>,
    pub classes: &'a [Arc<VolumeSnapshotClass>],
    /// That the snapshot is of, and its volume.
    pub claim: Option<&'a PersistentVolumeClaim>,
    pub volume: Option<&'a PersistentVolume>,
    /// Of its namespace.
    pub neighbours: &'a [Arc<VolumeSnapshot>],
    pub claims: &'a [Arc<PersistentVolumeClaim>],
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nobody makes a snapshot of the claim any more.
    pub release_claim: bool,
    pub step: Step,
}

/// One step; what it changes wakes the next.
#[derive(Debug, Default)]
pub(super) enum Step {
    #[default]
    Nothing,
    /// Somebody else has to do something first: an event, and no status.
    Wait {
        reason: &'static str,
        message: String,
    },
    Refuse {
        reason: &'static str,
        message: String,
        /// It is not ready any more, either.
        unready: bool,
    },
    SetClass(String),
    Finalizers(Vec<String>),
    Make(Box<VolumeSnapshotContent>),
    /// A content that somebody made for this snapshot learns its uid.
    Replace(Box<VolumeSnapshotContent>),
    Delete(Box<VolumeSnapshotContent>),
    Status {
        status: Box<SnapshotStatus>,
        events: Vec<(&'static str, String)>,
    },
}

fn refuse(reason: &'static str, message: impl Into<String>) -> Step {
    Step::Refuse { reason, message: message.into(), unready: true }
}

pub(super) fn error(message: &str) -> SnapshotError {
    SnapshotError { time: Some(Time(Timestamp::now())), message: Some(message.to_owned()) }
}

pub(super) fn plan(world: &World<'_>) -> Plan {
    let snapshot = world.snapshot;
    if snapshot.metadata.deletion_timestamp.is_some() {
        let step = leave(world);
        // The claim is let go before the snapshot is: nobody would think of it afterwards.
        return Plan { release_claim: matches!(step, Step::Finalizers(_)) && !is_source(world), step };
    }
    Plan { release_claim: snapshot.is_ready() && !is_source(world), step: stay(world) }
}

/// Does a snapshot that is still being made need the claim? This one does not once it leaves.
fn is_source(world: &World<'_>) -> bool {
    let own = &world.snapshot.metadata;
    world.neighbours.iter().any(|other| {
        let leaving_self = other.metadata.uid == own.uid && own.deletion_timestamp.is_some();
        let same = other.spec.source.persistent_volume_claim_name == world.snapshot.spec.source.persistent_volume_claim_name;
        same && !leaving_self && !other.is_ready()
    })
}

fn has(snapshot: &VolumeSnapshot, finalizer: &str) -> bool {
    snapshot.metadata.finalizers.iter().flatten().any(|name| name == finalizer)
}

fn leave(world: &World<'_>) -> Step {
    let snapshot = world.snapshot;
    if !has(snapshot, words::SOURCE_FINALIZER) && !has(snapshot, words::BOUND_FINALIZER) {
        return Step::Nothing;
    }
    let content = world.content.as_ref().filter(|content| content.is_of(snapshot));
    if content.is_some() && is_being_restored(world) {
        return Step::Wait { reason: "SnapshotDeletePending", message: "Snapshot is being used to restore a PVC".into() };
    }
    let goes = content.filter(|content| content.deletes());
    if let Some(content) = content {
        let told = content.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(words::BEING_DELETED));
        if !told {
            let mut next = VolumeSnapshotContent::clone(content);
            next.metadata.annotations.get_or_insert_default().insert(words::BEING_DELETED.into(), "yes".into());
            return Step::Replace(Box::new(next));
        }
        if content.deletes() && content.metadata.deletion_timestamp.is_none() {
            return Step::Delete(Box::new(VolumeSnapshotContent::clone(content)));
        }
    }
    let stays = |name: &String| name != words::SOURCE_FINALIZER && (goes.is_some() || name != words::BOUND_FINALIZER);
    let finalizers: Vec<String> = snapshot.metadata.finalizers.iter().flatten().filter(|name| stays(name)).cloned().collect();
    match Some(&finalizers) == snapshot.metadata.finalizers.as_ref() {
        true => Step::Nothing,
        false => Step::Finalizers(finalizers),
    }
}

fn is_being_restored(world: &World<'_>) -> bool {
    let name = world.snapshot.metadata.name.clone().unwrap_or_default();
    world.claims.iter().any(|claim| {
        let pending = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
        pending && data_source(claim) == Ok(Some(DataSource::Snapshot(name.clone())))
    })
}

fn stay(world: &World<'_>) -> Step {
    let snapshot = world.snapshot;
    let source = &snapshot.spec.source;
    if source.persistent_volume_claim_name.is_some() == source.volume_snapshot_content_name.is_some() {
        let message = "Exactly one of PersistentVolumeClaimName and VolumeSnapshotContentName should be specified";
        return refuse("SnapshotValidationError", message);
    }
    let dynamic = source.volume_snapshot_content_name.is_none();
    if dynamic && !(snapshot.is_ready() && snapshot.bound_content().is_some()) {
        let class = match class_of(world) {
            Ok(class) => class,
            Err(step) => return step,
        };
        if snapshot.spec.volume_snapshot_class_name.is_none() {
            return Step::SetClass(class.metadata.name.clone().unwrap_or_default());
        }
    }
    if let Some(step) = misfit(world, dynamic) {
        return step;
    }
    let held = world.content.as_ref().is_some_and(|content| content.deletes()) && snapshot.bound_content().is_some();
    let wanted = [(true, words::SOURCE_FINALIZER), (held, words::BOUND_FINALIZER)];
    let missing: Vec<String> =
        wanted.iter().filter(|(wanted, name)| *wanted && !has(snapshot, name)).map(|(_, name)| (*name).to_owned()).collect();
    if !missing.is_empty() {
        let finalizers = snapshot.metadata.finalizers.iter().flatten().cloned().chain(missing).collect();
        return Step::Finalizers(finalizers);
    }
    if snapshot.is_ready() && snapshot.bound_content().is_some() {
        return match &world.content {
            None => refuse("SnapshotContentMissing", "VolumeSnapshotContent is missing"),
            Some(content) if !content.is_of(snapshot) => {
                refuse("SnapshotMisbound", "VolumeSnapshotContent is not bound to the VolumeSnapshot correctly")
            }
            Some(_) => Step::Nothing,
        };
    }
    match (&world.content, dynamic) {
        (Some(content), false) if content.spec.volume_snapshot_ref.uid.is_none() => adopt(snapshot, content),
        (Some(content), _) => follow(snapshot, content),
        (None, false) => refuse("SnapshotContentMissing", "VolumeSnapshotContent is missing"),
        (None, true) => match make(world) {
            Ok(content) => Step::Make(Box::new(content)),
            Err(why) => refuse("SnapshotContentCreationFailed", format!("Failed to create snapshot content with error {why}")),
        },
    }
}

/// A content of that name which is not this snapshot's.
fn misfit(world: &World<'_>, dynamic: bool) -> Option<Step> {
    let snapshot = world.snapshot;
    if snapshot.is_ready() && snapshot.bound_content().is_some() {
        return None;
    }
    let content = world.content.as_ref()?;
    let name = content.metadata.name.as_deref().unwrap_or_default();
    if dynamic && content.spec.source.volume_handle.is_none() {
        let message = format!("VolumeSnapshotContent {name} is pre-provisioned while expecting a dynamically provisioned one");
        return Some(refuse("SnapshotContentMismatch", message));
    }
    if !dynamic && content.spec.source.snapshot_handle.is_none() {
        let message = "VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one";
        return Some(refuse("SnapshotContentMismatch", message));
    }
    let (reference, meta) = (&content.spec.volume_snapshot_ref, &snapshot.metadata);
    let named = reference.name == meta.name && reference.namespace == meta.namespace;
    let fits = named && (reference.uid == meta.uid || (!dynamic && reference.uid.is_none()));
    (!fits).then(|| refuse("SnapshotContentMisbound", format!("VolumeSnapshotContent [{name}] is bound to a different snapshot")))
}

fn driver_of(volume: &PersistentVolume) -> Option<&str> {
    let ours = volume.metadata.annotations.as_ref().and_then(|all| all.get(PROVISIONED_BY)).is_some_and(|by| by == PROVISIONER);
    let spec = volume.spec.as_ref()?;
    match &spec.csi {
        Some(csi) => Some(&csi.driver),
        None => (ours && spec.local.is_some()).then_some(PROVISIONER),
    }
}

/// The class that the snapshot names, or the default of its volume's driver.
fn class_of<'a>(world: &World<'a>) -> Result<&'a VolumeSnapshotClass, Step> {
    if let Some(name) = &world.snapshot.spec.volume_snapshot_class_name {
        let found = world.classes.iter().find(|class| class.metadata.name.as_ref() == Some(name));
        return found.map(|class| &**class).ok_or_else(|| {
            let message =
                format!("Failed to get snapshot class with error volumesnapshotclass.{} {name:?} not found", snapshots::kinds::GROUP);
            Step::Refuse { reason: "GetSnapshotClassFailed", message, unready: false }
        });
    }
    let refused = |why: String| {
        let message = format!("Failed to set default snapshot class with error {why}");
        Step::Refuse { reason: "SetDefaultSnapshotClassFailed", message, unready: false }
    };
    let volume = volume_of(world).map_err(refused)?;
    let key = key_of(&world.snapshot.metadata);
    let driver = driver_of(volume).ok_or_else(|| refused(format!("snapshotting non-CSI volumes is not supported, snapshot:{key}")))?;
    let default = |class: &&Arc<VolumeSnapshotClass>| {
        class.driver == driver
            && class.metadata.annotations.as_ref().and_then(|all| all.get(words::DEFAULT_CLASS)).is_some_and(|is| is == "true")
    };
    let mut found = world.classes.iter().filter(default);
    match (found.next(), found.count()) {
        (Some(class), 0) => Ok(class),
        (None, _) => Err(refused("cannot find default snapshot class".into())),
        (Some(_), others) => Err(refused(format!("{} default snapshot classes were found", others + 1))),
    }
}

fn volume_of<'a>(world: &World<'a>) -> Result<&'a PersistentVolume, String> {
    let name = world.snapshot.spec.source.persistent_volume_claim_name.clone().unwrap_or_default();
    let claim = world
        .claim
        .ok_or_else(|| format!("failed to retrieve PVC {name} from the lister: \"persistentvolumeclaim \\\"{name}\\\" not found\""))?;
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
        return Err(format!("the PVC {name} is not yet bound to a PV, will not attempt to take a snapshot"));
    }
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
    let volume = world
        .volume
        .ok_or_else(|| format!("failed to retrieve PV {wanted} from the API server: \"persistentvolumes \\\"{wanted}\\\" not found\""))?;
    let bound = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.as_ref()) == claim.metadata.uid.as_ref();
    if bound { Ok(volume) } else { Err("claim in dataSource not bound or invalid".into()) }
}

fn make(world: &World<'_>) -> Result<VolumeSnapshotContent, String> {
    let snapshot = world.snapshot;
    let own = snapshot.metadata.name.as_deref().unwrap_or_default();
    let claim =
        world.claim.ok_or_else(|| format!("snapshot controller failed to update {own} on API server: cannot get claim from snapshot"))?;
    if claim.metadata.deletion_timestamp.is_some() {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        return Err(format!(
            "snapshot controller failed to update {name} on API server: cannot add finalizer on claim because it is being deleted"
        ));
    }
    let input = |why: String| format!("failed to get input parameters to create snapshot {own}: {why:?}");
    let class = class_of(world).map_err(|_| input("failed to take snapshot without a snapshot class".into()))?;
    let volume = volume_of(world).map_err(input)?;
    let name = volume.metadata.name.clone().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    let driver = driver_of(volume).ok_or_else(|| format!("cannot find CSI PersistentVolumeSource for volume {name}"))?;
    if driver != class.driver {
        let class_name = class.metadata.name.as_deref().unwrap_or_default();
        return Err(format!("the snapshot class {class_name} is of the driver {}, the volume {name} of {driver}", class.driver));
    }
    let handle = spec.csi.map_or_else(|| name.clone(), |csi| csi.volume_handle);
    let node = volume.metadata.labels.as_ref().and_then(|labels| labels.get(NODE_LABEL)).filter(|_| driver == PROVISIONER);
    let secret = |what: &str| class.parameters.get(&format!("{SECRET}{what}")).map(|text| filled(text, snapshot));
    let mut annotations = std::collections::BTreeMap::new();
    if let (Some(secret), Some(namespace)) = (secret("name"), secret("namespace")) {
        annotations.insert(words::DELETION_SECRET_NAME.to_owned(), secret);
        annotations.insert(words::DELETION_SECRET_NAMESPACE.to_owned(), namespace);
    }
    Ok(VolumeSnapshotContent {
        metadata: ObjectMeta {
            name: Some(snapshot.content_name()),
            labels: node.map(|node| [(NODE_LABEL.to_owned(), node.clone())].into()),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            finalizers: Some(vec![words::CONTENT_FINALIZER.into()]),
            ..ObjectMeta::default()
        },
        spec: ContentSpec {
            volume_snapshot_ref: reference_to(snapshot),
            deletion_policy: class.deletion_policy.clone(),
            driver: driver.to_owned(),
            volume_snapshot_class_name: class.metadata.name.clone(),
            source: ContentSource { volume_handle: Some(handle), snapshot_handle: None },
            source_volume_mode: spec.volume_mode.or_else(|| Some("Filesystem".into())),
        },
        ..VolumeSnapshotContent::default()
    })
}

fn filled(text: &str, snapshot: &VolumeSnapshot) -> String {
    let key = key_of(&snapshot.metadata);
    text.replace("${volumesnapshotcontent.name}", &snapshot.content_name())
        .replace("${volumesnapshot.namespace}", &key.namespace)
        .replace("${volumesnapshot.name}", &key.name)
}

fn adopt(snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent) -> Step {
    let mut next = content.clone();
    next.spec.volume_snapshot_ref.uid = snapshot.metadata.uid.clone();
    if let Some(class) = &snapshot.spec.volume_snapshot_class_name {
        next.spec.volume_snapshot_class_name = Some(class.clone());
    }
    Step::Replace(Box::new(next))
}

/// The snapshot says what its content says.
fn follow(snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent) -> Step {
    let was = snapshot.status.clone().unwrap_or_default();
    let said = content.status.clone().unwrap_or_default();
    let created = said.creation_time.and_then(|at| Timestamp::from_nanosecond(i128::from(at)).ok()).map(Time);
    let size = said.restore_size.map(|bytes| Quantity(meta::Quantity::new(bytes, meta::quantity::Format::BinarySi).to_string()));
    let status = SnapshotStatus {
        bound_volume_snapshot_content_name: was.bound_volume_snapshot_content_name.clone().or_else(|| content.metadata.name.clone()),
        creation_time: was.creation_time.clone().or(created),
        ready_to_use: Some(said.ready_to_use == Some(true)),
        restore_size: was.restore_size.clone().or(size),
        error: said.error.clone(),
        volume_group_snapshot_name: was.volume_group_snapshot_name.clone(),
    };
    if snapshot.status.as_ref() == Some(&status) {
        return Step::Nothing;
    }
    let key = key_of(&snapshot.metadata);
    let mut events = Vec::new();
    if was.creation_time.is_none() && status.creation_time.is_some() {
        events.push(("SnapshotCreated", format!("Snapshot {key} was successfully created by the CSI driver.")));
    }
    if was.ready_to_use != Some(true) && status.ready_to_use == Some(true) {
        events.push(("SnapshotReady", format!("Snapshot {key} is ready to use.")));
    }
    Step::Status { status: Box::new(status), events }
}

#[cfg(test)]
mod tests;
