//! FieldsV1, the form in which managedFields hold a set: nested objects whose keys are typed path elements
//! (`f:` field, `k:` keys, `v:` value, `i:` index) and in which `.` says that the path itself is in the set too.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::element::Element;
use super::set::Set;

/// Why managedFields cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("error decoding set: {0}")]
pub struct Unreadable(pub String);

/// The set that `fields` stands for.
pub fn decode(fields: &Value) -> Result<Set<'_>, Unreadable> {
    let fields = fields.as_object().ok_or_else(|| Unreadable("expected an object".to_owned()))?;
    Ok(decode_object(fields)?.0)
}

/// The set below, and whether the path that leads here is in the set.
fn decode_object(fields: &Map<String, Value>) -> Result<(Set<'_>, bool), Unreadable> {
    let mut below = Vec::with_capacity(fields.len());
    let mut member = false;
    for (key, value) in fields {
        if key == "." {
            member = true;
            continue;
        }
        let Some(element) = decode_element(key)? else { continue };
        let value = value.as_object().ok_or_else(|| Unreadable(format!("expected an object at {key}")))?;
        let (children, child_is_member) = decode_object(value)?;
        below.push((element, child_is_member, children));
    }
    // JSON's order of the keys is not that of the elements (`v:10` before `v:2`).
    below.sort_by(|left, right| left.0.cmp(&right.0));
    let mut set = Set::new();
    below.into_iter().for_each(|(element, member, children)| set.push(element, member, children));
    let member = member || set.is_empty();
    Ok((set, member))
}

/// `None` for types of elements that a later version may know; upstream drops them too.
fn decode_element(key: &str) -> Result<Option<Element<'_>>, Unreadable> {
    let (Some(kind), Some(b':'), Some(content)) = (key.bytes().next(), key.as_bytes().get(1), key.get(2..)) else {
        return Err(Unreadable(format!("missing colon: {key}")));
    };
    let unreadable = |error: serde_json::Error| Unreadable(format!("parsing key as path element: {error}"));
    Ok(Some(match kind {
        b'f' => Element::field(content),
        b'v' => Element::Value(Cow::Owned(serde_json::from_str(content).map_err(unreadable)?)),
        b'k' => {
            let keys: Map<String, Value> = serde_json::from_str(content).map_err(unreadable)?;
            Element::Key(keys.into_iter().map(|(name, value)| (Cow::Owned(name), Cow::Owned(value))).collect())
        }
        b'i' => Element::Index(content.parse().map_err(|_| Unreadable(format!("invalid index: {content}")))?),
        _ => return Ok(None),
    }))
}

/// `set` as FieldsV1.
pub fn encode(set: &Set<'_>) -> Value {
    Value::Object(encode_object(set))
}

fn encode_object(set: &Set<'_>) -> Map<String, Value> {
    let mut fields = Map::new();
    for entry in set.entries() {
        let mut below = encode_object(&entry.children);
        if entry.member && !below.is_empty() {
            below.insert(".".to_owned(), Value::Object(Map::new()));
        }
        fields.insert(encode_element(&entry.element), Value::Object(below));
    }
    fields
}

fn encode_element(element: &Element<'_>) -> String {
    match element {
        Element::Field(name) => ["f:", name].concat(),
        Element::Value(value) => format!("v:{value}"),
        Element::Index(index) => format!("i:{index}"),
        Element::Key(keys) => {
            let mut text = "k:{".to_owned();
            for (position, (name, value)) in keys.iter().enumerate() {
                let comma = if position == 0 { "" } else { "," };
                let name = Value::String(name.as_ref().to_owned());
                text.push_str(&format!("{comma}{name}:{value}"));
            }
            text.push('}');
            text
        }
    }
}
