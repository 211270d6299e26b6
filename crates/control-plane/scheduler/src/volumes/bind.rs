//! What the choice of a node decides for the pod's waiting claims, written before the pod is bound.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use client::{Client, Patch};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use reconcile::{Cache, Cached, ObjectKey};
use serde_json::json;
use tokio::time::Instant;

use super::needs::is_bound;
use super::{Assumed, Volumes};

/// How often the claims are looked at while a driver makes their volumes.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// How one claim gets its volume.
#[derive(Clone)]
pub enum Decision {
    Volume {
        claim: Arc<PersistentVolumeClaim>,
        volume: Arc<PersistentVolume>,
    },
    /// A driver makes one where that node reaches it.
    Provision {
        claim: Arc<PersistentVolumeClaim>,
        node: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("binding volumes: {0}")]
    Api(#[from] client::Error),
    #[error("binding volumes: provisioning failed for PVC {0:?}")]
    Rejected(String),
    #[error("binding volumes: timed out waiting for the condition")]
    Late,
}

/// The decisions for one pod, carried out in the background.
pub struct Binding {
    decisions: Vec<Decision>,
    claims: Cache<PersistentVolumeClaim>,
    assumed: Assumed,
    within: Duration,
}

impl Volumes {
    /// Promises the volumes to their claims, until the binding is carried out or dropped.
    pub fn assume(&self, decisions: Vec<Decision>, within: Duration) -> Binding {
        let mut assumed = self.assumed.lock().unwrap_or_else(PoisonError::into_inner);
        for decision in &decisions {
            if let Decision::Volume { claim, volume } = decision {
                assumed.insert(volume.name().to_owned(), claim.key());
            }
        }
        Binding { decisions, claims: self.claims.clone(), assumed: self.assumed.clone(), within }
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        let mut assumed = self.assumed.lock().unwrap_or_else(PoisonError::into_inner);
        for decision in &self.decisions {
            if let Decision::Volume { volume, .. } = decision {
                assumed.remove(volume.name());
            }
        }
    }
}

impl Binding {
    /// Returns once every claim has its volume.
    pub async fn carry_out(&self, client: &Client) -> Result<(), Error> {
        for decision in &self.decisions {
            write(decision, client).await?;
        }
        let until = Instant::now() + self.within;
        let mut seen = HashSet::new();
        while !self.is_done(&mut seen)? {
            if Instant::now() >= until {
                return Err(Error::Late);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// `seen` are the claims that were seen with their selected node.
    fn is_done(&self, seen: &mut HashSet<ObjectKey>) -> Result<bool, Error> {
        let mut done = true;
        for decision in &self.decisions {
            let (Decision::Volume { claim, .. } | Decision::Provision { claim, .. }) = decision;
            let now = self.claims.get_key(&claim.key()).ok_or_else(|| Error::Rejected(claim.key().to_string()))?;
            if is_bound(&now) {
                continue;
            }
            done = false;
            // The driver takes the annotation away where it cannot make the volume there.
            let selected = now.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(SELECTED_NODE));
            if selected {
                seen.insert(claim.key());
            } else if matches!(decision, Decision::Provision { .. }) && seen.contains(&claim.key()) {
                return Err(Error::Rejected(claim.key().to_string()));
            }
        }
        Ok(done)
    }
}

async fn write(decision: &Decision, client: &Client) -> Result<(), client::Error> {
    match decision {
        Decision::Volume { claim, volume } => {
            let patch = json!({
                "metadata": {
                    "resourceVersion": volume.resource_version(),
                    "annotations": { "pv.kubernetes.io/bound-by-controller": "yes" },
                },
                "spec": { "claimRef": {
                    "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": claim.namespace(), "name": claim.name(),
                    "uid": claim.uid(), "resourceVersion": claim.resource_version(),
                } },
            });
            client.patch::<PersistentVolume>(None, volume.name(), &Patch::Merge(patch), "").await.map(drop)
        }
        Decision::Provision { claim, node } => {
            let patch = json!({ "metadata": { "annotations": { SELECTED_NODE: node } } });
            let key = claim.key();
            client.patch::<PersistentVolumeClaim>(key.namespace(), &key.name, &Patch::Merge(patch), "").await.map(drop)
        }
    }
}
