//! A budget, its pods, and how many their owners shall have.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use reconcile::ObjectKey;
use reconcile::object::controller_of;

use super::{Controller, Sizes, covers};

pub(super) struct World {
    pub budget: Arc<PodDisruptionBudget>,
    pub pods: Vec<Arc<Pod>>,
    /// `Err` names an owner that has no size.
    pub sizes: Result<Sizes, String>,
    pub now: Timestamp,
}

impl Controller {
    pub(super) async fn observe(&self, key: &ObjectKey) -> Option<World> {
        let budget = self.budgets.get_key(key)?;
        let pods: Vec<Arc<Pod>> = self.pods.by_namespace(&key.namespace).into_iter().filter(|pod| covers(&budget, pod)).collect();
        let sizes = self.sizes(&key.namespace, &pods).await;
        Some(World { budget, pods, sizes, now: Timestamp::now() })
    }

    async fn sizes(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<Sizes, String> {
        let mut sizes = Sizes::new();
        let mut seen = BTreeSet::new();
        for owner in pods.iter().filter_map(|pod| controller_of(&pod.metadata)).filter(|owner| seen.insert(&owner.uid)) {
            let (uid, size) = self.size(namespace, owner).await?;
            sizes.insert(uid, size);
        }
        Ok(sizes)
    }

    /// A ReplicaSet of a Deployment stands for the Deployment. An owner that is gone wants nothing.
    async fn size(&self, namespace: &str, owner: &OwnerReference) -> Result<(String, i32), String> {
        let replicas = match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.replica_sets.get(namespace, &owner.name);
                if let Some(parent) = set.as_ref().and_then(|set| controller_of(&set.metadata)).filter(|parent| parent.kind == "Deployment")
                {
                    let deployment = self.deployments.get(namespace, &parent.name);
                    let replicas = deployment.and_then(|deployment| deployment.spec.replicas);
                    return Ok((parent.uid.clone(), replicas.unwrap_or(0)));
                }
                set.and_then(|set| set.spec.replicas)
            }
            "StatefulSet" => self.stateful_sets.get(namespace, &owner.name).and_then(|set| set.spec.replicas),
            "ReplicationController" => {
                let set = self.replication_controllers.get(namespace, &owner.name);
                set.and_then(|set| set.spec.as_ref()?.replicas)
            }
            kind => match self.kinds.scale(Some(namespace), &owner.api_version, kind, &owner.name).await {
                Ok((_, scale)) => scale.spec.and_then(|spec| spec.replicas),
                Err(error) if error.is_not_found() => {
                    return Err(format!("{} does not implement the scale subresource", kind.to_lowercase()));
                }
                Err(error) => return Err(error.to_string()),
            },
        };
        Ok((owner.uid.clone(), replicas.unwrap_or(0)))
    }
}
