//! Reading and changing JSON objects by dotted path (`spec.template.spec`). What is absent reads as null, "" or 0.
//!
//! Keys that hold dots themselves (labels, annotations, data) are read from their map with `get`.

use serde_json::{Map, Value, map};

static NULL: Value = Value::Null;

pub fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').try_fold(object, |value, key| value.get(key)).unwrap_or(&NULL)
}

/// The text at `path`; empty where there is none.
pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).as_str().unwrap_or("")
}

/// The text at `path`, or `other` where it is absent or empty.
pub fn text_or<'a>(object: &'a Value, path: &str, other: &'a str) -> &'a str {
    let found = text(object, path);
    if found.is_empty() { other } else { found }
}

pub fn int(object: &Value, path: &str) -> Option<i64> {
    at(object, path).as_i64()
}

pub fn flag(object: &Value, path: &str) -> bool {
    at(object, path).as_bool().unwrap_or(false)
}

pub fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).as_array().map_or(&[], Vec::as_slice)
}

/// The pairs of the map at `path`.
pub fn entries<'a>(object: &'a Value, path: &str) -> map::Iter<'a> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    at(object, path).as_object().unwrap_or(&EMPTY).iter()
}

pub fn has(object: &Value, path: &str) -> bool {
    !at(object, path).is_null()
}

pub fn name(object: &Value) -> &str {
    text(object, "metadata.name")
}

pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    at(object, "metadata.labels").get(key)?.as_str()
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    at(object, "metadata.annotations").get(key)?.as_str()
}

/// The map at `path` for writing; made where it is absent or null. `None` where something else stands in the way.
pub fn object_at<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    let mut here = object;
    for key in path.split('.').filter(|key| !key.is_empty()) {
        here = here.as_object_mut()?.entry(key).or_insert(Value::Null);
        if here.is_null() {
            *here = Value::Object(Map::new());
        }
    }
    here.as_object_mut()
}

fn parent(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

pub fn set(object: &mut Value, path: &str, value: impl Into<Value>) {
    let (parent, key) = parent(path);
    if let Some(map) = object_at(object, parent) {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets what is absent or null.
pub fn set_default(object: &mut Value, path: &str, value: impl Into<Value>) {
    if !has(object, path) {
        set(object, path, value);
    }
}

/// Sets a text that is absent or empty (Go's non-pointer strings).
pub fn set_default_text(object: &mut Value, path: &str, value: &str) {
    if text(object, path).is_empty() {
        set(object, path, value);
    }
}

pub fn remove(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, key) = parent(path);
    let holder = if parent.is_empty() { Some(object) } else { object.pointer_mut(&format!("/{}", parent.replace('.', "/"))) };
    holder?.as_object_mut()?.remove(key)
}

/// An int-or-percent that is none: absent, 0, `0%`.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.trim_end_matches('%').parse::<i64>().is_ok_and(|number| number == 0),
        _ => true,
    }
}

/// Gives `new` what `old` has at `path`, absence included.
pub fn keep(new: &mut Value, old: &Value, path: &str) {
    match at(old, path) {
        Value::Null => drop(remove(new, path)),
        value => set(new, path, value.clone()),
    }
}

/// The items at `path` for writing.
pub fn items_mut<'a>(object: &'a mut Value, path: &str) -> std::slice::IterMut<'a, Value> {
    let found = object.pointer_mut(&format!("/{}", path.replace('.', "/")));
    found.and_then(Value::as_array_mut).map_or([].iter_mut(), |items| items.iter_mut())
}

/// The value at `path` for writing, where it is an object.
pub fn sub<'a>(object: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    object.pointer_mut(&format!("/{}", path.replace('.', "/"))).filter(|value| value.is_object())
}

/// Equal, where null, `{}` and `[]` count as absent (upstream: `apiequality.Semantic`).
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(key, value)| same(value, y.get(key).unwrap_or(&NULL)))
                && y.iter().all(|(key, value)| x.contains_key(key) || is_empty(value))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        _ => a == b || is_empty(a) && is_empty(b),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_read_write_and_remove() {
        let mut object = json!({"spec": {"a": 1, "list": [{"x": 1}]}});
        set(&mut object, "spec.b.c", "d");
        set_default(&mut object, "spec.a", 2);
        assert_eq!((text(&object, "spec.b.c"), int(&object, "spec.a"), list(&object, "spec.list").len()), ("d", Some(1), 1));
        keep(&mut object, &json!({"spec": {"b": null}}), "spec.b");
        assert!(!has(&object, "spec.b") && at(&object, "no.such").is_null());
        set(&mut object, "spec.a.deeper", 1);
        assert_eq!(int(&object, "spec.a"), Some(1), "a scalar in the way stays");
    }

    #[test]
    fn absent_and_empty_are_the_same() {
        assert!(same(&json!({"a": {}, "b": 1}), &json!({"b": 1, "c": []})));
        assert!(!same(&json!({"a": ""}), &json!({"a": "x"})));
        assert!(!same(&json!([1]), &json!([1, 2])));
    }
}
