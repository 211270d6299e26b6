//! Who asks and whether they may: credentials from the request, objects from the cache.
//!
//! Here: impersonation, and the question itself. [`authenticate`] finds out who asks; [`authorizer`] has the answers (masters, Node, RBAC), [`follow`] keeps what
//! they know up to date, [`grants`] refuses who would give away more than they have.

mod authenticate;
pub mod authorizer;
mod bootstrap_token;
mod follow;
pub mod grants;

use std::sync::Arc;

use auth::UserInfo;
use auth::authenticate::Authenticator;
use auth::authorize::{Attributes, forbidden};
use auth::tokens::Issuer;
use http::HeaderMap;
use meta::Status;

use crate::cache::Caches;
use crate::context::Context;
use authorizer::Authorizer;

const MASTERS: &str = "system:masters";

pub struct Access {
    pub authenticator: Authenticator,
    /// Absent: no service account tokens.
    pub issuer: Option<Arc<Issuer>>,
    pub authorizer: Authorizer,
    /// Common names of front proxies whose headers are believed; empty: all whom the front proxy's CA vouches for.
    pub front_proxies: Vec<String>,
}

impl Access {
    pub fn new(authenticator: Authenticator, issuer: Option<Arc<Issuer>>, front_proxies: Vec<String>, caches: &Caches) -> Self {
        Self { authenticator, issuer, authorizer: Authorizer::new(caches), front_proxies }
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
