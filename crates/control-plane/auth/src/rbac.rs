//! Role-based access control: roles and bindings as an index by subject, changed one object at a time.
//!
//! Source: `plugin/pkg/auth/authorizer/rbac`, `pkg/apis/rbac/v1/evaluation_helpers.go`.

use std::collections::HashMap;

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

/// Namespace (empty: a ClusterRole or ClusterRoleBinding) and name.
type Key = (String, String);

/// A subject as bindings name it, service accounts by their user name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

impl Subject {
    /// `namespace` is that of the binding: service accounts may leave theirs out.
    fn parse(subject: &Value, namespace: &str) -> Option<Self> {
        let text = |name: &str| subject[name].as_str().unwrap_or_default();
        match text("kind") {
            "User" => Some(Subject::User(text("name").into())),
            "Group" => Some(Subject::Group(text("name").into())),
            "ServiceAccount" => {
                let namespace = if text("namespace").is_empty() { namespace } else { text("namespace") };
                Some(Subject::User(crate::tokens::username(namespace, text("name"))))
            }
            _ => None,
        }
    }
}

/// A binding as a subject's grant: where its role's rules stand, and its own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grant {
    role: usize,
    binding: usize,
}

/// What subjects may do everywhere, or in one namespace.
#[derive(Debug, Default)]
struct Grants {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

impl Grants {
    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = (Grant, &'static str, &'a str)> {
        let own = self.users.get(&user.username).into_iter().flatten().map(|grant| (*grant, "User", user.username.as_str()));
        let groups = user.groups.iter().filter_map(|group| Some((group, self.groups.get(group)?)));
        own.chain(groups.flat_map(|(group, grants)| grants.iter().map(move |grant| (*grant, "Group", group.as_str()))))
    }
    fn list(&mut self, subject: &Subject) -> &mut Vec<Grant> {
        match subject {
            Subject::User(name) => self.users.entry(name.clone()).or_default(),
            Subject::Group(name) => self.groups.entry(name.clone()).or_default(),
        }
    }
    fn take(&mut self, subject: &Subject, grant: Grant) {
        let (map, name) = match subject {
            Subject::User(name) => (&mut self.users, name),
            Subject::Group(name) => (&mut self.groups, name),
        };
        if let Some(grants) = map.get_mut(name) {
            grants.retain(|held| *held != grant);
            if grants.is_empty() {
                map.remove(name);
            }
        }
    }
}

/// The verbs of a role, as bits: most roles that a user holds say nothing of the verb that is asked, and need no look at their rules, which lie
/// all over the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Verbs(u16);

impl Verbs {
    const NAMES: [&str; 12] =
        ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "bind", "escalate", "impersonate", "use"];

    /// Those that have no bit share the last one.
    fn of(verb: &str) -> Self {
        Self(1 << Self::NAMES.iter().position(|name| *name == verb).unwrap_or(Self::NAMES.len()))
    }

    fn all(rules: &[Rule]) -> Self {
        let verbs = rules.iter().flat_map(|rule| &rule.verbs);
        Self(verbs.fold(0, |bits, verb| bits | if verb == "*" { u16::MAX } else { Self::of(verb).0 }))
    }

    fn meet(self, asked: Self) -> bool {
        self.0 & asked.0 != 0
    }
}

/// One role, known or only referred to.
#[derive(Debug, Default)]
struct Slot {
    key: Key,
    rules: Vec<Rule>,
    verbs: Verbs,
}

#[derive(Debug)]
struct Bound {
    key: Key,
    role: usize,
    subjects: Vec<Subject>,
}

/// All roles and bindings of a moment. A binding to a role that does not exist grants nothing until the role appears.
#[derive(Debug, Default)]
pub struct Policy {
    roles: Vec<Slot>,
    role_ids: HashMap<Key, usize>,
    bindings: Vec<Option<Bound>>,
    binding_ids: HashMap<Key, usize>,
    free: Vec<usize>,
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
    pub fn new(objects: &Objects) -> Self {
        let mut policy = Policy::default();
        for role in objects.roles.iter().chain(&objects.cluster_roles) {
            policy.set_role(meta_text(role, "namespace"), meta_text(role, "name"), Some(role));
        }
        for binding in objects.role_bindings.iter().chain(&objects.cluster_role_bindings) {
            policy.set_binding(meta_text(binding, "namespace"), meta_text(binding, "name"), Some(binding));
        }
        policy
    }

    /// A Role (or, with an empty `namespace`, ClusterRole) is now so, or gone.
    pub fn set_role(&mut self, namespace: &str, name: &str, role: Option<&Value>) {
        let id = self.role_id(namespace, name);
        if let Some(slot) = self.roles.get_mut(id) {
            slot.rules = role.map(rules_of).unwrap_or_default();
            slot.verbs = Verbs::all(&slot.rules);
        }
    }

    fn role_id(&mut self, namespace: &str, name: &str) -> usize {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(id) = self.role_ids.get(&key) {
            return *id;
        }
        self.roles.push(Slot { key: key.clone(), ..Slot::default() });
        self.role_ids.insert(key, self.roles.len() - 1);
        self.roles.len() - 1
    }

    /// A RoleBinding (or, with an empty `namespace`, ClusterRoleBinding) is now so, or gone.
    pub fn set_binding(&mut self, namespace: &str, name: &str, binding: Option<&Value>) {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(id) = self.binding_ids.remove(&key)
            && let Some(old) = self.bindings.get_mut(id).and_then(Option::take)
        {
            let grant = Grant { role: old.role, binding: id };
            old.subjects.iter().for_each(|subject| self.grants(namespace).take(subject, grant));
            self.free.push(id);
        }
        let Some(binding) = binding else { return };
        let role_namespace = if binding["roleRef"]["kind"] == "ClusterRole" { "" } else { namespace };
        let role = self.role_id(role_namespace, binding["roleRef"]["name"].as_str().unwrap_or_default());
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        let mut subjects: Vec<Subject> = subjects.filter_map(|subject| Subject::parse(subject, namespace)).collect();
        subjects.dedup();
        let id = self.free.pop().unwrap_or_else(|| {
            self.bindings.push(None);
            self.bindings.len() - 1
        });
        subjects.iter().for_each(|subject| self.grants(namespace).list(subject).push(Grant { role, binding: id }));
        self.binding_ids.insert(key.clone(), id);
        if let Some(slot) = self.bindings.get_mut(id) {
            *slot = Some(Bound { key, role, subjects });
        }
    }

    fn grants(&mut self, namespace: &str) -> &mut Grants {
        match namespace {
            "" => &mut self.everywhere,
            namespace => self.namespaces.entry(namespace.to_owned()).or_default(),
        }
    }

    fn held<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = (Grant, &'static str, &'a str)> {
        let inside = self.namespaces.get(namespace).filter(|_| !namespace.is_empty());
        self.everywhere.of(user).chain(inside.into_iter().flat_map(|grants| grants.of(user)))
    }

    fn rules_of_role(&self, grant: Grant) -> &[Rule] {
        self.roles.get(grant.role).map_or(&[], |slot| slot.rules.as_slice())
    }

    pub fn allows(&self, user: &UserInfo, asked: &Attributes<'_>) -> bool {
        self.granting(user, asked).is_some()
    }

    /// The first grant that allows it.
    fn granting<'a>(&'a self, user: &'a UserInfo, asked: &Attributes<'_>) -> Option<(Grant, &'static str, &'a str)> {
        let verb = Verbs::of(asked.verb);
        let allows = |slot: &Slot| slot.verbs.meet(verb) && slot.rules.iter().any(|rule| rule.allows(asked));
        self.held(user, asked.namespace).find(|(grant, ..)| self.roles.get(grant.role).is_some_and(allows))
    }

    /// Why it is allowed, in upstream's words; `None` where it is not.
    pub fn reason(&self, user: &UserInfo, asked: &Attributes<'_>) -> Option<String> {
        let (grant, kind, name) = self.granting(user, asked)?;
        let (role, binding) = (&self.roles.get(grant.role)?.key, &self.bindings.get(grant.binding)?.as_ref()?.key);
        let role_kind = if role.0.is_empty() { "ClusterRole" } else { "Role" };
        let bound = match binding.0.as_str() {
            "" => format!("ClusterRoleBinding {:?}", binding.1),
            namespace => format!("RoleBinding {:?}", format!("{}/{namespace}", binding.1)),
        };
        let subject = match crate::tokens::account(name) {
            Some((namespace, account)) if kind == "User" => format!("ServiceAccount {:?}", format!("{account}/{namespace}")),
            _ => format!("{kind} {name:?}"),
        };
        Some(format!("RBAC: allowed by {bound} of {role_kind} {:?} to {subject}", role.1))
    }

    /// Everything that the user may do in the namespace (cluster-wide grants included).
    pub fn rules<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Rule> {
        self.held(user, namespace).flat_map(|(grant, ..)| self.rules_of_role(grant).iter())
    }
}

/// The rules of a role object.
pub fn rules_of(role: &Value) -> Vec<Rule> {
    serde_json::from_value(role["rules"].clone()).unwrap_or_default()
}

fn meta_text<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
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

    #[test]
    fn every_verb_is_told_from_every_other() {
        let jane = UserInfo::authenticated("jane", &[]);
        let binding = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "jane"}]});
        let verbs: Vec<&str> = Verbs::NAMES.into_iter().chain(["sign", "approve", "*", ""]).collect();
        for held in &verbs {
            let mut policy = Policy::default();
            policy.set_role("a", "r", Some(&json!({"rules": [{"verbs": [held], "apiGroups": [""], "resources": ["pods"]}]})));
            policy.set_binding("a", "b", Some(&binding));
            for asked in &verbs {
                let allowed = policy.allows(&jane, &ask(asked, "pods", "a"));
                assert_eq!(allowed, *held == "*" || held == asked, "{held:?} held, {asked:?} asked");
            }
        }
    }

    #[test]
    fn what_changes_one_object_changes_its_grants_only() {
        let jane = UserInfo::authenticated("jane", &[]);
        let binding = |role: &str| json!({"roleRef": {"kind": "Role", "name": role}, "subjects": [{"kind": "User", "name": "jane"}]});
        let role = |verb: &str| json!({"rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]});
        let mut policy = Policy::default();
        let may = |policy: &Policy| ["get", "list"].map(|verb| policy.allows(&jane, &ask(verb, "pods", "a")));
        policy.set_binding("a", "b", Some(&binding("r")));
        assert_eq!(may(&policy), [false, false]);
        policy.set_role("a", "r", Some(&role("get")));
        assert_eq!(may(&policy), [true, false]);
        let why = policy.reason(&jane, &ask("get", "pods", "a")).unwrap();
        assert_eq!(why, "RBAC: allowed by RoleBinding \"b/a\" of Role \"r\" to User \"jane\"");
        policy.set_role("a", "other", Some(&role("list")));
        policy.set_binding("a", "c", Some(&binding("other")));
        policy.set_binding("a", "b", None);
        assert_eq!(may(&policy), [false, true]);
        policy.set_role("a", "other", None);
        assert_eq!(may(&policy), [false, false]);
    }
}
