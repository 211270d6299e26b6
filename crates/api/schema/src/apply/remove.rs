//! Taking fields and list items out of an object.

use serde_json::Value;

use super::element::Element;
use super::node::{Node, Shape};
use super::set::{Entry, Set};
use super::validate::element_of;

/// `value` without the fields and items in `items`. A container that loses everything becomes null, as upstream.
pub(super) fn remove(value: Value, items: &Set<'_>, node: Node<'_>) -> Value {
    if items.is_empty() {
        return value;
    }
    match (node, value) {
        (Node::Scalar(_), value) => value,
        (Node::Deduced, value) if !value.is_object() && !value.is_array() => value,
        (_, Value::Object(_) | Value::Array(_)) if node.is_atomic() => Value::Null,
        (_, Value::Object(fields)) => {
            let kept = fields.into_iter().filter_map(|(name, value)| {
                let kept = keep(value, items.get(&Element::field(&name)), node.child(&name).0)?;
                Some((name, kept))
            });
            let kept: serde_json::Map<String, Value> = kept.collect();
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        (_, Value::Array(list)) => remove_items(list, items, node),
        (_, value) => value,
    }
}

fn keep(value: Value, entry: Option<&Entry<'_>>, node: Node<'_>) -> Option<Value> {
    match entry {
        None => Some(value),
        Some(entry) if entry.member => None,
        Some(entry) => Some(remove(value, &entry.children, node)),
    }
}

fn remove_items(list: Vec<Value>, items: &Set<'_>, node: Node<'_>) -> Value {
    let shape = node.shape(&Value::Null);
    if !matches!(shape, Shape::Set | Shape::Keyed(..)) {
        return Value::Null;
    }
    let kept: Vec<Value> = list
        .into_iter()
        .filter_map(|item| {
            let entry = match element_of(&shape, &item) {
                Some(Ok(element)) => items.get(&element),
                _ => None,
            };
            keep(item, entry, node.items())
        })
        .collect();
    if kept.is_empty() { Value::Null } else { Value::Array(kept) }
}
