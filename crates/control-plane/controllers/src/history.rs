//! ControllerRevisions: the templates that a DaemonSet or StatefulSet had, for its own rollout and for `kubectl rollout undo`.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Client, DeleteParams, Error, Object, Patch};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use reconcile::{Cache, key_of};
use serde_json::{Value, json};

use crate::{act, pods};

/// The label of a pod that names the revision it was made from.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";
const REVISION_HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// Registers the index that this module reads.
pub(crate) fn index(revisions: &Cache<ControllerRevision>) {
    revisions.index(pods::BY_CONTROLLER, |revision| pods::controller_uid(&revision.metadata));
}

/// The revisions of an owner, oldest first.
pub(crate) fn of(revisions: &Cache<ControllerRevision>, owner: &ObjectMeta) -> Vec<Arc<ControllerRevision>> {
    let mut found = revisions.by_index(pods::BY_CONTROLLER, owner.uid.as_deref().unwrap_or_default());
    found.sort_by_key(|revision| (number(revision), revision.metadata.name.clone()));
    found
}

fn number(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

pub(crate) fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// What is kept of a template: a patch that replaces the owner's, as upstream writes it and kubectl applies it.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or(Value::Null);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision holds.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Makes sure that the newest revision is that of `template`, and returns it. `existing` is in the order of [`of`].
pub(crate) async fn ensure<K: Object>(
    client: &Client,
    owner: &K,
    template: &PodTemplateSpec,
    collisions: i32,
    existing: &[Arc<ControllerRevision>],
) -> Result<ControllerRevision, Error> {
    let data = data(template);
    let newest = existing.last().map_or(0, |revision| number(revision));
    if let Some(known) = existing.iter().rev().find(|revision| revision.data.0 == data) {
        if number(known) == newest {
            return Ok(ControllerRevision::clone(known));
        }
        // Back to an older template: it becomes the newest.
        let meta = &known.metadata;
        let patch = json!({"metadata": {"uid": meta.uid}, "revision": newest + 1});
        return client.patch(meta.namespace.as_deref(), name(known), &Patch::Merge(patch), "").await;
    }
    let revision = new(owner, template, data, newest + 1, collisions);
    match client.create(&revision).await {
        // Made by us and not yet in the cache, or a collision of hashes; the data tell.
        Err(error) if error.is_already_exists() => {
            let found: ControllerRevision = client.get(revision.metadata.namespace.as_deref(), name(&revision)).await?;
            if found.data.0 == revision.data.0 { Ok(found) } else { Err(error) }
        }
        other => other,
    }
}

fn new<K: Object>(owner: &K, template: &PodTemplateSpec, data: Value, revision: i64, collisions: i32) -> ControllerRevision {
    let hash = crate::hash::of(&data, collisions);
    let mut labels: BTreeMap<String, String> = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(REVISION_HASH_LABEL.into(), hash.clone());
    labels.insert(HASH_LABEL.into(), hash.clone());
    let meta = owner.metadata();
    let metadata = ObjectMeta {
        namespace: meta.namespace.clone(),
        name: Some(format!("{}-{hash}", meta.name.as_deref().unwrap_or_default())),
        labels: Some(labels),
        owner_references: Some(vec![act::controller_ref(owner)]),
        ..ObjectMeta::default()
    };
    ControllerRevision { metadata, data: RawExtension(data), revision: Some(revision) }
}

/// The hash in a revision's name: what pods carry in [`HASH_LABEL`] for a DaemonSet.
pub(crate) fn hash(revision: &ControllerRevision) -> String {
    let labels = revision.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(HASH_LABEL).or_else(|| labels.get(REVISION_HASH_LABEL))).cloned().unwrap_or_default()
}

/// Deletes the oldest revisions over `limit` that are not `live`.
pub(crate) async fn prune(
    client: &Client,
    existing: &[Arc<ControllerRevision>],
    limit: i32,
    live: impl Fn(&ControllerRevision) -> bool,
) -> Result<(), Error> {
    let dead: Vec<&Arc<ControllerRevision>> = existing.iter().filter(|revision| !live(revision)).collect();
    let surplus = dead.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for revision in dead.into_iter().take(surplus) {
        let key = key_of(&revision.metadata);
        let params = DeleteParams::of_uid(revision.metadata.uid.as_deref().unwrap_or_default());
        client::ignore_not_found(client.delete::<ControllerRevision>(key.namespace(), &key.name, &params).await)?;
    }
    Ok(())
}
