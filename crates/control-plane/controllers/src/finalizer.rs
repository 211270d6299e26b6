//! A finalizer that holds an object while it is in use.

use client::{Client, Error, Object};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

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

/// Writes `object` with the finalizer or without it; one that changed meanwhile is a conflict.
pub(crate) async fn write<K: Object>(client: &Client, object: &K, name: &str, change: Change) -> Result<(), Error> {
    let mut next = object.clone();
    let finalizers = next.metadata_mut().finalizers.get_or_insert_default();
    match change {
        Change::Add => finalizers.push(name.to_owned()),
        Change::Remove => finalizers.retain(|known| known != name),
    }
    client::ignore_not_found(client.replace(&next).await)
}
