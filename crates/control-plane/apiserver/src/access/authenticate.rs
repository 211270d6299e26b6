//! Who asks: front-proxy headers, client certificate, bearer token, in upstream's order; nobody is `system:anonymous`, where that is let in.

use std::sync::Arc;

use auth::UserInfo;
use auth::authenticate::{bearer, websocket_token};
use auth::tls::Peer;
use auth::tokens::{Claims, Reference};
use http::{HeaderMap, Request};
use meta::Status;

use super::issuers::Issuer;
use super::legacy_token::Notice;
use super::{Access, bootstrap_token};
use crate::object::meta;
use crate::registry::{Registry, Target, catalog};
use crate::reply::Body;
use crate::serve::Arrived;

/// A token's owner and, of the audiences that were asked for, those that it is for.
pub struct Known {
    pub user: UserInfo,
    pub audiences: Vec<String>,
    /// What is to be said of the token. In a box: hardly any request has one.
    pub notice: Option<Box<Notice>>,
}

impl Known {
    pub fn new(user: UserInfo, audiences: Vec<String>) -> Self {
        Self { user, audiences, notice: None }
    }
}

impl Access {
    pub async fn authenticate(&self, registry: &Registry, request: &Request<Body>) -> Result<(Arc<UserInfo>, Option<Box<Notice>>), Status> {
        let headers = request.headers();
        let peer = request.extensions().get::<Arrived>().and_then(|arrived| arrived.0.speaker.as_ref());
        match peer {
            Some(Peer::User(user)) => return Ok((user.clone(), None)),
            Some(Peer::FrontProxy(name)) if self.front_proxies.is_empty() || self.front_proxies.contains(name) => {
                if let Some(user) = fronted(headers) {
                    return Ok((Arc::new(user), None));
                }
            }
            _ => {}
        }
        let Some(token) = bearer(headers).map(str::to_owned).or_else(|| websocket_token(headers)) else {
            // A certificate that stands for nobody is a failed attempt, not an absent one.
            let known = peer.is_none() && self.lets_in_strangers(request.uri().path());
            return if known { Ok((Arc::new(UserInfo::anonymous()), None)) } else { Err(Status::unauthorized()) };
        };
        // Boxed: most requests carry no token, and need not carry this future.
        match Box::pin(self.token(registry, &token, &[])).await {
            Ok(known) => Ok((Arc::new(known.user), known.notice)),
            Err(why) => {
                tracing::debug!(why, "authentication");
                Err(Status::unauthorized())
            }
        }
    }

    fn lets_in_strangers(&self, path: &str) -> bool {
        self.strangers.load().anonymous.as_ref().is_none_or(|anonymous| anonymous.allows(path))
    }

    /// Whose token it is. Without `audiences` the API server's own are meant.
    pub async fn token(&self, registry: &Registry, token: &str, audiences: &[String]) -> Result<Known, String> {
        let own = self.issuer.as_ref().map(|issuer| issuer.audiences().to_vec()).unwrap_or_default();
        let wanted = if audiences.is_empty() { &own } else { audiences };
        // Tokens that know no audience are for the API server.
        let for_us = || wanted.iter().filter(|audience| own.contains(audience)).cloned().collect::<Vec<_>>();
        let ours = audiences.is_empty() || !for_us().is_empty();
        if let Some(user) = self.authenticator.token_user(token).filter(|_| ours) {
            return Ok(Known::new(user, for_us()));
        }
        if let Some(id) = bootstrap_token::id(token).filter(|_| ours) {
            return Ok(Known::new(bootstrap_token::user(registry, id, token).await?, for_us()));
        }
        if self.issuer.as_ref().is_some_and(|issuer| issuer.issued(token)) {
            let (claims, notice) = self.verify(registry, token, wanted).await?;
            let audiences = claims.aud.iter().filter(|audience| wanted.contains(audience)).cloned().collect();
            return Ok(Known { user: claims.user(), audiences, notice });
        }
        // Tokens of others say nothing of our audiences: whom their issuer means is in the configuration.
        match self.foreign(token).filter(|_| ours) {
            Some(issuer) => Ok(Known::new(issuer.user(token, &*self.lookup).await?, for_us())),
            None => self.outside(token, wanted, &own).await,
        }
    }

    /// The configured issuer that the token names.
    fn foreign(&self, token: &str) -> Option<Arc<Issuer>> {
        let strangers = self.strangers.load();
        if strangers.issuers.is_empty() {
            return None;
        }
        let named = auth::jwt::unverified_issuer(token)?;
        strangers.issuers.iter().find(|issuer| issuer.provider.issuer == named).cloned()
    }

    /// The server outside that knows tokens, if there is one.
    async fn outside(&self, token: &str, wanted: &[String], own: &[String]) -> Result<Known, String> {
        match &self.token_webhook {
            Some(webhook) => webhook.token(token, wanted, own, &*self.lookup).await,
            None if self.issuer.is_none() => Err("no token is accepted here".into()),
            None => Err("nobody knows this token".into()),
        }
    }

    /// A service account token whose objects all still exist.
    async fn verify(&self, registry: &Registry, token: &str, audiences: &[String]) -> Result<(Claims, Option<Box<Notice>>), String> {
        let issuer = self.issuer.as_ref().ok_or("no token is accepted here")?;
        let claims = issuer.verify(token, audiences).map_err(|error| error.to_string())?;
        let bound = &claims.kubernetes;
        let namespace = bound.namespace.as_str();
        let account = check(registry, "serviceaccounts", namespace, Some(&bound.serviceaccount)).await?;
        check(registry, "pods", namespace, bound.pod.as_ref()).await?;
        let secret = check(registry, "secrets", namespace, bound.secret.as_ref()).await?;
        let mut notice = None;
        let secret = secret.unwrap_or_default();
        let held = held_by(&secret, token);
        if claims.is_legacy() && !held {
            return Err("Token has been invalidated".into());
        }
        // Our own tokens of Secrets end in ten years and say what they are bound to: they are as good as without an end.
        if held && secret["type"] == "kubernetes.io/service-account-token" {
            let account = account.unwrap_or_default();
            notice = Some(Box::new(Box::pin(self.legacy_uses.used(registry, &secret, &account)).await?));
        }
        if bound.pod.is_none() {
            check(registry, "nodes", "", bound.node.as_ref()).await?;
        }
        Ok((claims, notice))
    }
}

/// Whether it is the Secret's own token: one without an end counts as long as that holds it.
fn held_by(secret: &serde_json::Value, token: &str) -> bool {
    use base64::Engine;
    let held = secret["data"]["token"].as_str().unwrap_or_default();
    base64::engine::general_purpose::STANDARD.decode(held).is_ok_and(|held| held == token.as_bytes())
}

/// Whom the front proxy speaks for.
fn fronted(headers: &HeaderMap) -> Option<UserInfo> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let username = Some(text("x-remote-user")).filter(|name| !name.is_empty())?;
    let groups = headers.get_all("x-remote-group").iter().filter_map(|value| value.to_str().ok().map(str::to_owned)).collect();
    let mut user = UserInfo { username, uid: text("x-remote-uid"), groups, ..UserInfo::default() };
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix("x-remote-extra-"), value.to_str()) {
            user.extra.entry(crate::request::percent_decode(key, false)).or_default().push(value.to_owned());
        }
    }
    Some(super::complete(user))
}

/// The object, if it is still the one that is meant; `None` where none is meant.
async fn check(
    registry: &Registry,
    plural: &str,
    namespace: &str,
    wanted: Option<&Reference>,
) -> Result<Option<serde_json::Value>, String> {
    let (Some(wanted), Some(kind)) = (wanted, catalog::stored("", plural)) else {
        return Ok(None);
    };
    let target = Target { kind, namespace, name: &wanted.name };
    let found =
        registry.find(target).await.map_err(|status| status.message)?.ok_or_else(|| format!("{plural} {:?} is gone", wanted.name))?;
    let value = found.value();
    if !wanted.uid.is_empty() && meta(&value, "uid") != wanted.uid {
        return Err(format!("{plural} {:?} is another one now", wanted.name));
    }
    Ok(Some(value))
}
