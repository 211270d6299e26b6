//! Who asks and whether they may: credentials from the request, objects from the cache.
//!
//! [`authenticate`] finds out who asks, with [`issuers`] of tokens and a [`token_webhook`] outside,
//! [`legacy_token`] for those without an end; [`impersonate`] lets the request go on as
//! somebody else; [`authorizer`] has the answers (masters, Node, RBAC, a [`webhook`] outside), [`follow`] keeps what they know up to date,
//! [`grants`] refuses who would give away more than they have. [`reload`] follows the files that say all this.

mod answers;
mod authenticate;
pub mod authorizer;
mod bootstrap_token;
mod follow;
pub mod grants;
mod impersonate;
mod issuers;
mod legacy_token;
mod metrics;
pub mod reload;
pub mod token_webhook;
mod webhook;

use std::sync::Arc;
use std::time::Instant;

use admission::Lookup;
use arc_swap::ArcSwap;
use auth::UserInfo;
use auth::authenticate::Authenticator;
use auth::authorize::{self, Attributes, forbidden};
use auth::jwt;
use auth::tokens::Issuer;
use meta::Status;
use serde_json::Value;
use stdx::Drain;

use crate::cache::Caches;
use crate::context::Context;
use authorizer::{Authorizer, Chain};
pub use legacy_token::today;
pub use metrics::metrics;
use reload::Source;
use token_webhook::TokenWebhook;

const MASTERS: &str = "system:masters";

/// What there is to know about identities and rights beside the objects.
#[derive(Default)]
pub struct Settings {
    /// Static tokens.
    pub authenticator: Authenticator,
    /// Absent: no service account tokens.
    pub issuer: Option<Arc<Issuer>>,
    /// Common names of front proxies whose headers are believed; empty: all whom the front proxy's CA vouches for.
    pub front_proxies: Vec<String>,
    pub authentication: Option<Source>,
    pub token_webhook: Option<TokenWebhook>,
    pub authorization: Option<Source>,
}

pub struct Access {
    pub authenticator: Authenticator,
    pub issuer: Option<Arc<Issuer>>,
    pub authorizer: Authorizer,
    pub front_proxies: Vec<String>,
    /// Issuers beside the cluster, and who may come without credentials.
    strangers: ArcSwap<Strangers>,
    token_webhook: Option<token_webhook::Webhook>,
    legacy_uses: legacy_token::Uses,
    lookup: Arc<dyn Lookup>,
}

/// Upstream's `AuthenticationConfiguration` at work.
#[derive(Default)]
struct Strangers {
    issuers: Vec<Arc<issuers::Issuer>>,
    anonymous: Option<jwt::configuration::Anonymous>,
    /// Fetch the issuers' keys; end with the configuration.
    fetching: tokio::task::JoinSet<()>,
}

impl Access {
    /// The error names the configuration that cannot be used.
    pub fn new(settings: Settings, caches: &Caches, lookup: Arc<dyn Lookup>) -> Result<Self, String> {
        let read = |source: &Option<Source>| source.as_ref().map(Source::read).transpose();
        let chain = match read(&settings.authorization)? {
            Some(text) => chain(&text).map_err(|why| format!("authorization configuration: {why}"))?,
            None => Chain::new(authorize::configuration::standard())?,
        };
        let webhook = settings.token_webhook.as_ref().map(token_webhook::Webhook::new).transpose();
        let access = Self {
            authenticator: settings.authenticator,
            issuer: settings.issuer,
            front_proxies: settings.front_proxies,
            authorizer: Authorizer::new(caches, lookup.clone(), chain),
            strangers: ArcSwap::default(),
            legacy_uses: legacy_token::Uses::new().map_err(|error| error.to_string())?,
            token_webhook: webhook.map_err(|why| format!("authentication token webhook: {why}"))?,
            lookup,
        };
        if let Some(text) = read(&settings.authentication)? {
            access.set_authentication(&text).map_err(|why| format!("authentication configuration: {why}"))?;
        }
        Ok(access)
    }

    /// Believes these issuers from now on.
    fn set_authentication(&self, text: &str) -> Result<(), String> {
        let own: Vec<&str> = self.issuer.iter().map(|issuer| issuer.issuer()).collect();
        let file: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let configuration = jwt::configuration::Configuration::parse(&file, &own)?;
        let issuers = configuration.providers.into_iter().map(|provider| Arc::new(issuers::Issuer::new(provider))).collect();
        let mut strangers = Strangers { issuers, anonymous: configuration.anonymous, fetching: tokio::task::JoinSet::new() };
        for issuer in strangers.issuers.iter().cloned() {
            let lookup = self.lookup.clone();
            strangers.fetching.spawn(async move { issuer.prepare(&*lookup).await });
        }
        self.strangers.store(Arc::new(strangers));
        Ok(())
    }

    /// Follows the configuration's files until the drain; `access` finds this again.
    pub fn follow(
        authentication: Option<Source>,
        authorization: Option<Source>,
        access: impl Fn() -> Option<Arc<crate::Inner>> + Clone + Send + Sync + 'static,
        drain: &Drain,
    ) {
        let gone = || "the server is gone".to_owned();
        if let Some(source) = authentication {
            let access = access.clone();
            let apply = async move |text: &str| access().ok_or_else(gone)?.access.set_authentication(text);
            tokio::spawn(source.follow(drain.clone(), "authentication", apply));
        }
        if let Some(source) = authorization {
            let apply = async move |text: &str| {
                let chain = chain(text)?;
                access().ok_or_else(gone)?.access.authorizer.set_chain(chain);
                Ok(())
            };
            tokio::spawn(source.follow(drain.clone(), "authorization", apply));
        }
    }

    /// The reason why it is allowed, for the audit trail.
    pub async fn authorize(&self, caches: &Caches, context: &Context) -> Result<String, Status> {
        let asked = context.attributes();
        let why = self.require(caches, &context.user, &asked).await?;
        // A WebSocket can only be a GET; what it starts is a create (KEP-4006).
        let starts = matches!(asked.subresource, "exec" | "attach" | "portforward") && asked.verb == "get";
        if asked.is_resource && starts {
            self.require(caches, &context.user, &Attributes { verb: "create", ..asked }).await?;
        }
        Ok(why)
    }

    async fn require(&self, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> Result<String, Status> {
        let began = Instant::now();
        let decision = self.authorizer.decide(caches, user, asked).await;
        if let Some(metrics) = metrics() {
            metrics.authorized(&decision, began.elapsed());
        }
        match decision.is_allowed() {
            true => Ok(decision.reason().to_owned()),
            false => Err(forbidden(user, asked, decision.reason())),
        }
    }

    pub fn allows(&self, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> bool {
        self.authorizer.decide_now(caches, user, asked).is_allowed()
    }
}

fn chain(text: &str) -> Result<Chain, String> {
    let file: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    Chain::new(authorize::configuration::parse(&file)?)
}

/// Everybody who is known is in this group, unless somebody has said something else (upstream: `AuthenticatedGroupAdder`).
fn complete(mut user: UserInfo) -> UserInfo {
    let said = |group: &String| group == "system:authenticated" || group == "system:unauthenticated";
    if user.username != "system:anonymous" && !user.groups.iter().any(said) {
        user.groups.push("system:authenticated".into());
    }
    user
}
