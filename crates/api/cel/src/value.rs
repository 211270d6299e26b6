//! Values. JSON is borrowed and read as it is looked at: an object of a megabyte costs nothing until a field of it is asked for.

use std::cmp::Ordering;
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map as JsonMap, Value as Json};

use crate::library::Opaque;
use crate::types::{Topology, Type};

#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    /// Nanoseconds.
    Duration(i64),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    /// A type, by its name.
    Type(Arc<str>),
    /// A value of a library.
    Opaque(Opaque),
    /// `Name{field: …}`.
    Struct(Arc<(String, Vec<(String, Value<'a>)>)>),
}

#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(text) => text,
            Text::Shared(text) => text,
        }
    }
}

#[derive(Clone, Debug)]
pub enum List<'a> {
    Owned(Arc<Vec<Value<'a>>>),
    Json { items: &'a [Json], ty: Type, topology: Topology },
}

#[derive(Clone, Debug)]
pub enum Map<'a> {
    Owned(Arc<Vec<(Value<'a>, Value<'a>)>>),
    Json {
        map: &'a JsonMap<String, Json>,
        ty: Type,
    },
    /// A key that is not there reads as an empty map, though it is not in the map (a device's attributes by domain).
    Forgiving(Arc<Vec<(Value<'a>, Value<'a>)>>),
}

impl<'a> Value<'a> {
    pub fn string(text: impl Into<String>) -> Self {
        Value::String(Text::Shared(Arc::from(text.into())))
    }
    pub fn list(items: Vec<Value<'a>>) -> Self {
        Value::List(List::Owned(Arc::new(items)))
    }
    pub fn map(entries: Vec<(Value<'a>, Value<'a>)>) -> Self {
        Value::Map(Map::Owned(Arc::new(entries)))
    }
    pub fn some(value: Value<'a>) -> Self {
        Value::Optional(Some(Arc::new(value)))
    }
    pub const NONE: Value<'static> = Value::Optional(None);

    /// JSON as a value of this type. What does not fit its type is read as what it is.
    pub fn json(json: &'a Json, ty: &Type) -> Self {
        match (json, ty) {
            (Json::Null, _) => Value::Null,
            (Json::Bool(truth), _) => Value::Bool(*truth),
            (Json::Number(number), Type::Double) => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
            (Json::Number(number), Type::Uint) if number.is_u64() => Value::Uint(number.as_u64().unwrap_or_default()),
            (Json::Number(number), ty) => match number.as_i64() {
                Some(integer) => Value::Int(integer),
                None => match number.as_f64() {
                    Some(double) if matches!(ty, Type::Int) && double.fract() == 0.0 && double.abs() < 9.2e18 => Value::Int(double as i64),
                    double => Value::Double(double.unwrap_or(f64::NAN)),
                },
            },
            (Json::String(text), ty) => text_value(text, ty),
            (Json::Array(items), Type::List(list)) => {
                Value::List(List::Json { items, ty: list.items.clone(), topology: list.topology.clone() })
            }
            (Json::Array(items), _) => Value::List(List::Json { items, ty: Type::Dyn, topology: Topology::Atomic }),
            (Json::Object(map), ty) => Value::Map(Map::Json { map, ty: ty.clone() }),
        }
    }

    /// The value as JSON; `None` for what has no JSON form (types, authorizers).
    pub fn to_json(&self) -> Option<Json> {
        Some(match self {
            Value::Null => Json::Null,
            Value::Bool(truth) => Json::Bool(*truth),
            Value::Int(number) => Json::from(*number),
            Value::Uint(number) => Json::from(*number),
            Value::Double(number) => serde_json::Number::from_f64(*number).map(Json::Number)?,
            Value::String(text) => Json::String(text.to_string()),
            Value::Bytes(bytes) => {
                use base64::Engine;
                Json::String(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            Value::Timestamp(_) | Value::Duration(_) => Json::String(crate::library::convert::to_string(self)?),
            Value::List(List::Json { items, .. }) => Json::Array(items.to_vec()),
            Value::List(list) => Json::Array(list.iter().map(|item| item.to_json()).collect::<Option<_>>()?),
            Value::Map(Map::Json { map, .. }) => Json::Object((*map).clone()),
            Value::Map(Map::Owned(entries) | Map::Forgiving(entries)) => {
                let entry = |(key, value): &(Value<'a>, Value<'a>)| {
                    let key = match key {
                        Value::String(text) => text.to_string(),
                        other => crate::library::convert::to_string(other)?,
                    };
                    Some((key, value.to_json()?))
                };
                Json::Object(entries.iter().map(entry).collect::<Option<_>>()?)
            }
            Value::Struct(object) => {
                Json::Object(object.1.iter().map(|(name, value)| Some((name.clone(), value.to_json()?))).collect::<Option<_>>()?)
            }
            Value::Optional(Some(inner)) => inner.to_json()?,
            Value::Optional(None) => Json::Null,
            Value::Opaque(opaque) => Json::String(opaque.text()?),
            Value::Type(_) => return None,
        })
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// The name that `type(x)` gives.
    pub fn type_name(&self) -> &str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Opaque(opaque) => opaque.type_name(),
            Value::Struct(object) => &object.0,
        }
    }

    /// What cost accounting takes as the value's size.
    pub fn cost_size(&self) -> u64 {
        match self {
            Value::String(text) => char_count(text) as u64,
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(list) => list.len() as u64,
            Value::Map(map) => map.len() as u64,
            Value::Optional(Some(inner)) => inner.cost_size(),
            Value::Opaque(opaque) => opaque.cost_size(),
            _ => 1,
        }
    }

    /// A field, key or list item by a constant name; `None` where it is absent.
    pub fn member(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Value::Map(map) => map.field(name),
            Value::Struct(object) => object.1.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone()),
            _ => None,
        }
    }

    pub fn equal(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::String(a), Value::String(b)) => **a == **b,
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::Type(a), Value::Type(b)) => a == b,
            (Value::Opaque(a), Value::Opaque(b)) => a.equal(b),
            (Value::Optional(a), Value::Optional(b)) => match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.equal(b),
                _ => false,
            },
            (Value::List(a), Value::List(b)) => a.equal(b),
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len() && a.iter().all(|(key, value)| b.get(&key).is_some_and(|other| value.equal(&other)))
            }
            (Value::Struct(a), Value::Struct(b)) => {
                let same =
                    |(name, value): &(String, Value<'a>)| b.1.iter().any(|(other_name, other)| name == other_name && value.equal(other));
                a.0 == b.0 && a.1.len() == b.1.len() && a.1.iter().all(same)
            }
            (a, b) => a.compare_numbers(b) == Some(Ordering::Equal),
        }
    }

    fn compare_numbers(&self, other: &Value<'_>) -> Option<Ordering> {
        Some(match (self, other) {
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Uint(a), Value::Uint(b)) => a.cmp(b),
            (Value::Int(a), Value::Uint(b)) => i128::from(*a).cmp(&i128::from(*b)),
            (Value::Uint(a), Value::Int(b)) => i128::from(*a).cmp(&i128::from(*b)),
            (Value::Double(a), Value::Double(b)) => return a.partial_cmp(b),
            (Value::Int(a), Value::Double(b)) => return (*a as f64).partial_cmp(b),
            (Value::Double(a), Value::Int(b)) => return a.partial_cmp(&(*b as f64)),
            (Value::Uint(a), Value::Double(b)) => return (*a as f64).partial_cmp(b),
            (Value::Double(a), Value::Uint(b)) => return a.partial_cmp(&(*b as f64)),
            _ => return None,
        })
    }

    /// The order of two values that have one; `None` for others (and NaN).
    pub fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Value::String(a), Value::String(b)) => Some((**a).cmp(&**b)),
            (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
            (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
            _ => self.compare_numbers(other),
        }
    }
}

pub fn char_count(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}

/// Formats give texts other types.
fn text_value<'a>(text: &'a str, ty: &Type) -> Value<'a> {
    match ty {
        Type::Bytes => {
            use base64::Engine;
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            decoded.map_or(Value::String(Text::Borrowed(text)), |bytes| Value::Bytes(bytes.into()))
        }
        Type::Timestamp => crate::library::time::schema_time(text).map_or(Value::String(Text::Borrowed(text)), Value::Timestamp),
        Type::Duration => crate::library::time::duration(text).map_or(Value::String(Text::Borrowed(text)), Value::Duration),
        _ => Value::String(Text::Borrowed(text)),
    }
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            List::Owned(items) => items.len(),
            List::Json { items, .. } => items.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        match self {
            List::Owned(items) => items.get(index).cloned(),
            List::Json { items, ty, .. } => items.get(index).map(|item| Value::json(item, ty)),
        }
    }
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }
    pub fn contains(&self, value: &Value<'_>) -> bool {
        self.iter().any(|item| item.equal(value))
    }
    fn topology(&self) -> &Topology {
        match self {
            List::Owned(_) => &Topology::Atomic,
            List::Json { topology, .. } => topology,
        }
    }

    /// Sets and associative lists are equal in any order (when the left one is of the kind).
    pub fn equal(&self, other: &List<'_>) -> bool {
        if self.len() != other.len() {
            return false;
        }
        match self.topology() {
            Topology::Atomic => self.iter().zip(other.iter()).all(|(a, b)| a.equal(&b)),
            Topology::Set => self.iter().all(|item| other.contains(&item)),
            Topology::Map(keys) => {
                self.iter().all(|item| other.iter().any(|candidate| same_key(&item, &candidate, keys) && item.equal(&candidate)))
            }
        }
    }

    /// `a + b`: sets unite, associative lists are merged by key, others follow each other.
    pub fn concat(&self, other: &List<'a>) -> Value<'a> {
        let mut items: Vec<Value<'a>> = self.iter().collect();
        match self.topology() {
            Topology::Atomic => items.extend(other.iter()),
            Topology::Set => {
                for item in other.iter() {
                    if !items.iter().any(|known| known.equal(&item)) {
                        items.push(item);
                    }
                }
            }
            Topology::Map(keys) => {
                for item in other.iter() {
                    match items.iter().position(|known| same_key(known, &item, keys)) {
                        Some(at) => items[at] = item,
                        None => items.push(item),
                    }
                }
            }
        }
        Value::list(items)
    }
}

fn same_key(a: &Value<'_>, b: &Value<'_>, keys: &[String]) -> bool {
    keys.iter().all(|key| match (json_member(a, key), json_member(b, key)) {
        (Some(a), Some(b)) => a == b,
        (None, None) => true,
        _ => false,
    })
}

fn json_member<'v>(value: &Value<'v>, key: &str) -> Option<&'v Json> {
    match value {
        Value::Map(Map::Json { map, .. }) => map.get(key),
        _ => None,
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Map::Owned(entries) | Map::Forgiving(entries) => entries.len(),
            Map::Json { map, .. } => map.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// By a name that stands in the expression: a struct's field in its escaped form, or a key.
    pub fn field(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Map::Owned(entries) => entries.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value.clone()),
            Map::Forgiving(_) => self.get(&Value::string(name)),
            Map::Json { map, ty: Type::Object(object) } => {
                let field = object.field(name)?;
                map.get(&field.json).map(|value| Value::json(value, &field.ty))
            }
            Map::Json { map, ty } => map.get(name).map(|value| Value::json(value, value_type(ty))),
        }
    }

    pub fn get(&self, key: &Value<'_>) -> Option<Value<'a>> {
        match self {
            Map::Owned(entries) => entries.iter().find(|(known, _)| known.equal(key)).map(|(_, value)| value.clone()),
            Map::Json { .. } => self.field(key.as_str()?),
            Map::Forgiving(entries) => {
                let found = entries.iter().find(|(known, _)| known.equal(key)).map(|(_, value)| value.clone());
                Some(found.unwrap_or_else(|| Value::map(Vec::new())))
            }
        }
    }

    pub fn contains(&self, key: &Value<'_>) -> bool {
        match self {
            Map::Forgiving(entries) => entries.iter().any(|(known, _)| known.equal(key)),
            _ => self.get(key).is_some(),
        }
    }

    /// Keys of structs are in their escaped form.
    pub fn iter(&self) -> Box<dyn Iterator<Item = (Value<'a>, Value<'a>)> + '_> {
        match self {
            Map::Owned(entries) | Map::Forgiving(entries) => Box::new(entries.iter().cloned()),
            Map::Json { map, ty: Type::Object(object) } => Box::new(map.iter().filter_map(|(name, value)| {
                let escaped = crate::types::escape(name)?;
                let field = object.field(&escaped)?;
                Some((Value::string(escaped), Value::json(value, &field.ty)))
            })),
            Map::Json { map, ty } => {
                Box::new(map.iter().map(|(name, value)| (Value::String(Text::Borrowed(name)), Value::json(value, value_type(ty)))))
            }
        }
    }
}

fn value_type(ty: &Type) -> &Type {
    match ty {
        Type::Map(map) => &map.1,
        _ => &Type::Dyn,
    }
}
