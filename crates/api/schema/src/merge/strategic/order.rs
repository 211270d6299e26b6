//! The order of merged lists: the patch's order first, the live list's order as far as it does not contradict.

use std::collections::HashMap;

use serde_json::Value;

use super::super::Error;
use super::super::go_format::plain_list;
use super::{DIRECTIVE, bad_argument, is_deletion, no_merge_key};

/// The one Go type that all elements of lists to be merged must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Map,
    Slice,
    String,
    Int,
    Float,
    Bool,
    Null,
}

fn kind(value: &Value) -> Kind {
    match value {
        Value::Null => Kind::Null,
        Value::Bool(_) => Kind::Bool,
        Value::Number(number) if number.is_f64() => Kind::Float,
        Value::Number(_) => Kind::Int,
        Value::String(_) => Kind::String,
        Value::Array(_) => Kind::Slice,
        Value::Object(_) => Kind::Map,
    }
}

/// The kind that every element of `lists` has.
pub(super) fn element_kind(lists: &[&[Value]]) -> Result<Kind, Error> {
    let mut elements = lists.iter().flat_map(|list| list.iter()).map(kind);
    let first = elements.next().ok_or_else(|| Error::Contradiction("no elements in any of the given slices".to_owned()))?;
    if first == Kind::Slice {
        return Err(Error::DoesNotApply("lists of lists are not supported".to_owned()));
    }
    if elements.any(|kind| kind != first) {
        let lists: Vec<String> = lists.iter().map(|list| plain_list(list)).collect();
        return Err(Error::Contradiction(format!("list element types are not identical: [{}]", lists.join(" "))));
    }
    Ok(first)
}

/// Where items stand in a list: found by their merge key, or by themselves where there is none.
pub(super) struct Places<'l> {
    key: Option<&'l str>,
    /// The first one of equal items.
    first: HashMap<&'l Value, usize>,
}

impl<'l> Places<'l> {
    pub(super) fn new(list: &'l [Value], key: Option<&'l str>) -> Self {
        let mut first = HashMap::with_capacity(list.len());
        for (position, item) in list.iter().enumerate() {
            let name = key.map_or(Some(item), |key| item.get(key));
            if let Some(name) = name {
                first.entry(name).or_insert(position);
            }
        }
        Self { key, first }
    }

    pub(super) fn of(&self, item: &Value) -> Option<usize> {
        let name = self.key.map_or(Some(item), |key| item.get(key))?;
        self.first.get(name).copied()
    }
}

/// Puts the items of `merged` that `patch_order` names into its order, the others into `server_order`, and interleaves.
pub(super) fn list_arrange(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: Option<&str>,
    kind: Kind,
) -> Result<Vec<Value>, Error> {
    let key = if kind == Kind::Map { merge_key } else { None };
    if let Some(key) = key {
        [&merged, patch_order, server_order].into_iter().try_for_each(|list| check_keys(list, key))?;
    }
    let (patch_order, server_order) = (Places::new(patch_order, key), Places::new(server_order, key));
    let (mut patched, mut server_only): (Vec<Value>, Vec<Value>) = merged.into_iter().partition(|item| patch_order.of(item).is_some());
    sort(&mut patched, &patch_order);
    sort(&mut server_only, &server_order);
    Ok(interleave(server_only, patched, &server_order))
}

fn check_keys(list: &[Value], key: &str) -> Result<(), Error> {
    for item in list {
        let fields = item.as_object().ok_or_else(|| bad_argument("map[string]interface {}", item))?;
        if !fields.contains_key(key) {
            return Err(no_merge_key(fields, key));
        }
    }
    Ok(())
}

fn sort(items: &mut [Value], order: &Places<'_>) {
    items.sort_by_cached_key(|item| {
        let last = order.key.is_some() && is_deletion(item);
        (last, order.of(item))
    });
}

/// Inserts each server item before the first patched item that stands behind it in the live list.
fn interleave(server_only: Vec<Value>, patched: Vec<Value>, server_order: &Places<'_>) -> Vec<Value> {
    let mut out = Vec::with_capacity(server_only.len() + patched.len());
    let mut server_only = server_only.into_iter().peekable();
    let mut patched = patched.into_iter().peekable();
    while let (Some(left), Some(right)) = (server_only.peek(), patched.peek()) {
        let places = (server_order.of(left), server_order.of(right));
        let left_first = matches!(places, (Some(left), Some(right)) if left < right);
        out.extend(if left_first { server_only.next() } else { patched.next() });
    }
    out.extend(server_only);
    out.extend(patched);
    out
}

/// Steps that the likeness of [`seen_after`] is worth.
const LIKENESS_STEPS_MAX: usize = 1_000_000;

/// The live order as upstream sees it when it interleaves: items that the patch adds stand where deleted ones left room.
///
/// Upstream deletes and appends inside the live list's own array. Nobody meant that to have an effect, but it decides where
/// server-only items (injected sidecars) come to stand when one patch deletes and adds.
pub(super) fn seen_after(current: Option<&[Value]>, change: Option<&[Value]>, key: &str) -> Vec<Value> {
    let mut seen = current.unwrap_or_default().to_vec();
    let change = change.unwrap_or_default();
    if seen.len().saturating_mul(change.len()) > LIKENESS_STEPS_MAX {
        return seen;
    }
    let same_key = |left: &Value, right: &Value| left.get(key).is_some() && left.get(key) == right.get(key);
    let mut length = seen.len();
    for doomed in change.iter().filter(|item| is_deletion(item)) {
        while let Some(at) = seen.iter().take(length).position(|item| same_key(item, doomed)) {
            // The array keeps its last element behind the shortened list.
            if let Some(last) = seen.get(length - 1).cloned() {
                seen.remove(at);
                seen.insert(length - 1, last);
            }
            length -= 1;
        }
    }
    let replaces = |item: &&Value| item.get(DIRECTIVE).and_then(Value::as_str) == Some("replace");
    if change.iter().any(|item| replaces(&item)) {
        return seen;
    }
    for added in change.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        if seen.iter().take(length).any(|item| same_key(item, added)) {
            continue;
        }
        let Some(slot) = seen.get_mut(length) else { break };
        *slot = added.clone();
        length += 1;
    }
    seen
}
