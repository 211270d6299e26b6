//! This node's volumes of the built-in provisioner: their size follows their object's, and their data goes once they are released.

use std::sync::Arc;
use std::time::Duration;

use client::Patch;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use reconcile::{Cache, EventKind, Outcome, Scope, key_of, reference_to};
use serde_json::{Value, json};
use stdx::Drain;
use volumes::local_path::{self, Kept};

use super::source::made_for;
use crate::worker::Agent;

/// As the provisioner sets it.
const NODE_LABEL: &str = "sternpost.io/local-path-node";
const DATA_REMOVED: &str = "DataRemoved";
/// A pod may still be on its way out.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// Looks after them until `drain`.
pub async fn keep(agent: Arc<Agent>, drain: Drain) {
    let scope = Scope { label_selector: Some(format!("{NODE_LABEL}={}", agent.config.node_name)), ..Scope::all() };
    let volumes = Cache::<PersistentVolume>::start(&agent.client, scope, drain.clone());
    let queue = agent.storage.local.clone();
    let wake = queue.clone();
    volumes.on_change(move |_, new| new.into_iter().for_each(|volume| wake.add(key_of(&volume.metadata))));
    reconcile::run("local-path", queue, 1, drain, move |key| {
        let (agent, volume) = (agent.clone(), volumes.get_key(&key));
        async move {
            match volume {
                Some(volume) => look_after(&agent, &volume).await,
                None => Outcome::Done,
            }
        }
    })
    .await;
}

/// What is to be done with a volume now.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Remove,
    Keep { bytes: u64 },
}

fn plan(volume: &PersistentVolume) -> Step {
    let (spec, status) = (volume.spec.clone().unwrap_or_default(), volume.status.clone().unwrap_or_default());
    let Some(bytes) = made_for(volume, &spec) else { return Step::Nothing };
    let deletes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    match status.phase.as_deref() {
        Some("Released") if deletes && status.reason.as_deref() != Some(DATA_REMOVED) => Step::Remove,
        Some("Bound") => Step::Keep { bytes },
        _ => Step::Nothing,
    }
}

async fn look_after(agent: &Agent, volume: &PersistentVolume) -> Outcome {
    let spec = volume.spec.clone().unwrap_or_default();
    let Some(path) = spec.local.map(|local| std::path::PathBuf::from(local.path)) else { return Outcome::Done };
    let block = spec.volume_mode.as_deref() == Some("Block");
    let name = volume.metadata.name.clone().unwrap_or_default();
    match plan(volume) {
        Step::Nothing => Outcome::Done,
        Step::Remove if agent.storage.is_used(&name) => Outcome::RequeueAfter(BUSY_WAIT),
        Step::Remove => {
            let removed = tokio::task::spawn_blocking(move || local_path::remove(&path)).await;
            match removed.map_err(|error| error.to_string()).and_then(|removed| removed.map_err(|error| error.to_string())) {
                Ok(()) => said(agent, &name, json!({"reason": DATA_REMOVED, "message": "the data on the node was removed"})).await,
                Err(error) => {
                    let message = format!("remove the data of volume {name}: {error}");
                    agent.event(&reference_to(volume), EventKind::Warning, "VolumeFailedDelete", message.clone());
                    Outcome::Err(message.into())
                }
            }
        }
        // A volume that nobody has used yet is made when somebody does.
        Step::Keep { .. } if !path.exists() => Outcome::Done,
        Step::Keep { bytes } => {
            let kept = tokio::task::spawn_blocking(move || local_path::make(&path, bytes, block)).await;
            match kept.map_err(|error| error.to_string()).and_then(|kept| kept.map_err(|error| error.to_string())) {
                Ok(kept) => grown(agent, volume, bytes, kept).await,
                Err(error) => Outcome::Err(format!("size of volume {name}: {error}").into()),
            }
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
