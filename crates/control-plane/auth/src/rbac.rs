//! Role-based access control: roles and bindings as an index by subject.
//!
//! Source: `plugin/pkg/auth/authorizer/rbac`, `pkg/apis/rbac/v1/evaluation_helpers.go`.

use std::collections::HashMap;
use std::sync::Arc;

use meta::selector::LabelSelector;
use serde_json::Value;

use crate::UserInfo;
use crate::authorize::Attributes;

/// A `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|entry| entry == "*" || entry == wanted);
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        if !asked.is_resource {
            return self.non_resource_urls.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => asked.path.starts_with(prefix),
                None => pattern == asked.path,
            });
        }
        has(&self.api_groups, asked.group)
            && self.resources.iter().any(|pattern| resource_matches(pattern, asked))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == asked.name))
    }
}

/// `pods`, `pods/log`, `*`, `*/scale`.
fn resource_matches(pattern: &str, asked: &Attributes<'_>) -> bool {
    let (resource, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
    match (resource, sub) {
        ("*", "") => true,
        ("*", sub) => sub == asked.subresource,
        (resource, sub) => resource == asked.resource && sub == asked.subresource,
    }
}

type Rules = Arc<[Rule]>;

/// What subjects may do: everywhere, and in one namespace.
#[derive(Default)]
struct Grants {
    users: HashMap<String, Vec<Rules>>,
    groups: HashMap<String, Vec<Rules>>,
}

impl Grants {
    fn grant(&mut self, subjects: &Value, namespace: &str, rules: &Rules) {
        for subject in subjects.as_array().into_iter().flatten() {
            let text = |name: &str| subject[name].as_str().unwrap_or_default();
            let name = text("name").to_owned();
            match text("kind") {
                "User" => self.users.entry(name).or_default().push(rules.clone()),
                "Group" => self.groups.entry(name).or_default().push(rules.clone()),
                "ServiceAccount" => {
                    let namespace = if text("namespace").is_empty() { namespace } else { text("namespace") };
                    self.users.entry(crate::tokens::username(namespace, &name)).or_default().push(rules.clone());
                }
                _ => {}
            }
        }
    }

    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a Rule> {
        let own = self.users.get(&user.username).into_iter().flatten();
        let groups = user.groups.iter().filter_map(|group| self.groups.get(group)).flatten();
        own.chain(groups).flat_map(|rules| rules.iter())
    }
}

/// All bindings of a moment. Immutable: a change makes a new one.
#[derive(Default)]
pub struct Policy {
    everywhere: Grants,
    namespaces: HashMap<String, Grants>,
}

/// The RBAC objects, as trees.
#[derive(Default)]
pub struct Objects {
    pub roles: Vec<Value>,
    pub cluster_roles: Vec<Value>,
    pub role_bindings: Vec<Value>,
    pub cluster_role_bindings: Vec<Value>,
}

impl Policy {
    /// Bindings to roles that do not exist grant nothing.
    pub fn new(objects: &Objects) -> Self {
        let cluster_roles: HashMap<&str, Rules> =
            objects.cluster_roles.iter().map(|role| (meta_text(role, "name"), cluster_rules(role, &objects.cluster_roles))).collect();
        let roles: HashMap<(&str, &str), Rules> =
            objects.roles.iter().map(|role| ((meta_text(role, "namespace"), meta_text(role, "name")), rules(role).into())).collect();
        let mut policy = Policy::default();
        for binding in &objects.cluster_role_bindings {
            if let Some(rules) = cluster_roles.get(role_name(binding)) {
                policy.everywhere.grant(&binding["subjects"], "", rules);
            }
        }
        for binding in &objects.role_bindings {
            let namespace = meta_text(binding, "namespace");
            let rules = match binding["roleRef"]["kind"].as_str() {
                Some("ClusterRole") => cluster_roles.get(role_name(binding)),
                _ => roles.get(&(namespace, role_name(binding))),
            };
            if let Some(rules) = rules {
                policy.namespaces.entry(namespace.to_owned()).or_default().grant(&binding["subjects"], namespace, rules);
            }
        }
        policy
    }

    pub fn allows(&self, user: &UserInfo, asked: &Attributes<'_>) -> bool {
        self.rules(user, asked.namespace).any(|rule| rule.allows(asked))
    }

    /// Everything that the user may do in the namespace (cluster-wide grants included).
    pub fn rules<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Rule> {
        let inside = self.namespaces.get(namespace).filter(|_| !namespace.is_empty());
        self.everywhere.of(user).chain(inside.into_iter().flat_map(|grants| grants.of(user)))
    }
}

/// The rules of the role that a binding in `namespace` (empty: cluster-wide) refers to.
pub fn referred<'a>(role_ref: &Value, namespace: &str, roles: impl Iterator<Item = &'a Value>) -> Vec<Rule> {
    let cluster = role_ref["kind"] == "ClusterRole";
    let name = role_ref["name"].as_str().unwrap_or_default();
    let all: Vec<&Value> = roles.collect();
    let wanted = |role: &&&Value| meta_text(role, "name") == name && (cluster || meta_text(role, "namespace") == namespace);
    all.iter().find(wanted).map(|role| rules(role)).unwrap_or_default()
}

/// The rules of a role object.
pub fn rules_of(role: &Value) -> Vec<Rule> {
    rules(role)
}

fn meta_text<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
}

fn role_name(binding: &Value) -> &str {
    binding["roleRef"]["name"].as_str().unwrap_or_default()
}

fn rules(role: &Value) -> Vec<Rule> {
    serde_json::from_value(role["rules"].clone()).unwrap_or_default()
}

/// An aggregated role has the rules of all that its selectors choose, beside its own.
fn cluster_rules(role: &Value, all: &[Value]) -> Rules {
    let mut found = rules(role);
    for selector in role["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten() {
        let Ok(selector) = LabelSelector::from_object(selector) else { continue };
        let chosen = all.iter().filter(|other| selector.matches_object(&other["metadata"]["labels"]));
        found.extend(chosen.flat_map(rules));
    }
    found.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask<'a>(verb: &'a str, resource: &'a str, namespace: &'a str) -> Attributes<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes { is_resource: true, verb, resource, subresource, namespace, ..Attributes::default() }
    }

    #[test]
    fn grants_reach_as_far_as_their_binding() {
        let reader = json!({"metadata": {"name": "reader"}, "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]});
        let subject = |kind: &str, name: &str| json!([{"kind": kind, "name": name}]);
        let objects = Objects {
            cluster_roles: vec![reader],
            role_bindings: vec![
                json!({"metadata": {"name": "b", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": subject("User", "jane")}),
                json!({"metadata": {"name": "c", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": subject("ServiceAccount", "bot")}),
                json!({"metadata": {"name": "d", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "absent"}, "subjects": subject("User", "joe")}),
            ],
            cluster_role_bindings: vec![
                json!({"metadata": {"name": "e"}, "roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": subject("Group", "ops")}),
            ],
            ..Objects::default()
        };
        let policy = Policy::new(&objects);
        let user = |name: &str, groups: &[&str]| UserInfo::authenticated(name, groups);
        let cases = [
            ("jane", &[][..], ask("get", "pods", "a"), true),
            ("jane", &[], ask("get", "pods/log", "a"), true),
            ("jane", &[], ask("get", "pods/exec", "a"), false),
            ("jane", &[], ask("get", "pods", "b"), false),
            ("jane", &[], ask("list", "pods", ""), false),
            ("jane", &[], ask("delete", "pods", "a"), false),
            ("system:serviceaccount:a:bot", &[], ask("get", "pods", "a"), true),
            ("joe", &[], ask("get", "pods", "a"), false),
            ("joe", &["ops"], ask("list", "pods", ""), true),
        ];
        for (name, groups, asked, allowed) in cases {
            assert_eq!(policy.allows(&user(name, groups), &asked), allowed, "{name} {asked:?}");
        }
    }

    #[test]
    fn wildcards_names_and_paths_select() {
        let rule = |value: Value| serde_json::from_value::<Rule>(value).unwrap();
        let path = Attributes { verb: "get", path: "/healthz/etcd", ..Attributes::default() };
        assert!(rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz/*"]})).allows(&path));
        assert!(!rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]})).allows(&path));
        assert!(rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})).allows(&ask("update", "nodes/status", "")));
        assert!(rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*/scale"]})).allows(&ask(
            "update",
            "deployments/scale",
            ""
        )));
        let named = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s"]}));
        assert!(named.allows(&Attributes { name: "s", ..ask("get", "secrets", "a") }));
        assert!(!named.allows(&ask("list", "secrets", "a")));
    }
}
