//! A budget, its pods, and how many their owners shall have.

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
    pub(super) fn observe(&self, key: &ObjectKey) -> Option<World> {
        let budget = self.budgets.get_key(key)?;
        let pods: Vec<Arc<Pod>> = self.pods.by_namespace(&key.namespace).into_iter().filter(|pod| covers(&budget, pod)).collect();
        let sizes = self.sizes(&key.namespace, &pods);
        Some(World { budget, pods, sizes, now: Timestamp::now() })
    }

    fn sizes(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<Sizes, String> {
        let mut sizes = Sizes::new();
        for owner in pods.iter().filter_map(|pod| controller_of(&pod.metadata)) {
            let (uid, size) = self.size(namespace, owner)?;
            sizes.insert(uid, size);
        }
        Ok(sizes)
    }

    /// A ReplicaSet of a Deployment stands for the Deployment. An owner that is gone wants nothing.
    fn size(&self, namespace: &str, owner: &OwnerReference) -> Result<(String, i32), String> {
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
            kind => return Err(format!("{kind} {:?} does not implement the scale subresource", owner.name)),
        };
        Ok((owner.uid.clone(), replicas.unwrap_or(0)))
    }
}
