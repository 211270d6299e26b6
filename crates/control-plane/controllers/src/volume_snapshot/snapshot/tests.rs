use serde_json::{Value, json};

use super::*;

const TIME: &str = "2026-01-01T00:00:00Z";

/// What is there beside the snapshot, in a few words.
struct There {
    content: Option<Value>,
    classes: Vec<Value>,
    claim: Option<Value>,
    volume: Option<Value>,
    claims: Vec<Value>,
}

impl Default for There {
    fn default() -> Self {
        let claim =
            json!({"metadata": {"namespace": "a", "name": "data", "uid": "c"}, "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
        let metadata = json!({"name": "pv", "annotations": {PROVISIONED_BY: PROVISIONER}, "labels": {NODE_LABEL: "n1"}});
        let volume = json!({"metadata": metadata, "spec": {"local": {"path": "/data/pv"}, "claimRef": {"uid": "c"}}});
        let annotations = json!({words::DEFAULT_CLASS: "true"});
        let class = json!({"metadata": {"name": "local", "annotations": annotations}, "driver": PROVISIONER, "deletionPolicy": "Delete"});
        Self { content: None, classes: vec![class], claim: Some(claim), volume: Some(volume), claims: vec![] }
    }
}

fn read<K: serde::de::DeserializeOwned>(value: &Value) -> K {
    serde_json::from_value(value.clone()).unwrap()
}

/// The snapshot `s` of the claim `data`, with more in its metadata, spec and status.
fn snapshot(metadata: Value, spec: Value, status: Value) -> VolumeSnapshot {
    let mut all = json!({"namespace": "a", "name": "s", "uid": "u"});
    metadata.as_object().into_iter().flatten().for_each(|(key, value)| all[key] = value.clone());
    let mut wanted = json!({"source": {"persistentVolumeClaimName": "data"}});
    spec.as_object().into_iter().flatten().for_each(|(key, value)| wanted[key] = value.clone());
    read(&json!({"metadata": all, "spec": wanted, "status": status}))
}

fn content(more: Value) -> Option<Value> {
    let reference = json!({"namespace": "a", "name": "s", "uid": "u"});
    let spec = json!({"volumeSnapshotRef": reference, "source": {"volumeHandle": "pv"}, "driver": PROVISIONER, "deletionPolicy": "Delete"});
    let mut content = json!({"metadata": {"name": "snapcontent-u"}, "spec": spec});
    for (part, values) in more.as_object().into_iter().flatten() {
        values.as_object().into_iter().flatten().for_each(|(key, value)| content[part][key] = value.clone());
    }
    Some(content)
}

fn said(snapshot: &VolumeSnapshot, there: There) -> String {
    let classes: Vec<Arc<VolumeSnapshotClass>> = there.classes.iter().map(|class| Arc::new(read(class))).collect();
    let claim: Option<PersistentVolumeClaim> = there.claim.as_ref().map(read);
    let volume: Option<PersistentVolume> = there.volume.as_ref().map(read);
    let claims: Vec<Arc<PersistentVolumeClaim>> = there.claims.iter().map(|claim| Arc::new(read(claim))).collect();
    let neighbours = [Arc::new(snapshot.clone())];
    let content = there.content.as_ref().map(|content| Arc::new(read(content)));
    let world = World {
        snapshot,
        content,
        classes: &classes,
        claim: claim.as_ref(),
        volume: volume.as_ref(),
        neighbours: &neighbours,
        claims: &claims,
    };
    let plan = plan(&world);
    let short = |name: &String| name.rsplit('/').next().unwrap_or_default().to_owned();
    let step = match plan.step {
        Step::Nothing => "nothing".into(),
        Step::Wait { reason, message } => format!("wait {reason}: {message}"),
        Step::Refuse { reason, message, .. } => format!("{reason}: {message}"),
        Step::SetClass(name) => format!("class {name}"),
        Step::Finalizers(names) => format!("finalizers {}", names.iter().map(short).collect::<Vec<_>>().join(" ")),
        Step::Make(content) => {
            let node = content.metadata.labels.unwrap_or_default().remove(NODE_LABEL).unwrap_or_default();
            format!("make {} of {} on {node}", content.metadata.name.unwrap(), content.spec.source.volume_handle.unwrap())
        }
        Step::Replace(content) => {
            let told = content.metadata.annotations.is_some_and(|all| all.contains_key(words::BEING_DELETED));
            format!("replace {}{}", content.spec.volume_snapshot_ref.uid.unwrap_or_default(), if told { " told" } else { "" })
        }
        Step::Delete(content) => format!("delete {}", content.metadata.name.unwrap()),
        Step::Status { status, events } => {
            let reasons: Vec<&str> = events.iter().map(|(reason, _)| *reason).collect();
            format!(
                "ready {:?} {} [{}]",
                status.ready_to_use.unwrap(),
                status.restore_size.map(|size| size.0).unwrap_or_default(),
                reasons.join(" ")
            )
        }
    };
    format!("{step}{}", if plan.release_claim { ", claim released" } else { "" })
}

#[test]
fn a_snapshot_gets_a_class_a_finalizer_a_content_and_its_status() {
    let held = || json!({"finalizers": [words::SOURCE_FINALIZER]});
    let both = || json!({"finalizers": [words::SOURCE_FINALIZER, words::BOUND_FINALIZER]});
    let classed = || json!({"volumeSnapshotClassName": "local"});
    let bound = |ready: bool| json!({"boundVolumeSnapshotContentName": "snapcontent-u", "readyToUse": ready});
    let made = |status: Value| There { content: content(json!({ "status": status })), ..There::default() };
    assert_eq!(said(&snapshot(json!({}), json!({}), Value::Null), There::default()), "class local");
    assert_eq!(said(&snapshot(json!({}), classed(), Value::Null), There::default()), "finalizers volumesnapshot-as-source-protection");
    assert_eq!(said(&snapshot(held(), classed(), Value::Null), There::default()), "make snapcontent-u of pv on n1");
    assert_eq!(said(&snapshot(held(), classed(), Value::Null), made(Value::Null)), "ready false  []");
    assert_eq!(
        said(&snapshot(held(), classed(), bound(false)), made(Value::Null)),
        "finalizers volumesnapshot-as-source-protection volumesnapshot-bound-protection"
    );
    assert_eq!(said(&snapshot(both(), classed(), bound(false)), made(Value::Null)), "nothing");
    let status = json!({"snapshotHandle": "h", "creationTime": 1_767_225_600_000_000_000_i64, "restoreSize": 4096, "readyToUse": true});
    assert_eq!(said(&snapshot(both(), classed(), bound(false)), made(status.clone())), "ready true 4Ki [SnapshotCreated SnapshotReady]");
    assert_eq!(said(&snapshot(both(), classed(), bound(true)), made(status)), "nothing, claim released");
    assert_eq!(
        said(&snapshot(both(), classed(), bound(true)), There::default()),
        "SnapshotContentMissing: VolumeSnapshotContent is missing, claim released"
    );
}

#[test]
fn what_cannot_be_snapshotted_says_why_in_upstreams_words() {
    let held = || json!({"finalizers": [words::SOURCE_FINALIZER]});
    let classed = || json!({"volumeSnapshotClassName": "local"});
    let unbound = json!({"metadata": {"namespace": "a", "name": "data", "uid": "c"}, "status": {"phase": "Pending"}});
    let of = |metadata: Value, spec: Value, there: There| said(&snapshot(metadata, spec, Value::Null), there);
    let cases = [
        (
            of(json!({}), json!({"volumeSnapshotClassName": "none"}), There::default()),
            "GetSnapshotClassFailed: Failed to get snapshot class with error volumesnapshotclass.snapshot.storage.k8s.io \"none\" not found",
        ),
        (
            of(json!({}), json!({}), There { classes: vec![], ..There::default() }),
            "SetDefaultSnapshotClassFailed: Failed to set default snapshot class with error cannot find default snapshot class",
        ),
        (
            of(json!({}), json!({}), There { claim: Some(unbound.clone()), ..There::default() }),
            "SetDefaultSnapshotClassFailed: Failed to set default snapshot class with error the PVC data is not yet bound to a PV, will not attempt to take a snapshot",
        ),
        (
            of(held(), classed(), There { claim: Some(unbound), ..There::default() }),
            "SnapshotContentCreationFailed: Failed to create snapshot content with error failed to get input parameters to create snapshot s: \"the PVC data is not yet bound to a PV, will not attempt to take a snapshot\"",
        ),
        (
            of(held(), classed(), There { claim: None, ..There::default() }),
            "SnapshotContentCreationFailed: Failed to create snapshot content with error snapshot controller failed to update s on API server: cannot get claim from snapshot",
        ),
        (
            of(
                held(),
                classed(),
                There {
                    volume: Some(
                        json!({"metadata": {"name": "pv"}, "spec": {"nfs": {"server": "x", "path": "/"}, "claimRef": {"uid": "c"}}}),
                    ),
                    ..There::default()
                },
            ),
            "SnapshotContentCreationFailed: Failed to create snapshot content with error cannot find CSI PersistentVolumeSource for volume pv",
        ),
        (
            of(
                held(),
                classed(),
                There {
                    content: content(json!({"spec": {"volumeSnapshotRef": {"namespace": "a", "name": "s", "uid": "v"}}})),
                    ..There::default()
                },
            ),
            "SnapshotContentMisbound: VolumeSnapshotContent [snapcontent-u] is bound to a different snapshot",
        ),
        (
            of(json!({}), json!({"source": {}}), There::default()),
            "SnapshotValidationError: Exactly one of PersistentVolumeClaimName and VolumeSnapshotContentName should be specified",
        ),
    ];
    for (said, expected) in cases {
        assert_eq!(said, expected);
    }
}

#[test]
fn a_snapshot_that_was_there_before_is_bound_to_its_content() {
    let spec = || json!({"source": {"volumeSnapshotContentName": "old"}});
    let source = json!({"snapshotHandle": "n1:/x", "volumeHandle": null});
    let old = |uid: Value| {
        content(
            json!({"metadata": {"name": "old"}, "spec": {"source": source, "volumeSnapshotRef": {"namespace": "a", "name": "s", "uid": uid}}}),
        )
    };
    let held = || json!({"finalizers": [words::SOURCE_FINALIZER]});
    let of = |content: Option<Value>| said(&snapshot(held(), spec(), Value::Null), There { content, ..There::default() });
    assert_eq!(of(old(Value::Null)), "replace u");
    assert_eq!(of(old(json!("u"))), "ready false  []");
    assert_eq!(of(None), "SnapshotContentMissing: VolumeSnapshotContent is missing");
    let dynamic = content(json!({}));
    assert_eq!(
        of(dynamic),
        "SnapshotContentMismatch: VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one"
    );
}

#[test]
fn a_snapshot_goes_after_its_content_and_not_while_a_claim_is_made_of_it() {
    let metadata = || json!({"deletionTimestamp": TIME, "finalizers": [words::SOURCE_FINALIZER, words::BOUND_FINALIZER]});
    let bound = || json!({"boundVolumeSnapshotContentName": "snapcontent-u", "readyToUse": true});
    let of = |content: Option<Value>, claims: Vec<Value>| {
        said(&snapshot(metadata(), json!({}), bound()), There { content, claims, ..There::default() })
    };
    let told = || json!({"annotations": {words::BEING_DELETED: "yes"}});
    let mut leaving = told();
    leaving["deletionTimestamp"] = json!(TIME);
    let restored = |phase: &str| {
        let source = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        vec![json!({"metadata": {"name": "r"}, "spec": {"dataSource": source}, "status": {"phase": phase}})]
    };
    assert_eq!(of(content(json!({})), restored("Pending")), "wait SnapshotDeletePending: Snapshot is being used to restore a PVC");
    assert_eq!(of(content(json!({})), restored("Bound")), "replace u told");
    assert_eq!(of(content(json!({"metadata": told()})), vec![]), "delete snapcontent-u");
    assert_eq!(of(content(json!({"metadata": leaving})), vec![]), "finalizers volumesnapshot-bound-protection, claim released");
    assert_eq!(of(None, vec![]), "finalizers , claim released");
    let kept = content(json!({"metadata": told(), "spec": {"deletionPolicy": "Retain"}}));
    assert_eq!(of(kept, vec![]), "finalizers , claim released");
}
