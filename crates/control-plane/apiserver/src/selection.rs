//! Which objects a list or a watch is about: a key prefix, labels, fields.

use meta::selector::{FieldSelector, LabelSelector};
use serde_json::Value;

use crate::cache::{Change, Event};
use crate::object::Object;
use crate::registry::catalog::RulesRef;

/// What selectors may ask about one object. Made once per object version, by the first selector that needs it.
#[derive(Debug)]
pub struct Index {
    labels: Vec<(Box<str>, Box<str>)>,
    /// Beside `metadata.name` and `metadata.namespace`.
    fields: Vec<(&'static str, Box<str>)>,
    name: Box<str>,
    namespace: Box<str>,
}

pub struct Selection {
    /// Of the key: a resource, or one namespace of it.
    pub prefix: Vec<u8>,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// Of the stored version of the kind.
    pub rules: RulesRef,
}

impl Selection {
    pub fn all(prefix: impl Into<Vec<u8>>, rules: RulesRef) -> Self {
        Self { prefix: prefix.into(), labels: LabelSelector::everything(), fields: FieldSelector::default(), rules }
    }

    /// Nothing but the prefix selects.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub fn matches(&self, object: &Object) -> bool {
        if !object.key.starts_with(&self.prefix) {
            return false;
        }
        if self.is_everything() {
            return true;
        }
        let index = object.index.get_or_init(|| Box::new(Index::of(object, &self.rules)));
        let label = |key: &str| index.labels.iter().find(|(name, _)| &**name == key).map(|(_, value)| &**value);
        self.labels.matches(label) && self.fields.matches(|field| index.field(field))
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

impl Index {
    fn of(object: &Object, rules: &RulesRef) -> Self {
        let value: Value = serde_json::from_slice(&object.bytes).unwrap_or_default();
        let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
        let labels = labels.map(|(key, value)| (key.as_str().into(), value.as_str().unwrap_or_default().into())).collect();
        let fields = rules.selectable_fields(&value).into_iter().map(|(name, value)| (name, value.into())).collect();
        let text = |field: &str| crate::object::meta(&value, field).into();
        Self { labels, fields, name: text("name"), namespace: text("namespace") }
    }

    fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            other => self.fields.iter().find(|(field, _)| *field == other).map(|(_, value)| &**value),
        }
    }
}
