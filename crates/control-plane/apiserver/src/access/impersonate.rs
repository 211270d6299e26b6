//! `Impersonate-*`: the request goes on as somebody else, if its user may do that.
//!
//! Four constrained ways (KEP-5284: a right to be somebody, and a right to do this request as them), then the old one, which allows everything
//! that the other may do. The first refusal is the one that is told.
//!
//! Source: `apiserver/pkg/endpoints/filters/impersonation`.

use std::collections::BTreeMap;
use std::sync::Arc;

use auth::UserInfo;
use auth::authorize::{Attributes, forbidden};
use http::HeaderMap;
use meta::{Status, names};

use super::{Access, MASTERS};
use crate::cache::Caches;
use crate::context::Context;

const AUTHENTICATION: &str = "authentication.k8s.io";
const NODES: &str = "system:nodes";
/// From so many groups or extras on, a right to all of them is looked for first.
const MANY: usize = 4;

/// A way to be somebody else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

const MODES: [Mode; 5] = [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "",
        }
    }

    /// The verb of the right to be somebody.
    fn verb(self) -> String {
        if self == Mode::Legacy { "impersonate".into() } else { format!("impersonate:{}", self.name()) }
    }

    fn concerns(self, wanted: &UserInfo, requester: &UserInfo) -> bool {
        let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node(&wanted.username);
        match self {
            Mode::AssociatedNode => {
                let own = requester.extra.get("authentication.kubernetes.io/node-name").map(Vec::as_slice);
                only_name && node.is_some_and(|node| own == Some(&[node.to_owned()])) && account(&requester.username).is_some()
            }
            Mode::ArbitraryNode => only_name && node.is_some(),
            Mode::ServiceAccount => only_name && account(&wanted.username).is_some(),
            Mode::UserInfo => node.is_none() && account(&wanted.username).is_none(),
            Mode::Legacy => true,
        }
    }
}

fn node(username: &str) -> Option<&str> {
    username.strip_prefix("system:node:").filter(|name| names::dns1123_subdomain(name).is_empty())
}

fn account(username: &str) -> Option<(&str, &str)> {
    auth::tokens::account(username)
        .filter(|(namespace, name)| names::dns1123_label(namespace).is_empty() && names::dns1123_subdomain(name).is_empty())
}

impl Access {
    /// The headers are gone from the request afterwards: nothing behind this may act on them once more.
    pub async fn impersonate(&self, caches: &Caches, context: &mut Context, headers: &mut HeaderMap) -> Result<(), Status> {
        let Some(wanted) = impersonated(&context.headers)? else {
            return Ok(());
        };
        let mut first = None;
        for mode in MODES.into_iter().filter(|mode| mode.concerns(&wanted, &context.user)) {
            match self.be(mode, caches, context, &wanted).await {
                Ok(user) => {
                    remove(headers);
                    remove(&mut context.headers);
                    context.audit.constraint = if mode == Mode::Legacy { String::new() } else { mode.verb() };
                    context.audit.original_user = Some(std::mem::replace(&mut context.user, Arc::new(user)));
                    return Ok(());
                }
                Err(status) => first = first.or(Some(status)),
            }
        }
        Err(first.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
    }

    /// The user that the request goes on as in this way.
    async fn be(&self, mode: Mode, caches: &Caches, context: &Context, wanted: &UserInfo) -> Result<UserInfo, Status> {
        let requester = requester(mode, &context.user);
        let rights = Rights { access: self, caches, requester: &requester, mode, verb: mode.verb() };
        if mode != Mode::Legacy {
            let asked = context.attributes();
            let on = format!("impersonate-on:{}:{}", mode.name(), asked.verb);
            self.require(caches, &requester, &Attributes { verb: &on, ..asked }).await?;
        }
        let mut user = wanted.clone();
        rights.username(&mut user).await?;
        if !wanted.uid.is_empty() {
            rights.require(AUTHENTICATION, "", "uids", "", &wanted.uid).await?;
        }
        rights.groups(&wanted.groups).await?;
        rights.extra(&wanted.extra).await?;
        let everybody = match user.username == "system:anonymous" {
            true => Some("system:unauthenticated"),
            false => (!user.groups.iter().any(|group| group == "system:unauthenticated")).then_some("system:authenticated"),
        };
        if let Some(group) = everybody.filter(|group| !user.groups.iter().any(|known| known == group)) {
            user.groups.push(group.to_owned());
        }
        Ok(user)
    }
}

/// A service account on its own node is judged without what differs from node to node, so that one right serves an agent on all of them.
fn requester(mode: Mode, user: &UserInfo) -> UserInfo {
    let mut user = user.clone();
    if mode == Mode::AssociatedNode {
        let keys = user.extra.keys().cloned().collect();
        user.extra = BTreeMap::from([("authentication.kubernetes.io/associated-node-keys".to_owned(), keys)]);
    }
    user
}

/// The rights that one way needs.
struct Rights<'a> {
    access: &'a Access,
    caches: &'a Caches,
    requester: &'a UserInfo,
    mode: Mode,
    verb: String,
}

impl Rights<'_> {
    fn asked<'b>(&'b self, group: &'b str, namespace: &'b str, resource: &'b str, subresource: &'b str, name: &'b str) -> Attributes<'b> {
        Attributes {
            is_resource: true,
            verb: &self.verb,
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
            ..Attributes::default()
        }
    }

    async fn require(&self, group: &str, namespace: &str, resource: &str, subresource: &str, name: &str) -> Result<(), Status> {
        let asked = self.asked(group, namespace, resource, subresource, name);
        self.access.require(self.caches, self.requester, &asked).await.map(drop)
    }

    fn refused(&self, group: &str, resource: &str, name: &str, why: &str) -> Status {
        forbidden(self.requester, &self.asked(group, "", resource, "", name), why)
    }

    /// Users and groups are of the core group in the old way.
    fn group(&self) -> &'static str {
        if self.mode == Mode::Legacy { "" } else { AUTHENTICATION }
    }

    async fn username(&self, user: &mut UserInfo) -> Result<(), Status> {
        let username = user.username.clone();
        if let Some((namespace, name)) = account(&username) {
            if user.groups.is_empty() {
                user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
            }
            return self.require(self.group(), namespace, "serviceaccounts", "", name).await;
        }
        match node(&username).filter(|_| self.mode != Mode::Legacy) {
            Some(node) => {
                user.groups = vec![NODES.into()];
                let name = if self.mode == Mode::AssociatedNode { "*" } else { node };
                self.require(self.group(), "", "nodes", "", name).await
            }
            None => self.require(self.group(), "", "users", "", &username).await,
        }
    }

    async fn groups(&self, groups: &[String]) -> Result<(), Status> {
        if self.mode != Mode::Legacy {
            if groups.iter().any(String::is_empty) {
                return Err(self.refused(self.group(), "groups", "", "impersonating the empty string group is not allowed"));
            }
            if groups.iter().any(|group| group == MASTERS) {
                return Err(self.refused(self.group(), "groups", MASTERS, "impersonating the system:masters group is not allowed"));
            }
            if groups.len() >= MANY && self.require(self.group(), "", "groups", "", "*").await.is_ok() {
                return Ok(());
            }
        }
        for group in groups {
            self.require(self.group(), "", "groups", "", group).await?;
        }
        Ok(())
    }

    async fn extra(&self, extra: &BTreeMap<String, Vec<String>>) -> Result<(), Status> {
        if self.mode != Mode::Legacy && !extra.is_empty() {
            check(extra).map_err(|why| self.refused(AUTHENTICATION, "userextras", "", &why))?;
            let count: usize = extra.values().map(Vec::len).sum();
            if count.max(extra.len()) >= MANY && self.require(AUTHENTICATION, "", "userextras", "*", "*").await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                self.require(AUTHENTICATION, "", "userextras", key, value).await?;
            }
        }
        Ok(())
    }
}

fn check(extra: &BTreeMap<String, Vec<String>>) -> Result<(), String> {
    for (key, values) in extra {
        let wrong = names::domain_prefixed_path(key);
        if key.is_empty() {
            return Err("impersonating the empty string key in extra is not allowed".into());
        }
        if !wrong.is_empty() {
            return Err(format!(
                "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: {key:?}: {}",
                wrong.join(", ")
            ));
        }
        if values.is_empty() {
            return Err("impersonating empty values in extra is not allowed".into());
        }
        if values.iter().any(String::is_empty) {
            return Err("impersonating the empty string value in extra is not allowed".into());
        }
    }
    Ok(())
}

/// Whom the headers name.
fn impersonated(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let mut user = UserInfo { username: text("impersonate-user"), uid: text("impersonate-uid"), ..UserInfo::default() };
    user.groups = headers.get_all("impersonate-group").iter().filter_map(|value| value.to_str().ok().map(str::to_owned)).collect();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix("impersonate-extra-"), value.to_str()) {
            let key = crate::request::percent_decode(key, false).to_lowercase();
            user.extra.entry(key).or_default().push(value.to_owned());
        }
    }
    let asked = !user.groups.is_empty() || !user.uid.is_empty() || !user.extra.is_empty();
    match (user.username.is_empty(), asked) {
        (true, true) => Err(Status::bad_request("requested impersonation without impersonating a user name")),
        (true, false) => Ok(None),
        (false, _) => Ok(Some(user)),
    }
}

fn remove(headers: &mut HeaderMap) {
    let ours = |name: &http::HeaderName| name.as_str().starts_with("impersonate-");
    let names: Vec<http::HeaderName> = headers.keys().filter(|name| ours(name)).cloned().collect();
    names.into_iter().for_each(|name| drop(headers.remove(name)));
}
