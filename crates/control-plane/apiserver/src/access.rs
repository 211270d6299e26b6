//! Who asks and whether they may: credentials from the request, objects from the cache.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use auth::UserInfo;
use auth::authenticate::{Authenticator, bearer, websocket_token};
use auth::authorize::{Attributes, forbidden};
use auth::escalation;
use auth::rbac::{self, Objects, Policy};
use auth::tokens::{Claims, Issuer, Reference};
use http::{HeaderMap, Request};
use meta::Status;
use serde_json::Value;

use crate::cache::Caches;
use crate::context::Context;
use crate::object::meta;
use crate::registry::catalog::Kind;
use crate::registry::{Registry, Target, catalog};
use crate::reply::Body;
use crate::selection::Selection;
use crate::serve::ClientCertificate;

const MASTERS: &str = "system:masters";
/// Answered for everybody, before any role exists (upstream: always-allow-paths).
const OPEN_PATHS: [&str; 3] = ["/healthz", "/livez", "/readyz"];
/// The four RBAC resources, in the order of [`Objects`].
const RBAC: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

pub struct Access {
    pub authenticator: Authenticator,
    /// Absent: no service account tokens.
    pub issuer: Option<Issuer>,
    policy: ArcSwapOption<(Revisions, Policy)>,
    building: Mutex<()>,
}

/// The newest change of each of the RBAC resources that a policy was made from.
type Revisions = [u64; 4];

impl Access {
    pub fn new(authenticator: Authenticator, issuer: Option<Issuer>) -> Self {
        Self { authenticator, issuer, policy: ArcSwapOption::empty(), building: Mutex::default() }
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
        match self.verify(registry, &token, &audiences).await {
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

    pub fn authorize(&self, caches: &Caches, context: &Context) -> Result<(), Status> {
        let asked = context.attributes();
        self.require(caches, context, &asked)?;
        // A WebSocket can only be a GET; what it starts is a create (KEP-4006).
        let starts = matches!(asked.subresource, "exec" | "attach" | "portforward") && asked.verb == "get";
        if asked.is_resource && starts {
            self.require(caches, context, &Attributes { verb: "create", ..asked })?;
        }
        Ok(())
    }

    fn require(&self, caches: &Caches, context: &Context, asked: &Attributes<'_>) -> Result<(), Status> {
        match self.allows(caches, &context.user, asked) {
            true => Ok(()),
            false => Err(forbidden(&context.user, asked)),
        }
    }

    pub fn allows(&self, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> bool {
        if user.groups.iter().any(|group| group == MASTERS) {
            return true;
        }
        let is_open = |open: &str| asked.path == open || asked.path.strip_prefix(open).is_some_and(|rest| rest.starts_with('/'));
        if !asked.is_resource && OPEN_PATHS.iter().any(|open| is_open(open)) {
            return true;
        }
        self.policy(caches).1.allows(user, asked)
    }

    /// The policy of the objects that the cache has now.
    pub fn policy(&self, caches: &Caches) -> Arc<(Revisions, Policy)> {
        let newest = RBAC.map(|plural| rbac_cache(caches, plural).revision());
        if let Some(policy) = self.policy.load_full().filter(|policy| policy.0 == newest) {
            return policy;
        }
        let _one = self.building.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(policy) = self.policy.load_full().filter(|policy| policy.0 == newest) {
            return policy;
        }
        let [roles, cluster_roles, role_bindings, cluster_role_bindings] = RBAC.map(|plural| rbac_objects(caches, plural));
        let objects = Objects { roles, cluster_roles, role_bindings, cluster_role_bindings };
        let policy = Arc::new((newest, Policy::new(&objects)));
        self.policy.store(Some(policy.clone()));
        policy
    }

    /// Nobody grants what they do not have, unless they may `escalate` (roles) or `bind` (bindings). `old` is absent at a create.
    pub fn check_grant(&self, caches: &Caches, context: &Context, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        if kind.facts.group != RBAC_GROUP || context.user.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        // A new object has no namespace of its own yet.
        let namespace = context.info.namespace.as_str();
        let (wanted, verb, resource, role) = match kind.facts.plural {
            "roles" | "clusterroles" if old.is_some_and(|old| old["rules"] == new["rules"]) => return Ok(()),
            "roles" | "clusterroles" => (rbac::rules_of(new), "escalate", kind.facts.plural, meta(new, "name")),
            _ => {
                let cluster = new["roleRef"]["kind"] == "ClusterRole";
                let plural = if cluster { "clusterroles" } else { "roles" };
                let roles = rbac_objects(caches, plural);
                let wanted = rbac::referred(&new["roleRef"], namespace, roles.iter());
                (wanted, "bind", plural, new["roleRef"]["name"].as_str().unwrap_or_default())
            }
        };
        let asked = Attributes { is_resource: true, verb, group: RBAC_GROUP, resource, subresource: "", namespace, name: role, path: "" };
        if self.allows(caches, &context.user, &asked) {
            return Ok(());
        }
        let policy = self.policy(caches);
        let missing = escalation::missing(&wanted, policy.1.rules(&context.user, namespace));
        if missing.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = missing.iter().map(escalation::words).collect();
        let (name, groups) = (&context.user.username, &context.user.groups);
        let why =
            format!("user {name:?} (groups={groups:?}) is attempting to grant RBAC permissions not currently held:\n{}", lines.join("\n"));
        Err(Status::forbidden(&kind.group_resource(), meta(new, "name"), &why))
    }

    /// `Impersonate-*`: the request goes on as somebody else, if its user may do that.
    pub fn impersonate(&self, caches: &Caches, context: &mut Context) -> Result<(), Status> {
        let Some(wanted) = impersonated(&context.headers)? else {
            return Ok(());
        };
        let ask = |resource: &str, group: &str, namespace: &str, sub: &str, name: &str| {
            let asked = Attributes { is_resource: true, verb: "impersonate", group, resource, subresource: sub, namespace, name, path: "" };
            match self.allows(caches, &context.user, &asked) {
                true => Ok(()),
                false => Err(forbidden(&context.user, &asked)),
            }
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
        context.user = complete(wanted);
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

fn rbac_cache(caches: &Caches, plural: &str) -> Arc<crate::cache::Cache> {
    caches.of(format!("/registry/{plural}/").as_bytes())
}

fn rbac_objects(caches: &Caches, plural: &str) -> Vec<Value> {
    let Some(kind) = catalog::stored(RBAC_GROUP, plural) else {
        return Vec::new();
    };
    let selection = Selection::all(kind.prefix(""), kind.storage.rules.clone());
    let page = rbac_cache(caches, plural).list(&selection.prefix, b"", 0, &selection, 0);
    page.objects.iter().map(|object| object.value()).collect()
}
