//! Protobuf to JSON, in the raw: zero values are put right afterwards by the decoder of JSON bodies.

use serde_json::{Map, Number, Value};

use super::wire::{Content, Reader};
use super::write::{Special, map_value, schema_props, special};
use super::{Error, MAGIC, Object};
use crate::decode::{self, Mode};
use crate::model::{Field, Schema, Type};
use crate::table;

/// How deep messages may nest.
const DEPTH_MAX: usize = 200;

pub fn envelope(bytes: &[u8], fallback: Option<&'static Type>, depth: usize) -> Result<Object, Error> {
    let bytes = bytes.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let (mut api_version, mut kind, mut raw, mut content_type) = (String::new(), String::new(), &[][..], String::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, content)) = reader.field()? {
        match (number, content) {
            (1, Content::Bytes(inner)) => {
                let mut reader = Reader::new(inner);
                while let Some((number, content)) = reader.field()? {
                    match (number, content) {
                        (1, Content::Bytes(text)) => api_version = string(text),
                        (2, Content::Bytes(text)) => kind = string(text),
                        _ => {}
                    }
                }
            }
            (2, Content::Bytes(inner)) => raw = inner,
            (4, Content::Bytes(text)) => content_type = string(text),
            _ => {}
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let found = match table::by_gvk(group, version, &kind) {
        None if kind.is_empty() && api_version.is_empty() => fallback,
        found => found,
    };
    let Some(found) = found else { return Err(Error::Unknown { api_version, kind }) };
    let mut value = if content_type == "application/json" { decode::parse_json(raw)?.value } else { object(raw, found, depth)? };
    if let Some(map) = value.as_object_mut() {
        for (name, text) in [("apiVersion", &api_version), ("kind", &kind)] {
            if !text.is_empty() && found.field(name).is_some() {
                map.insert(name.into(), text.as_str().into());
            }
        }
    }
    let (value, _) = decode::decode_type(value, found, Mode::Ignore)?;
    Ok(Object { api_version, kind, value })
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads a message as an object of `found`.
pub fn object(bytes: &[u8], found: &Type, depth: usize) -> Result<Value, Error> {
    let mut map = Map::new();
    fields(&mut map, bytes, found, (0, 0), depth)?;
    Ok(Value::Object(map))
}

/// Reads the fields of the message `place` (which embedded struct of which), adding to `map`.
fn fields(map: &mut Map<String, Value>, bytes: &[u8], found: &Type, place: (u32, u32), depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::Wire("exceeded max depth"));
    }
    let mut reader = Reader::new(bytes);
    while let Some((number, content)) = reader.field()? {
        let here = |field: &&Field| field.pb == number && (field.pb_inline, field.pb_inline_inner) == place;
        if let Some(field) = found.fields.iter().find(here) {
            add(map, field, content, depth)?;
        } else if let Content::Bytes(inner) = content
            && let Some(next) = embedded(found, place, number)
        {
            fields(map, inner, found, next, depth + 1)?;
        }
    }
    Ok(())
}

/// The embedded message that field `number` of message `place` is, if any.
fn embedded(found: &Type, place: (u32, u32), number: u32) -> Option<(u32, u32)> {
    let next = if place.0 == 0 { (number, 0) } else { (place.0, number) };
    let inside = |field: &Field| match next {
        (outer, 0) => field.pb_inline == outer,
        _ => (field.pb_inline, field.pb_inline_inner) == next,
    };
    found.fields.iter().any(inside).then_some(next)
}

/// Adds one occurrence of a field: the value, one more item, or one more entry.
fn add(map: &mut Map<String, Value>, field: &Field, content: Content<'_>, depth: usize) -> Result<(), Error> {
    let key = &*field.json;
    match &field.schema {
        Schema::List(list) if special(&field.go, &field.schema).is_none() => {
            let go = field.go.strip_prefix("[]").unwrap_or_default();
            let slot = map.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = slot else { return Ok(()) };
            match (&list.items, content) {
                // A packed list of numbers.
                (Schema::Int32 | Schema::Int64 | Schema::Bool, Content::Bytes(packed)) => {
                    let mut reader = Reader::new(packed);
                    while !reader.is_empty() {
                        let number = reader.varint()?;
                        items.push(value(Content::Varint(number), &list.items, go, depth)?);
                    }
                }
                _ => items.push(value(content, &list.items, go, depth)?),
            }
        }
        Schema::Map(entries) => {
            let Content::Bytes(bytes) = content else { return Err(Error::Wire("wrong wireType for a map")) };
            let (key_read, value_read) = entry(bytes, &entries.values, map_value(&field.go), depth)?;
            let slot = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = slot {
                entries.insert(key_read, value_read);
            }
        }
        schema => {
            let read = value(content, schema, &field.go, depth)?;
            match (map.get_mut(key), read) {
                // A message that comes twice is merged.
                (Some(Value::Object(known)), Value::Object(more)) => known.extend(more),
                (_, read) => {
                    map.insert(key.to_owned(), read);
                }
            }
        }
    }
    Ok(())
}

fn entry(bytes: &[u8], values: &Schema, go: &str, depth: usize) -> Result<(String, Value), Error> {
    let (mut key, mut read) = (String::new(), Value::Null);
    let mut reader = Reader::new(bytes);
    while let Some((number, content)) = reader.field()? {
        match (number, content) {
            (1, Content::Bytes(text)) => key = string(text),
            (2, content) => read = value(content, values, go, depth)?,
            _ => {}
        }
    }
    Ok((key, read))
}

fn value(content: Content<'_>, schema: &Schema, go: &str, depth: usize) -> Result<Value, Error> {
    let wrong = || Error::Wire("wrong wireType");
    if let Some(special) = special(go, schema) {
        let Content::Bytes(bytes) = content else { return Err(wrong()) };
        return special_value(bytes, &special, depth + 1);
    }
    Ok(match (schema, content) {
        (Schema::String | Schema::Duration, Content::Bytes(bytes)) => Value::String(string(bytes)),
        (Schema::Bool, Content::Varint(number)) => Value::Bool(number != 0),
        // Go keeps the lower half.
        (Schema::Int32, Content::Varint(number)) => Value::from(number as i32),
        (Schema::Int64, Content::Varint(number)) => Value::from(number as i64),
        (Schema::Float64, Content::Fixed64(bits)) => Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number),
        (Schema::Bytes, Content::Bytes(bytes)) => Value::String(decode::base64_text(bytes)),
        (Schema::Quantity, Content::Bytes(bytes)) => Value::String(first_string(bytes)?),
        (Schema::IntOrString, Content::Bytes(bytes)) => int_or_string(bytes)?,
        (Schema::Time | Schema::MicroTime, Content::Bytes(bytes)) => time(bytes, matches!(schema, Schema::MicroTime))?,
        (Schema::Object(found), Content::Bytes(bytes)) => object(bytes, found, depth + 1)?,
        _ => return Err(wrong()),
    })
}

fn first_string(bytes: &[u8]) -> Result<String, Error> {
    let mut text = "0".to_owned();
    let mut reader = Reader::new(bytes);
    while let Some((number, content)) = reader.field()? {
        if let (1, Content::Bytes(bytes)) = (number, content) {
            text = string(bytes);
        }
    }
    Ok(text)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    let (mut kind, mut integer, mut text) = (0, 0, String::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, content)) = reader.field()? {
        match (number, content) {
            (1, Content::Varint(number)) => kind = number,
            (2, Content::Varint(number)) => integer = number as i32,
            (3, Content::Bytes(bytes)) => text = string(bytes),
            _ => {}
        }
    }
    Ok(if kind == 1 { Value::String(text) } else { Value::from(integer) })
}

/// An empty message is Go's zero time.
fn time(bytes: &[u8], micro: bool) -> Result<Value, Error> {
    let (mut seconds, mut nanoseconds) = (0_i64, 0_i32);
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let mut reader = Reader::new(bytes);
    while let Some((number, content)) = reader.field()? {
        match (number, content) {
            (1, Content::Varint(number)) => seconds = number as i64,
            (2, Content::Varint(number)) => nanoseconds = number as i32,
            _ => {}
        }
    }
    let time = jiff::Timestamp::new(seconds, nanoseconds).map_err(|_| Error::Wire("timestamp out of range"))?;
    Ok(Value::String(if micro { meta::time::micro(time) } else { meta::time::seconds(time) }))
}

fn special_value(bytes: &[u8], special: &Special, depth: usize) -> Result<Value, Error> {
    let (mut first, mut flag, mut messages, mut texts) = (None, false, Vec::new(), Vec::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, content)) = reader.field()? {
        match (special, number, content) {
            (Special::Raw, 1, Content::Bytes(raw)) => return any(raw, depth),
            (Special::Strings, 1, Content::Bytes(text)) | (Special::SchemaOrStrings, 2, Content::Bytes(text)) => {
                texts.push(Value::String(string(text)));
            }
            (Special::SchemaOrArray | Special::SchemaOrStrings, 1, Content::Bytes(inner))
            | (Special::SchemaOrBool, 2, Content::Bytes(inner)) => {
                first = Some(props(inner, depth)?);
            }
            (Special::SchemaOrArray, 2, Content::Bytes(inner)) => messages.push(props(inner, depth)?),
            (Special::SchemaOrBool, 1, Content::Varint(number)) => flag = number != 0,
            _ => {}
        }
    }
    Ok(match (special, first) {
        (Special::Raw, _) => Value::Null,
        (Special::Strings, _) => Value::Array(texts),
        (_, Some(found)) => found,
        (Special::SchemaOrBool, None) => Value::Bool(flag),
        (Special::SchemaOrArray, None) => Value::Array(messages),
        (Special::SchemaOrStrings, None) => Value::Array(texts),
    })
}

/// A schema where the table knows no type: its zero values are put right here.
fn props(bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let Some(found) = schema_props() else { return Ok(Value::Null) };
    let (value, _) = decode::decode_type(object(bytes, found, depth)?, found, Mode::Ignore)?;
    Ok(value)
}

/// The content of a RawExtension: a protobuf body or JSON.
fn any(raw: &[u8], depth: usize) -> Result<Value, Error> {
    if raw.starts_with(MAGIC) {
        return if depth > DEPTH_MAX { Err(Error::Wire("exceeded max depth")) } else { Ok(envelope(raw, None, depth)?.value) };
    }
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    Ok(decode::parse_json(raw)?.value)
}
