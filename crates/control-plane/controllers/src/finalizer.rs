//! A finalizer that holds an object while it is in use.

use client::{Client, Error, Object, Patch};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::act;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Add,
    Remove,
}

/// A living object carries it; a leaving one only while it is in use.
pub(crate) fn decide(meta: &ObjectMeta, name: &str, in_use: bool) -> Option<Change> {
    let has = meta.finalizers.iter().flatten().any(|known| known == name);
    match (meta.deletion_timestamp.is_some(), has) {
        (false, false) => Some(Change::Add),
        (true, true) if !in_use => Some(Change::Remove),
        _ => None,
    }
}

/// Writes the whole list, guarded by the revision it was read at.
pub(crate) async fn write<K: Object>(client: &Client, meta: &ObjectMeta, name: &str, change: Change) -> Result<(), Error> {
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    match change {
        Change::Add => finalizers.push(name.to_owned()),
        Change::Remove => finalizers.retain(|known| known != name),
    }
    let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers}});
    let object = meta.name.as_deref().unwrap_or_default();
    act::ignore_not_found(client.patch::<K>(meta.namespace.as_deref(), object, &Patch::Merge(patch), "").await.map(drop))
}
