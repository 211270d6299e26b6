//! What the schema says about the value at hand, in server-side apply's terms: leaf, list or map, atomic or not.
//!
//! Source: kube-openapi `schemaconv` (how OpenAPI becomes a structured-merge schema) and structured-merge-diff `typed`.

use std::borrow::Cow;

use serde_json::Value;

use super::element::Element;
use crate::model::{Field, List, Map, Schema, Slice, Topology, Type};
use crate::table;

/// A place in the schema.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node<'s> {
    Scalar(Scalar),
    /// `whole`: a complete object, with kind, apiVersion and metadata even if the schema does not list them.
    Struct {
        schema: &'s Type,
        whole: bool,
    },
    Map {
        map: &'s Map,
        built_in: bool,
    },
    List {
        list: &'s List,
        built_in: bool,
    },
    /// Any JSON as one value (`RawExtension`).
    Atomic,
    /// Any JSON whose maps are granular and whose lists are atomic (unknown fields that are preserved).
    Deduced,
}

/// Which scalars a leaf takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    String,
    Number,
    Bool,
    Any,
}

/// How to walk the value.
pub(super) enum Shape<'s> {
    Leaf,
    Map,
    Set,
    /// A list whose items are found by these keys.
    Keyed(&'s [crate::model::Str], Node<'s>),
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// apiextensions' `JSON` is any value without a type, unlike `RawExtension`.
const JSON_OWNER_PREFIX: &str = "io.k8s.apiextensions-apiserver.";

impl<'s> Node<'s> {
    pub(super) fn root(schema: &'s Type) -> Self {
        Node::Struct { schema, whole: true }
    }

    fn of(schema: &'s Schema, built_in: bool) -> Self {
        match schema {
            Schema::String | Schema::Bytes => Node::Scalar(Scalar::String),
            Schema::Int32 | Schema::Int64 | Schema::Float64 => Node::Scalar(Scalar::Number),
            Schema::Bool => Node::Scalar(Scalar::Bool),
            Schema::Quantity | Schema::IntOrString | Schema::Time | Schema::MicroTime | Schema::Duration => Node::Scalar(Scalar::Any),
            Schema::Any if built_in => Node::Atomic,
            Schema::Any => Node::Deduced,
            Schema::Object(inner) => Node::Struct { schema: inner, whole: inner.embedded_resource },
            Schema::Map(map) => Node::Map { map, built_in },
            Schema::List(list) => Node::List { list, built_in },
        }
    }

    /// How this value is walked. The value decides where the schema does not.
    pub(super) fn shape(self, value: &Value) -> Shape<'s> {
        match self {
            Node::Scalar(_) | Node::Atomic => Shape::Leaf,
            Node::Struct { schema, .. } if schema.atomic => Shape::Leaf,
            Node::Map { map, .. } if map.atomic => Shape::Leaf,
            Node::Struct { .. } | Node::Map { .. } => Shape::Map,
            Node::List { list, built_in } => match &list.topology {
                Topology::Atomic => Shape::Leaf,
                Topology::Set => Shape::Set,
                Topology::Map(keys) if keys.is_empty() => Shape::Set,
                Topology::Map(keys) => Shape::Keyed(keys, Node::of(&list.items, built_in)),
            },
            Node::Deduced if value.is_object() || value.is_null() => Shape::Map,
            Node::Deduced => Shape::Leaf,
        }
    }

    /// The schema takes it as one value whatever stands there: its parts have no owners of their own.
    pub(super) fn is_atomic(self) -> bool {
        match self {
            Node::Scalar(_) | Node::Deduced => false,
            Node::Atomic => true,
            Node::Struct { schema, .. } => schema.atomic,
            Node::Map { map, .. } => map.atomic,
            Node::List { list, .. } => matches!(list.topology, Topology::Atomic),
        }
    }

    /// The node of a field, and whether a struct declares it. Undeclared fields that are not preserved: `None`.
    pub(super) fn declared(self, name: &str) -> Option<(Node<'s>, bool)> {
        match self {
            Node::Struct { schema, whole } => struct_field(schema, whole, name),
            Node::Map { map, built_in } => Some((Node::of(&map.values, built_in), false)),
            Node::Atomic => Some((Node::Atomic, false)),
            Node::Deduced => Some((Node::Deduced, false)),
            Node::Scalar(_) | Node::List { .. } => None,
        }
    }

    /// The node of a field; what the schema does not know (any more) is deduced.
    pub(super) fn child(self, name: &str) -> (Node<'s>, bool) {
        self.declared(name).unwrap_or((Node::Deduced, false))
    }

    /// The node that a path goes on to; what no struct declares is taken as it is found.
    pub(super) fn step(self, element: &Element<'_>) -> (Node<'s>, bool) {
        match element {
            Element::Field(name) => self.child(name),
            _ => (self.items(), false),
        }
    }

    /// The node of a list's items.
    pub(super) fn items(self) -> Node<'s> {
        match self {
            Node::List { list, built_in } => Node::of(&list.items, built_in),
            _ => Node::Atomic,
        }
    }

    /// The path element of an item of a list with these keys; the error is upstream's sentence.
    pub(super) fn key_of<'v>(self, keys: &'s [crate::model::Str], item: &'v Value) -> Result<Element<'v>, String>
    where
        's: 'v,
    {
        let Some(fields) = item.as_object() else {
            let what = if item.is_null() { "a null element" } else { "non-map elements" };
            return Err(format!("associative list with keys may not have {what}"));
        };
        let mut element: Vec<(Cow<'v, str>, Cow<'v, Value>)> = Vec::with_capacity(keys.len());
        for key in keys {
            let name: &'s str = key;
            if let Some(value) = fields.get(name) {
                element.push((Cow::Borrowed(name), Cow::Borrowed(value)));
            } else if let Some(value) = self.default_of(name) {
                element.push((Cow::Borrowed(name), Cow::Owned(value)));
            }
        }
        if element.is_empty() {
            let keys: Vec<String> = keys.iter().map(|key| format!("{:?}", &**key)).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                keys.join(" ")
            ));
        }
        element.sort_by(|left, right| left.0.cmp(&right.0));
        Ok(Element::Key(element))
    }

    /// The value that a key field has when it is absent: its default, or Go's zero value where Go always writes it.
    fn default_of(self, name: &str) -> Option<Value> {
        let Node::Struct { schema, .. } = self else { return None };
        let field = field_of(schema, name)?;
        match &field.default {
            Some(text) => serde_json::from_str(text).ok(),
            None => zero_scalar(field),
        }
    }
}

/// As [`Type::field`]; the built-in table is sorted, which this walks often enough to use.
fn field_of<'s>(schema: &'s Type, name: &str) -> Option<&'s Field> {
    match schema.fields {
        Slice::Static(fields) => fields.binary_search_by(|field| (*field.json).cmp(name)).ok().and_then(|at| fields.get(at)),
        Slice::Owned(_) => schema.field(name),
    }
}

fn struct_field<'s>(schema: &'s Type, whole: bool, name: &str) -> Option<(Node<'s>, bool)> {
    if let Some(field) = field_of(schema, name) {
        let built_in = matches!(schema.fields, Slice::Static(_)) && !schema.name.starts_with(JSON_OWNER_PREFIX);
        return Some((Node::of(&field.schema, built_in), true));
    }
    if whole {
        match name {
            "apiVersion" | "kind" => return Some((Node::Scalar(Scalar::String), true)),
            "metadata" => {
                return Some((table::find(OBJECT_META).map_or(Node::Deduced, |schema| Node::Struct { schema, whole: false }), true));
            }
            _ => {}
        }
    }
    let open = schema.preserve_unknown || schema.fields.is_empty();
    open.then_some((Node::Deduced, false))
}

/// Go's zero value of a scalar field that is always written.
pub(super) fn zero_scalar(field: &Field) -> Option<Value> {
    if field.omit_empty || field.pointer {
        return None;
    }
    // CRDs have no Go type behind them and therefore no zero values.
    matches!(field.json, crate::model::Str::Static(_)).then_some(())?;
    Some(match field.schema {
        Schema::String => Value::String(String::new()),
        Schema::Int32 | Schema::Int64 | Schema::Float64 => Value::from(0),
        Schema::Bool => Value::Bool(false),
        _ => return None,
    })
}
