//! What a change of an object added, changed and took away.

use serde_json::Value;

use super::element::{Element, equal};
use super::node::{Node, Shape};
use super::set::Set;
use super::validate::elements_of;

/// Sets of paths.
#[derive(Debug, Default)]
pub(super) struct Changes<'a> {
    pub added: Set<'a>,
    pub modified: Set<'a>,
    pub removed: Set<'a>,
}

/// What happened to the value itself, as opposed to its parts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Same,
    Added,
    Modified,
    Removed,
    /// One item became several with the same keys or the reverse: its owner loses it, whoever wrote gets it.
    Replaced,
}

impl<'a> Changes<'a> {
    fn push(&mut self, element: Element<'a>, fate: Fate, below: Changes<'a>) {
        let parts = [
            (&mut self.added, matches!(fate, Fate::Added | Fate::Replaced), below.added),
            (&mut self.modified, fate == Fate::Modified, below.modified),
            (&mut self.removed, matches!(fate, Fate::Removed | Fate::Replaced), below.removed),
        ];
        for (set, member, below) in parts {
            if member || !below.is_empty() {
                set.push(element.clone(), member, below);
            }
        }
    }

    /// Leaves the paths in `excluded`, and all below them, out of account.
    pub(super) fn excluding(self, excluded: &Set<'_>) -> Self {
        Changes {
            added: self.added.recursive_difference(excluded),
            modified: self.modified.recursive_difference(excluded),
            removed: self.removed.recursive_difference(excluded),
        }
    }
}

/// The changes from `old` to `new`, both of the type that `node` stands for.
pub(super) fn compare<'a>(old: &'a Value, new: &'a Value, node: Node<'a>) -> Changes<'a> {
    walk(Some(old), Some(new), node).1
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Fate {
    match (old, new) {
        (None, None) => Fate::Same,
        (None, Some(_)) => Fate::Added,
        (Some(_), None) => Fate::Removed,
        (Some(old), Some(new)) if equal(old, new) => Fate::Same,
        _ => Fate::Modified,
    }
}

fn whole(old: Option<&Value>, new: Option<&Value>) -> Fate {
    match (old, new) {
        (None, Some(_)) => Fate::Added,
        (Some(_), None) => Fate::Removed,
        _ => Fate::Same,
    }
}

fn walk<'a>(old: Option<&'a Value>, new: Option<&'a Value>, node: Node<'a>) -> (Fate, Changes<'a>) {
    let Some(guide) = new.filter(|value| !value.is_null()).or(old).or(new) else {
        return (Fate::Same, Changes::default());
    };
    if let (Node::Deduced, Some(old), Some(new)) = (node, old, new)
        && old.is_object() != new.is_object()
        && !old.is_null()
        && !new.is_null()
    {
        // A map became something else or the reverse: its fields come or go with it.
        let (old_map, new_map) = (Some(old).filter(|old| old.is_object()), Some(new).filter(|new| new.is_object()));
        return (Fate::Modified, walk_fields(old_map, new_map, node).1);
    }
    match node.shape(guide) {
        Shape::Leaf => (leaf(old, new), Changes::default()),
        Shape::Map => walk_fields(old, new, node),
        shape @ (Shape::Set | Shape::Keyed(..)) => walk_items(old, new, node, &shape),
    }
}

fn walk_fields<'a>(old: Option<&'a Value>, new: Option<&'a Value>, node: Node<'a>) -> (Fate, Changes<'a>) {
    let fields = |value: Option<&'a Value>| value.and_then(Value::as_object).filter(|fields| !fields.is_empty());
    let (old_fields, new_fields) = (fields(old), fields(new));
    if old_fields.is_none() && new_fields.is_none() {
        // Keeps the difference between empty and null.
        return (leaf(old, new), Changes::default());
    }
    let mut changes = Changes::default();
    let mut step = |name: &'a str, old, new| {
        let (fate, below) = walk(old, new, node.child(name).0);
        changes.push(Element::field(name), fate, below);
    };
    let mut left = old_fields.into_iter().flatten().peekable();
    let mut right = new_fields.into_iter().flatten().peekable();
    loop {
        match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some((old_name, _)), Some((new_name, _))) if old_name == new_name => {
                if let (Some((name, old)), Some((_, new))) = (left.next(), right.next()) {
                    step(name, Some(old), Some(new));
                }
            }
            (Some((old_name, _)), new_name) if new_name.is_none_or(|(new_name, _)| old_name < new_name) => {
                if let Some((name, old)) = left.next() {
                    step(name, Some(old), None);
                }
            }
            _ => {
                if let Some((name, new)) = right.next() {
                    step(name, None, Some(new));
                }
            }
        }
    }
    (whole(old, new), changes)
}

/// The items of a list by path element; more than one item where the list has duplicates.
type Groups<'a> = Vec<(Element<'a>, Vec<&'a Value>)>;

fn groups<'a>(elements: Vec<Element<'a>>, items: &'a [Value]) -> Groups<'a> {
    let mut pairs: Vec<(Element<'a>, &'a Value)> = elements.into_iter().zip(items).collect();
    pairs.sort_by(|left, right| left.0.cmp(&right.0));
    let mut groups: Groups<'a> = Vec::with_capacity(pairs.len());
    for (element, item) in pairs {
        match groups.last_mut() {
            Some((last, items)) if *last == element => items.push(item),
            _ => groups.push((element, vec![item])),
        }
    }
    groups
}

fn walk_items<'a>(old: Option<&'a Value>, new: Option<&'a Value>, node: Node<'a>, shape: &Shape<'a>) -> (Fate, Changes<'a>) {
    let items = |value: Option<&'a Value>| -> &'a [Value] { value.and_then(Value::as_array).map_or(&[], Vec::as_slice) };
    let (old_items, new_items) = (items(old), items(new));
    if old_items.is_empty() && new_items.is_empty() {
        return (leaf(old, new), Changes::default());
    }
    if let (Some(old), Some(new)) = (old, new)
        && equal(old, new)
    {
        return (Fate::Same, Changes::default());
    }
    let (Some(old_elements), Some(new_elements)) = (elements_of(shape, old_items), elements_of(shape, new_items)) else {
        return (leaf(old, new), Changes::default());
    };
    let mut changes = Changes::default();
    let mut left = groups(old_elements, old_items).into_iter().peekable();
    let mut right = groups(new_elements, new_items).into_iter().peekable();
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(left), Some(right)) => left.0.cmp(&right.0),
        };
        let old_group = if order.is_le() { left.next() } else { None };
        let new_group = if order.is_ge() { right.next() } else { None };
        let (element, olds, news) = match (old_group, new_group) {
            (Some((element, olds)), Some((_, news))) => (element, olds, news),
            (Some((element, olds)), None) => (element, olds, Vec::new()),
            (None, Some((element, news))) => (element, Vec::new(), news),
            (None, None) => break,
        };
        let (fate, below) = compare_groups(&olds, &news, node.items());
        changes.push(element, fate, below);
    }
    (whole(old, new), changes)
}

/// Duplicates cannot be told apart: they are compared as a whole, against one item they are new or gone.
fn compare_groups<'a>(olds: &[&'a Value], news: &[&'a Value], node: Node<'a>) -> (Fate, Changes<'a>) {
    let differ = || olds.len() != news.len() || olds.iter().zip(news).any(|(old, new)| !equal(old, new));
    match (olds, news) {
        ([], [new]) => walk(None, Some(new), node),
        ([old], []) => walk(Some(old), None, node),
        ([old], [new]) => walk(Some(old), Some(new), node),
        ([old], [_, _, ..]) => (Fate::Replaced, walk(Some(old), None, node).1),
        ([_, _, ..], [new]) => (Fate::Replaced, walk(None, Some(new), node).1),
        ([], _) => (Fate::Added, Changes::default()),
        (_, []) => (Fate::Removed, Changes::default()),
        _ => (if differ() { Fate::Modified } else { Fate::Same }, Changes::default()),
    }
}
