//! Which schemas a CRD may have: structural ones.
//!
//! Source: apiextensions-apiserver `pkg/apiserver/schema/validation.go`, `complete.go`, `defaulting/validation.go`,
//! `pkg/apis/apiextensions/validation`.

use meta::field::{Error, Path};
use serde_json::Value;

use crate::expressions::{self, Refused, types};
use crate::node::{Additional, Node, Rule};

/// One expression may be estimated to cost this much in all its occurrences (upstream: `StaticEstimatedCostLimit`).
const RULE_COST_MAX: u64 = 10_000_000;
/// All of a schema together (`StaticEstimatedCRDCostLimit`).
const SCHEMA_COST_MAX: u64 = 100_000_000;

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Complaints about a whole schema at `path` (`spec.versions[0].schema.openAPIV3Schema`).
pub fn validate(schema: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    forbidden(schema, path, &mut errors);
    let node = Node::read(schema);
    if node.nullable {
        errors.push(Error::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
    }
    invariants(&node, Level::Root, path, &mut errors);
    complete(&node, path, &mut errors);
    errors.sort_by_key(|error| error.to_string());
    vendor(&node, path, &mut errors);
    defaults(&node, path, &mut errors);
    if errors.is_empty() {
        let mut total = 0_u64;
        rules(&node, true, Some(1), path, &mut total, &mut errors);
        if total > SCHEMA_COST_MAX {
            let why = expensive("x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema", total, SCHEMA_COST_MAX);
            errors.push(Error::forbidden(path, why));
        }
    }
    errors
}

/// Words of JSON Schema that no CRD may use.
fn forbidden(schema: &Value, path: &Path, errors: &mut Vec<Error>) {
    let Some(map) = schema.as_object() else { return };
    for (word, detail) in [
        ("id", "id is not supported"),
        ("additionalItems", "additionalItems is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("$ref", "$ref is not supported"),
    ] {
        let used =
            map.get(word).is_some_and(|value| !value.is_null() && value != "" && value.as_object().is_none_or(|map| !map.is_empty()));
        if used {
            errors.push(Error::forbidden(&path.child(word), detail));
        }
    }
    match map.get("type").and_then(Value::as_str) {
        Some("null") => errors.push(Error::forbidden(&path.child("type"), "type cannot be set to null, use nullable as an alternative")),
        None | Some("" | "array" | "boolean" | "integer" | "number" | "object" | "string") => {}
        Some(other) => {
            let supported = ["array", "boolean", "integer", "number", "object", "string"];
            errors.push(Error::not_supported(&path.child("type"), other, &supported));
        }
    }
    if map.get("uniqueItems") == Some(&Value::Bool(true)) {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(Error::forbidden(&path.child("uniqueItems"), why));
    }
    if map.get("items").is_some_and(Value::is_array) {
        errors.push(Error::forbidden(&path.child("items"), "items must be a schema object and not an array"));
    }
    let nonempty = |word: &str| map.get(word).and_then(Value::as_object).is_some_and(|map| !map.is_empty());
    if map.get("additionalProperties").is_some_and(|value| value.is_object() || value == &Value::Bool(true)) && nonempty("properties") {
        let why = "additionalProperties and properties are mutual exclusive";
        errors.push(Error::forbidden(&path.child("additionalProperties"), why));
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        errors.push(Error::invalid(&path.child("x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined"));
    }
    for word in ["properties"] {
        for (name, child) in map.get(word).and_then(Value::as_object).into_iter().flatten() {
            forbidden(child, &path.child(word).key(name), errors);
        }
    }
    for word in ["items", "additionalProperties", "not"] {
        if let Some(child) = map.get(word) {
            forbidden(child, &path.child(word), errors);
        }
    }
    for word in ["allOf", "anyOf", "oneOf"] {
        for (at, child) in map.get(word).and_then(Value::as_array).into_iter().flatten().enumerate() {
            forbidden(child, &path.child(word).index(at), errors);
        }
    }
}

fn invariants(node: &Node, level: Level, path: &Path, errors: &mut Vec<Error>) {
    if node.ty == "array" && node.items.is_none() {
        errors.push(Error::required(&path.child("items"), "must be specified"));
    }
    if let Some(items) = &node.items {
        invariants(items, Level::Item, &path.child("items"), errors);
    }
    for (name, child) in &node.properties {
        let at = path.child("properties").key(name);
        if level == Level::Root && name == "metadata" {
            metadata(child, &at, errors);
        } else {
            invariants(child, Level::Field, &at, errors);
        }
    }
    if let Some(additional) = &node.additional {
        let at = path.child("additionalProperties");
        if level == Level::Root {
            errors.push(Error::forbidden(&at, "must not be used at the root"));
        }
        if let Additional::Schema(child) = additional {
            invariants(child, Level::Field, &at, errors);
        }
    }
    extensions(node, path, errors);
    let (skip_any, skip_all) = (is_int_or_string(&node.any_of), node.all_of.first().is_some_and(|first| is_int_or_string(&first.any_of)));
    values(node, skip_any, skip_all, path, errors);
    let ty = path.child("type");
    if node.embedded && node.ty != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if node.ty.is_empty() { Error::required(&ty, why) } else { Error::invalid(&ty, node.ty.as_str(), why) });
    } else if node.ty.is_empty() && !node.int_or_string && !node.preserve {
        errors.push(Error::required(
            &ty,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    }
    if level == Level::Root && !node.ty.is_empty() && node.ty != "object" {
        errors.push(Error::invalid(&ty, node.ty.as_str(), "must be object at the root"));
    }
    if level == Level::Root || node.embedded {
        for name in ["kind", "apiVersion"] {
            if let Some(child) = node.properties.get(name).filter(|child| child.ty != "string") {
                let at = path.child("properties").key(name).child("type");
                errors.push(Error::invalid(&at, child.ty.as_str(), "must be string"));
            }
        }
    }
    if node.embedded && node.additional.is_some() {
        let why = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(Error::forbidden(&path.child("additionalProperties"), why));
    }
    if node.embedded && !node.preserve && node.properties.is_empty() {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(Error::required(&path.child("properties"), why));
    }
}

/// At the root only the name may be restricted.
fn metadata(node: &Node, path: &Path, errors: &mut Vec<Error>) {
    if node.ty != "object" {
        errors.push(Error::invalid(&path.child("type"), node.ty.as_str(), "must be object"));
    }
    let plain = node.properties.keys().all(|name| name == "name" || name == "generateName")
        && node.additional.is_none()
        && node.items.is_none()
        && node.required.is_empty()
        && node.rules.is_empty()
        && !node.preserve
        && !node.embedded
        && !node.nullable;
    if !plain {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(Error::forbidden(path, why));
    }
}

fn is_int_or_string(any_of: &[Node]) -> bool {
    let [first, second] = any_of else { return false };
    first.ty == "integer" && second.ty == "string"
}

fn extensions(node: &Node, path: &Path, errors: &mut Vec<Error>) {
    if node.int_or_string && node.preserve {
        let why = "must be false if x-kubernetes-int-or-string is true";
        errors.push(Error::invalid(&path.child("x-kubernetes-preserve-unknown-fields"), true, why));
    }
    if node.int_or_string && node.embedded {
        let why = "must be false if x-kubernetes-int-or-string is true";
        errors.push(Error::invalid(&path.child("x-kubernetes-embedded-resource"), true, why));
    }
}

fn values(node: &Node, skip_any: bool, skip_all: bool, path: &Path, errors: &mut Vec<Error>) {
    if !skip_any {
        for (at, inner) in node.any_of.iter().enumerate() {
            nested(inner, false, &path.child("anyOf").index(at), errors);
        }
    }
    for (at, inner) in node.all_of.iter().enumerate() {
        nested(inner, skip_all && at == 0, &path.child("allOf").index(at), errors);
    }
    for (at, inner) in node.one_of.iter().enumerate() {
        nested(inner, false, &path.child("oneOf").index(at), errors);
    }
    if let Some(inner) = &node.not {
        nested(inner, false, &path.child("not"), errors);
    }
    if !node.pattern.is_empty()
        && let Err(error) = cel::pattern::compile(&node.pattern)
    {
        let why = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(Error::invalid(&path.child("pattern"), node.pattern.as_str(), why));
    }
}

/// Under `allOf` and its like only values may be restricted.
fn nested(node: &Node, skip_any: bool, path: &Path, errors: &mut Vec<Error>) {
    values(node, skip_any, false, path, errors);
    if let Some(items) = &node.items {
        nested(items, false, &path.child("items"), errors);
    }
    for (name, child) in &node.properties {
        nested(child, false, &path.child("properties").key(name), errors);
    }
    let empty = "must be empty to be structural";
    let checks = [
        (!node.ty.is_empty(), "type", empty),
        (node.additional.is_some(), "additionalProperties", "must be undefined to be structural"),
        (node.default.is_some(), "default", "must be undefined to be structural"),
        (node.nullable, "nullable", "must be false to be structural"),
        (node.preserve, "x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        (node.embedded, "x-kubernetes-embedded-resource", "must be false to be structural"),
        (node.int_or_string, "x-kubernetes-int-or-string", "must be false to be structural"),
        (!node.list_map_keys.is_empty(), "x-kubernetes-list-map-keys", empty),
        (!node.list_type.is_empty(), "x-kubernetes-list-type", "must be undefined to be structural"),
        (!node.map_type.is_empty(), "x-kubernetes-map-type", "must be undefined to be structural"),
        (!node.rules.is_empty(), "x-kubernetes-validations", empty),
    ];
    for (wrong, word, why) in checks {
        if wrong {
            errors.push(Error::forbidden(&path.child(word), why));
        }
    }
    if node.properties.contains_key("metadata") {
        errors.push(Error::forbidden(&path.child("properties").key("metadata"), "must not be specified in a nested context"));
    }
}

/// Every field that values are restricted of is also declared.
fn complete(node: &Node, path: &Path, errors: &mut Vec<Error>) {
    for (word, inner) in [("allOf", &node.all_of), ("anyOf", &node.any_of), ("oneOf", &node.one_of)] {
        for (at, inner) in inner.iter().enumerate() {
            declared(inner, Some(node), path, &path.child(word).index(at), errors);
        }
    }
    if let Some(inner) = &node.not {
        declared(inner, Some(node), path, &path.child("not"), errors);
    }
    for (name, child) in &node.properties {
        complete(child, &path.child("properties").key(name), errors);
    }
    if let Some(items) = &node.items {
        complete(items, &path.child("items"), errors);
    }
    if let Some(child) = node.additional_schema() {
        complete(child, &path.child("additionalProperties"), errors);
    }
}

fn declared(inner: &Node, outer: Option<&Node>, outer_path: &Path, path: &Path, errors: &mut Vec<Error>) {
    let why = |path: &Path| format!("because it is defined in {path}");
    if let Some(items) = &inner.items {
        let at = outer_path.child("items");
        match outer.and_then(|outer| outer.items.as_deref()) {
            Some(outer) => declared(items, Some(outer), &at, &path.child("items"), errors),
            None => errors.push(Error::required(&at, why(&path.child("items")))),
        }
    }
    for (name, child) in &inner.properties {
        let (at, here) = (outer_path.child("properties").key(name), path.child("properties").key(name));
        match outer.and_then(|outer| outer.properties.get(name)) {
            Some(outer) => declared(child, Some(outer), &at, &here, errors),
            None => errors.push(Error::required(&at, why(&here))),
        }
    }
    for (word, list) in [("allOf", &inner.all_of), ("anyOf", &inner.any_of), ("oneOf", &inner.one_of)] {
        for (at, more) in list.iter().enumerate() {
            declared(more, outer, outer_path, &path.child(word).index(at), errors);
        }
    }
    if let Some(more) = &inner.not {
        declared(more, outer, outer_path, &path.child("not"), errors);
    }
}

/// List and map types and the rules' own form.
fn vendor(node: &Node, path: &Path, errors: &mut Vec<Error>) {
    for (word, given, kind, known) in [
        ("x-kubernetes-map-type", &node.map_type, "object", ["atomic", "granular"].as_slice()),
        ("x-kubernetes-list-type", &node.list_type, "array", ["atomic", "set", "map"].as_slice()),
    ] {
        if given.is_empty() {
            continue;
        }
        if node.ty != kind {
            let (ty, why) = (path.child("type"), format!("must be {kind} if {word} is specified"));
            errors.push(if node.ty.is_empty() { Error::required(&ty, why) } else { Error::invalid(&ty, node.ty.as_str(), why) });
        }
        if !known.contains(&given.as_str()) {
            errors.push(Error::not_supported(&path.child(word), given.as_str(), known));
        }
    }
    keys(node, path, errors);
    for (at, rule) in node.rules.iter().enumerate() {
        rule_form(rule, &path.child("x-kubernetes-validations").index(at), errors);
    }
    for (name, child) in &node.properties {
        vendor(child, &path.child("properties").key(name), errors);
    }
    if let Some(items) = &node.items {
        vendor(items, &path.child("items"), errors);
    }
    if let Some(child) = node.additional_schema() {
        vendor(child, &path.child("additionalProperties"), errors);
    }
}

fn keys(node: &Node, path: &Path, errors: &mut Vec<Error>) {
    let list_type = path.child("x-kubernetes-list-type");
    if !node.list_map_keys.is_empty() && node.list_type != "map" {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match node.list_type.is_empty() {
            true => Error::required(&list_type, why),
            false => Error::invalid(&list_type, node.list_type.as_str(), why),
        });
    }
    if node.list_type == "set"
        && let Some(items) = &node.items
    {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        if items.ty == "array" && items.list_type != "atomic" && !items.list_type.is_empty() {
            errors.push(Error::invalid(&path.child("items").child("x-kubernetes-list-type"), items.list_type.as_str(), why));
        }
        if items.ty == "object" && items.map_type != "atomic" {
            errors.push(Error::invalid(&path.child("items").child("x-kubernetes-map-type"), Value::Null, why));
        }
    }
    if node.list_type != "map" {
        return;
    }
    let names = path.child("x-kubernetes-list-map-keys");
    if node.list_map_keys.is_empty() {
        errors.push(Error::required(&names, "must not be empty if x-kubernetes-list-type is map"));
    }
    let Some(items) = &node.items else {
        return errors.push(Error::required(&path.child("items"), "must have a schema if x-kubernetes-list-type is map"));
    };
    let at = path.child("items");
    if items.ty != "object" {
        errors.push(Error::invalid(&at.child("type"), items.ty.as_str(), "must be object if parent array's x-kubernetes-list-type is map"));
    }
    if items.nullable {
        errors.push(Error::forbidden(&at.child("nullable"), "cannot be nullable when x-kubernetes-list-type is map"));
    }
    for (number, key) in node.list_map_keys.iter().enumerate() {
        let Some(child) = items.properties.get(key) else {
            errors.push(Error::invalid(&names, node.list_map_keys.clone(), "entries must all be names of item properties"));
            continue;
        };
        let property = at.child("properties").key(key);
        if matches!(child.ty.as_str(), "array" | "object") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.push(Error::invalid(&property.child("type"), items.ty.as_str(), why));
        }
        if !items.required.contains(key) && child.default.is_none() {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(Error::required(&property.child("default"), why));
        }
        if child.nullable {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(Error::forbidden(&property.child("nullable"), why));
        }
        if node.list_map_keys.get(..number).is_some_and(|before| before.contains(key)) {
            errors.push(Error::invalid(&names, node.list_map_keys.clone(), "must not contain duplicate entries"));
        }
    }
}

fn rule_form(rule: &Rule, path: &Path, errors: &mut Vec<Error>) {
    if rule.rule.trim().is_empty() {
        errors.push(Error::required(&path.child("rule"), "rule is not specified"));
    }
    let lines = |text: &str| text.trim().contains('\n');
    if !rule.message.is_empty() && rule.message.trim().is_empty() {
        errors.push(Error::invalid(&path.child("message"), rule.message.as_str(), "must be non-empty if specified"));
    } else if lines(&rule.message) {
        errors.push(Error::invalid(&path.child("message"), rule.message.as_str(), "must not contain line breaks"));
    } else if lines(&rule.rule) && rule.message.is_empty() {
        errors.push(Error::required(&path.child("message"), "message must be specified if rule contains line breaks"));
    }
    if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
        errors.push(Error::required(&path.child("messageExpression"), "messageExpression must be non-empty if specified"));
    }
    let reasons = ["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];
    if !rule.reason.is_empty() && !reasons.contains(&rule.reason.as_str()) {
        let mut sorted = reasons;
        sorted.sort_unstable();
        errors.push(Error::not_supported(&path.child("reason"), rule.reason.as_str(), &sorted));
    }
    if !rule.field_path.is_empty() {
        let given = rule.field_path.trim();
        if lines(given) {
            errors.push(Error::invalid(&path.child("fieldPath"), rule.field_path.as_str(), "must not contain line breaks"));
        } else if !given.starts_with('.') && !given.starts_with('[') {
            let why = "fieldPath must be a valid path: expected [ or . but got: ".to_owned() + given;
            errors.push(Error::invalid(&path.child("fieldPath"), rule.field_path.as_str(), why));
        }
    }
}

/// Defaults fit their own schema.
fn defaults(node: &Node, path: &Path, errors: &mut Vec<Error>) {
    if let Some(default) = &node.default {
        let at = path.child("default");
        let model = crate::model::root(node, "", false);
        let mut pruned = default.clone();
        let is_container = default.is_object() && node.ty == "object" && node.additional.is_none();
        if is_container
            && let Ok((kept, unknown)) =
                schema::decode::decode(default.clone(), &schema::model::Schema::Object(model), schema::decode::Mode::Warn)
        {
            if !unknown.is_empty() && !node.preserve {
                errors.push(Error::invalid(&at, default.clone(), "must not have unknown fields"));
            }
            pruned = kept;
        }
        for error in crate::values::validate(node, &pruned) {
            let inner = error.path.to_string();
            let place = if inner == "<nil>" { at.clone() } else { at.child(&inner) };
            errors.push(Error { path: place, ..error });
        }
    }
    for (name, child) in &node.properties {
        defaults(child, &path.child("properties").key(name), errors);
    }
    if let Some(items) = &node.items {
        defaults(items, &path.child("items"), errors);
    }
    if let Some(child) = node.additional_schema() {
        defaults(child, &path.child("additionalProperties"), errors);
    }
}

/// Rules compile and cost no more than they may. `occurrences` is how often values of this schema may stand in one object; `None`
/// where nothing bounds it.
fn rules(node: &Node, whole: bool, occurrences: Option<u64>, path: &Path, total: &mut u64, errors: &mut Vec<Error>) {
    for (at, rule) in node.rules.iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(at);
        let Some(ty) = types::declared(node, whole || node.embedded) else { continue };
        match expressions::compile_rule(rule, &ty) {
            Err(Refused::Rule(why)) => errors.push(Error::invalid(&path.child("rule"), rule_value(rule), why)),
            Err(Refused::Message(why)) => errors.push(Error::invalid(&path.child("messageExpression"), rule_value(rule), why)),
            Ok(compiled) => {
                let times = occurrences.unwrap_or_else(|| types::max_occurrences(node));
                let sizes = types::NodeSizes(node);
                let cost = compiled.program.estimate(&sizes).max.saturating_mul(times);
                if cost > RULE_COST_MAX {
                    errors.push(Error::forbidden(&path.child("rule"), expensive("estimated rule cost", cost, RULE_COST_MAX)));
                }
                *total = total.saturating_add(cost);
                if let Some(message) = &compiled.message {
                    let cost = message.estimate(&sizes).max.saturating_mul(times);
                    if cost > RULE_COST_MAX {
                        let why = expensive("estimated messageExpression cost", cost, RULE_COST_MAX);
                        errors.push(Error::forbidden(&path.child("messageExpression"), why));
                    }
                }
                if !compiled.uses_old_self && rule.optional_old_self.is_some() {
                    let why = "may not be set if oldSelf is not used in rule";
                    errors.push(Error::invalid(&path.child("optionalOldSelf"), rule.optional_old_self, why));
                }
            }
        }
    }
    for (name, child) in &node.properties {
        rules(child, false, occurrences, &path.child("properties").key(name), total, errors);
    }
    let times = |max: Option<u64>| occurrences.zip(max).map(|(occurrences, max)| occurrences.saturating_mul(max));
    if let Some(items) = &node.items {
        rules(items, false, times(node.max_items), &path.child("items"), total, errors);
    }
    if let Some(child) = node.additional_schema() {
        rules(child, false, times(node.max_properties), &path.child("additionalProperties"), total, errors);
    }
}

/// As Go prints the rule's struct in JSON.
fn rule_value(rule: &Rule) -> Value {
    let mut value = serde_json::json!({"rule": rule.rule});
    for (name, text) in [("message", &rule.message), ("messageExpression", &rule.message_expression), ("reason", &rule.reason)] {
        if !text.is_empty() {
            value[name] = text.as_str().into();
        }
    }
    value
}

fn expensive(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let words = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {words} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}
