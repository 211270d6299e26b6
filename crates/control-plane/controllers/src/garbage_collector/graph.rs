//! Objects and whose they are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use client::ApiResource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use reconcile::PartialObject;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";
/// Uids remembered as gone, so that a thousand dependents of one owner ask the server once.
const ABSENT_MAX: usize = 10_000;

/// One object.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub resource: Arc<ApiResource>,
    pub object: Arc<PartialObject>,
}

impl Node {
    pub fn owners(&self) -> &[OwnerReference] {
        &self.object.metadata.owner_references
    }
    pub fn is_leaving(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.object.metadata.finalizers.iter().any(|finalizer| finalizer == name)
    }
    /// Whether this is what `owner`, a reference of an object in `namespace`, speaks of: a uid alone can be anything's.
    pub fn is_meant_by(&self, owner: &OwnerReference, namespace: &str) -> bool {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let meta = &self.object.metadata;
        self.resource.kind == owner.kind
            && self.resource.group == group
            && meta.name == owner.name
            && (!self.resource.namespaced || meta.namespace == namespace)
    }
    /// Its deletion waits for its dependents'.
    pub fn waits_for_dependents(&self) -> bool {
        self.is_leaving() && self.has_finalizer(FOREGROUND)
    }
    /// Its deletion waits until its dependents have been let go.
    pub fn orphans_dependents(&self) -> bool {
        self.is_leaving() && self.has_finalizer(ORPHAN)
    }
}

/// Invariant: `dependents[o]` holds `d` exactly if `nodes[d]` has an owner reference to `o`.
#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
    absent: HashSet<String>,
    absent_order: VecDeque<String>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn dependents(&self, uid: &str) -> Vec<Node> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.nodes.get(uid)).cloned().collect()
    }

    pub fn is_known_absent(&self, uid: &str) -> bool {
        self.absent.contains(uid)
    }

    pub fn note_absent(&mut self, uid: &str) {
        if self.nodes.contains_key(uid) || !self.absent.insert(uid.to_owned()) {
            return;
        }
        self.absent_order.push_back(uid.to_owned());
        if self.absent_order.len() > ABSENT_MAX {
            let oldest = self.absent_order.pop_front();
            oldest.into_iter().for_each(|oldest| {
                self.absent.remove(&oldest);
            });
        }
    }

    /// Takes a new state in; returns the uids to look at.
    pub fn apply(&mut self, resource: &Arc<ApiResource>, object: &Arc<PartialObject>) -> Vec<String> {
        let uid = &object.metadata.uid;
        if uid.is_empty() {
            return Vec::new();
        }
        let node = Node { resource: resource.clone(), object: object.clone() };
        let old = self.nodes.insert(uid.clone(), node.clone());
        let owners = |node: &Node| node.owners().iter().map(|owner| owner.uid.clone()).collect::<HashSet<_>>();
        let (before, after) = (old.as_ref().map(owners).unwrap_or_default(), owners(&node));
        for gone in before.difference(&after) {
            self.unlink(gone, uid);
        }
        for owner in &after {
            self.dependents.entry(owner.clone()).or_default().insert(uid.clone());
        }
        let mut woken = Vec::new();
        if self.is_suspect(&node) {
            woken.push(uid.clone());
        }
        // An owner in foreground deletion may have waited for this dependent to let go of it, or to stop blocking.
        let waits = |owner: &&String| self.nodes.get(*owner).is_some_and(Node::waits_for_dependents);
        woken.extend(before.iter().chain(&after).filter(waits).cloned());
        woken
    }

    /// Takes an object out; its dependents and whoever waited for it are to be looked at.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut woken: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in node.owners() {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(Node::waits_for_dependents) {
                woken.push(owner.uid.clone());
            }
        }
        self.note_absent(uid);
        woken
    }

    /// Everything worth a look: after the first lists, and after new resources.
    pub fn suspects(&self) -> Vec<String> {
        self.nodes.iter().filter(|(_, node)| self.is_suspect(node)).map(|(uid, _)| uid.clone()).collect()
    }

    /// Has an owner that is unknown, not what the reference says, or leaving in the foreground, or is itself in a deletion that we complete.
    fn is_suspect(&self, node: &Node) -> bool {
        let namespace = &node.object.metadata.namespace;
        let unsafe_owner = |owner: &OwnerReference| {
            self.nodes.get(&owner.uid).is_none_or(|found| found.waits_for_dependents() || !found.is_meant_by(owner, namespace))
        };
        node.waits_for_dependents() || node.orphans_dependents() || (!node.is_leaving() && node.owners().iter().any(unsafe_owner))
    }

    /// The resource is no longer served: its objects are not gone, only out of sight.
    pub fn drop_resource(&mut self, resource: &ApiResource) {
        let uids: Vec<String> = self.nodes.iter().filter(|(_, node)| *node.resource == *resource).map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            let node = self.nodes.remove(&uid);
            node.iter().flat_map(|node| node.owners()).for_each(|owner| self.unlink(&owner.uid, &uid));
        }
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}
