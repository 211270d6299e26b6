//! Which fields an object names: the set that its applier comes to own.

use serde_json::Value;

use super::element::Element;
use super::node::{Node, Shape};
use super::set::Set;
use super::validate::elements_of;

/// The paths of every leaf and list item that `value` mentions.
pub(super) fn of<'a>(value: &'a Value, node: Node<'a>) -> Set<'a> {
    walk(value, node).1
}

/// Whether the value itself is a leaf of the set, and what is below it.
fn walk<'a>(value: &'a Value, node: Node<'a>) -> (bool, Set<'a>) {
    match (node.shape(value), value) {
        (Shape::Leaf, _) => (true, Set::new()),
        (Shape::Map, Value::Object(fields)) => {
            let mut set = Set::new();
            for (name, value) in fields {
                let (child, declared) = node.child(name);
                let (leaf, below) = walk(value, child);
                let empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
                set.push(Element::field(name), leaf || empty || !declared, below);
            }
            (false, set)
        }
        (shape @ (Shape::Set | Shape::Keyed(..)), Value::Array(items)) => match elements_of(&shape, items) {
            Some(elements) => (false, items_of(items, elements, node)),
            None => (true, Set::new()),
        },
        _ => (false, Set::new()),
    }
}

/// Duplicates are owned as a whole: what is below them cannot be told apart.
fn items_of<'a>(items: &'a [Value], elements: Vec<Element<'a>>, node: Node<'a>) -> Set<'a> {
    let mut pairs: Vec<(Element<'a>, &'a Value)> = elements.into_iter().zip(items).collect();
    pairs.sort_by(|left, right| left.0.cmp(&right.0));
    let mut set = Set::new();
    let mut pairs = pairs.into_iter().peekable();
    while let Some((element, item)) = pairs.next() {
        let mut duplicated = false;
        while pairs.next_if(|(next, _)| *next == element).is_some() {
            duplicated = true;
        }
        let below = if duplicated { Set::new() } else { walk(item, node.items()).1 };
        set.push(element, true, below);
    }
    set
}
