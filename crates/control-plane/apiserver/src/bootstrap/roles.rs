//! The default ClusterRoles, Roles and their bindings, as upstream names them: made at the first start, repaired at every other.
//!
//! [`cluster`], [`controllers`] and [`namespaced`] are tables of facts; here they become objects. In a table a rule is four lists of
//! words: verbs, groups (`core` for the group without a name), resources, resource names.
//!
//! Source: `plugin/pkg/auth/authorizer/rbac/bootstrappolicy`.

mod cluster;
mod controllers;
mod namespaced;

use auth::escalation;
use auth::rbac::{Rule, rules_of};
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// (resource, object), in the order in which they are to be made.
pub fn all() -> Vec<(&'static str, Value)> {
    let mut objects: Vec<(&'static str, Value)> = cluster::roles().into_iter().map(|role| ("clusterroles", role)).collect();
    objects.extend(controllers::roles().into_iter().map(|role| ("clusterroles", role)));
    objects.extend(cluster::bindings().into_iter().map(|binding| ("clusterrolebindings", binding)));
    objects.extend(controllers::bindings().into_iter().map(|binding| ("clusterrolebindings", binding)));
    objects.extend(namespaced::roles().into_iter().map(|role| ("roles", role)));
    objects.extend(namespaced::bindings().into_iter().map(|binding| ("rolebindings", binding)));
    objects
}

/// The static rules of all nodes, for the Node authorizer.
pub fn of_nodes() -> Vec<Rule> {
    rules_of(&json!({"rules": words(cluster::NODE)}))
}

/// Rules that the role does not cover and subjects that are missing are added, and so are labels and annotations, unless the object
/// opts out by its annotation. What an aggregated role holds is its controller's business.
pub fn repair(old: &mut Value, wanted: &Value) {
    if old["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return;
    }
    for map in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][map].as_object().into_iter().flatten() {
            if old["metadata"][map][key] != *value {
                old["metadata"][map][key] = value.clone();
            }
        }
    }
    if !wanted["aggregationRule"].is_null() {
        old["aggregationRule"] = wanted["aggregationRule"].clone();
    } else if wanted["rules"].is_array() && !escalation::missing(&rules_of(wanted), rules_of(old).iter()).is_empty() {
        let held = rules_of(old);
        let lacking = wanted["rules"].as_array().into_iter().flatten();
        let lacking = lacking.filter(|rule| !escalation::missing(&rules_of(&json!({"rules": [rule]})), held.iter()).is_empty());
        join(&mut old["rules"], lacking.cloned().collect());
    }
    let subjects = wanted["subjects"].as_array().into_iter().flatten();
    let known = old["subjects"].as_array().cloned().unwrap_or_default();
    let missing: Vec<Value> = subjects.filter(|subject| !known.contains(subject)).cloned().collect();
    if !missing.is_empty() {
        join(&mut old["subjects"], missing);
    }
}

fn join(list: &mut Value, more: Vec<Value>) {
    match list.as_array_mut() {
        Some(have) => have.extend(more),
        None => *list = more.into(),
    }
}

/// One rule of a table.
#[derive(Clone, Copy)]
struct Words {
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
}

/// Verbs, groups, resources.
const fn rule(verbs: &'static str, groups: &'static str, resources: &'static str) -> Words {
    Words { verbs, groups, resources, names: "" }
}

impl Words {
    const fn named(self, names: &'static str) -> Self {
        Self { names, ..self }
    }
}

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const ALL: &str = "create delete deletecollection get list patch update watch";
const EVENTS: Words = rule("create patch update", "core events.k8s.io", "events");

/// Rules as upstream writes them: every list sorted.
fn words(rules: &[Words]) -> Vec<Value> {
    let sorted = |text: &str| {
        let mut list: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
        list.sort_unstable();
        list.into_iter().map(|word| if word == "core" { "" } else { word }).map(Value::from).collect::<Vec<_>>()
    };
    let write = |rule: &Words| {
        let mut object = json!({"verbs": sorted(rule.verbs), "apiGroups": sorted(rule.groups), "resources": sorted(rule.resources)});
        if let Some(groups) = object["apiGroups"].as_array_mut() {
            groups.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
        if !rule.names.is_empty() {
            object["resourceNames"] = sorted(rule.names).into();
        }
        object
    };
    rules.iter().map(write).collect()
}

fn paths(paths: &[&str]) -> Value {
    json!({"verbs": ["get"], "nonResourceURLs": paths})
}

fn labelled(name: &str) -> Value {
    json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}, "annotations": {(AUTOUPDATE): "true"}})
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"metadata": labelled(name), "rules": rules})
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "apiGroup": RBAC, "name": name})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "apiGroup": RBAC, "name": name})
}

/// A service account of kube-system.
fn account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"})
}

fn binding(name: &str, kind: &str, role: &str, subjects: Vec<Value>) -> Value {
    json!({"metadata": labelled(name), "roleRef": {"apiGroup": RBAC, "kind": kind, "name": role}, "subjects": subjects})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairing_adds_what_is_missing_and_takes_nothing_away() {
        let wanted = role("r", words(&[rule("get list", "core", "pods"), rule("get", "core", "nodes")]));
        let mut old = role("r", words(&[rule("*", "core", "pods"), rule("get", "core", "secrets")]));
        old["metadata"]["labels"] = json!({"mine": "yes"});
        repair(&mut old, &wanted);
        assert_eq!(old["rules"], json!(words(&[rule("*", "core", "pods"), rule("get", "core", "secrets"), rule("get", "core", "nodes")])));
        assert_eq!(old["metadata"]["labels"], json!({"mine": "yes", "kubernetes.io/bootstrapping": "rbac-defaults"}));
        let repaired = old.clone();
        repair(&mut old, &wanted);
        assert_eq!(old, repaired);
        let mut own = role("r", vec![]);
        own["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        let before = own.clone();
        repair(&mut own, &wanted);
        assert_eq!(own, before);
    }

    #[test]
    fn no_default_role_but_the_administrators_may_do_everything() {
        for (_, object) in all().into_iter().filter(|(plural, _)| *plural == "clusterroles") {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let wide = escalation::missing(&escalation::everything(), rules_of(&object).iter()).is_empty();
            assert_eq!(wide, name == "cluster-admin", "{name}");
        }
    }
}
