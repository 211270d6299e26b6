//! Snapshots of this node's volumes: what a CSI driver's snapshotter does for others.
//!
//! A VolumeSnapshotContent whose driver is the built-in provisioner carries its node's label. Here the copy is made, or found, and in the end
//! removed; each is said in the content's status. An empty status says that nothing is left, after which the content's finalizer goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::Patch;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use reconcile::{Cache, EventKind, ObjectKey, Outcome, Queue, Scope, key_of, reference_to};
use serde_json::{Value, json};
use snapshots::VolumeSnapshotContent;
use stdx::Drain;
use volumes::local_path;

use super::super::source::{LOCAL_PATH, made_for};
use super::{BUSY_WAIT, is_source, mine, on_disk};
use crate::worker::Agent;

const WORKERS: usize = 2;

/// Looks after them until `drain`. Where the kind is not served there are none.
pub async fn keep(agent: Arc<Agent>, volumes: Cache<PersistentVolume>, drain: Drain) {
    let scope = Scope { label_selector: Some(mine(&agent)), ..Scope::all() };
    let contents = Cache::<VolumeSnapshotContent>::start(&agent.client, scope, drain.clone());
    let queue = Queue::<ObjectKey>::new();
    let wake = queue.clone();
    contents.on_change(move |_, new| new.into_iter().for_each(|content| wake.add(key_of(&content.metadata))));
    reconcile::run("local-path-snapshots", queue, WORKERS, drain, move |key| {
        let (agent, volumes, content) = (agent.clone(), volumes.clone(), contents.get_key(&key));
        async move {
            match content {
                Some(content) => look_after(&agent, &volumes, &content).await,
                None => Outcome::Done,
            }
        }
    })
    .await;
}

/// What is to be done with a content now.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Nothing,
    /// Of the volume with this name.
    Make(&'a str),
    Find(&'a str),
    /// By the handle, or what was begun without one for that volume.
    Remove(Option<&'a str>, Option<&'a str>),
}

fn plan(content: &VolumeSnapshotContent) -> Step<'_> {
    let (volume, handle) = (content.spec.source.volume_handle.as_deref(), content.spec.source.snapshot_handle.as_deref());
    if content.spec.driver != LOCAL_PATH {
        return Step::Nothing;
    }
    if content.leaves() {
        let gone = content.status.as_ref() == Some(&Default::default());
        return if content.deletes() && !gone { Step::Remove(content.handle(), volume) } else { Step::Nothing };
    }
    if content.metadata.deletion_timestamp.is_some() || content.is_ready() {
        return Step::Nothing;
    }
    match (volume, handle) {
        (Some(volume), None) => Step::Make(volume),
        (None, Some(handle)) => Step::Find(handle),
        _ => Step::Nothing,
    }
}

async fn look_after(agent: &Agent, volumes: &Cache<PersistentVolume>, content: &VolumeSnapshotContent) -> Outcome {
    let (tried, reason, doing) = match plan(content) {
        Step::Nothing => return Outcome::Done,
        Step::Make(volume) => (
            make(agent, volumes, content, volume).await,
            "SnapshotCreationFailed",
            format!("Failed to create snapshot: failed to take snapshot of the volume {volume}"),
        ),
        Step::Find(handle) => {
            (find(agent, handle).await, "SnapshotContentCheckandUpdateFailed", "Failed to check and update snapshot content".to_owned())
        }
        Step::Remove(handle, volume) => return remove(agent, volumes, content, handle, volume).await,
    };
    match tried {
        Ok(status) => said(agent, content, status).await,
        Err(error) => failed(agent, content, reason, format!("{doing}: {error:?}")).await,
    }
}

/// The handle of a snapshot of this node.
fn handle_of(agent: &Agent, path: &Path) -> String {
    format!("{}:{}", agent.config.node_name, path.display())
}

fn path_of(handle: &str) -> Result<PathBuf, String> {
    handle.split_once(':').map(|(_, path)| PathBuf::from(path)).ok_or_else(|| format!("{handle:?} is not a node and a path"))
}

fn place_of(volumes: &Cache<PersistentVolume>, content: &VolumeSnapshotContent, volume: &str) -> Result<(PathBuf, PathBuf, u64), String> {
    let found = volumes.get("", volume).ok_or_else(|| format!("persistentvolume {volume:?} not found on this node"))?;
    let spec = found.spec.clone().unwrap_or_default();
    let bytes = made_for(&found, &spec).ok_or_else(|| format!("persistentvolume {volume:?} was not made by {LOCAL_PATH}"))?;
    let path = PathBuf::from(spec.local.map(|local| local.path).unwrap_or_default());
    let name = content.metadata.name.as_deref().unwrap_or_default();
    let to = local_path::snapshot_path(&path, name).ok_or_else(|| format!("persistentvolume {volume:?} has no path"))?;
    Ok((path, to, bytes))
}

async fn make(agent: &Agent, volumes: &Cache<PersistentVolume>, content: &VolumeSnapshotContent, volume: &str) -> Result<Value, String> {
    let (path, to, bytes) = place_of(volumes, content, volume)?;
    let handle = handle_of(agent, &to);
    let begun = Timestamp::now();
    on_disk(move || local_path::snapshot(&path, &to, bytes)).await?;
    tracing::info!(volume, handle, "took a snapshot");
    Ok(ready(&handle, begun, Some(bytes)))
}

async fn find(agent: &Agent, handle: &str) -> Result<Value, String> {
    let path = path_of(handle)?;
    let shown = path.display().to_string();
    let (size, at) = on_disk(move || {
        let size = local_path::snapshot_size(&path)?;
        Ok((size, std::fs::metadata(&path).and_then(|found| found.modified()).ok()))
    })
    .await?;
    let size = size.ok_or_else(|| format!("there is no snapshot at {shown} on node {}", agent.config.node_name))?;
    let at = at.and_then(|at| Timestamp::try_from(at).ok()).unwrap_or_else(Timestamp::now);
    Ok(ready(handle, at, Some(size)))
}

fn ready(handle: &str, at: Timestamp, bytes: Option<u64>) -> Value {
    let nanoseconds = i64::try_from(at.as_nanosecond()).unwrap_or(0);
    json!({"snapshotHandle": handle, "creationTime": nanoseconds, "restoreSize": bytes, "readyToUse": true, "error": null})
}

async fn remove(
    agent: &Agent,
    volumes: &Cache<PersistentVolume>,
    content: &VolumeSnapshotContent,
    handle: Option<&str>,
    volume: Option<&str>,
) -> Outcome {
    let path = match (handle, volume) {
        (Some(handle), _) => path_of(handle).map(Some),
        // It may have been made, and nobody heard of it.
        (None, Some(volume)) => Ok(place_of(volumes, content, volume).ok().map(|(_, to, _)| to)),
        (None, None) => Ok(None),
    };
    if let Ok(Some(path)) = &path {
        match is_source(agent, &local_path::data_of(path)).await {
            Ok(false) => {}
            Ok(true) => return Outcome::RequeueAfter(BUSY_WAIT),
            Err(error) => return Outcome::Err(error.into()),
        }
    }
    let removed = match path {
        Ok(Some(path)) => on_disk(move || local_path::remove_snapshot(&path)).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => {
            let nothing = json!({"snapshotHandle": null, "creationTime": null, "restoreSize": null, "readyToUse": null, "error": null});
            said(agent, content, nothing).await
        }
        Err(error) => {
            agent.event(&reference_to(content), EventKind::Warning, "SnapshotDeleteError", "Failed to delete snapshot");
            Outcome::Err(format!("remove snapshot: {error}").into())
        }
    }
}

async fn said(agent: &Agent, content: &VolumeSnapshotContent, status: Value) -> Outcome {
    let name = content.metadata.name.as_deref().unwrap_or_default();
    match agent.client.patch::<VolumeSnapshotContent>(None, name, &Patch::Merge(json!({ "status": status })), "status").await {
        Err(error) if !error.is_not_found() => Outcome::Err(error.into()),
        _ => Outcome::Done,
    }
}

/// Said once; tried again until it is done or the content goes.
async fn failed(agent: &Agent, content: &VolumeSnapshotContent, reason: &str, message: String) -> Outcome {
    let told = content.status.as_ref().and_then(|status| status.error.as_ref()?.message.as_deref());
    if told != Some(message.as_str()) {
        agent.event(&reference_to(content), EventKind::Warning, reason, message.clone());
        let error = json!({"message": message, "time": meta::time::seconds(Timestamp::now())});
        if let Outcome::Err(error) = said(agent, content, json!({"readyToUse": false, "error": error})).await {
            return Outcome::Err(error);
        }
    }
    Outcome::Err(message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_made_once_and_removed_once_it_is_let_go() {
        let of = |status: Value, metadata: Value, policy: &str, driver: &str| -> VolumeSnapshotContent {
            let spec = json!({
                "driver": driver, "deletionPolicy": policy, "volumeSnapshotRef": {"uid": "u"}, "source": {"volumeHandle": "v"},
            });
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
        };
        let ours = |status: Value, metadata: Value| of(status, metadata, "Delete", LOCAL_PATH);
        let leaving = || json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": {snapshots::words::BEING_DELETED: "yes"}});
        let made = || json!({"snapshotHandle": "n:/x", "readyToUse": true});
        assert_eq!(plan(&ours(Value::Null, json!({}))), Step::Make("v"));
        assert_eq!(plan(&ours(json!({"readyToUse": false}), json!({}))), Step::Make("v"));
        assert_eq!(plan(&ours(made(), json!({}))), Step::Nothing);
        assert_eq!(plan(&ours(made(), json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}))), Step::Nothing);
        assert_eq!(plan(&ours(made(), leaving())), Step::Remove(Some("n:/x"), Some("v")));
        assert_eq!(plan(&ours(Value::Null, leaving())), Step::Remove(None, Some("v")));
        assert_eq!(plan(&ours(json!({}), leaving())), Step::Nothing);
        assert_eq!(plan(&of(made(), leaving(), "Retain", LOCAL_PATH)), Step::Nothing);
        assert_eq!(plan(&of(Value::Null, json!({}), "Delete", "other")), Step::Nothing);
    }
}
