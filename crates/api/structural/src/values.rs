//! Objects against their schema, in go-openapi's words.
//!
//! Source: kube-openapi `pkg/validation/validate` and `errors`; apiextensions-apiserver `pkg/apiserver/validation` (how its errors become
//! field errors, and ratcheting: what did not change is not judged again, KEP-4008).

use meta::field::{Error, Path, Type};
use serde_json::Value;

use crate::node::{Additional, Node};

/// Complaints about a new object.
pub fn validate(node: &Node, value: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    walk(node, value, None, "", &mut errors);
    errors
}

/// Complaints about what an update changed.
pub fn validate_update(node: &Node, value: &Value, old: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    walk(node, value, Some(old), "", &mut errors);
    errors
}

fn place(path: &str) -> Path {
    if path.is_empty() { Path::root() } else { Path::new(path) }
}

/// `spec.x in body`.
fn words(path: &str) -> String {
    format!("{path} in body")
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn invalid(path: &str, value: impl Into<Value>, detail: String) -> Error {
    Error::invalid(&place(path), value, detail)
}

/// The JSON type as go-openapi calls it.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn walk(node: &Node, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<Error>) {
    if old == Some(value) {
        return;
    }
    if value.is_null() {
        if !node.nullable && (!node.ty.is_empty() || node.int_or_string) {
            errors.push(wrong_type(node, value, path));
        }
        return;
    }
    if !fits(node, value) {
        errors.push(wrong_type(node, value, path));
    }
    composites(node, value, old, path, errors);
    match value {
        Value::String(text) => string(node, text, path, errors),
        Value::Number(_) => number(node, value, path, errors),
        Value::Array(items) => array(node, items, old, path, errors),
        _ => {}
    }
    if let Some(allowed) = &node.enumeration
        && !allowed.iter().any(|allowed| same(allowed, value))
    {
        let texts: Vec<String> =
            allowed.iter().map(|allowed| allowed.as_str().map_or_else(|| allowed.to_string(), str::to_owned)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        errors.push(Error::not_supported(&place(path), value.clone(), &texts));
    }
    if let Value::Object(map) = value {
        object(node, map, old, path, errors);
    }
}

/// Numbers are compared by value: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

fn fits(node: &Node, value: &Value) -> bool {
    let found = type_of(value);
    let integral = || value.as_f64().is_some_and(|number| number.fract() == 0.0 && number.abs() < 9.3e18);
    if node.int_or_string {
        return matches!(found, "integer" | "string") || (found == "number" && integral());
    }
    match node.ty.as_str() {
        "" => true,
        "number" => matches!(found, "integer" | "number"),
        "integer" => found == "integer" || (found == "number" && integral()),
        wanted => wanted == found,
    }
}

fn wrong_type(node: &Node, value: &Value, path: &str) -> Error {
    let wanted = if node.int_or_string { "integer,string" } else { node.ty.as_str() };
    let found = type_of(value);
    let detail = format!("{} must be of type {wanted}: {found:?}", words(path));
    Error { kind: Type::TypeInvalid, path: place(path), value: found.into(), detail }
}

fn string(node: &Node, text: &str, path: &str, errors: &mut Vec<Error>) {
    let length = text.chars().count() as u64;
    if let Some(max) = node.max_length.filter(|max| length > *max) {
        errors.push(Error::too_long(&place(path), max as usize));
    }
    if let Some(min) = node.min_length.filter(|min| length < *min) {
        errors.push(invalid(path, text, format!("{} should be at least {min} chars long", words(path))));
    }
    if !node.pattern.is_empty() && cel::pattern::cached(&node.pattern).is_ok_and(|pattern| !pattern.is_match(text)) {
        errors.push(invalid(path, text, format!("{} should match '{}'", words(path), node.pattern)));
    }
    if !node.format.is_empty() && !crate::formats::has(&node.format, text) {
        let detail = format!("{} must be of type {}: {text:?}", words(path), node.format);
        errors.push(Error { kind: Type::TypeInvalid, path: place(path), value: text.into(), detail });
    }
}

fn number(node: &Node, value: &Value, path: &str, errors: &mut Vec<Error>) {
    let Some(given) = value.as_f64() else { return };
    if let Some(factor) = node.multiple_of.as_ref().and_then(Value::as_f64).filter(|factor| *factor > 0.0) {
        let quotient = given / factor;
        if (quotient - quotient.round()).abs() > 1e-9 {
            errors.push(invalid(path, value.clone(), format!("{} should be a multiple of {}", words(path), go(factor))));
        }
    }
    if let Some(max) = node.maximum.as_ref().and_then(Value::as_f64) {
        if node.exclusive_maximum && given >= max {
            errors.push(invalid(path, value.clone(), format!("{} should be less than {}", words(path), go(max))));
        } else if !node.exclusive_maximum && given > max {
            errors.push(invalid(path, value.clone(), format!("{} should be less than or equal to {}", words(path), go(max))));
        }
    }
    if let Some(min) = node.minimum.as_ref().and_then(Value::as_f64) {
        if node.exclusive_minimum && given <= min {
            errors.push(invalid(path, value.clone(), format!("{} should be greater than {}", words(path), go(min))));
        } else if !node.exclusive_minimum && given < min {
            errors.push(invalid(path, value.clone(), format!("{} should be greater than or equal to {}", words(path), go(min))));
        }
    }
}

/// As Go prints a float with `%v`.
fn go(number: f64) -> String {
    cel::library::convert::go_double(number)
}

fn array(node: &Node, items: &[Value], old: Option<&Value>, path: &str, errors: &mut Vec<Error>) {
    let count = items.len() as u64;
    if let Some(schema) = &node.items {
        let before = old.and_then(Value::as_array);
        for (index, item) in items.iter().enumerate() {
            let counterpart = before.and_then(|before| crate::lists::counterpart(node, item, before));
            walk(schema, item, counterpart, &format!("{path}[{index}]"), errors);
        }
    }
    if let Some(min) = node.min_items.filter(|min| count < *min) {
        errors.push(invalid(path, count, format!("{} should have at least {min} items", words(path))));
    }
    if let Some(max) = node.max_items.filter(|max| count > *max) {
        errors.push(Error::too_many(&place(path), items.len(), max as usize));
    }
}

fn object(node: &Node, map: &serde_json::Map<String, Value>, old: Option<&Value>, path: &str, errors: &mut Vec<Error>) {
    let count = map.len() as u64;
    if let Some(min) = node.min_properties.filter(|min| count < *min) {
        errors.push(invalid(path, count, format!("{} should have at least {min} properties", words(path))));
    }
    if let Some(max) = node.max_properties.filter(|max| count > *max) {
        errors.push(Error::too_many(&place(path), map.len(), max as usize));
    }
    for name in &node.required {
        if !map.contains_key(name) {
            errors.push(Error::required(&place(&child(path, name)), ""));
        }
    }
    for (name, value) in map {
        let at = child(path, name);
        let before = old.and_then(|old| old.get(name));
        match (node.properties.get(name), &node.additional) {
            // Metadata has a type of its own; a schema may only restrict the name.
            (Some(property), _) => walk(property, value, before, &at, errors),
            (None, Some(Additional::Schema(schema))) => walk(schema, value, before, &at, errors),
            (None, Some(Additional::Any(false))) if !node.preserve => {
                errors.push(invalid(path, "", format!("{path}.{name} in body is a forbidden property")));
            }
            _ => {}
        }
    }
}

/// What `allOf` and its like say has no path of its own upstream: it prints as `<nil>`.
fn composite(detail: String) -> Error {
    Error::invalid(&Path::root(), "", detail)
}

fn composites(node: &Node, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<Error>) {
    let judge = |schema: &Node| {
        let mut found = Vec::new();
        walk(schema, value, old, path, &mut found);
        found
    };
    let least = |outcomes: Vec<Vec<Error>>| outcomes.into_iter().min_by_key(Vec::len).unwrap_or_default();
    if !node.any_of.is_empty() {
        let outcomes: Vec<Vec<Error>> = node.any_of.iter().map(judge).collect();
        if !outcomes.iter().any(Vec::is_empty) {
            errors.push(composite(format!("{path:?} must validate at least one schema (anyOf)")));
            errors.extend(least(outcomes));
        }
    }
    if !node.one_of.is_empty() {
        let outcomes: Vec<Vec<Error>> = node.one_of.iter().map(judge).collect();
        match outcomes.iter().filter(|outcome| outcome.is_empty()).count() {
            1 => {}
            0 => {
                errors.push(composite(format!("{path:?} must validate one and only one schema (oneOf). Found none valid")));
                errors.extend(least(outcomes));
            }
            count => {
                let what = format!("{path:?} must validate one and only one schema (oneOf). Found {count} valid alternatives");
                errors.push(composite(what));
            }
        }
    }
    if !node.all_of.is_empty() {
        let outcomes: Vec<Vec<Error>> = node.all_of.iter().map(judge).collect();
        let failed = outcomes.iter().filter(|outcome| !outcome.is_empty()).count();
        if failed > 0 {
            errors.extend(outcomes.into_iter().flatten());
            let none = if failed == node.all_of.len() { ". None validated" } else { "" };
            errors.push(composite(format!("{path:?} must validate all the schemas (allOf){none}")));
        }
    }
    if let Some(not) = &node.not
        && judge(not).is_empty()
    {
        errors.push(composite(format!("{path:?} must not validate the schema (not)")));
    }
}
