//! The walk over types of CRDs: unknown fields are dropped, everything else is left to validation.
//!
//! Source: apiextensions-apiserver `pkg/apiserver/schema/pruning`.

use serde_json::Value;

use super::Error;
use super::path::Path;
use super::walk::{self, Context, owned};
use crate::model::{Field, Schema, Type};

/// Prunes an object of a CRD's type. Built-in types inside (metadata) are read as such.
pub fn prune(value: &mut Value, found: &Type, path: &Path<'_>, unknown: &mut Vec<String>) -> Result<(), Error> {
    let Value::Object(map) = value else { return Ok(()) };
    let mut dropped = Vec::new();
    for (key, value) in map.iter_mut() {
        let place = path.field(key);
        match found.field(key) {
            Some(field) => child(value, field, found, &place, unknown)?,
            None if found.preserve_unknown || (found.embedded_resource && matches!(key.as_str(), "apiVersion" | "kind" | "metadata")) => {}
            None => {
                unknown.push(place.full());
                dropped.push(key.clone());
            }
        }
    }
    for key in dropped {
        map.remove(&key);
    }
    Ok(())
}

fn child(value: &mut Value, field: &Field, parent: &Type, path: &Path<'_>, unknown: &mut Vec<String>) -> Result<(), Error> {
    match &field.schema {
        Schema::Object(found) if !owned(found) => {
            let structure = parent.name.rsplit('.').next().unwrap_or_default();
            walk::read(value, &field.schema, Context { structure, go: "", path }, unknown)
        }
        schema => descend(value, schema, path, unknown),
    }
}

fn descend(value: &mut Value, schema: &Schema, path: &Path<'_>, unknown: &mut Vec<String>) -> Result<(), Error> {
    match (schema, value) {
        (Schema::Object(found), value) if owned(found) => prune(value, found, path, unknown),
        (Schema::List(list), Value::Array(items)) => {
            items.iter_mut().enumerate().try_for_each(|(at, item)| descend(item, &list.items, &path.index(at), unknown))
        }
        (Schema::Map(map), Value::Object(entries)) => {
            entries.iter_mut().try_for_each(|(key, entry)| descend(entry, &map.values, &path.key(key), unknown))
        }
        _ => Ok(()),
    }
}
