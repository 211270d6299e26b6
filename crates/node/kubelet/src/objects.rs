//! ConfigMaps, Secrets and trust bundles that this node's pods refer to, their service account tokens and certificates.
//!
//! Each referenced object has one watch of its own, shared by all pods that use it and ended with the last of them, so the node sees no
//! other objects. A change wakes the pods that use the object.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::{Client, Object};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use reconcile::{Cache, Scope};
use stdx::Drain;

use crate::podspec;

mod certificates;
mod trust;

pub use certificates::Certificates;
pub use trust::Trust;

/// How long a first look at an object may take; then the step is tried again later.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a ConfigMap is watched after its last pod: the next pod of a namespace, whose certificates every pod has, should not wait for a new list.
const LINGER: Duration = Duration::from_secs(10);

pub type Wake = Arc<dyn Fn(&str) + Send + Sync>;

/// One kind's watched objects.
pub struct Watched<K> {
    client: Client,
    wake: Wake,
    drain: Drain,
    entries: Arc<Mutex<Entries<K>>>,
    linger: Duration,
}

/// By namespace and name.
type Entries<K> = HashMap<(String, String), Entry<K>>;

struct Entry<K> {
    cache: Cache<K>,
    drain: Drain,
    users: Arc<Mutex<BTreeSet<String>>>,
}

impl<K: Object> Watched<K> {
    pub fn new(client: &Client, wake: Wake, drain: &Drain) -> Self {
        Self { client: client.clone(), wake, drain: drain.clone(), entries: Arc::default(), linger: Duration::ZERO }
    }

    /// The object as pod `uid` sees it; `None` where it does not exist. From then on its changes wake the pod.
    pub async fn get(&self, uid: &str, namespace: &str, name: &str) -> Result<Option<Arc<K>>, String> {
        let cache = self.register(uid, namespace, name);
        if tokio::time::timeout(SYNC_TIMEOUT, cache.synced()).await.is_err() {
            return Err(format!("failed to sync {} cache: timed out waiting for the condition", K::KIND.to_lowercase()));
        }
        Ok(cache.get(namespace, name))
    }

    fn register(&self, uid: &str, namespace: &str, name: &str) -> Cache<K> {
        let mut entries = lock(&self.entries);
        let entry = entries.entry((namespace.into(), name.into())).or_insert_with(|| self.watch(namespace, name));
        lock(&entry.users).insert(uid.into());
        entry.cache.clone()
    }

    fn watch(&self, namespace: &str, name: &str) -> Entry<K> {
        let drain = self.drain.child();
        let scope =
            Scope { namespace: Some(namespace.into()), field_selector: Some(format!("metadata.name={name}")), label_selector: None };
        let cache = Cache::start(&self.client, scope, drain.clone());
        let users: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let (woken, wake) = (users.clone(), self.wake.clone());
        cache.on_change(move |_, _| lock(&woken).iter().for_each(|uid| wake(uid)));
        Entry { cache, drain, users }
    }

    /// Pod `uid` is gone.
    pub fn release(&self, uid: &str) {
        let unused = lock(&self.entries).values().any(|entry| {
            let mut users = lock(&entry.users);
            users.remove(uid) && users.is_empty()
        });
        if !unused {
            return;
        }
        if self.linger.is_zero() {
            return drop_unused(&self.entries);
        }
        let (entries, drain, linger) = (self.entries.clone(), self.drain.clone(), self.linger);
        tokio::spawn(async move {
            drain.run(tokio::time::sleep(linger)).await;
            drop_unused(&entries);
        });
    }
}

fn drop_unused<K>(entries: &Mutex<Entries<K>>) {
    lock(entries).retain(|_, entry| {
        let used = !lock(&entry.users).is_empty();
        if !used {
            entry.drain.stop();
        }
        used
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Objects {
    pub config_maps: Watched<ConfigMap>,
    pub secrets: Watched<Secret>,
    pub tokens: Tokens,
    pub trust: Trust,
    pub certificates: Certificates,
}

impl Objects {
    pub fn new(client: &Client, node_name: &str, wake: Wake, drain: &Drain) -> Self {
        Self {
            config_maps: Watched { linger: LINGER, ..Watched::new(client, wake.clone(), drain) },
            secrets: Watched::new(client, wake.clone(), drain),
            trust: Trust::new(client, wake, drain),
            certificates: Certificates::new(client, node_name),
            tokens: Tokens { client: client.clone(), issued: Mutex::default() },
        }
    }
    pub fn release(&self, uid: &str) {
        self.config_maps.release(uid);
        self.secrets.release(uid);
        self.trust.release(uid);
        self.certificates.release(uid);
        lock(&self.tokens.issued).retain(|key, _| key.0 != uid);
    }
}

/// Service account tokens bound to pods (TokenRequest), kept until they are to be refreshed.
pub struct Tokens {
    client: Client,
    issued: Mutex<BTreeMap<(String, String, i64), Token>>,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
    pub expires: Timestamp,
    /// At 80 % of its life, or a day old (upstream: requiresRefresh).
    pub refresh_at: Timestamp,
}

impl Tokens {
    pub async fn get(&self, pod: &Pod, audience: &str, seconds: i64, now: Timestamp) -> Result<Token, String> {
        let key = (podspec::uid(pod).to_owned(), audience.to_owned(), seconds);
        let known = lock(&self.issued).get(&key).cloned();
        if let Some(token) = known.as_ref().filter(|token| now < token.refresh_at) {
            return Ok(token.clone());
        }
        match self.request(pod, audience, seconds, now).await {
            Ok(token) => {
                lock(&self.issued).insert(key, token.clone());
                Ok(token)
            }
            // An old token serves while it lives; the next look tries again.
            Err(error) => known.filter(|token| now < token.expires).ok_or_else(|| format!("failed to fetch token: {error}")),
        }
    }

    async fn request(&self, pod: &Pod, audience: &str, seconds: i64, now: Timestamp) -> Result<Token, client::Error> {
        let account = podspec::spec(pod).service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        };
        let spec = TokenRequestSpec {
            audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
            bound_object_ref: Some(bound),
            expiration_seconds: Some(seconds),
            ..Default::default()
        };
        let request = TokenRequest { spec: Some(spec), ..Default::default() };
        let namespace = Some(podspec::namespace(pod));
        let answer: TokenRequest = self.client.create_subresource::<ServiceAccount, _>(namespace, account, "token", &request).await?;
        let status = answer.status.unwrap_or_default();
        let life = SignedDuration::from_secs(seconds);
        let expires = status.expiration_timestamp.map_or(now + life, |time| time.0);
        let granted = expires.duration_since(now);
        let refresh_at = (now + granted * 4 / 5).min(now + SignedDuration::from_hours(24));
        Ok(Token { text: status.token.unwrap_or_default(), expires, refresh_at })
    }
}
