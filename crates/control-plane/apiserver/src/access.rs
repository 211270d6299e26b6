//! Who asks and whether they may: credentials from the request, objects from the cache.
//!
//! Here: authentication, impersonation, and the question itself. [`authorizer`] has the answers (masters, Node, RBAC), [`follow`] keeps what
//! they know up to date, [`grants`] refuses who would give away more than they have.

pub mod authorizer;
mod follow;
mod grants;

use auth::UserInfo;
use auth::authenticate::{Authenticator, bearer, websocket_token};
use auth::authorize::{Attributes, forbidden};
use auth::tokens::{Claims, Issuer, Reference};
use http::{HeaderMap, Request};
use meta::Status;

use crate::cache::Caches;
use crate::context::Context;
use crate::object::meta;
use crate::registry::{Registry, Target, catalog};
use crate::reply::Body;
use crate::serve::ClientCertificate;
use authorizer::Authorizer;

const MASTERS: &str = "system:masters";

pub struct Access {
    pub authenticator: Authenticator,
    /// Absent: no service account tokens.
    pub issuer: Option<Issuer>,
    pub authorizer: Authorizer,
}

impl Access {
    pub fn new(authenticator: Authenticator, issuer: Option<Issuer>, caches: &Caches) -> Self {
        Self { authenticator, issuer, authorizer: Authorizer::new(caches) }
    }

    /// Client certificate, then bearer token, then anonymous.
    pub async fn authenticate(&self, registry: &Registry, request: &Request<Body>) -> Result<UserInfo, Status> {
        if let Some(certificate) = request.extensions().get::<ClientCertificate>() {
            return Ok(certificate.0.clone());
        }
        let headers = request.headers();
        let Some(token) = bearer(headers).map(str::to_owned).or_else(|| websocket_token(headers)) else {
            return Ok(UserInfo::anonymous());
        };
        if let Some(user) = self.authenticator.token_user(&token) {
            return Ok(user);
        }
        let audiences = self.issuer.as_ref().map(|issuer| issuer.audiences().to_vec()).unwrap_or_default();
        match Box::pin(self.verify(registry, &token, &audiences)).await {
            Ok(claims) => Ok(claims.user()),
            Err(why) => {
                tracing::debug!(why, "authentication");
                Err(Status::unauthorized())
            }
        }
    }

    /// A service account token whose objects all still exist.
    pub async fn verify(&self, registry: &Registry, token: &str, audiences: &[String]) -> Result<Claims, String> {
        let issuer = self.issuer.as_ref().ok_or("no token is accepted here")?;
        let claims = issuer.verify(token, audiences).map_err(|error| error.to_string())?;
        let bound = &claims.kubernetes;
        let namespace = bound.namespace.as_str();
        check(registry, "serviceaccounts", namespace, Some(&bound.serviceaccount)).await?;
        check(registry, "pods", namespace, bound.pod.as_ref()).await?;
        check(registry, "secrets", namespace, bound.secret.as_ref()).await?;
        if bound.pod.is_none() {
            check(registry, "nodes", "", bound.node.as_ref()).await?;
        }
        Ok(claims)
    }

    /// The reason why it is allowed, for the audit trail.
    pub fn authorize(&self, caches: &Caches, context: &Context) -> Result<String, Status> {
        let asked = context.attributes();
        let why = self.require(caches, context, &asked)?;
        // A WebSocket can only be a GET; what it starts is a create (KEP-4006).
        let starts = matches!(asked.subresource, "exec" | "attach" | "portforward") && asked.verb == "get";
        if asked.is_resource && starts {
            self.require(caches, context, &Attributes { verb: "create", ..asked })?;
        }
        Ok(why)
    }

    fn require(&self, caches: &Caches, context: &Context, asked: &Attributes<'_>) -> Result<String, Status> {
        let decision = self.authorizer.decide(caches, &context.user, asked);
        match decision.is_allowed() {
            true => Ok(decision.reason().to_owned()),
            false => Err(forbidden(&context.user, asked, decision.reason())),
        }
    }

    pub fn allows(&self, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> bool {
        self.authorizer.decide(caches, user, asked).is_allowed()
    }

    /// `Impersonate-*`: the request goes on as somebody else, if its user may do that.
    pub fn impersonate(&self, caches: &Caches, context: &mut Context) -> Result<(), Status> {
        let Some(wanted) = impersonated(&context.headers)? else {
            return Ok(());
        };
        let ask = |resource: &str, group: &str, namespace: &str, sub: &str, name: &str| {
            let asked = Attributes {
                is_resource: true,
                verb: "impersonate",
                group,
                version: "v1",
                resource,
                subresource: sub,
                namespace,
                name,
                ..Attributes::default()
            };
            self.require(caches, context, &asked).map(drop)
        };
        match wanted.username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
            Some((namespace, name)) => ask("serviceaccounts", "", namespace, "", name)?,
            None => ask("users", "", "", "", &wanted.username)?,
        }
        for group in &wanted.groups {
            ask("groups", "", "", "", group)?;
        }
        for (key, values) in &wanted.extra {
            for value in values {
                ask("userextras", "authentication.k8s.io", "", key, value)?;
            }
        }
        if !wanted.uid.is_empty() {
            ask("uids", "authentication.k8s.io", "", "", &wanted.uid)?;
        }
        context.audit.original_user = Some(std::mem::replace(&mut context.user, complete(wanted)));
        Ok(())
    }
}

/// Groups that everybody of the kind has.
fn complete(mut user: UserInfo) -> UserInfo {
    let mut join = |group: String| {
        if !user.groups.contains(&group) {
            user.groups.push(group);
        }
    };
    if let Some((namespace, _)) = user.username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        join("system:serviceaccounts".into());
        join(format!("system:serviceaccounts:{namespace}"));
    }
    if user.username == "system:anonymous" {
        join("system:unauthenticated".into());
    } else {
        join("system:authenticated".into());
    }
    user
}

fn impersonated(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let mut user = UserInfo { username: text("impersonate-user"), uid: text("impersonate-uid"), ..UserInfo::default() };
    user.groups = headers.get_all("impersonate-group").iter().filter_map(|value| value.to_str().ok().map(str::to_owned)).collect();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix("impersonate-extra-"), value.to_str()) {
            user.extra.entry(crate::request::percent_decode(key, false)).or_default().push(value.to_owned());
        }
    }
    let asked = !user.groups.is_empty() || !user.uid.is_empty() || !user.extra.is_empty();
    match (user.username.is_empty(), asked) {
        (true, true) => Err(Status::bad_request("requested impersonation without impersonating a user")),
        (true, false) => Ok(None),
        (false, _) => Ok(Some(user)),
    }
}

async fn check(registry: &Registry, plural: &str, namespace: &str, wanted: Option<&Reference>) -> Result<(), String> {
    let (Some(wanted), Some(kind)) = (wanted, catalog::stored("", plural)) else {
        return Ok(());
    };
    let target = Target { kind, namespace, name: &wanted.name };
    let found =
        registry.find(target).await.map_err(|status| status.message)?.ok_or_else(|| format!("{plural} {:?} is gone", wanted.name))?;
    let value = found.value();
    if meta(&value, "uid") != wanted.uid {
        return Err(format!("{plural} {:?} is another one now", wanted.name));
    }
    Ok(())
}
