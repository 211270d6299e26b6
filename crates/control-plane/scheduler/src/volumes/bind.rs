//! What the choice of a node decides for the pod's waiting claims, written before the pod is bound.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use client::{Client, Patch};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use reconcile::{Cache, Cached, ObjectKey};
use serde_json::json;
use tokio::time::Instant;

use super::needs::{is_bound, is_reached};
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
        labels: BTreeMap<String, String>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("binding volumes: {0}")]
    Api(#[from] client::Error),
    #[error("binding volumes: provisioning failed for PVC {0:?}")]
    Rejected(String),
    #[error("binding volumes: pv {0:?} node affinity doesn't match node {1:?}: no matching NodeSelectorTerms")]
    Elsewhere(String, String),
    #[error("binding volumes: timed out waiting for the condition")]
    Late,
}

/// The decisions for one pod, carried out in the background.
pub struct Binding {
    decisions: Vec<Decision>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
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
        Binding { decisions, claims: self.claims.clone(), volumes: self.volumes.clone(), assumed: self.assumed.clone(), within }
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
                done &= self.is_within_reach(decision, &now)?;
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

impl Binding {
    /// Whoever made the volume may not have waited for the choice of the node: a copy of another volume lies where that one does. `false`: the
    /// volume was not seen yet.
    fn is_within_reach(&self, decision: &Decision, claim: &PersistentVolumeClaim) -> Result<bool, Error> {
        let Decision::Provision { node, labels, .. } = decision else { return Ok(true) };
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        let Some(volume) = self.volumes.get("", name) else { return Ok(false) };
        if is_reached(&volume, labels, node) { Ok(true) } else { Err(Error::Elsewhere(name.to_owned(), node.clone())) }
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
        Decision::Provision { claim, node, .. } => {
            let patch = json!({ "metadata": { "annotations": { SELECTED_NODE: node } } });
            let key = claim.key();
            client.patch::<PersistentVolumeClaim>(key.namespace(), &key.name, &Patch::Merge(patch), "").await.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixed;
    use super::*;

    #[test]
    fn a_volume_that_was_made_on_another_node_leads_to_another_choice() {
        let claim = |bound: bool| -> PersistentVolumeClaim {
            let annotations = if bound { json!({"pv.kubernetes.io/bind-completed": "yes"}) } else { json!({SELECTED_NODE: "b"}) };
            let spec = json!({"volumeName": bound.then_some("pv")});
            serde_json::from_value(json!({"metadata": {"namespace": "x", "name": "c", "annotations": annotations}, "spec": spec})).unwrap()
        };
        let on = |host: &str| -> PersistentVolume {
            let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]});
            let affinity = json!({"required": {"nodeSelectorTerms": [term]}});
            serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {"nodeAffinity": affinity}})).unwrap()
        };
        let said = |bound: bool, volumes: Vec<PersistentVolume>| {
            let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), "b".to_owned())]);
            let decision = Decision::Provision { claim: Arc::new(claim(false)), node: "b".into(), labels };
            let (claims, volumes) = (fixed(vec![claim(bound)]), fixed(volumes));
            let binding = Binding { decisions: vec![decision], claims, volumes, assumed: Assumed::default(), within: LOOK_EVERY };
            binding.is_done(&mut HashSet::new()).map_err(|error| error.to_string())
        };
        assert_eq!(said(false, vec![]), Ok(false));
        assert_eq!(said(true, vec![]), Ok(false));
        assert_eq!(said(true, vec![on("b")]), Ok(true));
        let elsewhere = "binding volumes: pv \"pv\" node affinity doesn't match node \"b\": no matching NodeSelectorTerms";
        assert_eq!(said(true, vec![on("a")]), Err(elsewhere.into()));
    }
}
