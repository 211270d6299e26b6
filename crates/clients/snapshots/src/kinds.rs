//! The three kinds. What upstream's group snapshots write here is kept as it is, and not acted upon.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub const GROUP: &str = "snapshot.storage.k8s.io";

/// `apiVersion` of all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupVersion;

impl Serialize for GroupVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("snapshot.storage.k8s.io/v1")
    }
}

impl<'de> Deserialize<'de> for GroupVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

macro_rules! resource {
    ($kind:ident $plural:literal $scope:ident) => {
        impl Resource for $kind {
            const API_VERSION: &'static str = "snapshot.storage.k8s.io/v1";
            const GROUP: &'static str = GROUP;
            const KIND: &'static str = stringify!($kind);
            const VERSION: &'static str = "v1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $scope;
        }
        impl Metadata for $kind {
            type Ty = ObjectMeta;
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(VolumeSnapshot "volumesnapshots" NamespaceResourceScope);
resource!(VolumeSnapshotContent "volumesnapshotcontents" ClusterResourceScope);
resource!(VolumeSnapshotClass "volumesnapshotclasses" ClusterResourceScope);

/// A wish for a snapshot of a claim, or for one that is already there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub struct VolumeSnapshot {
    #[serde(default)]
    pub api_version: GroupVersion,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: SnapshotSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<SnapshotStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotSpec {
    pub source: SnapshotSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
}

/// Exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotSource {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_content_name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_volume_snapshot_content_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_name: Option<String>,
}

/// What a snapshot is in the storage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub struct VolumeSnapshotContent {
    #[serde(default)]
    pub api_version: GroupVersion,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: ContentSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ContentStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentSpec {
    pub volume_snapshot_ref: ObjectReference,
    /// `Delete` or `Retain`.
    pub deletion_policy: String,
    pub driver: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
    pub source: ContentSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_volume_mode: Option<String>,
}

/// Exactly one of the two: of which volume a snapshot is to be made, or which one is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentSource {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_handle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
    /// Nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_handle: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotError {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Who makes snapshots, and what becomes of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub struct VolumeSnapshotClass {
    #[serde(default)]
    pub api_version: GroupVersion,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub driver: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    #[serde(default)]
    pub deletion_policy: String,
}

impl VolumeSnapshot {
    /// The name of the content that is made for it.
    pub fn content_name(&self) -> String {
        format!("snapcontent-{}", self.metadata.uid.as_deref().unwrap_or_default())
    }
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().and_then(|status| status.ready_to_use) == Some(true)
    }
    pub fn bound_content(&self) -> Option<&str> {
        self.status.as_ref()?.bound_volume_snapshot_content_name.as_deref().filter(|name| !name.is_empty())
    }
}

impl VolumeSnapshotContent {
    /// Content and snapshot name each other.
    pub fn is_of(&self, snapshot: &VolumeSnapshot) -> bool {
        let (reference, meta) = (&self.spec.volume_snapshot_ref, &snapshot.metadata);
        reference.name == meta.name && reference.namespace == meta.namespace && reference.uid == meta.uid
    }
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().and_then(|status| status.ready_to_use) == Some(true)
    }
    /// How the storage names the snapshot, once it is there.
    pub fn handle(&self) -> Option<&str> {
        self.status.as_ref()?.snapshot_handle.as_deref()
    }
    /// Whether the storage is to be asked now to let go of what this content stands for: its snapshot is being deleted, too, or there never
    /// was one.
    pub fn leaves(&self) -> bool {
        let annotated = |name: &str| self.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(name));
        let unbound = self.spec.source.snapshot_handle.is_some() && self.spec.volume_snapshot_ref.uid.is_none();
        let asked = annotated(crate::words::BEING_DELETED) && !annotated(crate::words::BEING_CREATED);
        self.metadata.deletion_timestamp.is_some() && (unbound || asked)
    }
    pub fn deletes(&self) -> bool {
        self.spec.deletion_policy == "Delete"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_item_of_a_list_is_read_without_its_kind_and_written_with_it() {
        let read: VolumeSnapshot =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": {"source": {}}, "kind": "VolumeSnapshot"})).unwrap();
        let bare: VolumeSnapshot = serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": {"source": {}}})).unwrap();
        assert_eq!(read, bare);
        let written = serde_json::to_value(&bare).unwrap();
        assert_eq!((&written["kind"], &written["apiVersion"]), (&json!("VolumeSnapshot"), &json!("snapshot.storage.k8s.io/v1")));
    }

    #[test]
    fn a_content_is_let_go_once_its_snapshot_is_being_deleted_and_the_driver_owes_no_answer() {
        let of = |annotations: &[&str], deleted: bool, handle: Option<&str>, uid: Option<&str>| {
            let annotations: BTreeMap<&str, &str> = annotations.iter().map(|name| (*name, "yes")).collect();
            let time = deleted.then_some("2026-01-01T00:00:00Z");
            let spec =
                json!({"volumeSnapshotRef": {"uid": uid}, "source": {"snapshotHandle": handle}, "deletionPolicy": "Delete", "driver": "d"});
            let content: VolumeSnapshotContent =
                serde_json::from_value(json!({"metadata": {"deletionTimestamp": time, "annotations": annotations}, "spec": spec})).unwrap();
            content.leaves()
        };
        use crate::words::{BEING_CREATED, BEING_DELETED};
        assert!(!of(&[BEING_DELETED], false, None, Some("u")));
        assert!(!of(&[], true, None, Some("u")));
        assert!(of(&[BEING_DELETED], true, None, Some("u")));
        assert!(!of(&[BEING_DELETED, BEING_CREATED], true, None, Some("u")));
        assert!(of(&[], true, Some("h"), None));
        assert!(!of(&[], true, Some("h"), Some("u")));
    }
}
