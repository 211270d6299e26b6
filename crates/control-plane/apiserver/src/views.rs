//! What is made of an object before it is sent: the object itself, its metadata alone, or rows of a table.
//!
//! Source: apiserver `pkg/endpoints/handlers/response.go`; KEP-2334 is not followed (server-side printing is always on).

use meta::Status;
use serde_json::{Map, Value, json};

use crate::negotiate::{Format, View};
use crate::object::Object;
use crate::registry::catalog::Kind;
use crate::request::Query;

/// What a Table's rows carry of their objects (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    pub fn parse(query: &Query) -> Result<Self, Status> {
        match query.text("includeObject") {
            None | Some("Metadata") => Ok(Include::Metadata),
            Some("None") => Ok(Include::None),
            Some("Object") => Ok(Include::Object),
            Some(other) => Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        }
    }
}

/// The object as the client of `kind` knows it.
pub fn served(kind: &Kind, object: &Object) -> Value {
    let value = object.value();
    if kind.converts() { crate::convert::from_storage(kind, value) } else { value }
}

/// One object in the wanted view.
pub fn one(kind: &Kind, object: &Object, format: Format, include: Include) -> Value {
    match format.view {
        View::Object => served(kind, object),
        View::PartialMetadata(version) => partial(served(kind, object), version),
        View::Table(version) => {
            let list = json!({"resourceVersion": object.revision.to_string()});
            table(kind, vec![object.value()], version, include, list, true)
        }
    }
}

/// A list in the wanted view. `metadata` is the ListMeta.
pub fn many(kind: &Kind, objects: &[std::sync::Arc<Object>], format: Format, include: Include, metadata: Value) -> Value {
    let values = objects.iter().map(|object| served(kind, object));
    match format.view {
        View::Table(version) => table(kind, objects.iter().map(|object| object.value()).collect(), version, include, metadata, true),
        View::PartialMetadata(version) => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": metadata,
            "items": values.map(|value| partial(value, version)).collect::<Vec<_>>(),
        }),
        View::Object => json!({
            "kind": kind.facts.list_kind,
            "apiVersion": kind.api_version(),
            "metadata": metadata,
            "items": values.map(|value| if kind.is_custom() { value } else { without_type(value) }).collect::<Vec<_>>(),
        }),
    }
}

/// A list as a protobuf body, object by object: no tree of the whole list is made. `None` for what has no protobuf form.
pub fn many_protobuf(kind: &Kind, objects: &[std::sync::Arc<Object>], format: Format, metadata: &Value) -> Option<Vec<u8>> {
    let (api_version, list_kind, found) = match format.view {
        View::Table(_) => return None,
        View::PartialMetadata(version) => {
            let found = schema::table::by_gvk("meta.k8s.io", version, "PartialObjectMetadata")?;
            (format!("meta.k8s.io/{version}"), "PartialObjectMetadataList", found)
        }
        View::Object => (kind.api_version(), kind.facts.list_kind, kind.table_type()?),
    };
    let messages: Vec<Vec<u8>> = objects.iter().map(|object| crate::codec::object_message(kind, object, found)).collect();
    Some(schema::protobuf::list(&api_version, list_kind, metadata, messages.iter().map(Vec::as_slice)))
}

fn without_type(mut value: Value) -> Value {
    if let Some(members) = value.as_object_mut() {
        members.remove("kind");
        members.remove("apiVersion");
    }
    value
}

fn partial(mut value: Value, version: &str) -> Value {
    let metadata = value.get_mut("metadata").map(Value::take).unwrap_or_else(|| Value::Object(Map::new()));
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata})
}

/// A Table of `objects` in their stored version. `headers` is false in a watch after its first event.
pub fn table(kind: &Kind, objects: Vec<Value>, version: &str, include: Include, metadata: Value, headers: bool) -> Value {
    let now = meta::time::epoch(&meta::time::now()).unwrap_or(0);
    let rows: Vec<Value> = objects.into_iter().map(|object| row(kind, object, version, include, now)).collect();
    let definitions: Vec<Value> = match headers {
        true => kind.storage.rules.columns().iter().map(definition).collect(),
        false => Vec::new(),
    };
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

fn definition(column: &rules::Column) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    })
}

/// Cells come from the stored version, whose rules know every field (upstream prints the internal version).
fn row(kind: &Kind, object: Value, version: &str, include: Include, now: i64) -> Value {
    let cells = kind.storage.rules.cells(&object, now);
    let object = if kind.converts() { crate::convert::from_storage(kind, object) } else { object };
    match include {
        Include::None => json!({"cells": cells}),
        Include::Metadata => json!({"cells": cells, "object": partial(object, version)}),
        Include::Object => json!({"cells": cells, "object": object}),
    }
}
