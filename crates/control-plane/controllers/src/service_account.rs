//! A ServiceAccount `default` in every namespace, made again when it is deleted.

use std::sync::Arc;

use client::{Client, Error};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cache, ObjectKey, Outcome, Queue};

use crate::context::Context;

pub(crate) const NAME: &str = "service-account-controller";
const DEFAULT: &str = "default";

pub(crate) async fn run(context: Context) {
    let namespaces: Cache<Namespace> = context.caches.of();
    let accounts: Cache<ServiceAccount> = context.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_namespace, by_account) = (queue.clone(), queue.clone());
    namespaces.on_change(move |_, new| {
        new.into_iter().for_each(|namespace| by_namespace.add(ObjectKey::new("", namespace.metadata.name.clone().unwrap_or_default())));
    });
    accounts.on_change(move |old, new| {
        if let (Some(gone), None) = (old, new) {
            by_account.add(ObjectKey::new("", gone.metadata.namespace.clone().unwrap_or_default()));
        }
    });
    tokio::join!(namespaces.synced(), accounts.synced());
    let shared = Arc::new((context.client.clone(), namespaces, accounts));
    reconcile::run(NAME, queue, 8, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, namespaces, accounts) = &*shared;
            match plan(namespaces.get_key(&key).as_deref(), accounts.get(&key.name, DEFAULT).as_deref()) {
                Some(account) => act(client, &account).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

/// The account to create, if any.
fn plan(namespace: Option<&Namespace>, account: Option<&ServiceAccount>) -> Option<ServiceAccount> {
    let namespace = namespace.filter(|namespace| namespace.metadata.deletion_timestamp.is_none())?;
    let metadata = ObjectMeta { namespace: namespace.metadata.name.clone(), name: Some(DEFAULT.into()), ..ObjectMeta::default() };
    account.is_none().then(|| ServiceAccount { metadata, ..ServiceAccount::default() })
}

async fn act(client: &Client, account: &ServiceAccount) -> Result<(), Error> {
    match client.create(account).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_already_exists() || error.is_not_found() || error.is_namespace_terminating() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_living_namespace_without_a_default_account_gets_one() {
        let namespace = Namespace { metadata: ObjectMeta { name: Some("a".into()), ..ObjectMeta::default() }, ..Namespace::default() };
        let account = plan(Some(&namespace), None).unwrap();
        assert_eq!((account.metadata.namespace.as_deref(), account.metadata.name.as_deref()), (Some("a"), Some("default")));
        assert!(plan(Some(&namespace), Some(&account)).is_none());
        assert!(plan(None, None).is_none());
    }
}
