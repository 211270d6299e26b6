//! Writes that several controllers make: many at once, adoption and release.

use client::{ApiResource, Client, Error, Object, Patch};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use reconcile::PartialObject;
use serde_json::json;
use tokio::task::JoinSet;

/// Writes of one owner under way at a time: enough to keep every core of the API server busy, few enough for its queues.
pub(crate) const IN_FLIGHT: usize = 64;

/// Runs `write` for each of `items`, [`IN_FLIGHT`] at a time on tasks of their own, and returns the first error; after an error no
/// further one is started.
pub(crate) async fn each<T, F, R, E>(items: impl IntoIterator<Item = T>, write: F) -> Result<(), E>
where
    F: Fn(T) -> R,
    R: Future<Output = Result<(), E>> + Send + 'static,
    E: Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut failed = Ok(());
    let mut items = items.into_iter();
    loop {
        while failed.is_ok() && tasks.len() < IN_FLIGHT {
            let Some(item) = items.next() else { break };
            tasks.spawn(write(item));
        }
        match tasks.join_next().await {
            None => return failed,
            Some(Ok(Err(error))) if failed.is_ok() => failed = Err(error),
            // A panic was reported where it happened; the reconcile that follows sees what is missing.
            Some(_) => {}
        }
    }
}

/// `Ok` where the object is gone already.
pub(crate) fn ignore_not_found(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// The reference that makes `owner` the controller of what carries it.
pub(crate) fn controller_ref<K: Object>(owner: &K) -> OwnerReference {
    let meta = owner.metadata();
    OwnerReference {
        api_version: K::API_VERSION.into(),
        kind: K::KIND.into(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether the cached owner still lives as the same object: asked before an adoption, because a cache may lag behind a deletion.
pub(crate) async fn may_adopt<K: Object>(client: &Client, owner: &K) -> Result<bool, Error> {
    let meta = owner.metadata();
    match client.get::<K>(meta.namespace.as_deref(), meta.name.as_deref().unwrap_or_default()).await {
        Ok(live) => Ok(live.metadata().uid == meta.uid && live.metadata().deletion_timestamp.is_none()),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes `owner` the controller of `dependent`; returns the new revision.
pub(crate) async fn adopt<K: Object>(client: &Client, owner: &OwnerReference, dependent: &ObjectMeta) -> Result<String, Error> {
    let patch = json!({"metadata": {"uid": dependent.uid, "ownerReferences": [owner]}});
    patch_owners::<K>(client, dependent, patch).await
}

/// Takes the owner with `owner_uid` off `dependent`; returns the new revision.
pub(crate) async fn release<K: Object>(client: &Client, owner_uid: &str, dependent: &ObjectMeta) -> Result<String, Error> {
    let patch = json!({"metadata": {"uid": dependent.uid, "ownerReferences": [{"$patch": "delete", "uid": owner_uid}]}});
    patch_owners::<K>(client, dependent, patch).await
}

async fn patch_owners<K: Object>(client: &Client, dependent: &ObjectMeta, patch: serde_json::Value) -> Result<String, Error> {
    let name = dependent.name.as_deref().unwrap_or_default();
    let resource = ApiResource::of::<K>();
    let answer: PartialObject = client.patch_of(&resource, dependent.namespace.as_deref(), name, &Patch::Strategic(patch), "").await?;
    Ok(answer.metadata.resource_version)
}

/// A pod of `template` named by the server after its owner.
pub(crate) fn pod_from(template: PodTemplateSpec, namespace: Option<String>, owner_name: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.unwrap_or_default();
    let metadata = ObjectMeta {
        namespace,
        generate_name: Some(format!("{owner_name}-")),
        labels: meta.labels,
        annotations: meta.annotations,
        finalizers: meta.finalizers,
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: template.spec, status: None }
}
