//! The walk over built-in types: a JSON value in, what Go would write after reading it out, in place.

use serde_json::{Map, Value};

use super::path::Path;
use super::{Error, scalar, structural};
use crate::model::{Field, Schema, Slice, Type};

/// What errors name: the struct whose field is being read, and the field's Go type.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub structure: &'a str,
    pub go: &'a str,
    pub path: &'a Path<'a>,
}

pub fn root(value: &mut Value, schema: &Schema, unknown: &mut Vec<String>) -> Result<(), Error> {
    read(value, schema, Context { structure: "", go: "", path: &Path::ROOT }, unknown)
}

/// Reads one value. `null` becomes the type's zero value.
pub fn read(value: &mut Value, schema: &Schema, context: Context<'_>, unknown: &mut Vec<String>) -> Result<(), Error> {
    if value.is_null() {
        if !matches!(schema, Schema::Object(found) if owned(found)) {
            *value = zero(schema);
        }
        return Ok(());
    }
    match schema {
        Schema::String | Schema::Duration if value.is_string() => Ok(()),
        Schema::Bool if value.is_boolean() => Ok(()),
        Schema::Int32 => integer(value, i64::from(i32::MIN)..=i64::from(i32::MAX), context),
        Schema::Int64 => integer(value, i64::MIN..=i64::MAX, context),
        Schema::Float64 if value.is_number() => Ok(()),
        Schema::Any => Ok(()),
        Schema::Quantity => {
            let canonical = scalar::quantity(value)?;
            *value = canonical;
            Ok(())
        }
        Schema::IntOrString if value.is_string() => Ok(()),
        Schema::IntOrString => integer(value, i64::from(i32::MIN)..=i64::from(i32::MAX), Context { go: "int32", ..context }),
        Schema::Time | Schema::MicroTime => match value.as_str() {
            Some(text) => {
                *value = scalar::time(text, matches!(schema, Schema::MicroTime))?;
                Ok(())
            }
            None => Err(mismatch(value, Context { go: "string", ..context }, "string")),
        },
        Schema::Bytes => match value.as_str() {
            Some(text) => {
                let decoded = scalar::bytes(text)?;
                if text.contains(['\r', '\n']) {
                    *value = Value::String(scalar::base64(&decoded));
                }
                Ok(())
            }
            None => Err(mismatch(value, Context { go: "[]uint8", ..context }, "[]uint8")),
        },
        Schema::Object(found) if owned(found) => structural::prune(value, found, context.path, unknown),
        Schema::Object(found) => match value {
            Value::Object(map) => object(map, found, context.path, unknown),
            _ => Err(mismatch(value, context, &go_name(schema))),
        },
        Schema::List(list) => match value {
            Value::Array(items) => {
                let go = context.go.strip_prefix("[]").unwrap_or_default();
                for (at, item) in items.iter_mut().enumerate() {
                    let path = context.path.index(at);
                    read(item, &list.items, Context { structure: context.structure, go, path: &path }, unknown)?;
                }
                Ok(())
            }
            _ => Err(mismatch(value, context, &go_name(schema))),
        },
        Schema::Map(map) => match value {
            Value::Object(entries) => {
                let go = context.go.strip_prefix("map[").and_then(|rest| rest.split_once(']')).map_or("", |(_, value)| value);
                for (key, entry) in entries.iter_mut() {
                    let path = context.path.key(key);
                    read(entry, &map.values, Context { structure: context.structure, go, path: &path }, unknown)?;
                }
                Ok(())
            }
            _ => Err(mismatch(value, context, &go_name(schema))),
        },
        _ => Err(mismatch(value, context, &go_name(schema))),
    }
}

/// Whether the type belongs to a CRD.
pub fn owned(found: &Type) -> bool {
    matches!(found.fields, Slice::Owned(_))
}

fn object(map: &mut Map<String, Value>, found: &Type, path: &Path<'_>, unknown: &mut Vec<String>) -> Result<(), Error> {
    let structure = found.name.rsplit('.').next().unwrap_or_default();
    let mut dropped: Vec<String> = Vec::new();
    for (key, value) in map.iter_mut() {
        let place = path.field(key);
        let Some(field) = found.field(key) else {
            unknown.push(place.full());
            dropped.push(key.clone());
            continue;
        };
        if value.is_null() && nil_is_kept(field) {
            continue;
        }
        if !(value.is_null() && field.pointer) {
            read(value, &field.schema, Context { structure, go: &field.go, path: &place }, unknown)?;
        }
        if left_out(value, field) {
            dropped.push(key.clone());
        }
    }
    for key in dropped {
        map.remove(&key);
    }
    for field in found.fields.iter().filter(|field| !field.omit_empty) {
        if !map.contains_key(&*field.json) {
            map.insert(field.json.to_string(), absent(field));
        }
    }
    Ok(())
}

/// Go writes `null` for a nil pointer, slice or map without omitempty.
fn nil_is_kept(field: &Field) -> bool {
    !field.omit_empty && absent(field).is_null()
}

fn absent(field: &Field) -> Value {
    if field.pointer { Value::Null } else { zero(&field.schema) }
}

/// Whether Go leaves the value out when it writes the field.
fn left_out(value: &Value, field: &Field) -> bool {
    if !field.omit_empty {
        return false;
    }
    match value {
        Value::Null => true,
        _ if field.pointer => false,
        Value::Bool(truth) => !truth,
        Value::String(text) => text.is_empty() && !matches!(field.schema, Schema::IntOrString),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(items) => items.is_empty() && !matches!(field.schema, Schema::Any),
        Value::Object(entries) => match &field.schema {
            // omitzero: the struct as a whole is zero.
            Schema::Object(_) => *value == zero(&field.schema),
            Schema::Any => false,
            _ => entries.is_empty(),
        },
    }
}

/// What Go writes for a field of this type that was never set and has no omitempty.
pub fn zero(schema: &Schema) -> Value {
    match schema {
        Schema::String => Value::String(String::new()),
        Schema::Bool => Value::Bool(false),
        Schema::Int32 | Schema::Int64 | Schema::IntOrString => Value::from(0),
        Schema::Float64 => Value::from(0),
        Schema::Quantity => Value::String("0".into()),
        Schema::Duration => Value::String("0s".into()),
        Schema::Bytes | Schema::Time | Schema::MicroTime | Schema::Any | Schema::List(_) | Schema::Map(_) => Value::Null,
        Schema::Object(found) => {
            let written = found.fields.iter().filter(|field| !field.omit_empty);
            Value::Object(written.map(|field| (field.json.to_string(), absent(field))).collect())
        }
    }
}

fn integer(value: &mut Value, range: std::ops::RangeInclusive<i64>, context: Context<'_>) -> Result<(), Error> {
    match value.as_i64() {
        Some(number) if range.contains(&number) => Ok(()),
        _ => {
            let plain = if *range.end() == i64::MAX { "int64" } else { "int32" };
            Err(type_error(&scalar::described(value, true), context, plain))
        }
    }
}

fn mismatch(value: &Value, context: Context<'_>, plain: &str) -> Error {
    type_error(&scalar::described(value, false), context, plain)
}

/// Go's sentence; `plain` names the type where the table does not.
fn type_error(value: &str, context: Context<'_>, plain: &str) -> Error {
    let go = if context.go.is_empty() { plain } else { context.go };
    Error::Type(match context.structure {
        "" => format!("json: cannot unmarshal {value} into Go value of type {go}"),
        structure => format!("json: cannot unmarshal {value} into Go struct field {structure}.{} of type {go}", context.path.go()),
    })
}

fn go_name(schema: &Schema) -> String {
    match schema {
        Schema::Bool => "bool".into(),
        Schema::Float64 => "float64".into(),
        Schema::Object(found) => {
            let mut parts = found.name.rsplit('.');
            let (kind, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            format!("{version}.{kind}")
        }
        Schema::List(list) => format!("[]{}", go_name(&list.items)),
        Schema::Map(map) => format!("map[string]{}", go_name(&map.values)),
        _ => "string".into(),
    }
}
