//! Which pods belong together though they do not say so: those of one Service, ReplicaSet, StatefulSet or ReplicationController. Default
//! spread constraints apply to them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use meta::selector::LabelSelector;
use reconcile::{Cache, Cached};
use serde_json::json;

#[derive(Clone)]
pub struct Owners {
    services: Cache<Service>,
    replica_sets: Cache<ReplicaSet>,
    stateful_sets: Cache<StatefulSet>,
    controllers: Cache<ReplicationController>,
    /// How often the Services of a namespace changed in what they select.
    changes: Arc<Mutex<HashMap<String, u64>>>,
}

impl Owners {
    pub fn new(caches: &reconcile::Caches) -> Self {
        let owners = Self {
            services: caches.of(),
            replica_sets: caches.of(),
            stateful_sets: caches.of(),
            controllers: caches.of(),
            changes: Arc::default(),
        };
        let changes = owners.changes.clone();
        owners.services.on_change(move |old, new| {
            let selector = |service: Option<&Arc<Service>>| service.and_then(|service| service.spec.as_ref()?.selector.clone());
            if selector(old) != selector(new)
                && let Some(service) = new.or(old)
            {
                *changes.lock().unwrap_or_else(PoisonError::into_inner).entry(service.namespace().to_owned()).or_default() += 1;
            }
        });
        owners
    }

    pub async fn synced(&self) {
        self.services.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
        self.controllers.synced().await;
    }

    /// A number that is another one whenever [`Owners::selector`] may answer otherwise, for pods with the same labels.
    pub fn state(&self, pod: &Pod) -> u64 {
        use std::hash::{Hash, Hasher};
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let services = self.changes.lock().unwrap_or_else(PoisonError::into_inner).get(namespace).copied().unwrap_or(0);
        let mut hasher = std::hash::DefaultHasher::new();
        services.hash(&mut hasher);
        if let Some(owner) = controller(pod) {
            owner.uid.hash(&mut hasher);
            self.knows(namespace, owner).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// What all the pod's Services and its owner select; `None` where there is no such thing.
    pub fn selector(&self, pod: &Pod) -> Option<LabelSelector> {
        let none = BTreeMap::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
        let mut merged: BTreeMap<String, String> = BTreeMap::new();
        for service in self.services.by_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|selector| !selector.is_empty())
            else {
                continue;
            };
            if selector.iter().all(|(key, value)| labels.get(key) == Some(value)) {
                merged.extend(selector.clone());
            }
        }
        let owner = controller(pod).and_then(|owner| self.owner_selector(pod, owner));
        if merged.is_empty() && owner.is_none() {
            return None;
        }
        let services = LabelSelector::from_set(&json!(merged)).ok()?;
        let selector = services.and(owner.unwrap_or_else(LabelSelector::everything));
        (!selector.is_everything()).then_some(selector)
    }

    /// The owner is here, so that its selector can be read.
    fn knows(&self, namespace: &str, owner: &metav1::OwnerReference) -> bool {
        match owner.kind.as_str() {
            "ReplicaSet" => self.replica_sets.get(namespace, &owner.name).is_some(),
            "StatefulSet" => self.stateful_sets.get(namespace, &owner.name).is_some(),
            "ReplicationController" => self.controllers.get(namespace, &owner.name).is_some(),
            _ => false,
        }
    }

    fn owner_selector(&self, pod: &Pod, owner: &metav1::OwnerReference) -> Option<LabelSelector> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let read = |selector: &metav1::LabelSelector| LabelSelector::from_object(&serde_json::to_value(selector).ok()?).ok();
        match owner.kind.as_str() {
            "ReplicaSet" => read(&self.replica_sets.get(namespace, &owner.name)?.spec.selector),
            "StatefulSet" => read(&self.stateful_sets.get(namespace, &owner.name)?.spec.selector),
            "ReplicationController" => {
                let controller = self.controllers.get(namespace, &owner.name)?;
                LabelSelector::from_set(&json!(controller.spec.as_ref()?.selector.as_ref()?)).ok()
            }
            _ => None,
        }
    }
}

fn controller(pod: &Pod) -> Option<&metav1::OwnerReference> {
    pod.metadata.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}
