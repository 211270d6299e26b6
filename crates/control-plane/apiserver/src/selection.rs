//! Which objects a list or a watch is about: a key prefix, labels, fields, a shard.

use meta::selector::{FieldSelector, LabelSelector};
use serde_json::Value;

use crate::cache::{Change, Event};
use crate::object::{Object, scan};
use crate::registry::catalog::RulesRef;
use crate::shard::Shard;

/// The field of pods that the cache keeps an index of.
pub const NODE_NAME: &str = "spec.nodeName";
const PODS: &[u8] = b"/registry/pods/";

/// What field selectors may ask about one object beside its name and namespace. Made once per object version, by the first that asks.
pub type Fields = Box<[(&'static str, Box<str>)]>;

pub struct Selection {
    /// Of the key: a resource, or one namespace of it, or one object.
    pub prefix: Vec<u8>,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// Fields of a version that a webhook makes: asked of the object as it is shown, not as it is stored, by whoever shows it.
    pub late: FieldSelector,
    /// Part of the whole, by a hash of one of its fields.
    pub shard: Option<Shard>,
    /// Of the stored version of the kind.
    pub rules: RulesRef,
    /// `prefix` is the key of one object.
    pub single: bool,
}

impl Selection {
    pub fn all(prefix: impl Into<Vec<u8>>, rules: RulesRef) -> Self {
        let (labels, fields) = (LabelSelector::everything(), FieldSelector::default());
        Self { prefix: prefix.into(), labels, fields, late: FieldSelector::default(), shard: None, rules, single: false }
    }

    /// Nothing but the prefix selects.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.late.is_everything() && self.shard.is_none()
    }

    /// The key of the one object that can be meant.
    pub fn key(&self) -> Option<&[u8]> {
        self.single.then_some(self.prefix.as_slice())
    }

    /// The node whose pods are meant.
    pub fn node(&self) -> Option<&str> {
        let node = self.fields.exact(NODE_NAME).filter(|node| !node.is_empty())?;
        self.prefix.starts_with(PODS).then_some(node)
    }

    pub fn matches(&self, object: &Object) -> bool {
        if !object.key.starts_with(&self.prefix) {
            return false;
        }
        if self.is_everything() {
            return true;
        }
        self.shard.as_ref().is_none_or(|shard| shard.contains(object))
            && (self.labels.is_everything() || self.labels.matches(|name| object.label(name)))
            && self.fields.matches(|field| self.field(object, field))
    }

    /// Whether an object as it is shown has the fields of `late`.
    pub fn matches_shown(&self, shown: &Object) -> bool {
        if self.late.is_everything() {
            return true;
        }
        let fields = fields_of(shown, &self.rules);
        self.late.matches(|field| fields.iter().find(|(name, _)| *name == field).map(|(_, value)| &**value))
    }

    fn field<'a>(&self, object: &'a Object, field: &str) -> Option<&'a str> {
        match field {
            "metadata.name" => Some(object.name()),
            "metadata.namespace" => Some(object.namespace()),
            // Every kubelet asks this of every change of its pods: no tree is made for it.
            NODE_NAME if object.key.starts_with(PODS) => {
                Some(object.member(&["spec", "nodeName"]).and_then(scan::plain).unwrap_or_default())
            }
            other => {
                let fields = object.fields.get_or_init(|| fields_of(object, &self.rules));
                fields.iter().find(|(name, _)| *name == other).map(|(_, value)| &**value)
            }
        }
    }

    /// What an event is to a watcher of this selection: an object that leaves it is deleted, one that enters it is added.
    pub fn classify(&self, event: &Event) -> Option<Change> {
        if !event.object.key.starts_with(&self.prefix) {
            return None;
        }
        let was = event.previous.as_ref().is_some_and(|previous| self.matches(previous));
        let is = !event.deleted && self.matches(&event.object);
        match (was, is) {
            (false, true) => Some(Change::Added),
            (true, true) => Some(Change::Modified),
            (true, false) => Some(Change::Deleted),
            (false, false) => None,
        }
    }
}

fn fields_of(object: &Object, rules: &RulesRef) -> Fields {
    let value: Value = serde_json::from_slice(&object.bytes).unwrap_or_default();
    rules.selectable_fields(&value).into_iter().map(|(name, value)| (name, value.into())).collect()
}
