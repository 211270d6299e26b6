//! Taking away what an applier no longer applies: the fields that it owned until now, left out this time, and that
//! nobody else owns.

use serde_json::Value;

use super::fields;
use super::managers::Managers;
use super::node::Node;
use super::remove::remove;
use super::set::Set;

/// `merged` without what `last` had, `own` has not, and none of `others` owns.
pub(super) fn prune(merged: Value, others: &Managers<'_>, own: &Set<'_>, last: &Set<'_>, node: Node<'_>) -> Value {
    // Everything that was applied last time is applied again: nothing can become orphaned.
    if last.is_subset(own) {
        return merged;
    }
    let last = with_named_fields(last.clone(), node);
    let mut managed = own.clone();
    for (_, owned) in others.iter() {
        managed = managed.union(owned.set.clone());
    }
    let managed = with_named_fields(managed, node);
    let without_last = remove(merged.clone(), &last, node);
    let all = with_named_fields(fields::of(&merged, node), node);
    // Add back what has an owner, …
    let kept = with_named_fields(fields::of(&without_last, node), node);
    let without_orphans = remove(merged.clone(), &all.clone().difference(&kept).difference(&managed), node);
    // … and what was never this applier's.
    let kept = with_named_fields(fields::of(&without_orphans, node), node);
    let doomed = all.difference(&kept).intersection(&last);
    match remove(merged.clone(), &doomed, node) {
        Value::Null => Value::Object(serde_json::Map::new()),
        pruned => pruned,
    }
}

/// `set` plus the struct fields on the way to its paths, which have no owner of their own.
fn with_named_fields<'a>(mut set: Set<'a>, node: Node<'_>) -> Set<'a> {
    name_fields(&mut set, node);
    set
}

fn name_fields(set: &mut Set<'_>, node: Node<'_>) {
    set.retain(|entry| {
        if entry.children.is_empty() {
            return;
        }
        let (child, declared) = node.step(&entry.element);
        entry.member |= declared;
        name_fields(&mut entry.children, child);
    });
}
