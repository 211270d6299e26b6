//! Token issuers beside the cluster itself: their keys are fetched, kept, and fetched again when a token names one that is not known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use admission::Lookup;
use arc_swap::ArcSwapOption;
use auth::UserInfo;
use auth::jwt::keys::Keys;
use auth::jwt::{self, Provider};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::outcall::Remote;

const TIMEOUT: Duration = Duration::from_secs(30);
/// How soon an issuer that could not be reached is tried again (upstream: 10 s).
const RETRY: Duration = Duration::from_secs(10);
/// Tokens with unknown keys are cheap to make: between two looks for new keys passes this much at least.
const REFRESH_GAP: Duration = Duration::from_millis(500);

/// One issuer at work.
pub struct Issuer {
    pub provider: Provider,
    keys: ArcSwapOption<Keys>,
    source: Mutex<Source>,
}

/// Where keys come from.
#[derive(Default)]
struct Source {
    /// Known once discovery has told it.
    key_set: Option<Arc<Remote>>,
    looked: Option<Instant>,
}

impl Issuer {
    pub fn new(provider: Provider) -> Self {
        Self { provider, keys: ArcSwapOption::empty(), source: Mutex::default() }
    }

    /// Tries until the issuer has told its keys.
    pub async fn prepare(&self, lookup: &dyn Lookup) {
        while let Err(why) = self.refresh(lookup).await {
            tracing::warn!(issuer = self.provider.issuer, why, "oidc authenticator: initializing plugin");
            tokio::time::sleep(RETRY).await;
        }
    }

    pub async fn user(&self, token: &str, lookup: &dyn Lookup) -> Result<UserInfo, String> {
        let Some(keys) = self.keys.load_full() else { return Err("oidc: authenticator not initialized".into()) };
        let now = jiff::Timestamp::now().as_second();
        match self.provider.user(token, &keys, now) {
            Err(jwt::Error::UnknownKey) => {}
            known => return known.map_err(|error| error.to_string()),
        }
        // The issuer may have a new key.
        if let Err(why) = self.refresh(lookup).await {
            tracing::warn!(issuer = self.provider.issuer, why, "oidc authenticator: fetching keys");
        }
        let keys = self.keys.load_full().unwrap_or(keys);
        self.provider.user(token, &keys, now).map_err(|error| error.to_string())
    }

    /// Fetches the keys; those who wait for the same do it once.
    async fn refresh(&self, lookup: &dyn Lookup) -> Result<(), String> {
        let asked = Instant::now();
        let mut source = self.source.lock().await;
        if source.looked.is_some_and(|looked| looked > asked || looked.elapsed() < REFRESH_GAP) {
            return if self.keys.load().is_some() { Ok(()) } else { Err("its keys could not be fetched a moment ago".into()) };
        }
        let fetched = self.fetch(&mut source, lookup).await;
        source.looked = Some(Instant::now());
        self.keys.store(Some(Arc::new(fetched?)));
        Ok(())
    }

    async fn fetch(&self, source: &mut Source, lookup: &dyn Lookup) -> Result<Keys, String> {
        let remote = match &source.key_set {
            Some(remote) => remote.clone(),
            None => {
                let document = self.read(&Remote::new(&self.provider.discovery(), &self.provider.authority)?, lookup).await?;
                let issuer = document["issuer"].as_str().unwrap_or_default();
                if issuer != self.provider.issuer {
                    return Err(format!(
                        "oidc: issuer did not match the issuer returned by provider, expected {:?} got {issuer:?}",
                        self.provider.issuer
                    ));
                }
                let address = document["jwks_uri"].as_str().ok_or("provider did not return JWKS URL")?;
                Arc::new(Remote::new(address, &self.provider.authority)?)
            }
        };
        let keys = Keys::parse(&self.read(&remote, lookup).await?)?;
        source.key_set = Some(remote);
        Ok(keys)
    }

    async fn read(&self, remote: &Remote, lookup: &dyn Lookup) -> Result<Value, String> {
        let (code, bytes) = remote.get(TIMEOUT, lookup).await?;
        if code != http::StatusCode::OK {
            return Err(format!("{code}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(256)])));
        }
        serde_json::from_slice(&bytes).map_err(|error| format!("{remote:?}: {error}"))
    }
}
