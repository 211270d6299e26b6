//! One object in several versions, as webhooks and policies want to see it.

use std::sync::Arc;

use admission::policy::types;
use cel::types::{Field, ObjectType};
use meta::{GroupVersionKind, GroupVersionResource, Status};
use schema::apply::Manager;
use schema::decode::{self, Mode};
use schema::model::{Ref, Schema, Type};
use serde_json::Value;

use super::catalog::{self, Kind};
use crate::custom::Kinds;
use crate::object::metadata_mut;
use crate::{codec, convert};

fn all(custom: &Kinds) -> impl Iterator<Item = Arc<Kind>> {
    catalog::all().iter().cloned().chain(custom.all())
}

fn by_kind(custom: &Kinds, gvk: &GroupVersionKind) -> Option<Arc<Kind>> {
    let wanted = (gvk.group.as_str(), gvk.version.as_str(), gvk.kind.as_str());
    all(custom).find(|kind| (kind.facts.group, kind.facts.version, kind.facts.kind) == wanted)
}

/// The resources under which the same stored objects are served, the asked one among them.
pub fn equivalents(custom: &Kinds, gvr: &GroupVersionResource, subresource: &str) -> Vec<(GroupVersionResource, GroupVersionKind)> {
    let built_in = catalog::find(&gvr.group, &gvr.version, &gvr.resource).cloned();
    let Some(asked) = built_in.or_else(|| custom.find(&gvr.group, &gvr.version, &gvr.resource)) else { return Vec::new() };
    let same = all(custom).filter(|kind| kind.storage.prefix == asked.storage.prefix);
    let names = same.filter_map(|kind| {
        let facts = kind.facts;
        let (group, version, name) = match subresource {
            "" => (facts.group, facts.version, facts.kind),
            wanted => kind.subresource(wanted).map(|sub| (sub.group, sub.version, sub.kind))?,
        };
        let gvr = GroupVersionResource::new(facts.group, facts.version, facts.plural);
        Some((gvr, GroupVersionKind::new(group, version, name)))
    });
    names.collect()
}

/// The resource of a kind, and whether it is namespaced.
pub fn resource_of(custom: &Kinds, gvk: &GroupVersionKind) -> Option<(GroupVersionResource, bool)> {
    let facts = by_kind(custom, gvk)?.facts;
    Some((GroupVersionResource::new(facts.group, facts.version, facts.plural), facts.namespaced))
}

/// What objects of a kind look like to expressions.
pub fn type_of(custom: &Kinds, gvk: &GroupVersionKind) -> Option<cel::Type> {
    let kind = by_kind(custom, gvk)?;
    let Some(form) = &kind.custom else { return Some(types::of(kind.schema.clone())) };
    let schema: Value = serde_json::from_slice(&form.openapi).ok()?;
    match structural::expressions::types::declared(&structural::Node::read(&schema), true)? {
        cel::Type::Object(own) => Some(cel::Type::Object(Arc::new(Complete { own, metadata: kind.schema.clone() }))),
        other => Some(other),
    }
}

/// A custom object with all of its metadata, of which its own rules may see little.
#[derive(Debug)]
struct Complete {
    own: Arc<dyn ObjectType>,
    metadata: Ref<Type>,
}

impl ObjectType for Complete {
    fn name(&self) -> &str {
        self.own.name()
    }
    fn field(&self, name: &str) -> Option<Field> {
        match (name, self.metadata.field("metadata").map(|field| &field.schema)) {
            ("metadata", Some(Schema::Object(found))) => Some(Field { json: name.to_owned(), ty: types::of(found.clone()) }),
            _ => self.own.field(name),
        }
    }
    fn json_names(&self) -> Vec<String> {
        self.own.json_names()
    }
}

/// A stored object in another version; one that is not stored (a Scale, a Binding) has one version only. Custom resources are worked on
/// in the version that was asked for and may need their conversion webhook.
pub fn convert(custom: &Kinds, object: Value, to: &GroupVersionKind) -> Result<Value, Status> {
    match by_kind(custom, to) {
        Some(kind) if kind.is_custom() => kind.read_value(object),
        Some(kind) if kind.converts() => Ok(convert::from_storage(&kind, object)),
        _ => Ok(object),
    }
}

/// An object that a webhook or policy made, typed, pruned and defaulted, in the stored version.
pub fn restore(custom: &Kinds, object: Value, from: &GroupVersionKind) -> Result<Value, Status> {
    let Some(kind) = by_kind(custom, from) else {
        let Some(found) = schema::table::by_gvk(&from.group, &from.version, &from.kind) else { return Ok(object) };
        return typed(object, Ref::Static(found), from);
    };
    let mut object = typed(object, kind.schema.clone(), from)?;
    if kind.converts() {
        object = convert::to_storage(&kind, object);
    }
    codec::default(&kind, &mut object);
    Ok(object)
}

/// Server-side apply without owners: what `applied` says is set, lists of known keys are merged by them.
pub fn merge(custom: &Kinds, object: Value, applied: Value, gvk: &GroupVersionKind) -> Result<Value, Status> {
    let Some(kind) = by_kind(custom, gvk) else {
        return Err(Status::internal(format!("no schema found for {}, Kind={}", gvk.group_version(), gvk.kind)));
    };
    let mut live = object;
    let owners = metadata_mut(&mut live).remove("managedFields");
    let version = gvk.group_version().to_string();
    let now = meta::time::now();
    let manager = Manager { name: "admission", subresource: "", api_version: &version, time: &now, reset: &[] };
    let mut applied = applied;
    for field in ["name", "namespace"] {
        let own = live["metadata"][field].clone();
        metadata_mut(&mut applied).insert(field.into(), own);
    }
    let mut merged = schema::apply::apply(Some(&live), &applied, &manager, true, &kind.schema).map_err(|error| error.status())?;
    metadata_mut(&mut merged).remove("managedFields");
    if let Some(owners) = owners {
        metadata_mut(&mut merged).insert("managedFields".into(), owners);
    }
    Ok(merged)
}

fn typed(object: Value, found: Ref<Type>, gvk: &GroupVersionKind) -> Result<Value, Status> {
    let decoded = decode::decode(object, &Schema::Object(found), Mode::Ignore);
    decoded.map(|(object, _)| object).map_err(|error| error.status(&gvk.kind, &gvk.version, &gvk.kind, b""))
}
