//! Strategic merge patch: a merge patch that knows from the schema which lists merge by which key.
//!
//! Source of the behaviour: apimachinery `strategicpatch`, with the options that the API server uses (parallel lists are
//! merged, nulls without a counterpart are dropped). Read in this order: [`merge_objects`] (one object: directives, then
//! field by field), `order` (the lists), [`Place`] (what the schema says about where we are).

mod order;
mod place;

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value};

use self::order::{Kind, element_kind, list_arrange};
use self::place::Place;
use super::Error;
use super::go_format::{plain, plain_list, type_name};
use crate::model::Type;

pub(super) const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
pub(super) const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList";
pub(super) const SET_ELEMENT_ORDER: &str = "$setElementOrder";

type Object = Map<String, Value>;

/// Applies the strategic merge patch `patch` to `target`, an object of type `schema`.
pub fn strategic_merge_patch(target: &mut Value, patch: &Value, schema: &Type) -> Result<(), Error> {
    let Value::Object(patch) = patch else {
        return Err(Error::Malformed("invalid JSON document".to_owned()));
    };
    let original = target.as_object().cloned().unwrap_or_default();
    *target = Value::Object(merge_objects(original, patch.clone(), Place::root(schema))?);
    Ok(())
}

pub(super) fn no_merge_key(item: &Object, key: &str) -> Error {
    let item = plain(&Value::Object(item.clone()));
    Error::Contradiction(format!("map: {item} does not contain declared merge key: {key}"))
}

pub(super) fn bad_argument(expected: &str, actual: &Value) -> Error {
    let actual = if actual.is_null() { "%!s(<nil>)" } else { type_name(actual) };
    Error::Contradiction(format!("expected a {expected}, but received a {actual}"))
}

fn bad_directive(directive: &Value, patch: &Object) -> Error {
    let patch = plain(&Value::Object(patch.clone()));
    Error::Contradiction(format!("unknown patch type: {} in map: {patch}", plain(directive)))
}

fn bad_order_format() -> Error {
    Error::Malformed("invalid patch format of setElementOrder list".to_owned())
}

fn bad_retain_keys() -> Error {
    Error::Malformed("invalid patch format of retainKeys".to_owned())
}

/// The field that a parallel list such as `$setElementOrder/containers` speaks of; `None` for other keys.
fn parallel<'k>(key: &'k str, prefix: &str, malformed: &str) -> Result<Option<&'k str>, Error> {
    let Some(rest) = key.strip_prefix(prefix) else { return Ok(None) };
    match rest.strip_prefix('/') {
        Some(field) => Ok(Some(field)),
        None => Err(Error::Malformed(malformed.to_owned())),
    }
}

fn merge_objects(mut original: Object, mut patch: Object, place: Place<'_>) -> Result<Object, Error> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => {
                patch.insert(DIRECTIVE.to_owned(), directive.clone());
                Err(bad_directive(&directive, &patch))
            }
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, place)?;
    for (key, value) in patch {
        let malformed = "invalid patch format of primitive list";
        match parallel(&key, DELETE_FROM_PRIMITIVE_LIST, malformed)? {
            Some(field) => delete_from_list(&mut original, field, value, place)?,
            None => merge_field(&mut original, key, value, place)?,
        }
    }
    Ok(original)
}

fn merge_field(original: &mut Object, key: String, patch: Value, place: Place<'_>) -> Result<(), Error> {
    if patch.is_null() {
        original.remove(&key);
        return Ok(());
    }
    let merged = match (original.remove(&key), patch) {
        (Some(Value::Object(current)), Value::Object(patch)) => {
            let (inner, rule) = place.object(&key)?;
            let merged = if rule.replace { patch } else { merge_objects(current, patch, inner)? };
            Some(Value::Object(merged))
        }
        (Some(Value::Array(current)), Value::Array(patch)) => {
            let (inner, rule) = place.list(&key)?;
            let merged = if rule.merge { merge_lists(current, patch, inner, rule.merge_key)? } else { patch };
            Some(Value::Array(merged))
        }
        (_, patch) => without_directives(without_nulls(patch)),
    };
    if let Some(merged) = merged {
        original.insert(key, merged);
    }
    Ok(())
}

fn delete_from_list(original: &mut Object, field: &str, doomed: Value, place: Place<'_>) -> Result<(), Error> {
    if doomed.is_null() {
        original.remove(field);
        return Ok(());
    }
    let (Some(Value::Array(items)), Value::Array(doomed)) = (original.get_mut(field), doomed) else {
        return Ok(());
    };
    let (inner, rule) = place.list(field)?;
    if items.is_empty() && doomed.is_empty() {
        return Ok(());
    }
    if element_kind(&[items, &doomed])? == Kind::Map {
        *items = merge_lists(std::mem::take(items), doomed, inner, rule.merge_key)?;
    } else {
        let doomed: HashSet<Value> = doomed.into_iter().collect();
        items.retain(|item| !doomed.contains(item));
    }
    Ok(())
}

/// `$retainKeys`: every field of the live object that is not listed goes away.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Error> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let listed = directive.as_array().ok_or_else(bad_retain_keys)?;
    let listed: BTreeSet<&str> = listed.iter().filter_map(Value::as_str).collect();
    let needs_listing =
        |key: &str, value: &Value| !value.is_null() && !key.starts_with(DELETE_FROM_PRIMITIVE_LIST) && !key.starts_with(SET_ELEMENT_ORDER);
    if patch.iter().any(|(key, value)| needs_listing(key, value) && !listed.contains(key.as_str())) {
        return Err(bad_retain_keys());
    }
    original.retain(|key, _| listed.contains(key.as_str()));
    Ok(())
}

/// Merges the lists that have a `$setElementOrder` directive, takes both out of the patch.
fn set_element_orders(original: &mut Object, patch: &mut Object, place: Place<'_>) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let Some(order) = patch.remove(&directive) else { continue };
        let Value::Array(order) = order else { return Err(bad_argument("[]interface {}", &order)) };
        let malformed = "invalid patch format of setElementOrder list";
        let field = parallel(&directive, SET_ELEMENT_ORDER, malformed)?.ok_or_else(bad_order_format)?;
        let current = original.get(field).map(list_of).transpose()?;
        let change = patch.get(field).map(list_of).transpose()?;
        let (inner, rule) = place.list(field)?;
        check_order(change.unwrap_or_default(), &order, rule.merge_key)?;
        let merged = match (current, change) {
            (None, None) => continue,
            (Some(current), None) => current.to_vec(),
            (None, Some(change)) => {
                let Some(Value::Array(change)) = without_directives(Value::Array(change.to_vec())) else { continue };
                change
            }
            (Some(current), Some(change)) if rule.merge => merge_lists(current.to_vec(), change.to_vec(), inner, rule.merge_key)?,
            (Some(_), Some(change)) => change.to_vec(),
        };
        let kind = element_kind(&[current.unwrap_or_default(), change.unwrap_or_default()])?;
        let server_order = match rule.merge_key {
            Some(key) if rule.merge && kind == Kind::Map => order::seen_after(current, change, key),
            _ => current.unwrap_or_default().to_vec(),
        };
        let arranged = list_arrange(merged, &order, &server_order, rule.merge_key, kind)?;
        original.insert(field.to_owned(), Value::Array(arranged));
        patch.remove(field);
    }
    Ok(())
}

fn list_of(value: &Value) -> Result<&[Value], Error> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| bad_argument("[]interface {}", value))
}

pub(super) fn is_deletion(item: &Value) -> bool {
    item.get(DIRECTIVE).and_then(Value::as_str) == Some("delete")
}

/// The patch's items must stand in the order that the directive gives, and must all be listed in it.
fn check_order(change: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<(), Error> {
    if order.is_empty() || change.is_empty() {
        return Ok(());
    }
    if merge_key.is_some()
        && let Some(other) = change.iter().find(|item| !item.is_object())
    {
        return Err(bad_argument("map[string]interface {}", other));
    }
    let kept: Vec<&Value> = change.iter().filter(|item| merge_key.is_none() || !is_deletion(item)).collect();
    let mut items = kept.iter().peekable();
    let mut expected = order.iter();
    while let Some(item) = items.peek() {
        // As upstream, items with directives are passed over only as long as the order goes on.
        let Some(next) = expected.as_slice().first() else { break };
        if item.get(DIRECTIVE).is_some() {
            items.next();
            continue;
        }
        expected.next();
        if same_key(item, next, merge_key)? {
            items.next();
        }
    }
    if items.peek().is_none() {
        return Ok(());
    }
    Err(Error::Contradiction(format!(
        "The order in patch list:\n{}\n doesn't match {SET_ELEMENT_ORDER} list:\n{}\n",
        plain_list(change),
        plain_list(order)
    )))
}

fn same_key(left: &Value, right: &Value, merge_key: Option<&str>) -> Result<bool, Error> {
    let Some(key) = merge_key else { return Ok(left == right) };
    let value = |item: &Value| {
        let item = item.as_object().ok_or_else(|| bad_argument("map[string]interface {}", item))?;
        item.get(key).cloned().ok_or_else(|| no_merge_key(item, key))
    };
    Ok(value(left)? == value(right)?)
}

/// Merges two lists whose strategy is `merge`: scalars as sets, objects by `merge_key`.
fn merge_lists(original: Vec<Value>, patch: Vec<Value>, place: Place<'_>, merge_key: Option<&str>) -> Result<Vec<Value>, Error> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let kind = element_kind(&[&original, &patch])?;
    let (original, patch, merged) = if kind == Kind::Map {
        let key = merge_key.ok_or_else(|| Error::Contradiction(format!("cannot merge lists without merge key for {}", place.go_kind())))?;
        let (original, patch) = carry_out_item_directives(original, patch, key)?;
        let merged = merge_items(original.clone(), &patch, key, place)?;
        (original, patch, merged)
    } else {
        let mut seen = HashSet::with_capacity(original.len() + patch.len());
        let merged = original.iter().chain(&patch).filter(|item| seen.insert(*item)).cloned().collect();
        (original, patch, merged)
    };
    list_arrange(merged, &patch, &original, merge_key, kind)
}

/// Carries out `$patch: delete` and `$patch: replace` items; returns what is left of both lists.
fn carry_out_item_directives(mut original: Vec<Value>, patch: Vec<Value>, merge_key: &str) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let mut plain_items = Vec::with_capacity(patch.len());
    let mut doomed = HashSet::new();
    let mut replace = false;
    for item in patch {
        let Some(fields) = item.as_object() else { return Err(bad_argument("map[string]interface {}", &item)) };
        match fields.get(DIRECTIVE) {
            None => plain_items.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    doomed.insert(fields.get(merge_key).ok_or_else(|| no_merge_key(fields, merge_key))?.clone());
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(Error::Contradiction("merging lists cannot yet be specified in the patch".to_owned()));
                }
                _ => return Err(bad_directive(directive, fields)),
            },
        }
    }
    original.retain(|item| item.get(merge_key).is_none_or(|name| !doomed.contains(name)));
    Ok(if replace { (plain_items, Vec::new()) } else { (original, plain_items) })
}

fn merge_items(mut original: Vec<Value>, patch: &[Value], merge_key: &str, place: Place<'_>) -> Result<Vec<Value>, Error> {
    let mut places: HashMap<Value, usize> = HashMap::with_capacity(original.len());
    for (position, item) in original.iter().enumerate() {
        if let Some(name) = item.get(merge_key) {
            places.entry(name.clone()).or_insert(position);
        }
    }
    for item in patch {
        let Some(fields) = item.as_object() else { return Err(bad_argument("map[string]interface {}", item)) };
        let wanted = fields.get(merge_key).ok_or_else(|| no_merge_key(fields, merge_key))?;
        match places.get(wanted).and_then(|&position| original.get_mut(position)) {
            Some(found) => {
                let current = found.as_object_mut().map(std::mem::take).unwrap_or_default();
                *found = Value::Object(merge_objects(current, fields.clone(), place)?);
            }
            None => {
                places.insert(wanted.clone(), original.len());
                original.push(item.clone());
            }
        }
    }
    Ok(original)
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key, without_nulls(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        scalar => scalar,
    }
}

/// What is left of a patch's value where there is nothing to patch; `None` if it is a directive altogether.
fn without_directives(value: Value) -> Option<Value> {
    Some(match value {
        Value::Object(fields) if fields.contains_key(DIRECTIVE) => return None,
        Value::Object(fields) => {
            fields.into_iter().filter_map(|(key, value)| without_directives(value).map(|value| (key, value))).collect()
        }
        Value::Array(items) => items.into_iter().filter_map(without_directives).collect(),
        scalar => scalar,
    })
}
