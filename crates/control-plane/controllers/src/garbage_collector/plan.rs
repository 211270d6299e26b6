//! What becomes of one object (upstream: `attemptToDeleteItem`, `processDeletingDependentsItem`, `attemptToOrphan`).

use client::Propagation;

use super::graph::{FOREGROUND, Node, ORPHAN};
use super::observe::{Owner, World};

#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    Nothing,
    /// Delete it; what it owns goes the same way.
    Delete(Propagation),
    /// The same in the foreground, but first it stops blocking its owners: it is part of a circle of objects that wait for each other.
    BreakCircle,
    /// It has other owners: forget these uids.
    Forget(Vec<String>),
    /// Its dependents are deleted first; these are to be looked at.
    WaitFor(Vec<String>),
    /// Its dependents are gone or free: let it go.
    RemoveFinalizer(&'static str),
    /// Free its dependents, then let it go.
    Orphan,
}

pub(super) fn plan(world: &World) -> Plan {
    let node = &world.node;
    if node.orphans_dependents() {
        return Plan::Orphan;
    }
    if node.waits_for_dependents() {
        return foreground(world);
    }
    if node.is_leaving() || world.owners.is_empty() {
        return Plan::Nothing;
    }
    let bad: Vec<String> = zip(world).filter(|(state, _)| *state != Owner::Solid).map(|(_, uid)| uid).collect();
    match (world.owners.contains(&Owner::Solid), bad.is_empty()) {
        (_, true) => Plan::Nothing,
        (true, false) => Plan::Forget(bad),
        (false, false) if is_circular(world) => Plan::BreakCircle,
        (false, false) => Plan::Delete(propagation(world)),
    }
}

/// One of its dependents waits, maybe for the very owner that waits for it (upstream says of its own test: false positives are possible).
fn is_circular(world: &World) -> bool {
    let blocks = world.node.owners().iter().any(|owner| owner.block_owner_deletion == Some(true));
    blocks && world.owners.contains(&Owner::Waiting) && world.dependents.iter().any(Node::waits_for_dependents)
}

fn zip(world: &World) -> impl Iterator<Item = (Owner, String)> {
    world.owners.iter().copied().zip(world.node.owners().iter().map(|owner| owner.uid.clone()))
}

/// An owner in foreground deletion goes when no dependent blocks it any more.
fn foreground(world: &World) -> Plan {
    let uid = &world.node.object.metadata.uid;
    let blocks = |dependent: &&Node| dependent.owners().iter().any(|owner| owner.uid == *uid && owner.block_owner_deletion == Some(true));
    let blocking = world.dependents.iter().filter(blocks).count();
    if blocking == 0 {
        return Plan::RemoveFinalizer(FOREGROUND);
    }
    let untouched = world.dependents.iter().filter(|dependent| !dependent.is_leaving());
    Plan::WaitFor(untouched.map(|dependent| dependent.object.metadata.uid.clone()).collect())
}

/// What was asked of the object itself wins; below an owner that waits, everything is deleted in the foreground.
fn propagation(world: &World) -> Propagation {
    let waited_for = world.owners.contains(&Owner::Waiting) && !world.dependents.is_empty();
    match () {
        () if world.node.has_finalizer(ORPHAN) => Propagation::Orphan,
        () if world.node.has_finalizer(FOREGROUND) || waited_for => Propagation::Foreground,
        () => Propagation::Background,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use client::ApiResource;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn node(uid: &str, owners: &[(&str, bool)], finalizers: &[&str], leaving: bool) -> Node {
        let owner =
            |(uid, blocks): &(&str, bool)| json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "blockOwnerDeletion": blocks});
        let metadata = json!({
            "name": uid, "uid": uid, "ownerReferences": owners.iter().map(owner).collect::<Vec<_>>(), "finalizers": finalizers,
            "deletionTimestamp": leaving.then_some("2026-01-01T00:00:00Z"),
        });
        let object = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        Node { resource: Arc::new(ApiResource::of::<Pod>()), object: Arc::new(object) }
    }

    #[test]
    fn an_object_goes_with_its_last_owner_and_forgets_the_others() {
        use Owner::{Absent, Solid, Waiting};
        let delete = Plan::Delete(Propagation::Background);
        let cases = [
            (vec![Solid], Plan::Nothing),
            (vec![Absent], delete),
            (vec![Solid, Absent], Plan::Forget(vec!["o1".into()])),
            (vec![Waiting, Solid], Plan::Forget(vec!["o0".into()])),
            (vec![Waiting], Plan::Delete(Propagation::Background)),
        ];
        for (owners, expected) in cases {
            let names: Vec<String> = (0..owners.len()).map(|index| format!("o{index}")).collect();
            let references: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), false)).collect();
            let world = World { node: node("x", &references, &[], false), owners: owners.clone(), dependents: vec![] };
            assert_eq!(plan(&world), expected, "{owners:?}");
        }
    }

    #[test]
    fn below_an_owner_that_waits_deletion_is_in_the_foreground_all_the_way_down() {
        let world = World {
            node: node("set", &[("deployment", true)], &[], false),
            owners: vec![Owner::Waiting],
            dependents: vec![node("pod", &[("set", true)], &[], false)],
        };
        assert_eq!(plan(&world), Plan::Delete(Propagation::Foreground));
    }

    #[test]
    fn a_circle_of_objects_that_wait_for_each_other_is_broken() {
        let world = World {
            node: node("c", &[("b", true)], &[], false),
            owners: vec![Owner::Waiting],
            dependents: vec![node("a", &[("c", true)], &["foregroundDeletion"], true)],
        };
        assert_eq!(plan(&world), Plan::BreakCircle);
        let unblocked = World { node: node("c", &[("b", false)], &[], false), ..world };
        assert_eq!(plan(&unblocked), Plan::Delete(Propagation::Foreground));
    }

    #[test]
    fn an_owner_has_to_be_what_the_reference_says() {
        let owner =
            |name: &str, kind: &str| serde_json::from_value(json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": "o"})).unwrap();
        let mut found = node("o", &[], &[], false);
        Arc::make_mut(&mut found.object).metadata.namespace = "a".into();
        assert!(found.is_meant_by(&owner("o", "Pod"), "a"));
        assert!(!found.is_meant_by(&owner("o", "Pod"), "b"), "in another namespace");
        assert!(!found.is_meant_by(&owner("x", "Pod"), "a") && !found.is_meant_by(&owner("o", "Node"), "a"));
    }

    #[test]
    fn a_foreground_deletion_waits_for_blocking_dependents_only() {
        let owner = || node("owner", &[], &["foregroundDeletion"], true);
        let world = |dependents| World { node: owner(), owners: vec![], dependents };
        let blocking = vec![node("a", &[("owner", true)], &[], false), node("b", &[("owner", true)], &["x"], true)];
        assert_eq!(plan(&world(blocking)), Plan::WaitFor(vec!["a".into()]));
        assert_eq!(plan(&world(vec![node("c", &[("owner", false)], &[], false)])), Plan::RemoveFinalizer("foregroundDeletion"));
        let orphaning = World { node: node("owner", &[], &["orphan"], true), owners: vec![], dependents: vec![] };
        assert_eq!(plan(&orphaning), Plan::Orphan);
    }
}
