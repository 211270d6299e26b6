//! Writes that several controllers make: many at once, adoption and release.

use client::{ApiResource, Client, Error, Object, Patch};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use reconcile::PartialObject;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Writes of one owner under way at a time: enough to keep every core of the API server busy, few enough for its queues.
pub(crate) const IN_FLIGHT: usize = 64;

/// Runs `write` for each of `items` on tasks of their own and returns the first error; after an error no further one is started. It
/// begins with one and doubles with each round that succeeds, up to [`IN_FLIGHT`], so that a full quota is asked once and not 64 times
/// (upstream: `slowStartBatch`).
pub(crate) async fn each<T, F, R, E>(items: impl IntoIterator<Item = T>, write: F) -> Result<(), E>
where
    F: Fn(T) -> R,
    R: Future<Output = Result<(), E>> + Send + 'static,
    E: Send + 'static,
{
    in_windows(items, 1, write).await
}

/// The same from the beginning with [`IN_FLIGHT`] at a time, for writes that nothing is likely to refuse.
pub(crate) async fn at_once<T, F, R, E>(items: impl IntoIterator<Item = T>, write: F) -> Result<(), E>
where
    F: Fn(T) -> R,
    R: Future<Output = Result<(), E>> + Send + 'static,
    E: Send + 'static,
{
    in_windows(items, IN_FLIGHT, write).await
}

async fn in_windows<T, F, R, E>(items: impl IntoIterator<Item = T>, mut window: usize, write: F) -> Result<(), E>
where
    F: Fn(T) -> R,
    R: Future<Output = Result<(), E>> + Send + 'static,
    E: Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut failed = Ok(());
    let mut items = items.into_iter();
    loop {
        while failed.is_ok() && tasks.len() < window {
            let Some(item) = items.next() else { break };
            tasks.spawn(write(item));
        }
        match tasks.join_next().await {
            None => return failed,
            Some(Ok(Err(error))) if failed.is_ok() => failed = Err(error),
            Some(Ok(Ok(()))) => window = IN_FLIGHT.min(window + 1),
            // A panic was reported where it happened; the reconcile that follows sees what is missing.
            Some(_) => {}
        }
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

/// Makes `owner` the controller of `dependent`, which gets the finalizer where one is given; returns the new revision.
pub(crate) async fn adopt<K: Object>(
    client: &Client,
    owner: &OwnerReference,
    dependent: &ObjectMeta,
    finalizer: Option<&str>,
) -> Result<String, Error> {
    let mut patch = json!({"metadata": {"uid": dependent.uid, "ownerReferences": [owner]}});
    if let Some(finalizer) = finalizer {
        patch["metadata"]["finalizers"] = json!([finalizer]);
    }
    patch_owners::<K>(client, dependent, patch).await
}

/// Takes the owner with `owner_uid`, and the finalizer where one is given, off `dependent`; returns the new revision.
pub(crate) async fn release<K: Object>(
    client: &Client,
    owner_uid: &str,
    dependent: &ObjectMeta,
    finalizer: Option<&str>,
) -> Result<String, Error> {
    let mut patch = json!({"metadata": {"uid": dependent.uid, "ownerReferences": [{"$patch": "delete", "uid": owner_uid}]}});
    if let Some(finalizer) = finalizer {
        patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
    }
    patch_owners::<K>(client, dependent, patch).await
}

async fn patch_owners<K: Object>(client: &Client, dependent: &ObjectMeta, patch: Value) -> Result<String, Error> {
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

/// Writes a status, which may be of an object that is gone.
pub(crate) async fn write_status<K: Object>(client: &Client, next: &K) -> Result<(), Error> {
    client::ignore_not_found(client.replace_status(next).await)
}

/// Equal for a reader: what is absent, zero, false or empty is one and the same.
pub(crate) fn same<S: serde::Serialize>(a: &S, b: &S) -> bool {
    let normal = |status: &S| serde_json::to_value(status).map(without_nothing).unwrap_or_default();
    normal(a) == normal(b)
}

fn without_nothing(value: Value) -> Value {
    let is_something = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) => true,
    };
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter().map(|(key, value)| (key, without_nothing(value))).filter(|(_, value)| is_something(value)).collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(without_nothing).collect()),
        other => other,
    }
}
