//! The live object with an applied configuration laid over it. Nothing is ever removed here.

use serde_json::{Map, Value};

use super::element::Element;
use super::node::{Node, Shape};
use super::validate::elements_of;

/// `live` overlaid with `applied`. Leaves are `applied`'s, list items keep `live`'s order except where `applied` reorders.
pub(super) fn merge(live: &Value, applied: &Value, node: Node<'_>) -> Value {
    let guide = if applied.is_null() { live } else { applied };
    match node.shape(guide) {
        Shape::Leaf => applied.clone(),
        Shape::Map => merge_fields(live, applied, node),
        shape @ (Shape::Set | Shape::Keyed(..)) => merge_items(live, applied, node, &shape),
    }
}

/// An applied `null` does not empty a container that has something in it.
fn merge_fields(live: &Value, applied: &Value, node: Node<'_>) -> Value {
    let filled = |value: &Value| value.as_object().is_some_and(|fields| !fields.is_empty());
    let (Value::Object(live_fields), true) = (live, filled(live)) else { return applied.clone() };
    let (Value::Object(applied_fields), true) = (applied, filled(applied)) else { return live.clone() };
    let mut merged: Map<String, Value> = Map::new();
    for (name, live) in live_fields {
        let value = match applied_fields.get(name) {
            Some(applied) => merge(live, applied, node.child(name).0),
            None => live.clone(),
        };
        merged.insert(name.clone(), value);
    }
    for (name, applied) in applied_fields {
        if !live_fields.contains_key(name) {
            merged.insert(name.clone(), applied.clone());
        }
    }
    Value::Object(merged)
}

fn merge_items(live: &Value, applied: &Value, node: Node<'_>, shape: &Shape<'_>) -> Value {
    let filled = |value: &Value| value.as_array().is_some_and(|items| !items.is_empty());
    let (Value::Array(live_items), true) = (live, filled(live)) else { return applied.clone() };
    let (Value::Array(applied_items), true) = (applied, filled(applied)) else { return live.clone() };
    let (Some(live_elements), Some(applied_elements)) = (elements_of(shape, live_items), elements_of(shape, applied_items)) else {
        return applied.clone();
    };
    Value::Array(Weave::new(live_items, &live_elements, applied_items, &applied_elements).run(node.items()))
}

/// Two lists of one topology on their way to becoming one.
struct Weave<'v> {
    live: &'v [Value],
    applied: &'v [Value],
    /// For each live item the applied item with the same element.
    partner: Vec<Option<usize>>,
    /// For each applied item the live item with the same element, if there is exactly one.
    counterpart: Vec<Counterpart<'v>>,
}

#[derive(Clone, Copy)]
enum Counterpart<'v> {
    None,
    One(&'v Value),
    /// Upstream does not merge into duplicates: the applied item replaces them all.
    Many,
}

impl<'v> Weave<'v> {
    fn new(live: &'v [Value], live_elements: &[Element<'_>], applied: &'v [Value], applied_elements: &[Element<'_>]) -> Self {
        let mut sorted: Vec<usize> = (0..applied_elements.len()).collect();
        sorted.sort_by(|&left, &right| applied_elements[left].cmp(&applied_elements[right]));
        let find = |element: &Element<'_>| {
            let at = sorted.binary_search_by(|&position| applied_elements[position].cmp(element)).ok()?;
            sorted.get(at).copied()
        };
        let same_place = |position: usize| applied_elements.get(position) == live_elements.get(position);
        let partner: Vec<Option<usize>> = live_elements
            .iter()
            .enumerate()
            .map(|(position, element)| if same_place(position) { Some(position) } else { find(element) })
            .collect();
        let mut counterpart = vec![Counterpart::None; applied.len()];
        for (item, partner) in live.iter().zip(&partner) {
            if let Some(slot) = partner.and_then(|position| counterpart.get_mut(position)) {
                *slot = if matches!(slot, Counterpart::None) { Counterpart::One(item) } else { Counterpart::Many };
            }
        }
        Self { live, applied, partner, counterpart }
    }

    fn run(&self, items: Node<'_>) -> Vec<Value> {
        let shared = |position: &usize| !matches!(self.counterpart[*position], Counterpart::None);
        let mut shared = (0..self.applied.len()).filter(shared);
        let mut next_shared = shared.next();
        let mut taken = vec![false; self.applied.len()];
        let mut out = Vec::with_capacity(self.live.len().max(self.applied.len()));
        let (mut left, mut right) = (0, 0);
        while left < self.live.len() || right < self.applied.len() {
            if left < self.live.len() && right < self.applied.len() {
                if self.partner[left] == Some(right) {
                    taken[right] = true;
                    out.push(self.merged(right, items));
                    left += 1;
                    right += 1;
                    next_shared = shared.next();
                    continue;
                }
                if self.partner[left].is_some() && next_shared.is_some() && next_shared != self.partner[left] {
                    // Shared, but the applied order wants another one first.
                    left += 1;
                    continue;
                }
            }
            if left < self.live.len() {
                match self.partner[left] {
                    None => {
                        out.push(self.live[left].clone());
                        left += 1;
                        continue;
                    }
                    Some(partner) if taken[partner] => left += 1,
                    Some(_) => {}
                }
            }
            if right < self.applied.len() {
                taken[right] = true;
                out.push(self.merged(right, items));
                if next_shared == Some(right) {
                    next_shared = shared.next();
                }
                right += 1;
            }
        }
        out
    }

    fn merged(&self, position: usize, items: Node<'_>) -> Value {
        match self.counterpart[position] {
            Counterpart::One(live) => merge(live, &self.applied[position], items),
            Counterpart::None | Counterpart::Many => self.applied[position].clone(),
        }
    }
}
