//! ConfigMap `kube-root-ca.crt` in every namespace, so that pods can trust the API server (KEP-1205).

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Client, Error};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cache, ObjectKey, Outcome, Queue, Scope};

use crate::context::Context;

pub(crate) const NAME: &str = "root-ca-certificate-publisher-controller";
const CONFIG_MAP: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

pub(crate) async fn run(context: Context) {
    if context.config.root_ca.get().is_empty() {
        return;
    }
    let namespaces: Cache<Namespace> = context.caches.of();
    // Its own cache, of this one name: most ConfigMaps are none of our business.
    let scope = Scope::fields(format!("metadata.name={CONFIG_MAP}"));
    let maps = context.cache::<ConfigMap>(scope);
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_namespace, by_map) = (queue.clone(), queue.clone());
    namespaces.on_change(move |_, new| {
        new.into_iter().for_each(|namespace| by_namespace.add(ObjectKey::new("", namespace.metadata.name.clone().unwrap_or_default())));
    });
    maps.on_change(move |old, new| {
        new.or(old).into_iter().for_each(|map| by_map.add(ObjectKey::new("", map.metadata.namespace.clone().unwrap_or_default())));
    });
    let (everywhere, again) = (namespaces.clone(), queue.clone());
    context.config.root_ca.on_change(move || {
        everywhere.list().iter().for_each(|namespace| again.add(ObjectKey::new("", namespace.metadata.name.clone().unwrap_or_default())));
    });
    tokio::join!(namespaces.synced(), maps.synced());
    let shared = Arc::new((context.client.clone(), namespaces, maps, context.config.clone()));
    reconcile::run(NAME, queue, 8, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, namespaces, maps, config) = &*shared;
            let current = maps.get(&key.name, CONFIG_MAP);
            match plan(namespaces.get_key(&key).as_deref(), current.as_deref(), &config.root_ca.get()) {
                Some(write) => act(client, write).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

enum Write {
    Create(ConfigMap),
    Replace(ConfigMap),
}

fn plan(namespace: Option<&Namespace>, current: Option<&ConfigMap>, root_ca: &str) -> Option<Write> {
    let namespace = namespace.filter(|namespace| namespace.metadata.deletion_timestamp.is_none())?;
    let data = BTreeMap::from([("ca.crt".to_owned(), root_ca.to_owned())]);
    let Some(current) = current else {
        let annotations = BTreeMap::from([("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned())]);
        let metadata = ObjectMeta {
            namespace: namespace.metadata.name.clone(),
            name: Some(CONFIG_MAP.into()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        };
        return Some(Write::Create(ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }));
    };
    let stale = current.data.as_ref() != Some(&data);
    stale.then(|| Write::Replace(ConfigMap { data: Some(data), ..current.clone() }))
}

async fn act(client: &Client, write: Write) -> Result<(), Error> {
    let written = match &write {
        Write::Create(map) => client.create(map).await,
        Write::Replace(map) => client.replace(map).await,
    };
    match written {
        Ok(_) => Ok(()),
        Err(error) if error.is_already_exists() || error.is_not_found() || error.is_namespace_terminating() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_published_and_kept_as_configured() {
        let namespace = Namespace { metadata: ObjectMeta { name: Some("a".into()), ..ObjectMeta::default() }, ..Namespace::default() };
        let Some(Write::Create(map)) = plan(Some(&namespace), None, "PEM") else { panic!() };
        assert_eq!(map.data.as_ref().unwrap()["ca.crt"], "PEM");
        assert!(plan(Some(&namespace), Some(&map), "PEM").is_none());
        assert!(matches!(plan(Some(&namespace), Some(&map), "NEW"), Some(Write::Replace(_))));
    }
}
