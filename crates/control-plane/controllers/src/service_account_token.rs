//! Fills Secrets of type `kubernetes.io/service-account-token` and removes those whose account is gone.
//!
//! Runs under the account of all controllers together, as upstream: only it may write Secrets.
//! Source: `pkg/controller/serviceaccount/tokens_controller.go`.

use std::sync::Arc;

use auth::tokens::{Issuer, Reference};
use client::{Client, DeleteParams, Error};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use reconcile::{Cache, ObjectKey, Outcome, Queue, Scope, key_of};

use crate::act;
use crate::context::Context;

pub(crate) const NAME: &str = "serviceaccount-token-controller";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

pub(crate) async fn run(context: Context) {
    let Some(issuer) = context.config.token_issuer.clone() else {
        return context.drain.stopping().await;
    };
    let scope = Scope::fields("type=kubernetes.io/service-account-token");
    let secrets = Cache::<Secret>::start(&context.reader, scope, context.drain.clone());
    let accounts: Cache<ServiceAccount> = context.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_secret, by_account, all) = (queue.clone(), queue.clone(), secrets.clone());
    secrets.on_change(move |_, new| new.into_iter().for_each(|secret| by_secret.add(key_of(&secret.metadata))));
    accounts.on_change(move |old, new| {
        let Some(account) = new.or(old) else { return };
        let of_account = |secret: &&Arc<Secret>| annotation(secret, ACCOUNT) == account.metadata.name.as_deref().unwrap_or_default();
        let secrets = all.by_namespace(account.metadata.namespace.as_deref().unwrap_or_default());
        secrets.iter().filter(of_account).for_each(|secret| by_account.add(key_of(&secret.metadata)));
    });
    tokio::join!(secrets.synced(), accounts.synced());
    let shared = Arc::new((context.reader.clone(), secrets, issuer, context.config.clone()));
    reconcile::run(NAME, queue, 4, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, secrets, issuer, config) = &*shared;
            let Some(secret) = secrets.get_key(&key) else { return Outcome::Done };
            match live_account(client, &secret).await {
                Ok(account) => act(client, &secret, plan(&secret, account.as_ref(), issuer, &config.root_ca)).await.into(),
                Err(error) => Outcome::Err(error.into()),
            }
        }
    })
    .await;
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> &'a str {
    secret.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key)).map_or("", String::as_str)
}

/// Asked of the API itself: a Secret must not go because a cache has not heard of its account yet.
async fn live_account(client: &Client, secret: &Secret) -> Result<Option<ServiceAccount>, Error> {
    match client.get::<ServiceAccount>(secret.metadata.namespace.as_deref(), annotation(secret, ACCOUNT)).await {
        Ok(account) => Ok(Some(account)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Debug, PartialEq)]
enum Plan {
    Leave,
    Fill(Box<Secret>),
    Remove,
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, issuer: &Issuer, root_ca: &str) -> Plan {
    if secret.metadata.deletion_timestamp.is_some() || annotation(secret, ACCOUNT).is_empty() {
        return Plan::Leave;
    }
    let (Some(account), namespace) = (account, secret.metadata.namespace.clone().unwrap_or_default()) else { return Plan::Remove };
    let uid = account.metadata.uid.clone().unwrap_or_default();
    let known = annotation(secret, ACCOUNT_UID);
    if !known.is_empty() && known != uid {
        return Plan::Remove;
    }
    let mut filled = secret.clone();
    let data = filled.data.get_or_insert_default();
    let mut set = |key: &str, value: &str| {
        if data.get(key).is_none_or(|held| held.0 != value.as_bytes()) {
            data.insert(key.into(), ByteString(value.as_bytes().to_vec()));
        }
    };
    if !root_ca.is_empty() {
        set("ca.crt", root_ca);
    }
    set("namespace", &namespace);
    if data.get("token").is_none_or(|token| token.0.is_empty()) {
        let reference = Reference { name: annotation(secret, ACCOUNT).into(), uid: uid.clone() };
        let token = issuer.issue_legacy(&namespace, &reference, secret.metadata.name.as_deref().unwrap_or_default());
        match token {
            Ok(token) => drop(data.insert("token".into(), ByteString(token.into_bytes()))),
            Err(error) => {
                tracing::error!(%error, "a service account's token");
                return Plan::Leave;
            }
        }
    }
    filled.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid);
    if filled == *secret { Plan::Leave } else { Plan::Fill(Box::new(filled)) }
}

async fn act(client: &Client, secret: &Secret, plan: Plan) -> Result<(), Error> {
    match plan {
        Plan::Leave => Ok(()),
        Plan::Fill(filled) => match client.replace(&*filled).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        },
        Plan::Remove => {
            let (meta, name) = (&secret.metadata, secret.metadata.name.as_deref().unwrap_or_default());
            let params = DeleteParams::of_uid(meta.uid.as_deref().unwrap_or_default());
            act::ignore_not_found(client.delete::<Secret>(meta.namespace.as_deref(), name, &params).await.map(drop))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_secret_lives_as_long_as_its_account() {
        let key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgevZzL1gdAFr88hb2\nOF/2NxApJCzGCEDdfSp6VQO30hyhRANCAAQRWz+jn65BtOMvdyHKcvjBeBSDZH2r\n1RTwjmYSi9R/zpBnuQ4EiMnCqfMPWiZqB4QdbAd0E7oH50VpuZ1P087G\n-----END PRIVATE KEY-----\n";
        let issuer = Issuer::new(key, auth::tokens::ISSUER).unwrap();
        let secret: Secret = serde_json::from_value(json!({"metadata": {"name": "t", "namespace": "a", "annotations": {(ACCOUNT): "bot"}},
            "type": "kubernetes.io/service-account-token"}))
        .unwrap();
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "bot", "namespace": "a", "uid": "u1"}})).unwrap();
        let Plan::Fill(filled) = plan(&secret, Some(&account), &issuer, "PEM") else { panic!("filled") };
        let data = filled.data.as_ref().unwrap();
        assert_eq!((&data["ca.crt"].0[..], &data["namespace"].0[..]), (&b"PEM"[..], &b"a"[..]));
        let token = String::from_utf8(data["token"].0.clone()).unwrap();
        assert_eq!(issuer.verify(&token, issuer.audiences()).unwrap().user().username, "system:serviceaccount:a:bot");
        assert_eq!(plan(&filled, Some(&account), &issuer, "PEM"), Plan::Leave);
        assert_eq!(plan(&filled, None, &issuer, "PEM"), Plan::Remove);
        let mut another = account;
        another.metadata.uid = Some("u2".into());
        assert_eq!(plan(&filled, Some(&another), &issuer, "PEM"), Plan::Remove);
    }
}
