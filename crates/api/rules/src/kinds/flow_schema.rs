//! flowcontrol.apiserver.k8s.io/v1 FlowSchema.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, required, supported};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, or_none, shown};
use crate::value::{at, flag, has, int, list, name, set, text};

pub const FLOW_SCHEMA: Plain = Plain {
    status_keeps_metadata: true,
    default: |object| {
        if int(object, "spec.matchingPrecedence").unwrap_or(0) == 0 && has(object, "spec") {
            set(object, "spec.matchingPrecedence", 1000);
        }
    },
    validate,
    counts_generation: true,
    ..Plain::new(
        ("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema"),
        &[
            NAME,
            shown("PriorityLevel", "string", "Level that its requests get."),
            shown("MatchingPrecedence", "string", "The order in which schemas are asked."),
            shown("DistinguisherMethod", "string", "What makes flows of its requests."),
            AGE,
            shown("MissingPL", "string", "Whether the level does not exist."),
        ],
        |object, now| {
            let dangling = list(object, "status.conditions").iter().find(|condition| text(condition, "type") == "Dangling");
            vec![
                or_none(object, "spec.priorityLevelConfiguration.name"),
                int(object, "spec.matchingPrecedence").unwrap_or(0).into(),
                or_none(object, "spec.distinguisherMethod.type"),
                printing::age(object, now),
                dangling.map_or("?", |condition| text(condition, "status")).into(),
            ]
        },
    )
};

fn validate(object: &Value) -> Errors {
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors = Errors::new();
    let (precedence, here) = (int(spec, "matchingPrecedence").unwrap_or(0), path.child("matchingPrecedence"));
    if precedence <= 0 {
        errors.push(Error::invalid(&here, precedence, "must be a positive value"));
    }
    if precedence > 10000 {
        errors.push(Error::invalid(&here, precedence, "must not be greater than 10000"));
    }
    if precedence == 1 && name(object) != "exempt" {
        let sentence = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.push(Error::invalid(&here, precedence, sentence));
    }
    let method = at(spec, "distinguisherMethod");
    errors.extend(supported(method, &path.child("distinguisherMethod"), "type", &["ByNamespace", "ByUser"]));
    let (level, here) = (text(spec, "priorityLevelConfiguration.name"), path.dotted("priorityLevelConfiguration.name"));
    match level {
        "" => errors.push(Error::required(&here, "must reference a priority level")),
        level => errors.extend(crate::checks::sentences(&here, level, names::dns1123_subdomain(level))),
    }
    for (index, rule) in list(spec, "rules").iter().enumerate() {
        errors.extend(rule_errors(rule, &path.child("rules").index(index)));
    }
    errors
}

fn rule_errors(rule: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if list(rule, "subjects").is_empty() {
        errors.push(Error::required(&path.child("subjects"), "subjects must contain at least one value"));
    }
    for (index, subject) in list(rule, "subjects").iter().enumerate() {
        errors.extend(subject_errors(subject, &path.child("subjects").index(index)));
    }
    let (resources, others) = (list(rule, "resourceRules"), list(rule, "nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        let sentence = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(Error::required(path, sentence));
    }
    for (index, rule) in resources.iter().enumerate() {
        errors.extend(resource_rule(rule, &path.child("resourceRules").index(index)));
    }
    for (index, rule) in others.iter().enumerate() {
        let here = path.child("nonResourceRules").index(index);
        errors.extend(words(rule, "verbs", "verbs", "verbs must contain at least one value", &here));
        let sentence = "nonResourceURLs must contain at least one value";
        errors.extend(words(rule, "nonResourceURLs", "non-resource URLs", sentence, &here));
    }
    errors
}

fn subject_errors(subject: &Value, path: &Path) -> Errors {
    const FIELDS: [(&str, &str); 3] = [("User", "user"), ("Group", "group"), ("ServiceAccount", "serviceAccount")];
    let kind = text(subject, "kind");
    let mut errors = Errors::new();
    if !FIELDS.iter().any(|(known, _)| *known == kind) {
        return vec![Error::not_supported(&path.child("kind"), kind, &["Group", "ServiceAccount", "User"])];
    }
    for (known, field) in FIELDS {
        let here = path.child(field);
        match (kind == known, has(subject, field)) {
            (true, false) => errors.push(Error::required(&here, format!("{field} is required when subject kind is '{known}'"))),
            (false, true) => {
                errors.push(Error::forbidden(&here, format!("{field} is forbidden when subject kind is not '{known}'")));
            }
            (true, true) => {
                errors.extend(required(at(subject, field), &here, "name"));
                if known == "ServiceAccount" {
                    errors.extend(required(at(subject, field), &here, "namespace"));
                }
            }
            (false, false) => {}
        }
    }
    errors
}

fn resource_rule(rule: &Value, path: &Path) -> Errors {
    let mut errors = words(rule, "verbs", "verbs", "verbs must contain at least one value", path);
    errors.extend(words(rule, "apiGroups", "api groups", "resource rules must supply at least one api group", path));
    errors.extend(words(rule, "resources", "resources", "resource rules must supply at least one resource", path));
    let spaces = list(rule, "namespaces");
    let here = path.child("namespaces");
    if spaces.is_empty() && !flag(rule, "clusterScope") {
        let sentence = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.push(Error::required(&here, sentence));
    } else if spaces.len() > 1 && spaces.iter().any(|space| space == "*") {
        errors.push(Error::invalid(&here, spaces.to_vec(), "\"*\" must be present alone"));
    }
    errors
}

fn words(rule: &Value, field: &str, what: &str, missing: &str, path: &Path) -> Errors {
    let (given, here) = (list(rule, field), path.child(field));
    if given.is_empty() {
        return vec![Error::required(&here, missing)];
    }
    if given.len() > 1 && given.iter().any(|word| word == "*") {
        let sentence = format!("if '*' is present, must not specify other {what}");
        return vec![Error::invalid(&here, given.to_vec(), sentence)];
    }
    Errors::new()
}
