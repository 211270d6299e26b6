//! Sets and associative lists: no duplicates, and which item of the old list is which of the new one.
//!
//! Source: apiextensions-apiserver `pkg/apiserver/schema/listtype`, apiserver `pkg/cel/common/typeprovider` (correlation).

use meta::field::{Error, Path};
use serde_json::{Map, Value};

use crate::node::Node;

/// The item of the old list that an item of the new one continues; only associative lists have such.
pub fn counterpart<'o>(node: &Node, item: &Value, old: &'o [Value]) -> Option<&'o Value> {
    if node.list_type != "map" {
        return None;
    }
    let key = key_of(node, item);
    old.iter().find(|candidate| key_of(node, candidate) == key)
}

fn key_of(node: &Node, item: &Value) -> Map<String, Value> {
    let default = |key: &str| node.items.as_ref()?.properties.get(key)?.default.clone();
    let of = |key: &String| Some((key.clone(), item.get(key).cloned().or_else(|| default(key))?));
    node.list_map_keys.iter().filter_map(of).collect()
}

/// Duplicates anywhere in the object.
pub fn validate(node: &Node, value: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    walk(node, value, &Path::root(), &mut errors);
    errors
}

fn walk(node: &Node, value: &Value, path: &Path, errors: &mut Vec<Error>) {
    match value {
        Value::Array(items) => {
            match node.list_type.as_str() {
                "set" => duplicates(items.iter().map(Clone::clone), path, errors),
                "map" => duplicates(items.iter().map(|item| Value::Object(key_of(node, item))), path, errors),
                _ => {}
            }
            if let Some(schema) = &node.items {
                items.iter().enumerate().for_each(|(at, item)| walk(schema, item, &path.index(at), errors));
            }
        }
        Value::Object(map) => {
            for (name, value) in map {
                match node.properties.get(name) {
                    Some(property) => walk(property, value, &path.child(name), errors),
                    None => {
                        if let Some(schema) = node.additional_schema() {
                            walk(schema, value, &path.key(name), errors);
                        }
                    }
                }
            }
        }
        _ => {}
    }
}

fn duplicates(items: impl Iterator<Item = Value>, path: &Path, errors: &mut Vec<Error>) {
    let mut seen = std::collections::HashSet::new();
    for (at, item) in items.enumerate() {
        if !seen.insert(item.to_string()) {
            errors.push(Error::duplicate(&path.index(at), item));
        }
    }
}
