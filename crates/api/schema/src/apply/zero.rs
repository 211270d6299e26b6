//! Go's zero value of a type, as far as an object's fields are compared with it: creation is a change from it.
//!
//! It decides who comes to own `.spec` and the like: Go always writes structs that are no pointers, so that they are no
//! news in a new object, while optional parts are.

use serde_json::{Map, Value};

use super::node::zero_scalar;
use crate::model::{Field, Schema, Slice, Type};

/// The zero value of `schema` in those fields that `object` has. CRDs have no Go type: theirs is empty.
pub(super) fn of(schema: &Type, object: &Value) -> Value {
    let mut zero = Map::new();
    if matches!(schema.fields, Slice::Static(_)) {
        for (name, value) in object.as_object().into_iter().flatten() {
            if let Some(field) = schema.field(name)
                && let Some(value) = zero_field(field, value)
            {
                zero.insert(name.clone(), value);
            }
        }
    }
    Value::Object(zero)
}

fn zero_field(field: &Field, value: &Value) -> Option<Value> {
    if field.omit_empty {
        return None;
    }
    if field.pointer {
        return Some(Value::Null);
    }
    match &field.schema {
        Schema::Object(schema) => Some(of(schema, value)),
        Schema::Quantity => Some(Value::String("0".to_owned())),
        Schema::IntOrString => Some(Value::from(0)),
        _ => Some(zero_scalar(field).unwrap_or(Value::Null)),
    }
}
