//! Token issuers beside the cluster itself: their keys are fetched, kept, and fetched again when a token names one that is not known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use admission::Lookup;
use arc_swap::ArcSwapOption;
use auth::UserInfo;
use auth::jwt::distributed::Place;
use auth::jwt::keys::Keys;
use auth::jwt::{self, Provider};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use crate::outcall::Remote;

const TIMEOUT: Duration = Duration::from_secs(30);
/// How soon an issuer that could not be reached is tried again (upstream: 10 s).
const RETRY: Duration = Duration::from_secs(10);
/// Tokens with unknown keys are cheap to make: between two looks for new keys passes this much at least.
const REFRESH_GAP: Duration = Duration::from_millis(500);

/// Issuers of claims that one issuer's tokens have elsewhere.
const OTHERS_MAX: usize = 16;

/// One issuer at work.
pub struct Issuer {
    pub provider: Provider,
    keys: ArcSwapOption<Keys>,
    source: Mutex<Source>,
    /// Of those who issue the claims that its tokens have elsewhere.
    others: Mutex<HashMap<String, Arc<Keys>>>,
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
        Self { provider, keys: ArcSwapOption::empty(), source: Mutex::default(), others: Mutex::default() }
    }

    /// Tries until the issuer has told its keys.
    pub async fn prepare(&self, lookup: &dyn Lookup) {
        while let Err(why) = self.refresh(lookup).await {
            tracing::warn!(issuer = self.provider.issuer, why, "oidc authenticator: initializing plugin");
            tokio::time::sleep(RETRY).await;
        }
    }

    pub async fn user(&self, token: &str, lookup: &dyn Lookup) -> Result<UserInfo, String> {
        let began = Instant::now();
        let user = self.user_of(token, lookup).await;
        if let Some(metrics) = super::metrics() {
            metrics.jwt(&self.provider.issuer, user.is_ok(), began.elapsed());
        }
        user
    }

    async fn user_of(&self, token: &str, lookup: &dyn Lookup) -> Result<UserInfo, String> {
        let now = jiff::Timestamp::now().as_second();
        let mut claims = self.claims(token, now, lookup).await?;
        if let Some(place) = self.provider.groups_elsewhere(&claims).map_err(|error| error.to_string())? {
            let named = |why: String| format!("oidc: could not expand distributed claims: {why}");
            claims.insert(place.claim.clone(), self.elsewhere(&place, now, lookup).await.map_err(named)?);
        }
        self.provider.user(&claims).map_err(|error| error.to_string())
    }

    async fn claims(&self, token: &str, now: i64, lookup: &dyn Lookup) -> Result<Map<String, Value>, String> {
        let Some(keys) = self.keys.load_full() else { return Err("oidc: authenticator not initialized".into()) };
        match self.provider.claims(token, &keys, now) {
            Err(jwt::Error::UnknownKey) => {}
            known => return known.map_err(|error| error.to_string()),
        }
        // The issuer may have a new key.
        if let Err(why) = self.refresh(lookup).await {
            tracing::warn!(issuer = self.provider.issuer, why, "oidc authenticator: fetching keys");
        }
        let keys = self.keys.load_full().unwrap_or(keys);
        self.provider.claims(token, &keys, now).map_err(|error| error.to_string())
    }

    /// A claim from where the token says it is. Only an issuer that we believe makes us ask there.
    async fn elsewhere(&self, place: &Place, now: i64, lookup: &dyn Lookup) -> Result<Value, String> {
        let named = |why: String| format!("while getting distributed claim {:?}: {why}", place.claim);
        let remote = Remote::new(&place.endpoint, &self.provider.authority).and_then(|remote| remote.with_token(&place.access_token));
        let (code, bytes) = remote.map_err(named)?.get(TIMEOUT, lookup).await.map_err(named)?;
        if code != http::StatusCode::OK {
            return Err(named(format!("error while getting distributed claim JWT: {code}")));
        }
        let token = String::from_utf8(bytes.to_vec()).map_err(|_| named("the answer is no token".into()))?;
        let token = token.trim();
        let issuer = jwt::unverified_issuer(token)
            .ok_or_else(|| format!("getting untrusted issuer from endpoint {} failed for claim {:?}", place.endpoint, place.claim))?;
        let known = self.others.lock().await.get(&issuer).cloned();
        if let Some(keys) = known {
            match self.provider.claim_elsewhere(place, token, &keys, now) {
                Err(jwt::Error::UnknownKey) => {}
                found => return found.map_err(|error| format!("verify distributed claim token: {error}")),
            }
        }
        let (_, keys) = self.discover(&issuer, &jwt::discovery(&issuer), lookup).await?;
        let keys = Arc::new(keys);
        let mut others = self.others.lock().await;
        if others.len() >= OTHERS_MAX {
            others.clear();
        }
        others.insert(issuer, keys.clone());
        drop(others);
        self.provider.claim_elsewhere(place, token, &keys, now).map_err(|error| format!("verify distributed claim token: {error}"))
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
        if let Some(remote) = &source.key_set {
            return Keys::parse(&self.read(remote, lookup).await?);
        }
        let (remote, keys) = self.discover(&self.provider.issuer, &self.provider.discovery(), lookup).await?;
        source.key_set = Some(Arc::new(remote));
        Ok(keys)
    }

    /// Where an issuer has its keys, and the keys.
    async fn discover(&self, issuer: &str, discovery: &str, lookup: &dyn Lookup) -> Result<(Remote, Keys), String> {
        let document = self.read(&Remote::new(discovery, &self.provider.authority)?, lookup).await?;
        let given = document["issuer"].as_str().unwrap_or_default();
        if given != issuer {
            return Err(format!("oidc: issuer did not match the issuer returned by provider, expected {issuer:?} got {given:?}"));
        }
        let address = document["jwks_uri"].as_str().ok_or("provider did not return JWKS URL")?;
        let remote = Remote::new(address, &self.provider.authority)?;
        let keys = Keys::parse(&self.read(&remote, lookup).await?)?;
        Ok((remote, keys))
    }

    async fn read(&self, remote: &Remote, lookup: &dyn Lookup) -> Result<Value, String> {
        let (code, bytes) = remote.get(TIMEOUT, lookup).await?;
        if code != http::StatusCode::OK {
            return Err(format!("{code}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(256)])));
        }
        serde_json::from_slice(&bytes).map_err(|error| format!("{remote:?}: {error}"))
    }
}
