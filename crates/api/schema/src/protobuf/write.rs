//! JSON to protobuf.

use super::tree::Json;
use super::wire::Writer;
use crate::decode::base64_bytes;
use crate::model::{Field, Schema, Type};
use crate::table;

const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// The kinds of messages that stand for one value of a special JSON form; Go's type name tells them.
pub enum Special {
    /// `{ raw = 1 }`: any JSON.
    Raw,
    /// `{ items = 1 }`: a list of strings that can be a map's value.
    Strings,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStrings,
}

/// What the Go type `go` (pointer, slice and map taken off) is on the wire beyond its schema.
pub fn special(go: &str, schema: &Schema) -> Option<Special> {
    let name = || go.rsplit('.').next().unwrap_or_default();
    match schema {
        Schema::List(_) if matches!(name(), "ExtraValue" | "Verbs" | "AttestationValue") => Some(Special::Strings),
        Schema::Any => Some(match name() {
            "JSONSchemaPropsOrArray" => Special::SchemaOrArray,
            "JSONSchemaPropsOrBool" => Special::SchemaOrBool,
            "JSONSchemaPropsOrStringArray" => Special::SchemaOrStrings,
            _ => Special::Raw,
        }),
        _ => None,
    }
}

pub fn schema_props() -> Option<&'static Type> {
    table::find(SCHEMA_PROPS)
}

/// Writes an object's fields. Messages of embedded structs are written once each.
pub fn object<J: Json>(out: &mut Writer, value: &J, found: &Type) {
    embedded(out, value, found, (0, 0));
    let mut groups: Vec<u32> = Vec::new();
    for field in found.fields.iter().filter(|field| field.pb_inline != 0) {
        if !groups.contains(&field.pb_inline) {
            groups.push(field.pb_inline);
        }
    }
    for group in groups {
        out.nested(group, |inner| {
            embedded(inner, value, found, (group, 0));
            let second = found.fields.iter().find(|field| field.pb_inline == group && field.pb_inline_inner != 0);
            if let Some(number) = second.map(|field| field.pb_inline_inner) {
                inner.nested(number, |innermost| embedded(innermost, value, found, (group, number)));
            }
        });
    }
}

/// Writes the fields that stand in the message `(outer, inner)`.
fn embedded<J: Json>(out: &mut Writer, value: &J, found: &Type, message: (u32, u32)) {
    for field in found.fields.iter().filter(|field| field.pb != 0 && (field.pb_inline, field.pb_inline_inner) == message) {
        match value.get(&*field.json) {
            Some(value) if !value.is_null() => one_field(out, value, field),
            _ => {}
        }
    }
}

fn one_field<J: Json>(out: &mut Writer, value: &J, field: &Field) {
    any_field(out, field.pb, value, &field.schema, &field.go);
}

/// Writes a field that may be repeated.
fn any_field<J: Json>(out: &mut Writer, number: u32, value: &J, schema: &Schema, go: &str) {
    if let Some(special) = special(go, schema) {
        out.nested(number, |inner| special_message(inner, value, &special));
        return;
    }
    match schema {
        Schema::List(list) if value.items().is_some() => {
            let go = go.strip_prefix("[]").unwrap_or_default();
            value.items().into_iter().flatten().for_each(|item| any_field(out, number, item, &list.items, go));
        }
        Schema::Map(map) if value.is_object() => {
            let go = map_value(go);
            value.members(&mut |key, value| {
                out.nested(number, |entry| {
                    entry.bytes(1, key.as_bytes());
                    any_field(entry, 2, value, &map.values, go);
                });
            });
        }
        _ => single(out, number, value, schema),
    }
}

/// Go's name of a map's values.
pub fn map_value(go: &str) -> &str {
    go.strip_prefix("map[").and_then(|rest| rest.split_once(']')).map_or("", |(_, value)| value)
}

fn single<J: Json>(out: &mut Writer, number: u32, value: &J, schema: &Schema) {
    let (text, integer) = (value.as_text(), value.as_number());
    match schema {
        Schema::String | Schema::Duration => text.into_iter().for_each(|text| out.bytes(number, text.as_bytes())),
        Schema::Bool => value.as_bool().into_iter().for_each(|truth| out.varint(number, u64::from(truth))),
        // Negative numbers are written as 64 bits, as Go does.
        Schema::Int32 | Schema::Int64 => {
            integer.into_iter().for_each(|integer| out.varint(number, integer.as_i64().unwrap_or_default() as u64));
        }
        Schema::Float64 => integer.into_iter().for_each(|float| out.fixed64(number, float.as_f64().unwrap_or_default().to_bits())),
        Schema::Bytes => text.into_iter().for_each(|text| out.bytes(number, &base64_bytes(text).unwrap_or_default())),
        Schema::Quantity => text.into_iter().for_each(|text| out.nested(number, |inner| inner.bytes(1, text.as_bytes()))),
        Schema::IntOrString => out.nested(number, |inner| int_or_string(inner, value)),
        Schema::Time | Schema::MicroTime if text.is_some() => out.nested(number, |inner| time(inner, text.unwrap_or_default())),
        Schema::Object(found) if value.is_object() => out.nested(number, |inner| object(inner, value, found)),
        // A null item or map value is the type's zero: an empty message. Anything else that does not fit was refused when it was stored.
        Schema::Object(_) | Schema::Time | Schema::MicroTime if value.is_null() => out.nested(number, |_| {}),
        _ => {}
    }
}

fn int_or_string<J: Json>(out: &mut Writer, value: &J) {
    let (kind, integer, text) = match value.as_text() {
        Some(text) => (1, 0, text),
        None => (0, value.as_number().and_then(serde_json::Number::as_i64).unwrap_or_default(), ""),
    };
    out.varint(1, kind);
    out.varint(2, integer as u64);
    out.bytes(3, text.as_bytes());
}

/// `{ seconds = 1, nanos = 2 }`; a time that cannot be read is the zero time, an empty message.
fn time(out: &mut Writer, text: &str) {
    let Some(time) = meta::time::parse(text) else { return };
    let nanoseconds = time.as_nanosecond();
    // Both fit: the whole range of times is some 10^11 seconds.
    out.varint(1, nanoseconds.div_euclid(1_000_000_000) as i64 as u64);
    out.varint(2, nanoseconds.rem_euclid(1_000_000_000) as u64);
}

fn special_message<J: Json>(out: &mut Writer, value: &J, special: &Special) {
    match special {
        Special::Raw => out.bytes(1, &serde_json::to_vec(value).unwrap_or_default()),
        Special::Strings => strings(out, 1, value),
        Special::SchemaOrArray => match value.items() {
            Some(items) => items.iter().for_each(|item| props(out, 2, item)),
            None => props(out, 1, value),
        },
        Special::SchemaOrBool => match value.as_bool() {
            Some(allows) => out.varint(1, u64::from(allows)),
            None => {
                out.varint(1, 1);
                props(out, 2, value);
            }
        },
        Special::SchemaOrStrings => match value.items() {
            Some(_) => strings(out, 2, value),
            None => props(out, 1, value),
        },
    }
}

fn strings<J: Json>(out: &mut Writer, number: u32, value: &J) {
    for text in value.items().into_iter().flatten().filter_map(J::as_text) {
        out.bytes(number, text.as_bytes());
    }
}

fn props<J: Json>(out: &mut Writer, number: u32, value: &J) {
    if let Some(found) = schema_props() {
        out.nested(number, |inner| object(inner, value, found));
    }
}
