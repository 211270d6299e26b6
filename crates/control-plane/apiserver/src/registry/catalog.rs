//! The built-in kinds: facts of the table joined with the rules of the kind. Which of them a server serves says its [`Served`].
//!
//! [`Served`]: schema::resources::Served

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use meta::{GroupResource, Status};
use rules::{GENERIC_COLUMNS, Rules};
use schema::model::{Ref, Type};
use schema::resources::{Resource, Subresource};
use serde_json::{Value, json};

use crate::object::{self, Object, meta};

/// One resource in one version.
pub struct Kind {
    pub facts: &'static Resource,
    pub schema: Ref<Type>,
    pub rules: RulesRef,
    /// Where objects are stored, in which form.
    pub storage: Storage,
    /// What a custom kind has beside.
    pub custom: Option<Arc<crate::custom::Form>>,
}

pub struct Storage {
    /// `/registry/pods/`.
    pub prefix: String,
    pub group: &'static str,
    pub version: &'static str,
    /// The rules of the stored version (they know its selectable fields).
    pub rules: RulesRef,
    pub schema: Ref<Type>,
}

/// The rules of a built-in kind, or those made of a CRD.
#[derive(Clone)]
pub enum RulesRef {
    Static(&'static dyn Rules),
    Owned(Arc<dyn Rules>),
}

impl Deref for RulesRef {
    type Target = dyn Rules;
    fn deref(&self) -> &dyn Rules {
        match self {
            RulesRef::Static(rules) => *rules,
            RulesRef::Owned(rules) => &**rules,
        }
    }
}

impl Storage {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

impl Kind {
    pub fn group_resource(&self) -> GroupResource {
        GroupResource { group: self.facts.group.into(), resource: self.facts.plural.into() }
    }
    pub fn api_version(&self) -> String {
        self.facts.api_version()
    }
    /// Served in another version than stored.
    pub fn converts(&self) -> bool {
        (self.storage.group, self.storage.version) != (self.facts.group, self.facts.version)
    }
    /// A stored object as this kind shows it.
    pub fn present(&self, object: Arc<Object>) -> Result<Arc<Object>, Status> {
        match &self.custom {
            Some(form) => form.present(&object),
            None => Ok(object),
        }
    }
    /// Stored objects as this kind shows them.
    pub fn present_all(&self, objects: Vec<Arc<Object>>) -> Result<Vec<Arc<Object>>, Status> {
        match &self.custom {
            Some(form) => form.present_all(objects),
            None => Ok(objects),
        }
    }
    /// The tree of a stored object as this kind shows it.
    pub fn decode(&self, bytes: &[u8], revision: u64) -> Result<Value, Status> {
        let value = object::decode(bytes, revision);
        match &self.custom {
            Some(form) => Ok(form.read(vec![value])?.pop().unwrap_or_default()),
            None => Ok(value),
        }
    }
    /// A custom resource in any version, in this one.
    pub fn read_value(&self, value: Value) -> Result<Value, Status> {
        match &self.custom {
            Some(form) => Ok(form.read(vec![value])?.pop().unwrap_or_default()),
            None => Ok(value),
        }
    }
    /// The bytes to store of an object of this kind.
    pub fn encode(&self, value: &Value) -> Result<bytes::Bytes, Status> {
        match &self.custom {
            Some(form) => form.write(value),
            None => Ok(object::encode(value)),
        }
    }
    /// Made of a CRD: no protobuf, no strategic merge patch.
    pub fn is_custom(&self) -> bool {
        matches!(self.schema, Ref::Owned(_))
    }
    /// The built-in type; custom resources have none, and so no protobuf.
    pub fn table_type(&self) -> Option<&'static Type> {
        match self.schema {
            Ref::Static(found) => Some(found),
            Ref::Owned(_) => None,
        }
    }
    pub fn has_verb(&self, verb: &str) -> bool {
        self.facts.verbs.contains(&verb)
    }
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.facts.subresource(name)
    }
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
    /// The key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> Vec<u8> {
        let mut key = self.prefix(namespace);
        key.extend_from_slice(name.as_bytes());
        key
    }
    /// The prefix of a namespace's objects; of all objects where `namespace` is empty.
    pub fn prefix(&self, namespace: &str) -> Vec<u8> {
        let mut prefix = self.storage.prefix.clone().into_bytes();
        if self.facts.namespaced && !namespace.is_empty() {
            prefix.extend_from_slice(namespace.as_bytes());
            prefix.push(b'/');
        }
        prefix
    }
    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(&self.group_resource(), name)
    }
    pub fn invalid(&self, name: &str, errors: &[meta::field::Error]) -> Status {
        Status::invalid(self.facts.group, self.facts.kind, name, errors)
    }
}

/// A kind that was looked up. The built-in ones are not counted: all threads look up the same few.
pub enum Found {
    BuiltIn(&'static Arc<Kind>),
    Custom(Arc<Kind>),
}

impl Deref for Found {
    type Target = Arc<Kind>;
    fn deref(&self) -> &Arc<Kind> {
        match self {
            Found::BuiltIn(kind) => kind,
            Found::Custom(kind) => kind,
        }
    }
}

/// A kind without a rules file.
struct Generic(&'static Resource);

impl Rules for Generic {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        (self.0.group, self.0.version, self.0.kind)
    }
    fn columns(&self) -> &'static [rules::Column] {
        GENERIC_COLUMNS
    }
    fn cells(&self, object: &Value, _now: i64) -> Vec<Value> {
        vec![json!(meta(object, "name")), json!(meta(object, "creationTimestamp"))]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        meta::names::dns1123_subdomain(name)
    }
}

/// All built-in kinds in all their versions, in the table's order.
pub fn all() -> &'static [Arc<Kind>] {
    static KINDS: OnceLock<Vec<Arc<Kind>>> = OnceLock::new();
    KINDS.get_or_init(|| schema::resources::all().iter().filter_map(join).map(Arc::new).collect())
}

fn join(facts: &'static Resource) -> Option<Kind> {
    let schema = schema::table::by_gvk(facts.group, facts.version, facts.kind)?;
    let storage = Storage {
        schema: Ref::Static(schema::table::by_gvk(facts.storage_group(), facts.storage_version, facts.kind)?),
        prefix: format!("/registry/{}/", facts.storage_prefix()),
        group: facts.storage_group(),
        version: facts.storage_version,
        rules: rules_of(facts, facts.storage_group(), facts.storage_version),
    };
    Some(Kind { facts, schema: Ref::Static(schema), rules: rules_of(facts, facts.group, facts.version), storage, custom: None })
}

/// The rules of a kind in a version; where that version has none, another one's of the same group: versions differ little.
fn rules_of(facts: &'static Resource, group: &str, version: &str) -> RulesRef {
    let in_group = |rules: &&'static dyn Rules| (rules.gvk().0, rules.gvk().2) == (group, facts.kind);
    let other = || rules::all().iter().copied().find(in_group);
    RulesRef::Static(rules::of(group, version, facts.kind).or_else(other).unwrap_or_else(|| generic(facts)))
}

/// Lives as long as the process: called once per kind.
fn generic(facts: &'static Resource) -> &'static dyn Rules {
    Box::leak(Box::new(Generic(facts)))
}

/// The kind behind a path, served or not.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Kind>> {
    static INDEX: OnceLock<HashMap<(&str, &str, &str), &Arc<Kind>>> = OnceLock::new();
    let index = INDEX.get_or_init(|| all().iter().map(|kind| ((kind.facts.group, kind.facts.version, kind.facts.plural), kind)).collect());
    index.get(&(group, version, plural)).copied()
}

/// The kind in the version in which it is stored.
pub fn stored(group: &str, plural: &str) -> Option<&'static Arc<Kind>> {
    static INDEX: OnceLock<HashMap<(&str, &str), &Arc<Kind>>> = OnceLock::new();
    let stored = || all().iter().filter(|kind| !kind.converts());
    // Of several versions that are stored as they are, the first in the table.
    let index = INDEX.get_or_init(|| stored().rev().map(|kind| ((kind.facts.group, kind.facts.plural), kind)).collect());
    index.get(&(group, plural)).copied()
}
