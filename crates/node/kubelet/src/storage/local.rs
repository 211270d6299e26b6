//! This node's volumes of the built-in provisioner: those with a source are filled, their size follows their object's, and their data goes once
//! they are released. [`snapshots`] makes copies of them and takes those away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::{ListParams, Patch};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use reconcile::{Cache, EventKind, Outcome, Scope, key_of, reference_to};
use serde_json::{Value, json};
use stdx::Drain;
use volumes::local_path::{self, Kept};

use super::source::{filled_from, made_for};
use crate::worker::Agent;

mod snapshots;

/// As the provisioner sets it.
const NODE_LABEL: &str = "sternpost.io/local-path-node";
const DATA_REMOVED: &str = "DataRemoved";
/// A pod may still be on its way out.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// Copies of large volumes take their time, and the others go on.
const WORKERS: usize = 4;

/// Looks after them until `drain`.
pub async fn keep(agent: Arc<Agent>, drain: Drain) {
    let volumes =
        Cache::<PersistentVolume>::start(&agent.client, Scope { label_selector: Some(mine(&agent)), ..Scope::all() }, drain.clone());
    let queue = agent.storage.local.clone();
    let wake = queue.clone();
    volumes.on_change(move |_, new| new.into_iter().for_each(|volume| wake.add(key_of(&volume.metadata))));
    let snapshots = snapshots::keep(agent.clone(), volumes.clone(), drain.clone());
    let volumes = reconcile::run("local-path", queue, WORKERS, drain, move |key| {
        let (agent, volume) = (agent.clone(), volumes.get_key(&key));
        async move {
            match volume {
                Some(volume) => look_after(&agent, &volume).await,
                None => Outcome::Done,
            }
        }
    });
    tokio::join!(volumes, snapshots);
}

/// The label of what lies on this node's disk.
fn mine(agent: &Agent) -> String {
    format!("{NODE_LABEL}={}", agent.config.node_name)
}

/// Runs `work`, which blocks on the disk.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> Result<T, volumes::Error> + Send + 'static) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

/// Is a volume still to be filled from what lies at `path`? Asked of the API server, which knows volumes that the cache has not heard of.
async fn is_source(agent: &Agent, path: &Path) -> Result<bool, client::Error> {
    let params = ListParams { label_selector: Some(mine(agent)), ..ListParams::default() };
    let volumes = agent.client.list::<PersistentVolume>(&params).await?.items;
    Ok(volumes.iter().any(|volume| {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        let target = volume.spec.as_ref().and_then(|spec| spec.local.as_ref()).map(|local| local.path.as_str());
        let waits = phase != Some("Released") && target.is_some_and(|target| !Path::new(target).exists());
        waits && filled_from(volume).is_some_and(|source| source == path)
    }))
}

/// What is to be done with a volume now.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Remove,
    Keep {
        bytes: u64,
    },
    /// The same of one that begins as a copy.
    Fill {
        bytes: u64,
        from: PathBuf,
    },
}

fn plan(volume: &PersistentVolume) -> Step {
    let (spec, status) = (volume.spec.clone().unwrap_or_default(), volume.status.clone().unwrap_or_default());
    let Some(bytes) = made_for(volume, &spec) else { return Step::Nothing };
    let deletes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    match status.phase.as_deref() {
        Some("Released") if deletes && status.reason.as_deref() != Some(DATA_REMOVED) => Step::Remove,
        Some("Bound") => match filled_from(volume) {
            Some(from) => Step::Fill { bytes, from },
            None => Step::Keep { bytes },
        },
        _ => Step::Nothing,
    }
}

async fn look_after(agent: &Agent, volume: &PersistentVolume) -> Outcome {
    let spec = volume.spec.clone().unwrap_or_default();
    let Some(path) = spec.local.map(|local| PathBuf::from(local.path)) else { return Outcome::Done };
    let block = spec.volume_mode.as_deref() == Some("Block");
    let name = volume.metadata.name.clone().unwrap_or_default();
    match plan(volume) {
        Step::Nothing => Outcome::Done,
        Step::Remove if agent.storage.is_used(&name) => Outcome::RequeueAfter(BUSY_WAIT),
        Step::Remove => remove(agent, volume, path).await,
        // A volume that nobody has used yet is made when somebody does.
        Step::Keep { .. } if !path.exists() => Outcome::Done,
        Step::Keep { bytes } => match on_disk(move || local_path::make(&path, bytes, block)).await {
            Ok(kept) => grown(agent, volume, bytes, kept).await,
            Err(error) => Outcome::Err(format!("size of volume {name}: {error}").into()),
        },
        Step::Fill { bytes, from } => match on_disk(move || local_path::fill(&path, bytes, block, &from)).await {
            Ok(kept) => grown(agent, volume, bytes, kept).await,
            Err(error) => {
                let message = format!("fill volume {name} from its data source: {error}");
                agent.event(&reference_to(volume), EventKind::Warning, "VolumeFailedFill", message.clone());
                if let Some(claim) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
                    agent.event(claim, EventKind::Warning, "VolumeFailedFill", message.clone());
                }
                Outcome::Err(message.into())
            }
        },
    }
}

async fn remove(agent: &Agent, volume: &PersistentVolume, path: PathBuf) -> Outcome {
    let name = volume.metadata.name.clone().unwrap_or_default();
    match is_source(agent, &path).await {
        Ok(false) => {}
        Ok(true) => return Outcome::RequeueAfter(BUSY_WAIT),
        Err(error) => return Outcome::Err(error.into()),
    }
    match on_disk(move || local_path::remove(&path)).await {
        Ok(()) => said(agent, &name, json!({"reason": DATA_REMOVED, "message": "the data on the node was removed"})).await,
        Err(error) => {
            let message = format!("remove the data of volume {name}: {error}");
            agent.event(&reference_to(volume), EventKind::Warning, "VolumeFailedDelete", message.clone());
            Outcome::Err(message.into())
        }
    }
}

async fn said(agent: &Agent, name: &str, status: Value) -> Outcome {
    let patch = Patch::Merge(json!({ "status": status }));
    match agent.client.patch::<PersistentVolume>(None, name, &patch, "status").await {
        Err(error) if !error.is_not_found() => Outcome::Err(error.into()),
        _ => Outcome::Done,
    }
}

/// The claim says what it has, and the volume whether anything keeps it to its size.
async fn grown(agent: &Agent, volume: &PersistentVolume, bytes: u64, kept: Kept) -> Outcome {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let told = volume.status.as_ref().and_then(|status| status.message.as_deref()).unwrap_or_default();
    let open = "no quota: the node's file system has no project quotas, so the volume can grow as large as its disk";
    if kept == Kept::Open
        && told != open
        && let Outcome::Err(error) = said(agent, name, json!({ "message": open })).await
    {
        return Outcome::Err(error);
    }
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()) else { return Outcome::Done };
    finish_claim(agent, &reference.namespace.unwrap_or_default(), &reference.name.unwrap_or_default(), volume, bytes).await
}

async fn finish_claim(agent: &Agent, namespace: &str, name: &str, volume: &PersistentVolume, bytes: u64) -> Outcome {
    let claim = match agent.client.get::<PersistentVolumeClaim>(Some(namespace), name).await {
        Ok(claim) => claim,
        // Not one of this node's pods' any more, or gone.
        Err(error) if error.is_not_found() || error.is_forbidden() => return Outcome::Done,
        Err(error) => return Outcome::Err(error.into()),
    };
    let status = claim.status.clone().unwrap_or_default();
    let have = status.capacity.as_ref().and_then(|capacity| crate::podspec::quantity(capacity.get("storage")?));
    let Some(have) = have.filter(|have| u64::try_from(have.value()).unwrap_or(0) < bytes) else { return Outcome::Done };
    let size = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage").cloned());
    let mut conditions = status.conditions.unwrap_or_default();
    conditions.retain(|condition| !matches!(condition.type_.as_str(), "Resizing" | "FileSystemResizePending"));
    tracing::info!(volume = volume.metadata.name, from = %have, to = bytes, "a volume grew");
    let patch = Patch::Merge(
        json!({"status": {"capacity": {"storage": size}, "conditions": conditions, "allocatedResources": null, "allocatedResourceStatuses": null}}),
    );
    match agent.client.patch::<PersistentVolumeClaim>(Some(namespace), name, &patch, "status").await {
        Ok(claim) => {
            let message = format!(
                "MountVolume.NodeExpandVolume succeeded for volume {:?} {}",
                volume.metadata.name.as_deref().unwrap_or_default(),
                agent.config.node_name
            );
            agent.event(&reference_to(&claim), EventKind::Normal, "FileSystemResizeSuccessful", message);
            Outcome::Done
        }
        Err(error) if error.is_not_found() => Outcome::Done,
        Err(error) => Outcome::Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_only_when_the_claim_is_gone_and_the_policy_says_so() {
        let of = |policy: &str, phase: &str, reason: &str, by: &str| {
            let annotations = json!({"pv.kubernetes.io/provisioned-by": by});
            let spec = json!({"persistentVolumeReclaimPolicy": policy, "capacity": {"storage": "1Ki"}, "local": {"path": "/x"}});
            let status = json!({"phase": phase, "reason": reason});
            plan(
                &serde_json::from_value(json!({"metadata": {"name": "v", "annotations": annotations}, "spec": spec, "status": status}))
                    .unwrap(),
            )
        };
        let ours = super::super::source::LOCAL_PATH;
        assert_eq!(of("Delete", "Released", "", ours), Step::Remove);
        assert_eq!(of("Delete", "Released", DATA_REMOVED, ours), Step::Nothing);
        assert_eq!(of("Retain", "Released", "", ours), Step::Nothing);
        assert_eq!(of("Delete", "Bound", "", ours), Step::Keep { bytes: 1024 });
        assert_eq!(of("Delete", "Released", "", "other"), Step::Nothing);
    }
}
