//! rbac.authorization.k8s.io/v1: Role, ClusterRole, RoleBinding, ClusterRoleBinding.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, immutable, label_selector, sentences};
use crate::printing::{self, AGE, NAME, shown, wide};
use crate::value::{at, items_mut, list, set_default_text, sub, text};
use crate::{Column, Part, Rules};

pub struct Role;
pub struct ClusterRole;
pub struct RoleBinding;
pub struct ClusterRoleBinding;

const GROUP: &str = "rbac.authorization.k8s.io";

const ROLE_COLUMNS: &[Column] = &[NAME, shown("Created At", "date", "When the object was created.")];

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    shown("Role", "string", "What is granted."),
    AGE,
    wide("Users", "string", "Users to whom it is granted."),
    wide("Groups", "string", "Groups to whom it is granted."),
    wide("ServiceAccounts", "string", "Service accounts to whom it is granted."),
];

impl Rules for Role {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        (GROUP, "v1", "Role")
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        policy_rules(object, true)
    }
    fn columns(&self) -> &'static [Column] {
        ROLE_COLUMNS
    }
    fn cells(&self, object: &Value, _now: i64) -> Vec<Value> {
        vec![printing::name(object), printing::created_at(object)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}

impl Rules for ClusterRole {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        (GROUP, "v1", "ClusterRole")
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let mut errors = policy_rules(object, false);
        if !at(object, "aggregationRule").is_null() {
            let path = Path::new("aggregationRule").child("clusterRoleSelectors");
            let selectors = list(object, "aggregationRule.clusterRoleSelectors");
            if selectors.is_empty() {
                errors.push(Error::required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil"));
            }
            for (index, selector) in selectors.iter().enumerate() {
                errors.extend(label_selector(selector, &path.index(index)));
            }
        }
        errors
    }
    fn columns(&self) -> &'static [Column] {
        ROLE_COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        Role.cells(object, now)
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}

impl Rules for RoleBinding {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        (GROUP, "v1", "RoleBinding")
    }
    fn default(&self, object: &mut Value) {
        binding_defaults(object);
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        binding(object, &["ClusterRole", "Role"])
    }
    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Error> {
        role_unchanged(new, old)
    }
    fn columns(&self) -> &'static [Column] {
        BINDING_COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        binding_cells(object, now)
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}

impl Rules for ClusterRoleBinding {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        (GROUP, "v1", "ClusterRoleBinding")
    }
    fn default(&self, object: &mut Value) {
        binding_defaults(object);
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        binding(object, &["ClusterRole"])
    }
    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Error> {
        role_unchanged(new, old)
    }
    fn columns(&self) -> &'static [Column] {
        BINDING_COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        binding_cells(object, now)
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }
    fn create_on_update(&self) -> bool {
        true
    }
}

fn policy_rules(object: &Value, namespaced: bool) -> Errors {
    let mut errors = Errors::new();
    for (index, rule) in list(object, "rules").iter().enumerate() {
        let path = Path::new("rules").index(index);
        if list(rule, "verbs").is_empty() {
            errors.push(Error::required(&path.child("verbs"), "verbs must contain at least one value"));
        }
        let urls = list(rule, "nonResourceURLs");
        if !urls.is_empty() {
            let here = path.child("nonResourceURLs");
            if namespaced {
                let sentence = "namespaced rules cannot apply to non-resource URLs";
                errors.push(Error::invalid(&here, urls.to_vec(), sentence));
            }
            let resources = ["apiGroups", "resources", "resourceNames"].iter().any(|field| !list(rule, field).is_empty());
            if resources {
                let sentence = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(Error::invalid(&here, urls.to_vec(), sentence));
            }
            continue;
        }
        if list(rule, "apiGroups").is_empty() {
            errors.push(Error::required(&path.child("apiGroups"), "resource rules must supply at least one api group"));
        }
        if list(rule, "resources").is_empty() {
            errors.push(Error::required(&path.child("resources"), "resource rules must supply at least one resource"));
        }
    }
    errors
}

fn binding_defaults(object: &mut Value) {
    if let Some(role) = sub(object, "roleRef") {
        set_default_text(role, "apiGroup", GROUP);
    }
    for subject in items_mut(object, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            set_default_text(subject, "apiGroup", GROUP);
        }
    }
}

fn binding(object: &Value, kinds: &[&str]) -> Errors {
    let (role, path) = (at(object, "roleRef"), Path::new("roleRef"));
    let mut errors = Errors::new();
    if text(role, "apiGroup") != GROUP {
        errors.push(Error::not_supported(&path.child("apiGroup"), text(role, "apiGroup"), &[GROUP]));
    }
    if !kinds.contains(&text(role, "kind")) {
        errors.push(Error::not_supported(&path.child("kind"), text(role, "kind"), kinds));
    }
    match text(role, "name") {
        "" => errors.push(Error::required(&path.child("name"), "")),
        name => errors.extend(sentences(&path.child("name"), name, names::path_segment(name))),
    }
    let namespaced = kinds.contains(&"Role");
    for (index, one) in list(object, "subjects").iter().enumerate() {
        errors.extend(subject(one, namespaced, &Path::new("subjects").index(index)));
    }
    errors
}

fn subject(subject: &Value, namespaced: bool, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (group, name) = (text(subject, "apiGroup"), text(subject, "name"));
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                errors.extend(sentences(&path.child("name"), name, names::dns1123_subdomain(name)));
            }
            if !group.is_empty() {
                errors.push(Error::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                errors.push(Error::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" if group != GROUP => errors.push(Error::not_supported(&path.child("apiGroup"), group, &[GROUP])),
        "User" | "Group" => {}
        other => errors.push(Error::not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"])),
    }
    errors
}

/// Who may bind one role must not get to bind another by an update.
fn role_unchanged(new: &Value, old: &Value) -> Errors {
    let errors = immutable(&Path::new("roleRef"), at(new, "roleRef"), at(old, "roleRef"));
    errors.into_iter().map(|error| Error { detail: "cannot change roleRef".into(), ..error }).collect()
}

fn binding_cells(object: &Value, now: i64) -> Vec<Value> {
    let role = at(object, "roleRef");
    let named = |kind: &str| {
        let found = list(object, "subjects").iter().filter(|subject| text(subject, "kind") == kind);
        let words: Vec<String> = found
            .map(|subject| match text(subject, "namespace") {
                namespace if kind == "ServiceAccount" => format!("{namespace}/{}", text(subject, "name")),
                _ => text(subject, "name").to_owned(),
            })
            .collect();
        Value::from(words.join(", "))
    };
    vec![
        printing::name(object),
        format!("{}/{}", text(role, "kind"), text(role, "name")).into(),
        printing::age(object, now),
        named("User"),
        named("Group"),
        named("ServiceAccount"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(errors: Vec<Error>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_name_verbs_and_resources_or_urls() {
        let object = json!({"rules": [{"verbs": [], "apiGroups": [""], "resources": ["pods"]}, {"verbs": ["get"]},
            {"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]});
        let common = [
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[1].apiGroups: Required value: resource rules must supply at least one api group",
            "rules[1].resources: Required value: resource rules must supply at least one resource",
        ];
        assert_eq!(lines(ClusterRole.validate(&object)), common);
        let last = "rules[2].nonResourceURLs: Invalid value: [\"/healthz\"]: namespaced rules cannot apply to non-resource URLs";
        assert_eq!(lines(Role.validate(&object))[3], last);
    }

    #[test]
    fn bindings_are_filled_in_and_never_change_their_role() {
        let mut object = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "a"}]});
        ClusterRoleBinding.default(&mut object);
        assert_eq!(lines(ClusterRoleBinding.validate(&object)), Vec::<String>::new());
        let mut new = object.clone();
        new["roleRef"]["name"] = "admin".into();
        let expected = "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"ClusterRole\",\"name\":\"admin\"}: \
                        cannot change roleRef";
        assert_eq!(lines(ClusterRoleBinding.validate_update(&new, &object, Part::Main)), [expected]);
        assert_eq!(ClusterRoleBinding.cells(&object, 0)[3..], ["u", "", "a/s"].map(Value::from));
        let bad =
            json!({"roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "x"}, "subjects": [{"kind": "ServiceAccount", "name": "s"}]});
        assert_eq!(
            lines(ClusterRoleBinding.validate(&bad)),
            ["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"", "subjects[0].namespace: Required value"]
        );
    }
}
