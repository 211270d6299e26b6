//! Secrets of type `kubernetes.io/service-account-token`: filled with a token that lives as long as they do, and gone with their account.
//!
//! The token is asked of the API server as any other, bound to the Secret: when that is deleted, the token is worth nothing.

use std::sync::Arc;

use client::{Client, DeleteParams, Error};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use reconcile::{Cache, ObjectKey, Outcome, Queue, Scope, key_of};

use crate::context::{Config, Context};

pub(crate) const NAME: &str = "serviceaccount-token-controller";
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Ten years: as good as for ever, and within what a TokenRequest may ask for.
const LIFETIME_SECONDS: i64 = 315_360_000;

struct Controller {
    client: Client,
    config: Arc<Config>,
    secrets: Cache<Secret>,
    accounts: Cache<ServiceAccount>,
}

pub(crate) async fn run(context: Context) {
    let scope = Scope::fields(format!("type={TYPE}"));
    let controller = Arc::new(Controller {
        // Upstream's has no account of its own either: it is what makes accounts usable.
        client: context.reader.clone(),
        config: context.config.clone(),
        secrets: context.cache(scope),
        accounts: context.caches.of(),
    });
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_secret, by_account, secrets) = (queue.clone(), queue.clone(), controller.secrets.clone());
    controller.secrets.on_change(move |_, new| new.into_iter().for_each(|secret| by_secret.add(key_of(&secret.metadata))));
    controller.accounts.on_change(move |old, new| {
        let Some(account) = new.or(old).filter(|_| old.is_none() || new.is_none()) else { return };
        let all = secrets.by_namespace(account.metadata.namespace.as_deref().unwrap_or_default());
        let named = all.iter().filter(|secret| annotation(secret, ACCOUNT) == account.metadata.name.as_deref());
        named.for_each(|secret| by_account.add(key_of(&secret.metadata)));
    });
    let (all, by_authority) = (controller.secrets.clone(), queue.clone());
    context.config.root_ca.on_change(move || all.list().iter().for_each(|secret| by_authority.add(key_of(&secret.metadata))));
    tokio::join!(controller.secrets.synced(), controller.accounts.synced());
    reconcile::run(NAME, queue, 5, context.drain, move |key| controller.clone().reconcile(key)).await;
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str).filter(|text| !text.is_empty())
}

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    /// Its account is gone.
    Delete,
    /// What is missing or wrong; true where a token has to be asked for.
    Fill(bool),
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, config: &Config) -> Plan {
    if secret.type_.as_deref() != Some(TYPE) || secret.metadata.deletion_timestamp.is_some() {
        return Plan::Nothing;
    }
    let Some(account) = account else { return Plan::Delete };
    let uid = annotation(secret, ACCOUNT_UID);
    if uid.is_some() && uid != account.metadata.uid.as_deref() {
        return Plan::Delete;
    }
    let data = |name: &str| secret.data.as_ref().and_then(|data| data.get(name)).map(|bytes| bytes.0.as_slice()).unwrap_or_default();
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let right = uid.is_some() && data("namespace") == namespace.as_bytes() && data("ca.crt") == config.root_ca.get().as_bytes();
    match data("token").is_empty() {
        true => Plan::Fill(true),
        false if right => Plan::Nothing,
        false => Plan::Fill(false),
    }
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(secret) = self.secrets.get_key(&key) else { return Outcome::Done };
        match self.act(&secret).await {
            // The account or the Secret changed meanwhile: its event decides anew.
            Err(error) if error.is_not_found() => Outcome::Done,
            done => done.into(),
        }
    }

    async fn act(&self, secret: &Secret) -> Result<(), Error> {
        let key = key_of(&secret.metadata);
        let account = annotation(secret, ACCOUNT).unwrap_or_default();
        let mut found = self.accounts.get(&key.namespace, account);
        if found.is_none() && !account.is_empty() {
            // Caches of two kinds may be at different revisions.
            found = match self.client.get::<ServiceAccount>(key.namespace(), account).await {
                Ok(live) => Some(Arc::new(live)),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
        }
        match plan(secret, found.as_deref(), &self.config) {
            Plan::Nothing => Ok(()),
            Plan::Delete => {
                let params = DeleteParams::of_uid(secret.metadata.uid.as_deref().unwrap_or_default());
                client::ignore_not_found(self.client.delete::<Secret>(key.namespace(), &key.name, &params).await)
            }
            Plan::Fill(with_token) => self.fill(secret, account, found.as_deref(), with_token).await,
        }
    }

    async fn fill(&self, secret: &Secret, account: &str, found: Option<&ServiceAccount>, with_token: bool) -> Result<(), Error> {
        let key = key_of(&secret.metadata);
        let mut next = secret.clone();
        let data = next.data.get_or_insert_default();
        data.insert("namespace".into(), ByteString(key.namespace.clone().into_bytes()));
        data.insert("ca.crt".into(), ByteString(self.config.root_ca.get().into_bytes()));
        if with_token {
            let token = self.token(&key, account, secret.metadata.uid.clone()).await?;
            data.insert("token".into(), ByteString(token.into_bytes()));
        }
        let uid = found.and_then(|found| found.metadata.uid.clone()).unwrap_or_default();
        next.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid);
        self.client.replace(&next).await.map(drop)
    }

    async fn token(&self, secret: &ObjectKey, account: &str, uid: Option<String>) -> Result<String, Error> {
        let bound =
            BoundObjectReference { api_version: Some("v1".into()), kind: Some("Secret".into()), name: Some(secret.name.clone()), uid };
        let spec =
            TokenRequestSpec { expiration_seconds: Some(LIFETIME_SECONDS), bound_object_ref: Some(bound), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer: TokenRequest =
            self.client.create_subresource::<ServiceAccount, _>(secret.namespace(), account, "token", &request).await?;
        Ok(answer.status.and_then(|status| status.token).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_secret_is_filled_kept_or_deleted_with_its_account() {
        let config = Config { root_ca: "PEM".into(), ..Config::default() };
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "robot", "uid": "u"}})).unwrap();
        let secret = |uid: Option<&str>, token: Option<&str>| -> Secret {
            let data = json!({"token": token, "ca.crt": "UEVN", "namespace": "YQ=="});
            let data: serde_json::Map<_, _> = data.as_object().unwrap().clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
            let meta = json!({"namespace": "a", "annotations": {ACCOUNT: "robot", ACCOUNT_UID: uid.unwrap_or_default()}});
            serde_json::from_value(json!({"metadata": meta, "type": TYPE, "data": data})).unwrap()
        };
        assert_eq!(plan(&secret(None, None), Some(&account), &config), Plan::Fill(true));
        assert_eq!(plan(&secret(None, Some("eA==")), Some(&account), &config), Plan::Fill(false));
        assert_eq!(plan(&secret(Some("u"), Some("eA==")), Some(&account), &config), Plan::Nothing);
        assert_eq!(plan(&secret(Some("former"), Some("eA==")), Some(&account), &config), Plan::Delete);
        assert_eq!(plan(&secret(Some("u"), Some("eA==")), None, &config), Plan::Delete);
    }
}
