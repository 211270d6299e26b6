//! A CRD's schema in the form that the server's engines work from.

use std::sync::Arc;

use schema::model::{Field, List, Map, Ref, Schema, Slice, Str, Topology, Type};

use crate::node::{Additional, Node};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The type of a whole object. `preserve`: the CRD's own (v1beta1) flag keeps unknown fields everywhere.
pub fn root(node: &Node, name: &str, preserve: bool) -> Ref<Type> {
    let mut found = structure(node, name, preserve);
    add_meta(&mut found, true);
    Ref::Owned(Arc::new(found.build()))
}

struct Structure {
    name: String,
    fields: Vec<Field>,
    atomic: bool,
    preserve: bool,
    embedded: bool,
}

impl Structure {
    fn build(self) -> Type {
        Type {
            name: Str::Owned(self.name.into()),
            fields: Slice::Owned(self.fields.into()),
            atomic: self.atomic,
            preserve_unknown: self.preserve,
            embedded_resource: self.embedded,
            unions: Slice::Static(&[]),
        }
    }
}

/// What every complete object has, whatever the schema says of it.
fn add_meta(found: &mut Structure, root: bool) {
    for name in ["apiVersion", "kind"] {
        if !found.fields.iter().any(|field| &*field.json == name) {
            found.fields.push(Field { required: root, ..Field::new(name, Schema::String) });
        }
    }
    found.fields.retain(|field| &*field.json != "metadata");
    if let Some(meta) = schema::table::find(META) {
        found.fields.push(Field::new("metadata", Schema::Object(Ref::Static(meta))));
    }
}

fn structure(node: &Node, name: &str, preserve: bool) -> Structure {
    let fields = node.properties.iter().map(|(key, property)| Field {
        required: node.required.contains(key),
        nullable: property.nullable,
        default: property.default.as_ref().map(|value| Str::Owned(value.to_string().into())),
        ..Field::new(key, of(property, &format!("{name}.{key}"), preserve))
    });
    Structure {
        name: name.to_owned(),
        fields: fields.collect(),
        atomic: node.map_type == "atomic",
        preserve: preserve || node.preserve,
        embedded: node.embedded,
    }
}

fn of(node: &Node, name: &str, preserve: bool) -> Schema {
    if node.int_or_string {
        return Schema::IntOrString;
    }
    match node.ty.as_str() {
        "string" => Schema::String,
        "boolean" => Schema::Bool,
        "integer" => Schema::Int64,
        "number" => Schema::Float64,
        "array" => {
            let items = node.items.as_ref().map_or(Schema::Any, |items| of(items, name, preserve));
            let topology = match node.list_type.as_str() {
                "set" => Topology::Set,
                "map" => Topology::Map(Slice::Owned(node.list_map_keys.iter().map(|key| Str::Owned(key.as_str().into())).collect())),
                _ => Topology::Atomic,
            };
            Schema::List(Ref::Owned(Arc::new(List { items, topology })))
        }
        "object" => match &node.additional {
            Some(Additional::Schema(values)) if node.properties.is_empty() => {
                let values = of(values, name, preserve);
                Schema::Map(Ref::Owned(Arc::new(Map { values, atomic: node.map_type == "atomic" })))
            }
            Some(Additional::Any(true)) if node.properties.is_empty() => {
                Schema::Map(Ref::Owned(Arc::new(Map { values: Schema::Any, atomic: node.map_type == "atomic" })))
            }
            _ => {
                let mut found = structure(node, name, preserve);
                if node.embedded {
                    add_meta(&mut found, false);
                }
                Schema::Object(Ref::Owned(Arc::new(found.build())))
            }
        },
        _ => Schema::Any,
    }
}
