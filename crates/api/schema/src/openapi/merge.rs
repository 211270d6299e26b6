//! One server's version 2 document into another's: the paths of a group and version with the definitions that they need.
//!
//! Source: kube-openapi `pkg/aggregator`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

const REFERENCE: &str = "#/definitions/";

/// What of a document is about `prefix` (`/apis/<group>/<version>`).
pub fn part(document: &Value, prefix: &str) -> Value {
    let below = |path: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let members = |name: &str| document[name].as_object().into_iter().flatten();
    let paths: serde_json::Map<String, Value> =
        members("paths").filter(|(path, _)| below(path)).map(|(path, item)| (path.clone(), item.clone())).collect();
    let mut wanted = BTreeSet::new();
    let mut open: Vec<&Value> = paths.values().collect();
    while let Some(value) = open.pop() {
        let mut found = Vec::new();
        references(value, &mut |name| found.push(name.to_owned()));
        for name in found {
            if let Some(definition) = document["definitions"].get(&name).filter(|_| wanted.insert(name.clone())) {
                open.push(definition);
            }
        }
    }
    let definitions: serde_json::Map<String, Value> =
        wanted.into_iter().filter_map(|name| Some((name.clone(), document["definitions"].get(&name)?.clone()))).collect();
    serde_json::json!({"paths": paths, "definitions": definitions})
}

/// Adds a [`part`]. Paths that are there stay; another definition of the same name gets a new one.
pub fn add(document: &mut Value, mut part: Value) {
    let names = new_names(document, &part);
    rename(&mut part, &names);
    for section in ["definitions", "paths"] {
        let (Some(all), Some(more)) = (document[section].as_object_mut(), part[section].as_object_mut()) else { continue };
        for (name, value) in std::mem::take(more) {
            let name = if section == "definitions" { names.get(&name).cloned().unwrap_or(name) } else { name };
            all.entry(name).or_insert(value);
        }
    }
}

/// Definitions whose names are taken by different ones.
fn new_names(document: &Value, part: &Value) -> BTreeMap<String, String> {
    let taken = |name: &str| document["definitions"].get(name).is_some() || part["definitions"].get(name).is_some();
    let definitions = part["definitions"].as_object().into_iter().flatten();
    let conflicts = definitions.filter(|(name, value)| document["definitions"].get(name.as_str()).is_some_and(|old| old != *value));
    conflicts
        .map(|(name, _)| {
            let free = (2..).map(|number| format!("{name}_v{number}")).find(|free| !taken(free));
            (name.clone(), free.unwrap_or_default())
        })
        .collect()
}

fn references(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::Object(members) => {
            if let Some(name) = members.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix(REFERENCE)) {
                found(name);
            }
            members.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    if names.is_empty() {
        return;
    }
    match value {
        Value::Object(members) => {
            if let Some(Value::String(text)) = members.get_mut("$ref")
                && let Some(new) = text.strip_prefix(REFERENCE).and_then(|name| names.get(name))
            {
                *text = format!("{REFERENCE}{new}");
            }
            members.values_mut().for_each(|value| rename(value, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| rename(value, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_part_brings_along_what_it_refers_to_and_nothing_is_overwritten() {
        let reference = |name: &str| json!({"$ref": format!("{REFERENCE}{name}")});
        let other = json!({
            "paths": {
                "/apis/g/v1/things": {"get": {"schema": reference("Thing")}},
                "/apis/g/v1": {"get": {"schema": reference("Meta")}},
                "/apis/g/v12/things": {"get": {}},
                "/apis/other/v1": {"get": {"schema": reference("Unseen")}},
            },
            "definitions": {
                "Thing": {"properties": {"meta": reference("Meta"), "same": reference("Same"), "self": reference("Thing")}},
                "Meta": {"type": "string"}, "Same": {"type": "boolean"}, "Unseen": {},
            },
        });
        let part = part(&other, "/apis/g/v1");
        let mut document = json!({
            "paths": {"/apis/g/v1": {"own": true}},
            "definitions": {"Meta": {"type": "object"}, "Meta_v2": {}, "Same": {"type": "boolean"}},
        });
        add(&mut document, part);
        assert_eq!(
            document,
            json!({
                "paths": {"/apis/g/v1": {"own": true}, "/apis/g/v1/things": {"get": {"schema": reference("Thing")}}},
                "definitions": {
                    "Meta": {"type": "object"}, "Meta_v2": {}, "Meta_v3": {"type": "string"}, "Same": {"type": "boolean"},
                    "Thing": {"properties": {"meta": reference("Meta_v3"), "same": reference("Same"), "self": reference("Thing")}},
                },
            })
        );
    }
}
