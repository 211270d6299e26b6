//! Columns and cells that many kinds share (upstream: `pkg/printers/internalversion`).

use meta::{LabelSelector, time};
use serde_json::Value;

use crate::Column;
use crate::value::{at, text, text_or};

pub const NAME: Column = Column { name: "Name", kind: "string", format: "name", description: "Name of the object.", priority: 0 };
pub const AGE: Column = shown("Age", "string", "Time since the object was created.");
pub const CONTAINERS: Column = wide("Containers", "string", "Names of the containers in the template.");
pub const IMAGES: Column = wide("Images", "string", "Images of the containers in the template.");
pub const SELECTOR: Column = wide("Selector", "string", "Label selector of the pods.");

/// A column that is always shown.
pub const fn shown(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column { name, kind, format: "", description, priority: 0 }
}

/// A column of `-o wide`.
pub const fn wide(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column { name, kind, format: "", description, priority: 1 }
}

pub fn name(object: &Value) -> Value {
    text(object, "metadata.name").into()
}

pub fn age(object: &Value, now: i64) -> Value {
    since(at(object, "metadata.creationTimestamp"), now).into()
}

/// The age of a time value; `<unknown>` where it is absent.
pub fn since(time: &Value, now: i64) -> String {
    time::age(time.as_str().filter(|text| !text.is_empty()), now)
}

pub fn created_at(object: &Value) -> Value {
    text(object, "metadata.creationTimestamp").into()
}

/// The number at `path`, 0 where there is none.
pub fn number(object: &Value, path: &str) -> Value {
    at(object, path).as_i64().unwrap_or(0).into()
}

/// The text at `path`, or `<none>`.
pub fn or_none(object: &Value, path: &str) -> Value {
    text_or(object, path, "<none>").into()
}

/// A label selector object as text; `<none>` where it is empty.
pub fn selector(selector: &Value) -> Value {
    match LabelSelector::from_object(selector) {
        Err(_) => "<error>".into(),
        Ok(selector) => none_if_empty(selector.to_string()),
    }
}

/// A map as `a=b,c=d`; `<none>` where it is empty.
pub fn labels(map: &Value) -> Value {
    let pairs = map.as_object().into_iter().flatten();
    none_if_empty(pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or(""))).collect::<Vec<_>>().join(","))
}

pub fn none_if_empty(text: String) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// The first three words, then how many more there are; `nothing` where there are none.
pub fn first_three(words: &[String], nothing: &str) -> Value {
    match words.len() {
        0 => nothing.into(),
        count if count > 3 => format!("{} + {} more...", words[..3].join(","), count - 3).into(),
        _ => words.join(",").into(),
    }
}

/// A list of texts with commas.
pub fn joined(items: &[Value]) -> Value {
    items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",").into()
}
