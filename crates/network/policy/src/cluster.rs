//! The administrators' policies: custom resources, read where their CustomResourceDefinitions are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::{ApiResource, Client};
use reconcile::{Cache, Cached, PartialObject, Scope};
use serde::Deserialize;
use serde_json::{Value, json};
use stdx::Drain;
use tokio::sync::Notify;

use crate::model::Policy;
use crate::read;

const GROUP: &str = "policy.networking.k8s.io";

/// Version, plural and kind.
const KINDS: [(&str, &str, &str); 3] = [
    ("v1alpha2", "clusternetworkpolicies", "ClusterNetworkPolicy"),
    ("v1alpha1", "adminnetworkpolicies", "AdminNetworkPolicy"),
    ("v1alpha1", "baselineadminnetworkpolicies", "BaselineAdminNetworkPolicy"),
];

/// Any of them, as it stands in the API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Object {
    metadata: Metadata,
    spec: Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: String,
    resource_version: String,
}

impl Cached for Object {
    fn namespace(&self) -> &str {
        ""
    }
    fn name(&self) -> &str {
        &self.metadata.name
    }
    fn uid(&self) -> &str {
        &self.metadata.uid
    }
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
    fn trim(&mut self) {}
}

/// The policies of all kinds that are served; cloning shares them.
#[derive(Clone, Default)]
pub struct Policies(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    definitions: Option<Cache<PartialObject>>,
    caches: Vec<(&'static str, Cache<Object>)>,
    wake: Option<Arc<Notify>>,
}

impl Policies {
    /// Watches for the definitions, and reads a kind from the moment on that there is one. `client` must be allowed to list and watch
    /// CustomResourceDefinitions (only their metadata is asked for) and the kinds of the group.
    pub fn start(client: &Client, drain: Drain) -> Self {
        let this = Self::default();
        let resource = ApiResource {
            group: "apiextensions.k8s.io".into(),
            version: "v1".into(),
            plural: "customresourcedefinitions".into(),
            kind: "CustomResourceDefinition".into(),
            namespaced: false,
        };
        let definitions = Cache::<PartialObject>::start_of(client, resource, Scope::all(), true, drain.clone());
        let (policies, client) = (this.clone(), client.clone());
        let handle = tokio::runtime::Handle::current();
        definitions.on_change(move |_, new| {
            let _entered = handle.enter();
            KINDS.iter().filter(|(_, plural, _)| new.is_some_and(|new| new.metadata.name == format!("{plural}.{GROUP}"))).for_each(
                |kind| {
                    policies.read_kind(*kind, &client, &drain);
                },
            );
        });
        this.lock().definitions = Some(definitions);
        this
    }

    /// Once: a definition that goes takes its objects along, and one that comes again is found by the same cache.
    fn read_kind(&self, (version, plural, kind): (&'static str, &'static str, &'static str), client: &Client, drain: &Drain) {
        let mut state = self.lock();
        if state.caches.iter().any(|(known, _)| *known == kind) {
            return;
        }
        let resource =
            ApiResource { group: GROUP.into(), version: version.into(), plural: plural.into(), kind: kind.into(), namespaced: false };
        let cache = Cache::<Object>::start_of(client, resource, Scope::all(), false, drain.clone());
        if let Some(wake) = &state.wake {
            wake_on(&cache, wake);
        }
        state.caches.push((kind, cache));
    }

    pub(crate) fn on_change(&self, wake: &Arc<Notify>) {
        let mut state = self.lock();
        state.caches.iter().for_each(|(_, cache)| wake_on(cache, wake));
        state.wake = Some(wake.clone());
    }

    /// The definitions are known, and the objects of those that there are.
    pub(crate) async fn synced(&self) {
        let definitions = self.lock().definitions.clone();
        if let Some(definitions) = definitions {
            definitions.synced().await;
        }
        let caches: Vec<Cache<Object>> = self.lock().caches.iter().map(|(_, cache)| cache.clone()).collect();
        for cache in caches {
            cache.synced().await;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().caches.iter().all(|(_, cache)| cache.is_empty())
    }

    pub(crate) fn list(&self) -> Vec<Policy> {
        let state = self.lock();
        let objects = state.caches.iter().flat_map(|(kind, cache)| cache.list().into_iter().map(move |object| (kind, object)));
        objects
            .filter_map(|(kind, object)| {
                read::cluster_policy(&json!({ "kind": kind, "metadata": { "name": object.metadata.name }, "spec": object.spec }))
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake_on(cache: &Cache<Object>, wake: &Arc<Notify>) {
    let wake = wake.clone();
    cache.on_change(move |_, _| wake.notify_one());
}
