//! A schema as types of CEL, and as sizes for the estimate of costs.
//!
//! Source: apiserver `pkg/cel/common/schemas.go`, `pkg/cel/limits.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::Type;
use cel::cost::Sizes;
use cel::types::{Field, ListType, ObjectType, Topology, escape};

use crate::node::Node;

/// The largest request body.
const REQUEST_BYTES_MAX: u64 = 3 << 20;

/// A schema's struct.
#[derive(Debug)]
struct Object {
    fields: BTreeMap<String, Field>,
}

impl ObjectType for Object {
    fn name(&self) -> &str {
        "object"
    }
    fn field(&self, name: &str) -> Option<Field> {
        self.fields.get(name).cloned()
    }
    fn json_names(&self) -> Vec<String> {
        self.fields.values().map(|field| field.json.clone()).collect()
    }
}

/// The type of values of this schema; `None` where nothing is known of them. `whole`: a complete object, with its type and metadata.
pub fn declared(node: &Node, whole: bool) -> Option<Type> {
    if node.int_or_string {
        return Some(Type::Dyn);
    }
    Some(match node.ty.as_str() {
        "array" => {
            let items = declared(node.items.as_ref()?, node.items.as_ref()?.embedded)?;
            let topology = match node.list_type.as_str() {
                "set" => Topology::Set,
                "map" => Topology::Map(node.list_map_keys.clone()),
                _ => Topology::Atomic,
            };
            Type::List(Arc::new(ListType { items, topology }))
        }
        "object" => {
            if let Some(values) = node.additional_schema() {
                return Some(Type::map(Type::String, declared(values, values.embedded)?));
            }
            let mut fields: BTreeMap<String, Field> = node
                .properties
                .iter()
                .filter_map(|(name, child)| Some((escape(name)?, Field { json: name.clone(), ty: declared(child, child.embedded)? })))
                .collect();
            if whole {
                complete(&mut fields);
            }
            Type::Object(Arc::new(Object { fields }))
        }
        "string" => match node.format.as_str() {
            "byte" => Type::Bytes,
            "duration" => Type::Duration,
            "date" | "date-time" => Type::Timestamp,
            _ => Type::String,
        },
        "boolean" => Type::Bool,
        "number" => Type::Double,
        "integer" => Type::Int,
        _ => return None,
    })
}

/// What rules may ask of every object.
fn complete(fields: &mut BTreeMap<String, Field>) {
    for name in ["apiVersion", "kind"] {
        fields.insert(name.into(), Field { json: name.into(), ty: Type::String });
    }
    let names = ["name", "generateName"].map(|name| (name.to_owned(), Field { json: name.to_owned(), ty: Type::String }));
    let metadata = Type::Object(Arc::new(Object { fields: names.into() }));
    fields.insert("metadata".into(), Field { json: "metadata".into(), ty: metadata });
}

/// The least that a value takes in JSON.
pub fn min_size(node: &Node) -> u64 {
    if node.int_or_string {
        return 1;
    }
    match node.ty.as_str() {
        "object" if node.additional_schema().is_none() => {
            let required = node.properties.iter().filter(|(name, child)| node.required.contains(name) && child.default.is_none());
            2 + required.map(|(name, child)| name.len() as u64 + min_size(child) + 4).sum::<u64>()
        }
        "object" | "array" => 2,
        "string" => match node.format.as_str() {
            "duration" => 3,
            "date" => 12,
            "date-time" => 21,
            _ => 2,
        },
        "boolean" => 4,
        _ => 1,
    }
}

/// How often values of this schema may occur in one object where nothing bounds it.
pub fn max_occurrences(node: &Node) -> u64 {
    REQUEST_BYTES_MAX / (min_size(node) + 1)
}

fn max_text(node: &Node) -> u64 {
    match (node.max_length, node.format.as_str()) {
        (Some(max), "byte") => max,
        (_, "duration" | "date-time") => 32,
        (_, "date") => 12,
        // A character may take four bytes.
        (Some(max), _) => max.saturating_mul(4),
        (None, _) => match &node.enumeration {
            Some(values) => values.iter().filter_map(|value| value.as_str().map(str::len)).max().unwrap_or(0) as u64,
            None => REQUEST_BYTES_MAX - 2,
        },
    }
}

/// How many parts a value of this schema may have.
fn max_size(node: &Node) -> u64 {
    if node.int_or_string {
        return REQUEST_BYTES_MAX - 2;
    }
    match node.ty.as_str() {
        "array" => node.max_items.unwrap_or_else(|| (REQUEST_BYTES_MAX - 2) / (node.items.as_ref().map_or(1, |items| min_size(items)) + 1)),
        "object" => match node.additional_schema() {
            Some(values) => node.max_properties.unwrap_or_else(|| (REQUEST_BYTES_MAX - 2) / (min_size(values) + 6)),
            None => 0,
        },
        "string" => max_text(node),
        _ => 0,
    }
}

/// The sizes below `self` and `oldSelf`.
pub struct NodeSizes<'n>(pub &'n Node);

impl Sizes for NodeSizes<'_> {
    fn max_size(&self, path: &[String]) -> Option<u64> {
        let mut node = self.0;
        for step in path.get(1..)? {
            node = match step.as_str() {
                "@items" => node.items.as_deref()?,
                "@values" => node.additional_schema()?,
                // Keys have no schema: upstream reckons with none of their length.
                "@keys" | "@indices" => return Some(0),
                name => {
                    let found = node.properties.iter().find(|(json, _)| escape(json).as_deref() == Some(name));
                    match found {
                        Some((_, child)) => child,
                        // Names and types of complete objects.
                        None => return Some(REQUEST_BYTES_MAX - 2),
                    }
                }
            };
        }
        Some(max_size(node))
    }
}
