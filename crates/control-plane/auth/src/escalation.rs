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

/// Everything there is: who has less may not make a role that gathers rules by label.
pub fn everything() -> Vec<Rule> {
    let all = || vec!["*".to_owned()];
    vec![
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
    ]
}

/// The rules as upstream prints them, one a line and sorted, the verbs on one resource together:
/// `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get" "list"]}`.
pub fn words(rules: &[Rule]) -> String {
    let mut together: Vec<Rule> = Vec::new();
    for rule in rules {
        let simple = rule.non_resource_urls.is_empty();
        let same = |other: &&mut Rule| Rule { verbs: Vec::new(), ..(**other).clone() } == Rule { verbs: Vec::new(), ..rule.clone() };
        match together.iter_mut().find(same).filter(|_| simple) {
            Some(other) => other.verbs.extend(rule.verbs.iter().cloned()),
            None => together.push(rule.clone()),
        }
    }
    let mut lines: Vec<String> = together.iter().map(line).collect();
    lines.sort();
    lines.dedup();
    lines.join("\n")
}

/// Go's `%q` of a list of strings.
pub fn quoted(values: &[String]) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("[{}]", values.join(" "))
}

fn line(rule: &Rule) -> String {
    let list = |name: &str, values: &[String]| (!values.is_empty()).then(|| format!("{name}:{}", quoted(values)));
    let parts = [
        list("APIGroups", &rule.api_groups),
        list("Resources", &rule.resources),
        list("NonResourceURLs", &rule.non_resource_urls),
        list("ResourceNames", &rule.resource_names),
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
            (
                json!([{"verbs": ["delete", "patch"], "apiGroups": [""], "resources": ["pods", "nodes"]}]),
                "{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"delete\" \"patch\"]}\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"patch\"]}",
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
            assert_eq!(words(&missing(&rules(wanted.clone()), held.iter())), named, "{wanted}");
        }
    }
}
