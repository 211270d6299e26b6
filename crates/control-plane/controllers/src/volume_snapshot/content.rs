//! What a VolumeSnapshotContent has to say in its metadata.

use snapshots::{VolumeSnapshot, VolumeSnapshotContent, words};

use super::{NODE_LABEL, PROVISIONER};

/// The content as it is to be, where that is another than it is. `node`: the node that has it exists (snapshots of the built-in provisioner).
pub(super) fn plan(content: &VolumeSnapshotContent, snapshot: Option<&VolumeSnapshot>, node: bool) -> Option<VolumeSnapshotContent> {
    let mut next = content.clone();
    let ours = content.spec.driver == PROVISIONER;
    if ours && let Some((node, _)) = content.spec.source.snapshot_handle.as_deref().and_then(|handle| handle.split_once(':')) {
        // One that was there before: its node finds it by the label.
        next.metadata.labels.get_or_insert_default().entry(NODE_LABEL.into()).or_insert_with(|| node.to_owned());
    }
    let finalizers = next.metadata.finalizers.get_or_insert_default();
    let bound = content.spec.volume_snapshot_ref.uid.is_some();
    if content.metadata.deletion_timestamp.is_none() && bound && !finalizers.iter().any(|name| name == words::CONTENT_FINALIZER) {
        finalizers.push(words::CONTENT_FINALIZER.into());
    }
    // Nothing is left of the snapshot, or nothing is to be done about it. A node that is gone took it with it.
    let over = !content.deletes() || !node || content.status.as_ref() == Some(&Default::default());
    if ours && content.leaves() && over {
        finalizers.retain(|name| name != words::CONTENT_FINALIZER);
    }
    let deleted = snapshot.is_some_and(|snapshot| content.is_of(snapshot) && is_leaving(snapshot));
    if deleted {
        next.metadata.annotations.get_or_insert_default().entry(words::BEING_DELETED.into()).or_insert_with(|| "yes".into());
    }
    if next.metadata.finalizers.as_ref().is_some_and(Vec::is_empty) && content.metadata.finalizers.is_none() {
        next.metadata.finalizers = None;
    }
    (next != *content).then_some(next)
}

/// It is being deleted, and held by us.
fn is_leaving(snapshot: &VolumeSnapshot) -> bool {
    let ours = |name: &String| name == words::SOURCE_FINALIZER || name == words::BOUND_FINALIZER;
    snapshot.metadata.deletion_timestamp.is_some() && snapshot.metadata.finalizers.iter().flatten().any(ours)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn words_of(content: Value, snapshot: Option<Value>, node: bool) -> String {
        let content: VolumeSnapshotContent = serde_json::from_value(content).unwrap();
        let snapshot: Option<VolumeSnapshot> = snapshot.map(|snapshot| serde_json::from_value(snapshot).unwrap());
        let Some(next) = plan(&content, snapshot.as_ref(), node) else { return "as it is".into() };
        let held = next.metadata.finalizers.iter().flatten().any(|name| name == words::CONTENT_FINALIZER);
        let told = next.metadata.annotations.iter().flatten().any(|(name, _)| name == words::BEING_DELETED);
        let label = next.metadata.labels.iter().flatten().next().map_or("", |(_, node)| node.as_str());
        format!("{}{}{label}", if held { "held " } else { "free " }, if told { "told " } else { "" })
    }

    #[test]
    fn a_content_is_held_until_its_snapshot_is_deleted_and_nothing_is_left_of_it() {
        let of = |metadata: Value, policy: &str, status: Value| {
            let reference = json!({"namespace": "a", "name": "s", "uid": "u"});
            let spec =
                json!({"driver": PROVISIONER, "deletionPolicy": policy, "volumeSnapshotRef": reference, "source": {"volumeHandle": "v"}});
            json!({"metadata": metadata, "spec": spec, "status": status})
        };
        let time = "2026-01-01T00:00:00Z";
        let held = || json!({"finalizers": [words::CONTENT_FINALIZER]});
        let leaving =
            || json!({"finalizers": [words::CONTENT_FINALIZER], "deletionTimestamp": time, "annotations": {words::BEING_DELETED: "yes"}});
        let snapshot = |deleted: bool| {
            let time = deleted.then_some(time);
            Some(
                json!({"metadata": {"namespace": "a", "name": "s", "uid": "u", "deletionTimestamp": time, "finalizers": [words::SOURCE_FINALIZER]}, "spec": {}}),
            )
        };
        let made = || json!({"snapshotHandle": "n:/x"});
        assert_eq!(words_of(of(json!({}), "Delete", Value::Null), snapshot(false), true), "held ");
        assert_eq!(words_of(of(held(), "Delete", made()), snapshot(false), true), "as it is");
        assert_eq!(words_of(of(held(), "Delete", made()), snapshot(true), true), "held told ");
        assert_eq!(words_of(of(leaving(), "Delete", made()), snapshot(true), true), "as it is");
        assert_eq!(words_of(of(leaving(), "Delete", Value::Null), snapshot(true), true), "as it is");
        assert_eq!(words_of(of(leaving(), "Delete", json!({})), snapshot(true), true), "free told ");
        assert_eq!(words_of(of(leaving(), "Delete", made()), snapshot(true), false), "free told ");
        assert_eq!(words_of(of(leaving(), "Retain", made()), None, true), "free told ");
        // A content of which nobody deletes the snapshot stays, and its data with it.
        assert_eq!(
            words_of(of(json!({"finalizers": [words::CONTENT_FINALIZER], "deletionTimestamp": time}), "Delete", made()), None, true),
            "as it is"
        );
    }

    #[test]
    fn a_snapshot_that_was_there_before_is_found_by_its_node() {
        let spec = json!({
            "driver": PROVISIONER, "deletionPolicy": "Retain", "volumeSnapshotRef": {"namespace": "a", "name": "s"},
            "source": {"snapshotHandle": "n1:/data/.snapshots/x"},
        });
        assert_eq!(words_of(json!({"metadata": {}, "spec": spec}), None, true), "free n1");
    }
}
