//! Nobody grants what they do not have, unless they may `escalate` (roles) or `bind` (bindings).
//!
//! Source: `pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased`.

use auth::authorize::Attributes;
use auth::escalation;
use auth::rbac::{Rule, rules_of};
use meta::Status;
use serde_json::Value;

use super::authorizer::RBAC_GROUP;
use super::{Access, MASTERS};
use crate::cache::Caches;
use crate::context::Context;
use crate::object::meta;
use crate::registry::catalog::{self, Kind};
use crate::selection::Selection;

impl Access {
    /// `old` is absent at a create.
    pub fn check_grant(&self, caches: &Caches, context: &Context, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        if kind.facts.group != RBAC_GROUP || context.user.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        // A new object has no namespace of its own yet.
        let namespace = context.info.namespace.as_str();
        match kind.facts.plural {
            "roles" | "clusterroles" => self.check_role(caches, context, kind, new, old),
            _ if old.is_some_and(|old| old["roleRef"] == new["roleRef"] && old["subjects"] == new["subjects"]) => Ok(()),
            _ => {
                let cluster = new["roleRef"]["kind"] == "ClusterRole";
                let (plural, within) = if cluster { ("clusterroles", "") } else { ("roles", namespace) };
                let role = new["roleRef"]["name"].as_str().unwrap_or_default();
                if self.may(caches, context, "bind", plural, role) {
                    return Ok(());
                }
                let Some(wanted) = role_rules(caches, plural, within, role) else {
                    let resource = meta::GroupResource { group: RBAC_GROUP.into(), resource: plural.into() };
                    return Err(Status::not_found(&resource, role));
                };
                self.confirm(context, kind, new, &wanted)
            }
        }
    }

    fn check_role(&self, caches: &Caches, context: &Context, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        let same = |field: &str| old.is_some_and(|old| old[field] == new[field]);
        if same("rules") && same("aggregationRule") {
            return Ok(());
        }
        if self.may(caches, context, "escalate", kind.facts.plural, meta(new, "name")) {
            return Ok(());
        }
        let gathers = |object: &Value| object["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|list| !list.is_empty());
        if gathers(new) || old.is_some_and(gathers) {
            let why = "must have cluster-admin privileges to use an aggregationRule";
            self.confirm(context, kind, new, &escalation::everything())
                .map_err(|_| Status::forbidden(&kind.group_resource(), meta(new, "name"), why))?;
        }
        self.confirm(context, kind, new, &rules_of(new))
    }

    fn may(&self, caches: &Caches, context: &Context, verb: &str, resource: &str, name: &str) -> bool {
        let namespace = context.info.namespace.as_str();
        let asked =
            Attributes { is_resource: true, verb, group: RBAC_GROUP, version: "v1", resource, namespace, name, ..Attributes::default() };
        self.allows(caches, &context.user, &asked)
    }

    /// The writer has all of `wanted`.
    fn confirm(&self, context: &Context, kind: &Kind, new: &Value, wanted: &[Rule]) -> Result<(), Status> {
        let (user, namespace) = (&context.user, context.info.namespace.as_str());
        let missing = self.authorizer.with_policy(|policy| escalation::missing(wanted, policy.rules(user, namespace)));
        if missing.is_empty() {
            return Ok(());
        }
        let (name, groups) = (&user.username, escalation::quoted(&user.groups));
        let lines = escalation::words(&missing);
        let why = format!("user {name:?} (groups={groups}) is attempting to grant RBAC permissions not currently held:\n{lines}");
        Err(Status::forbidden(&kind.group_resource(), meta(new, "name"), &why))
    }
}

fn role_rules(caches: &Caches, plural: &str, namespace: &str, name: &str) -> Option<Vec<Rule>> {
    let kind = catalog::stored(RBAC_GROUP, plural)?;
    let role = caches.of(kind.storage.prefix.as_bytes()).get(&kind.key(namespace, name))?;
    Some(rules_of(&role.value()))
}

/// All objects of a resource that the cache has.
pub fn objects(caches: &Caches, group: &str, plural: &str) -> Vec<Value> {
    let Some(kind) = catalog::stored(group, plural) else {
        return Vec::new();
    };
    let selection = Selection::all(kind.prefix(""), kind.storage.rules.clone());
    let page = caches.of(kind.storage.prefix.as_bytes()).list(&selection.prefix, b"", 0, &selection, 0);
    page.objects.iter().map(|object| object.value()).collect()
}
