//! What webhook configurations and admission policies share: rules that select requests, matching, clients.
//!
//! Source: upstream `pkg/apis/admissionregistration/validation` and apiserver `pkg/util/webhook/validation.go`.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{Errors, label_selector, one_of, sentences, supported};
use crate::value::{at, has, int, items_mut, list, set, set_default, set_default_text, text};

/// Defaults of every webhook of a configuration.
pub fn default(object: &mut Value, mutating: bool) {
    for hook in items_mut(object, "webhooks") {
        set_default_text(hook, "failurePolicy", "Fail");
        set_default_text(hook, "matchPolicy", "Equivalent");
        set_default(hook, "namespaceSelector", json!({}));
        set_default(hook, "objectSelector", json!({}));
        set_default(hook, "timeoutSeconds", 10);
        if mutating {
            set_default_text(hook, "reinvocationPolicy", "Never");
        }
        if has(hook, "clientConfig.service") {
            set_default(hook, "clientConfig.service.port", 443);
        }
        items_mut(hook, "rules").for_each(|rule| set_default_text(rule, "scope", "*"));
    }
}

/// Defaults of what a policy or binding matches.
pub fn default_match(object: &mut Value, path: &str) {
    let Some(matched) = crate::value::sub(object, path) else { return };
    set_default_text(matched, "matchPolicy", "Equivalent");
    for field in ["namespaceSelector", "objectSelector"] {
        if at(matched, field).is_null() {
            set(matched, field, json!({}));
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        items_mut(matched, field).for_each(|rule| set_default_text(rule, "scope", "*"));
    }
}

pub fn validate(object: &Value, mutating: bool) -> Errors {
    let mut errors = Errors::new();
    let mut taken = BTreeSet::new();
    for (index, hook) in list(object, "webhooks").iter().enumerate() {
        let path = Path::new("webhooks").index(index);
        errors.extend(one(hook, mutating, &path));
        let name = text(hook, "name");
        if !name.is_empty() && !taken.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
    }
    errors
}

fn one(hook: &Value, mutating: bool, path: &Path) -> Errors {
    let mut errors = match text(hook, "name") {
        "" => vec![Error::required(&path.child("name"), "")],
        name => sentences(&path.child("name"), name, names::fully_qualified(name)),
    };
    for (index, rule) in list(hook, "rules").iter().enumerate() {
        errors.extend(operations_and_resources(rule, &path.child("rules").index(index)));
    }
    errors.extend(supported(hook, path, "failurePolicy", &["Fail", "Ignore"]));
    errors.extend(supported(hook, path, "matchPolicy", &["Equivalent", "Exact"]));
    match at(hook, "sideEffects").as_str() {
        None => errors.push(Error::required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun")),
        Some(_) => errors.extend(supported(hook, path, "sideEffects", &["None", "NoneOnDryRun"])),
    }
    if let Some(seconds) = int(hook, "timeoutSeconds").filter(|seconds| !(1..=30).contains(seconds)) {
        let sentence = "the timeout value must be between 1 and 30 seconds";
        errors.push(Error::invalid(&path.child("timeoutSeconds"), seconds, sentence));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        errors.extend(label_selector(at(hook, field), &path.child(field)));
    }
    if mutating {
        errors.extend(supported(hook, path, "reinvocationPolicy", &["IfNeeded", "Never"]));
    }
    errors.extend(client(at(hook, "clientConfig"), &path.child("clientConfig")));
    errors.extend(conditions(list(hook, "matchConditions"), &path.child("matchConditions")));
    errors.extend(review_versions(list(hook, "admissionReviewVersions"), &path.child("admissionReviewVersions")));
    errors
}

/// Where a webhook is reached: also of CustomResourceDefinitions and APIServices.
pub fn client(client: &Value, path: &Path) -> Errors {
    match (at(client, "url").as_str(), has(client, "service")) {
        (Some(address), false) => url(address, &path.child("url")),
        (None, true) => service(at(client, "service"), &path.child("service")),
        _ => vec![Error::required(path, "exactly one of url or service is required")],
    }
}

fn url(address: &str, path: &Path) -> Errors {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = address.split_once("://") else {
        let sentence = format!("'https' is the only allowed URL scheme{FORM}");
        return vec![Error::invalid(path, "", sentence), Error::invalid(path, "", format!("host must be specified{FORM}"))];
    };
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or("");
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut errors = Errors::new();
    let mut refuse = |value: &str, sentence: &str| errors.push(Error::invalid(path, value, format!("{sentence}{FORM}")));
    if scheme != "https" {
        refuse(scheme, "'https' is the only allowed URL scheme");
    }
    if host.is_empty() {
        refuse(host, "host must be specified");
    }
    if !user.is_empty() {
        refuse(user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        refuse(fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        refuse(query, "query parameters are not permitted in the URL");
    }
    errors
}

fn service(service: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (field, sentence) in [("name", "service name is required"), ("namespace", "service namespace is required")] {
        if text(service, field).is_empty() {
            errors.push(Error::required(&path.child(field), sentence));
        }
    }
    let port = int(service, "port").unwrap_or(443);
    let complaints = names::port_number(port);
    if !complaints.is_empty() {
        errors.push(Error::invalid(&path.child("port"), port, format!("port is not valid: {}", complaints.join(","))));
    }
    let (given, here) = (text(service, "path"), path.child("path"));
    if matches!(given, "" | "/") {
        return errors;
    }
    if given == "//" {
        errors.push(Error::invalid(&here, given, "segment[0] may not be empty"));
        return errors;
    }
    if !given.starts_with('/') {
        errors.push(Error::invalid(&here, given, "must start with a '/'"));
    }
    let inner = given.strip_prefix('/').unwrap_or(given);
    for (index, segment) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if segment.is_empty() {
            errors.push(Error::invalid(&here, given, format!("segment[{index}] may not be empty")));
            continue;
        }
        let complaints = names::dns1123_subdomain(segment).into_iter();
        errors.extend(complaints.map(|complaint| Error::invalid(&here, given, format!("segment[{index}]: {complaint}"))));
    }
    errors
}

/// Names of conditions: qualified, unique, at most 64. Their expressions are compiled where they are used.
pub fn conditions(conditions: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    if conditions.len() > 64 {
        errors.push(Error::too_many(path, conditions.len(), 64));
    }
    let mut taken = BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let here = path.index(index);
        let name = text(condition, "name");
        if text(condition, "expression").trim().is_empty() {
            errors.push(Error::required(&here.child("expression"), ""));
        }
        if name.is_empty() {
            errors.push(Error::required(&here.child("name"), ""));
            continue;
        }
        errors.extend(sentences(&here.child("name"), name, names::qualified_name(name)));
        if !taken.insert(name) {
            errors.push(Error::duplicate(&here.child("name"), name));
        }
    }
    errors
}

fn review_versions(versions: &[Value], path: &Path) -> Errors {
    if versions.is_empty() {
        return vec![Error::required(path, "must specify one of v1, v1beta1")];
    }
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().filter_map(Value::as_str).enumerate() {
        if !seen.insert(version) {
            errors.push(Error::duplicate(&path.index(index), version));
            continue;
        }
        errors.extend(sentences(&path.index(index), version, names::dns1035_label(version)));
    }
    if !seen.contains("v1") && !seen.contains("v1beta1") {
        errors.push(Error::invalid(path, versions.to_vec(), "must include at least one of v1, v1beta1"));
    }
    errors
}

/// A rule: which operations on which resources.
pub fn operations_and_resources(rule: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (operations, here) = (list(rule, "operations"), path.child("operations"));
    if operations.is_empty() {
        errors.push(Error::required(&here, ""));
    }
    if operations.len() > 1 && operations.iter().any(|operation| operation == "*") {
        errors.push(Error::invalid(&here, operations.to_vec(), "if '*' is present, must not specify other operations"));
    }
    let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    for (index, operation) in operations.iter().filter_map(Value::as_str).enumerate().filter(|(_, word)| !known.contains(word)) {
        errors.push(Error::not_supported(&here.index(index), operation, &known));
    }
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let (words, here) = (list(rule, field), path.child(field));
        if words.is_empty() {
            errors.push(Error::required(&here, ""));
        }
        if words.len() > 1 && words.iter().any(|word| word == "*") {
            let sentence = format!("if '*' is present, must not specify other {what}");
            errors.push(Error::invalid(&here, words.to_vec(), sentence));
        }
        // The core group is empty, a version never.
        let empty = words.iter().enumerate().filter(|(_, word)| field == "apiVersions" && **word == "");
        errors.extend(empty.map(|(index, _)| Error::required(&here.index(index), "")));
    }
    errors.extend(resources(list(rule, "resources"), &path.child("resources")));
    errors.extend(supported(rule, path, "scope", &["*", "Cluster", "Namespaced"]));
    errors
}

fn resources(resources: &[Value], path: &Path) -> Errors {
    if resources.is_empty() {
        return vec![Error::required(path, "")];
    }
    let words: Vec<&str> = resources.iter().filter_map(Value::as_str).collect();
    let mut errors = Errors::new();
    let (mut all_of, mut on_all) = (BTreeSet::new(), BTreeSet::new());
    for (index, word) in words.iter().enumerate() {
        if word.is_empty() {
            errors.push(Error::required(&path.index(index), ""));
            continue;
        }
        let Some((resource, sub)) = word.split_once('/').filter(|_| *word != "*/*") else { continue };
        if all_of.contains(resource) {
            let sentence = format!("if '{resource}/*' is present, must not specify {word}");
            errors.push(Error::invalid(&path.index(index), *word, sentence));
        }
        if on_all.contains(sub) {
            errors.push(Error::invalid(&path.index(index), *word, format!("if '*/{sub}' is present, must not specify {word}")));
        }
        if sub == "*" {
            all_of.insert(resource);
        }
        if resource == "*" {
            on_all.insert(sub);
        }
    }
    if words.len() > 1 && words.contains(&"*/*") {
        errors.push(Error::invalid(path, resources.to_vec(), "if '*/*' is present, must not specify other resources"));
    }
    if words.contains(&"*") && words.iter().any(|word| *word != "*" && !word.contains('/')) {
        let sentence = "if '*' is present, must not specify other resources without subresources";
        errors.push(Error::invalid(path, resources.to_vec(), sentence));
    }
    errors
}

/// `matchConstraints` of a policy, `matchResources` of a binding.
pub fn matching(matched: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["namespaceSelector", "objectSelector"] {
        if has(matched, field) {
            errors.extend(label_selector(at(matched, field), &path.child(field)));
        } else {
            errors.push(Error::required(&path.child(field), ""));
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in list(matched, field).iter().enumerate() {
            let here = path.child(field).index(index);
            errors.extend(operations_and_resources(rule, &here));
            let mut seen = BTreeSet::new();
            for (index, name) in list(rule, "resourceNames").iter().filter_map(Value::as_str).enumerate() {
                let here = here.child("resourceNames").index(index);
                errors.extend(sentences(&here, name, names::path_segment(name)));
                if !seen.insert(name) {
                    errors.push(Error::duplicate(&here, name));
                }
            }
        }
    }
    errors.extend(one_of(matched, path, "matchPolicy", &["Equivalent", "Exact"]));
    errors
}

/// The kind of a policy's parameters.
pub fn parameter_kind(kind: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    match text(kind, "apiVersion") {
        "" => errors.push(Error::required(&path.child("apiVersion"), "")),
        version if meta::GroupVersion::parse(version).is_none() => {
            errors.push(Error::invalid(&path.child("apiVersion"), version, format!("unexpected GroupVersion string: {version}")));
        }
        version => {
            let bare = version.rsplit('/').next().unwrap_or(version);
            errors.extend(sentences(&path.child("apiVersion"), version, names::dns1035_label(bare)));
        }
    }
    match text(kind, "kind") {
        "" => errors.push(Error::required(&path.child("kind"), "")),
        word => {
            let complaints = names::dns1035_label(&word.to_lowercase());
            if !complaints.is_empty() {
                let sentence = format!("may have mixed case, but should otherwise match: {}", complaints.join(","));
                errors.push(Error::invalid(&path.child("kind"), word, sentence));
            }
        }
    }
    errors
}

/// Which parameters a binding hands to its policy.
pub fn parameter_reference(reference: &Value, path: &Path) -> Errors {
    if reference.is_null() {
        return Errors::new();
    }
    let mut errors = Errors::new();
    let name = text(reference, "name");
    match (name.is_empty(), has(reference, "selector")) {
        (false, true) => {
            let sentence = "name and selector are mutually exclusive";
            errors.push(Error::forbidden(&path.child("name"), sentence));
            errors.push(Error::forbidden(&path.child("selector"), sentence));
        }
        (false, false) => errors.extend(sentences(&path.child("name"), name, names::path_segment(name))),
        (true, true) => errors.extend(label_selector(at(reference, "selector"), &path.child("selector"))),
        (true, false) => errors.push(Error::required(path, "one of name or selector must be specified")),
    }
    errors.extend(one_of(reference, path, "parameterNotFoundAction", &["Allow", "Deny"]));
    errors
}

/// Named expressions that others may use.
pub fn variables(variables: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut taken = BTreeSet::new();
    for (index, variable) in variables.iter().enumerate() {
        let here = path.index(index);
        match text(variable, "name") {
            "" => errors.push(Error::required(&here.child("name"), "name is not specified")),
            name => {
                if !names::c_identifier(name).is_empty() {
                    errors.push(Error::invalid(&here.child("name"), name, "name is not a valid CEL identifier"));
                }
                if !taken.insert(name) {
                    errors.push(Error::duplicate(&here.child("name"), name));
                }
            }
        }
        if text(variable, "expression").trim().is_empty() {
            errors.push(Error::required(&here.child("expression"), "expression is not specified"));
        }
    }
    errors
}

/// The parts that validating and mutating policies share.
pub fn policy_head(spec: &Value, path: &Path) -> Errors {
    let mut errors = one_of(spec, path, "failurePolicy", &["Fail", "Ignore"]);
    if has(spec, "paramKind") {
        errors.extend(parameter_kind(at(spec, "paramKind"), &path.child("paramKind")));
    }
    let (matched, here) = (at(spec, "matchConstraints"), path.child("matchConstraints"));
    if matched.is_null() {
        errors.push(Error::required(&here, ""));
    } else {
        errors.extend(matching(matched, &here));
        if list(matched, "resourceRules").is_empty() {
            errors.push(Error::required(&here.child("resourceRules"), ""));
        }
    }
    errors.extend(conditions(list(spec, "matchConditions"), &path.child("matchConditions")));
    errors.extend(variables(list(spec, "variables"), &path.child("variables")));
    errors
}

/// The cell of a policy's parameters.
pub fn kind_cell(object: &Value) -> Value {
    match at(object, "spec.paramKind") {
        Value::Null => "<unset>".into(),
        kind => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")).into(),
    }
}

/// The cell of a binding's parameters.
pub fn reference_cell(object: &Value) -> Value {
    match at(object, "spec.paramRef") {
        Value::Null => "<unset>".into(),
        reference => match text(reference, "namespace") {
            "" => format!("*/{}", text(reference, "name")).into(),
            namespace => format!("{namespace}/{}", text(reference, "name")).into(),
        },
    }
}
