//! What a claim's volume is to be made from, and whether it may be. The refusals are upstream's (external-provisioner).

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::words::ALLOW_MODE_CHANGE;
use crate::{VolumeSnapshot, VolumeSnapshotContent};

/// By name, in the claim's own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    Snapshot(String),
    Claim(String),
    /// Somebody else fills such volumes.
    Other(String),
}

/// The claim's `dataSource`, which the API server keeps equal to its `dataSourceRef`.
pub fn data_source(claim: &PersistentVolumeClaim) -> Result<Option<DataSource>, String> {
    let Some(spec) = &claim.spec else { return Ok(None) };
    let reference = spec.data_source_ref.as_ref();
    if reference.is_some_and(|reference| reference.namespace.as_deref().is_some_and(|namespace| !namespace.is_empty())) {
        return Err("dataSourceRef namespace specified but the CrossNamespaceVolumeDataSource feature is disabled".into());
    }
    let plain = spec.data_source.as_ref().map(|source| (source.api_group.clone(), source.kind.clone(), source.name.clone()));
    let found = plain.or_else(|| reference.map(|source| (source.api_group.clone(), source.kind.clone(), source.name.clone())));
    let Some((group, kind, name)) = found else { return Ok(None) };
    let group = group.unwrap_or_default();
    Ok(Some(match kind.as_str() {
        "VolumeSnapshot" if group == crate::kinds::GROUP => DataSource::Snapshot(name),
        "VolumeSnapshot" => {
            return Err(format!("the PVC source does not belong to the right APIGroup. Expected {}, Got {group}", crate::kinds::GROUP));
        }
        "PersistentVolumeClaim" => DataSource::Claim(name),
        _ => DataSource::Other(kind),
    }))
}

fn bytes(quantity: Option<&Quantity>) -> i64 {
    quantity.and_then(|quantity| meta::Quantity::parse(&quantity.0).ok()).map_or(0, |quantity| quantity.value())
}

/// Bytes that a claim asks for.
pub fn asked(claim: &PersistentVolumeClaim) -> i64 {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    bytes(requests.and_then(|requests| requests.get("storage")))
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

fn names(claim: &PersistentVolumeClaim) -> (&str, &str) {
    (claim.metadata.namespace.as_deref().unwrap_or_default(), claim.metadata.name.as_deref().unwrap_or_default())
}

/// The handle of the snapshot `name` that the claim of that class is to be made from.
pub fn from_snapshot<'a>(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    name: &str,
    snapshot: Option<&VolumeSnapshot>,
    content: Option<&'a VolumeSnapshotContent>,
) -> Result<&'a str, String> {
    let snapshot = snapshot.ok_or_else(|| {
        format!("error getting snapshot {name} from api server: volumesnapshots.{} {name:?} not found", crate::kinds::GROUP)
    })?;
    if snapshot.metadata.deletion_timestamp.is_some() {
        return Err(format!("snapshot {name} is being deleted"));
    }
    let bound = snapshot.bound_content().ok_or_else(|| format!("snapshot {name} not bound"))?;
    let content = content.ok_or_else(|| format!("error getting snapshotcontent {bound} for snapshot {name}"))?;
    if !content.is_of(snapshot) {
        return Err(format!("snapshotcontent {bound} for snapshot {name} is bound to a different snapshot"));
    }
    if content.spec.driver != class.provisioner {
        let class = class.metadata.name.as_deref().unwrap_or_default();
        return Err(format!("snapshotcontent {bound} for snapshot {name} is not handled by CSI driver of StorageClass {class}"));
    }
    if !snapshot.is_ready() {
        return Err(format!("snapshot {name} is not Ready"));
    }
    let handle = content.handle().ok_or_else(|| format!("snapshot handle {name} is not available"))?;
    let size = snapshot.status.as_ref().and_then(|status| status.restore_size.as_ref());
    let (asked, size) = (asked(claim), bytes(size));
    if asked < size {
        return Err(format!("requested volume size {asked} is less than the size {size} for the source snapshot {name}"));
    }
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
    let had = content.spec.source_volume_mode.as_ref();
    if had.is_some() && mode(had) != mode(wanted) {
        may_change_mode(claim, content)?;
    }
    Ok(handle)
}

fn may_change_mode(claim: &PersistentVolumeClaim, content: &VolumeSnapshotContent) -> Result<(), String> {
    let (namespace, name) = names(claim);
    let content_name = content.metadata.name.as_deref().unwrap_or_default();
    let refused = |why: String| {
        Err(format!(
            "requested volume {namespace}/{name} modifies the mode of the source volume but does not have permission to do so. {why}"
        ))
    };
    match content.metadata.annotations.as_ref().and_then(|all| all.get(ALLOW_MODE_CHANGE)).map(String::as_str) {
        None => refused(format!("{ALLOW_MODE_CHANGE} annotation is not present on snapshotcontent {content_name}")),
        Some("true" | "True" | "TRUE" | "t" | "T" | "1") => Ok(()),
        Some(_) => refused(format!("{ALLOW_MODE_CHANGE} is set to false on snapshotcontent {content_name}")),
    }
}

/// Whether the claim may be made from `source`, the claim `name`, whose volume is `volume`. `same_driver`: the volume is one of the driver that
/// is to make the new one.
pub fn from_claim(
    claim: &PersistentVolumeClaim,
    name: &str,
    source: Option<&PersistentVolumeClaim>,
    volume: Option<&PersistentVolume>,
    same_driver: bool,
) -> Result<(), String> {
    let (namespace, _) = names(claim);
    let source = source.ok_or_else(|| {
        format!("error getting PVC {name} (namespace {namespace:?}) from api server: persistentvolumeclaim {name:?} not found")
    })?;
    let phase = source.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if phase != "Bound" {
        return Err(format!("the PVC DataSource {name} must have a status of Bound.  Got {phase}"));
    }
    if source.metadata.deletion_timestamp.is_some() {
        return Err(format!("the PVC DataSource {name} is currently being deleted"));
    }
    let (wanted, have) = (asked(claim), asked(source));
    if wanted < have {
        return Err(format!(
            "error, new PVC request must be greater than or equal in size to the specified PVC data source, requested {wanted} but source is {have}"
        ));
    }
    let spec = volume.and_then(|volume| volume.spec.as_ref());
    let bound = spec.and_then(|spec| spec.claim_ref.as_ref()?.uid.as_ref()) == source.metadata.uid.as_ref();
    if spec.is_none() || !bound || !same_driver {
        return Err("claim in dataSource not bound or invalid".into());
    }
    let had = mode(spec.and_then(|spec| spec.volume_mode.as_ref()));
    let wanted = mode(claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()));
    if had != wanted {
        return Err(format!(
            "the source PVC and destination PVCs must have the same volume mode for cloning.  Source is {had}, but new PVC requested {wanted}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(size: &str, mode: &str, more: Value) -> PersistentVolumeClaim {
        let mut spec = json!({"resources": {"requests": {"storage": size}}, "volumeMode": mode});
        more.as_object().into_iter().flatten().for_each(|(key, value)| spec[key] = value.clone());
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "c"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_source_is_a_snapshot_a_claim_or_somebody_elses() {
        let of = |source: Value| data_source(&claim("1", "Filesystem", json!({"dataSourceRef": source})));
        let snapshots = crate::kinds::GROUP;
        assert_eq!(of(json!({"apiGroup": snapshots, "kind": "VolumeSnapshot", "name": "s"})), Ok(Some(DataSource::Snapshot("s".into()))));
        assert_eq!(of(json!({"kind": "PersistentVolumeClaim", "name": "c"})), Ok(Some(DataSource::Claim("c".into()))));
        assert_eq!(of(json!({"apiGroup": "x.example", "kind": "Book", "name": "b"})), Ok(Some(DataSource::Other("Book".into()))));
        assert_eq!(of(Value::Null), Ok(None));
        assert!(of(json!({"kind": "PersistentVolumeClaim", "name": "c", "namespace": "b"})).unwrap_err().contains("CrossNamespace"));
        assert!(of(json!({"apiGroup": "x", "kind": "VolumeSnapshot", "name": "c"})).unwrap_err().ends_with("Got x"));
    }

    #[test]
    fn a_snapshot_is_restored_when_it_is_bound_ready_of_the_same_driver_and_not_larger() {
        let class: StorageClass = serde_json::from_value(json!({"metadata": {"name": "fast"}, "provisioner": "d"})).unwrap();
        let snapshot = |deleted: bool, bound: Option<&str>, ready: bool| -> VolumeSnapshot {
            let time = deleted.then_some("2026-01-01T00:00:00Z");
            let status = json!({"boundVolumeSnapshotContentName": bound, "readyToUse": ready, "restoreSize": "1Ki"});
            serde_json::from_value(
                json!({"metadata": {"namespace": "a", "name": "s", "uid": "u", "deletionTimestamp": time}, "spec": {}, "status": status}),
            )
            .unwrap()
        };
        let content = |driver: &str, uid: &str, allow: Value| -> VolumeSnapshotContent {
            let reference = json!({"namespace": "a", "name": "s", "uid": uid});
            let spec = json!({"driver": driver, "deletionPolicy": "Delete", "volumeSnapshotRef": reference, "source": {}, "sourceVolumeMode": "Filesystem"});
            let metadata = json!({"name": "k", "annotations": allow});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": {"snapshotHandle": "h"}})).unwrap()
        };
        let good = || (snapshot(false, Some("k"), true), content("d", "u", json!({})));
        let words = |claim: &PersistentVolumeClaim, snapshot: Option<&VolumeSnapshot>, content: Option<&VolumeSnapshotContent>| {
            from_snapshot(claim, &class, "s", snapshot, content).map_or_else(|error| error, str::to_owned)
        };
        let (ready, k) = good();
        let plain = claim("1Ki", "Filesystem", Value::Null);
        let cases = [
            (words(&plain, Some(&ready), Some(&k)), "h"),
            (
                words(&plain, None, None),
                "error getting snapshot s from api server: volumesnapshots.snapshot.storage.k8s.io \"s\" not found",
            ),
            (words(&plain, Some(&snapshot(true, Some("k"), true)), Some(&k)), "snapshot s is being deleted"),
            (words(&plain, Some(&snapshot(false, None, true)), None), "snapshot s not bound"),
            (words(&plain, Some(&ready), None), "error getting snapshotcontent k for snapshot s"),
            (
                words(&plain, Some(&ready), Some(&content("d", "v", json!({})))),
                "snapshotcontent k for snapshot s is bound to a different snapshot",
            ),
            (
                words(&plain, Some(&ready), Some(&content("e", "u", json!({})))),
                "snapshotcontent k for snapshot s is not handled by CSI driver of StorageClass fast",
            ),
            (words(&plain, Some(&snapshot(false, Some("k"), false)), Some(&k)), "snapshot s is not Ready"),
            (
                words(&claim("1000", "Filesystem", Value::Null), Some(&ready), Some(&k)),
                "requested volume size 1000 is less than the size 1024 for the source snapshot s",
            ),
            (words(&claim("1Ki", "Block", Value::Null), Some(&ready), Some(&content("d", "u", json!({ALLOW_MODE_CHANGE: "true"})))), "h"),
        ];
        for (said, expected) in cases {
            assert_eq!(said, expected);
        }
        let block = words(&claim("1Ki", "Block", Value::Null), Some(&ready), Some(&k));
        assert!(block.starts_with("requested volume a/c modifies the mode of the source volume"), "{block}");
    }

    #[test]
    fn a_claim_is_cloned_when_it_is_bound_of_the_same_driver_and_mode_and_not_larger() {
        let source = |phase: &str, deleted: bool| -> PersistentVolumeClaim {
            let time = deleted.then_some("2026-01-01T00:00:00Z");
            let spec = json!({"resources": {"requests": {"storage": "1Ki"}}});
            serde_json::from_value(
                json!({"metadata": {"name": "s", "uid": "u", "deletionTimestamp": time}, "spec": spec, "status": {"phase": phase}}),
            )
            .unwrap()
        };
        let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {}, "spec": {"claimRef": {"uid": "u"}}})).unwrap();
        let words = |wanted: &PersistentVolumeClaim, source: Option<&PersistentVolumeClaim>, same: bool| {
            from_claim(wanted, "s", source, Some(&volume), same).err().unwrap_or_default()
        };
        let plain = claim("1Ki", "Filesystem", Value::Null);
        assert_eq!(words(&plain, Some(&source("Bound", false)), true), "");
        assert_eq!(
            words(&plain, None, true),
            "error getting PVC s (namespace \"a\") from api server: persistentvolumeclaim \"s\" not found"
        );
        assert_eq!(words(&plain, Some(&source("Pending", false)), true), "the PVC DataSource s must have a status of Bound.  Got Pending");
        assert_eq!(words(&plain, Some(&source("Bound", true)), true), "the PVC DataSource s is currently being deleted");
        assert_eq!(words(&plain, Some(&source("Bound", false)), false), "claim in dataSource not bound or invalid");
        let small = words(&claim("1", "Filesystem", Value::Null), Some(&source("Bound", false)), true);
        assert!(small.ends_with("requested 1 but source is 1024"), "{small}");
        let block = words(&claim("1Ki", "Block", Value::Null), Some(&source("Bound", false)), true);
        assert!(block.ends_with("Source is Filesystem, but new PVC requested Block"), "{block}");
    }
}
