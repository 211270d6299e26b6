//! `x-kubernetes-embedded-resource`: a complete object says what it is.
//!
//! Source: apiextensions-apiserver `pkg/apiserver/schema/objectmeta`.

use meta::field::{Error, Path};
use serde_json::Value;

use crate::node::Node;

/// Embedded objects without `apiVersion` or `kind`.
pub fn validate(node: &Node, value: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    walk(node, value, &Path::root(), &mut errors);
    errors
}

fn walk(node: &Node, value: &Value, path: &Path, errors: &mut Vec<Error>) {
    match value {
        Value::Object(map) => {
            if node.embedded {
                for name in ["apiVersion", "kind"] {
                    if map.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                        errors.push(Error::required(&path.child(name), "must not be empty"));
                    }
                }
            }
            for (name, child) in map {
                match node.properties.get(name) {
                    Some(property) => walk(property, child, &path.child(name), errors),
                    None => {
                        if let Some(schema) = node.additional_schema() {
                            walk(schema, child, &path.key(name), errors);
                        }
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &node.items {
                items.iter().enumerate().for_each(|(at, item)| walk(schema, item, &path.index(at), errors));
            }
        }
        _ => {}
    }
}
