//! Kinds that are served in another version than they are stored in.
//!
//! Most versions of a kind have the same fields: only `apiVersion` changes, and fields that the served version lacks are left out. What
//! differs more has a file here. Conversions never fail: what one version cannot say is kept in annotations, as upstream does.

mod autoscaling;
mod events;
mod resource;

use schema::decode::{self, Mode};
use schema::model::{Ref, Schema, Type};
use serde_json::Value;

use crate::registry::catalog::Kind;

/// Brings a served object into the stored version.
pub fn to_storage(kind: &Kind, mut object: Value) -> Value {
    match (kind.facts.group, kind.facts.version) {
        ("events.k8s.io", _) => events::to_core(&mut object),
        ("autoscaling", "v1") => autoscaling::to_v2(&mut object),
        ("resource.k8s.io", "v1beta1") => resource::to_v1(kind.facts.kind, &mut object),
        _ => {}
    }
    typed(retype(object, kind.storage.api_version()), &kind.storage.schema)
}

/// Brings a stored object into the served version.
pub fn from_storage(kind: &Kind, mut object: Value) -> Value {
    match (kind.facts.group, kind.facts.version) {
        ("events.k8s.io", _) => events::from_core(&mut object),
        ("autoscaling", "v1") => autoscaling::to_v1(&mut object),
        ("resource.k8s.io", "v1beta1") => resource::to_v1beta1(kind.facts.kind, &mut object),
        _ => {}
    }
    typed(retype(object, kind.api_version()), &kind.schema)
}

fn retype(mut object: Value, api_version: String) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.insert("apiVersion".into(), api_version.into());
    }
    object
}

/// Leaves out what the version has no field for, and writes the zero values that Go writes.
fn typed(object: Value, schema: &Ref<Type>) -> Value {
    match decode::decode(object.clone(), &Schema::Object(schema.clone()), Mode::Ignore) {
        Ok((object, _)) => object,
        // What is not even of the type stays as it is: validation says what is wrong with it.
        Err(_) => object,
    }
}

#[cfg(test)]
mod tests;
