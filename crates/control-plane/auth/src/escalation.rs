//! Nobody grants what they do not have: which rules of a role its author lacks.
//!
//! Source: `pkg/registry/rbac/validation/rule.go`, `policy_compact.go`.

use crate::rbac::Rule;

/// The rules of `wanted` that `held` does not cover, each broken down to one verb on one thing.
pub fn missing<'a>(wanted: &[Rule], held: impl Iterator<Item = &'a Rule>) -> Vec<Rule> {
    let held: Vec<&Rule> = held.collect();
    wanted.iter().flat_map(break_down).filter(|one| !held.iter().any(|rule| covers(rule, one))).collect()
}

/// One verb, one group, one resource and at most one name each.
fn break_down(rule: &Rule) -> Vec<Rule> {
    let one = |text: &String| vec![text.clone()];
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        for path in &rule.non_resource_urls {
            parts.push(Rule { verbs: one(verb), non_resource_urls: one(path), ..Rule::default() });
        }
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let part = Rule { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Rule::default() };
                if rule.resource_names.is_empty() {
                    parts.push(part);
                    continue;
                }
                parts.extend(rule.resource_names.iter().map(|name| Rule { resource_names: one(name), ..part.clone() }));
            }
        }
    }
    parts
}

fn covers(held: &Rule, part: &Rule) -> bool {
    let has = |list: &[String], wanted: &[String]| wanted.iter().all(|wanted| list.iter().any(|have| have == "*" || have == wanted));
    let path = |wanted: &String| {
        held.non_resource_urls.iter().any(|have| have == wanted || have.strip_suffix('*').is_some_and(|prefix| wanted.starts_with(prefix)))
    };
    let resource = |wanted: &String| {
        let sub = wanted.split_once('/').map(|(_, sub)| format!("*/{sub}"));
        held.resources.iter().any(|have| have == "*" || have == wanted || Some(have) == sub.as_ref())
    };
    let names = held.resource_names.is_empty() || (!part.resource_names.is_empty() && has(&held.resource_names, &part.resource_names));
    has(&held.verbs, &part.verbs)
        && has(&held.api_groups, &part.api_groups)
        && part.resources.iter().all(resource)
        && part.non_resource_urls.iter().all(path)
        && names
}

/// The rule as upstream prints it: `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`.
pub fn words(rule: &Rule) -> String {
    let list = |name: &str, values: &[String]| (!values.is_empty()).then(|| format!("{name}:{values:?}"));
    let parts = [
        list("APIGroups", &rule.api_groups),
        list("Resources", &rule.resources),
        list("ResourceNames", &rule.resource_names),
        list("NonResourceURLs", &rule.non_resource_urls),
        list("Verbs", &rule.verbs),
    ];
    format!("{{{}}}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn rules(value: Value) -> Vec<Rule> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_not_held_is_named() {
        let held = rules(json!([
            {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]},
            {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]},
            {"verbs": ["get"], "nonResourceURLs": ["/metrics*"]},
        ]));
        let cases = [
            (json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]), ""),
            (
                json!([{"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]}]),
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#,
            ),
            (json!([{"verbs": ["update"], "apiGroups": ["apps"], "resources": ["deployments/scale"]}]), ""),
            (json!([{"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}]), r#"{APIGroups:[""], Resources:["pods"], Verbs:["*"]}"#),
            (
                json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}]),
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#,
            ),
            (json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}]), ""),
            (json!([{"verbs": ["get"], "nonResourceURLs": ["/metrics/slis"]}]), ""),
        ];
        for (wanted, named) in cases {
            let found: Vec<String> = missing(&rules(wanted.clone()), held.iter()).iter().map(words).collect();
            assert_eq!(found.join(" "), named, "{wanted}");
        }
    }
}
