//! StorageVersionMigration: every object of a resource is written once as it is, so that it is stored in the present form
//! (new version, new encryption key). Upstream: `storage-version-migrator-controller`.

use std::sync::Arc;

use client::{ApiResource, Client, Error, ListParams, Patch};
use jiff::Timestamp;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};
use serde_json::{Value, json};

use crate::context::Context;
use crate::{act, discovery};

pub(crate) const NAME: &str = "storage-version-migrator-controller";
const PAGE: u32 = 500;

pub(crate) async fn run(context: Context) {
    let migrations: Cache<StorageVersionMigration> = context.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    migrations.on_change(move |_, new| new.into_iter().for_each(|migration| wake.add(key_of(&migration.metadata))));
    migrations.synced().await;
    let client = context.client.clone();
    reconcile::run(NAME, queue, 1, context.drain, move |key| {
        let (client, migration) = (client.clone(), migrations.get_key(&key));
        async move {
            match migration.filter(|migration| !is_over(migration)) {
                Some(migration) => act(&client, &migration).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

fn is_over(migration: &StorageVersionMigration) -> bool {
    let conditions = migration.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ended = |condition: &Condition| ["Succeeded", "Failed"].contains(&condition.type_.as_str()) && condition.status == "True";
    conditions.into_iter().flatten().any(ended) || migration.metadata.deletion_timestamp.is_some()
}

async fn act(client: &Client, migration: &StorageVersionMigration) -> Result<(), Error> {
    let wanted = migration.spec.clone().unwrap_or_default().resource;
    let name = format!("{}.{}", wanted.resource, wanted.group);
    let found = discovery::discover(client).await?.resources.into_iter().filter(|found| found.preferred).map(|found| found.resource);
    let is_it = |resource: &ApiResource| *resource.plural == *wanted.resource && *resource.group == *wanted.group;
    let Some(resource) = found.into_iter().find(is_it) else {
        return write(client, migration, "Failed", "ResourceNotFound", &format!("resource {name} does not exist"), None).await.map(drop);
    };
    let running = write(client, migration, "Running", "StorageVersionMigrationInProgress", "", None).await?;
    match rewrite_all(client, &resource).await {
        Ok(revision) => write(client, &running, "Succeeded", "StorageVersionMigrationSucceeded", "", Some(revision)).await.map(drop),
        Err(error) if error.is_forbidden() || error.is_invalid() => {
            write(client, &running, "Failed", "StorageVersionMigrationFailed", &error.to_string(), None).await.map(drop)
        }
        Err(error) => Err(error),
    }
}

/// Returns the revision at which all were listed.
async fn rewrite_all(client: &Client, resource: &ApiResource) -> Result<String, Error> {
    let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
    loop {
        let page = client.list_of::<Value>(resource, &params, false).await?;
        let (client, resource) = (client.clone(), Arc::new(resource.clone()));
        act::each(page.items, |object| {
            let (client, resource) = (client.clone(), resource.clone());
            async move { rewrite(&client, &resource, object).await }
        })
        .await?;
        if page.continue_.is_empty() {
            return Ok(page.resource_version);
        }
        params.continue_ = Some(page.continue_);
    }
}

/// A patch that changes nothing. A conflict means that somebody else wrote the object meanwhile, which serves as well.
async fn rewrite(client: &Client, resource: &ApiResource, object: Value) -> Result<(), Error> {
    let meta = &object["metadata"];
    let patch = Patch::Merge(json!({"metadata": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}}));
    let name = meta["name"].as_str().unwrap_or_default();
    match client.patch_of::<Value>(resource, meta["namespace"].as_str(), name, &patch, "").await {
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

async fn write(
    client: &Client,
    migration: &StorageVersionMigration,
    kind: &str,
    reason: &str,
    message: &str,
    revision: Option<String>,
) -> Result<StorageVersionMigration, Error> {
    let mut next = migration.clone();
    let status = next.status.get_or_insert_default();
    if revision.is_some() {
        status.resource_version = revision;
    }
    let conditions = status.conditions.get_or_insert_default();
    // Only one of the three is true at a time.
    conditions.iter_mut().for_each(|condition| condition.status = "False".into());
    conditions.retain(|condition| condition.type_ != kind);
    conditions.push(Condition {
        type_: kind.into(),
        status: "True".into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(Timestamp::now()),
        observed_generation: migration.metadata.generation,
    });
    client.replace_status(&next).await
}
