//! `/openapi/v3` and the document of each group and version under it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::Digest;

use super::definitions::Definitions;
use super::operations::{self, Body, Operation, PATCHES, PRODUCES, PRODUCES_WATCH, STRATEGIC, parameter};
use super::{Describe, Kind, Style, VERSION};

/// The document of one group and version. `kinds` are its resources; others are left out.
pub fn document(group: &str, version: &str, kinds: &[Kind], describe: Describe<'_>) -> Value {
    let mut definitions = Definitions::new(Style::V3, describe);
    let mut paths = Map::new();
    for kind in kinds.iter().filter(|kind| kind.group == group && kind.version == version) {
        definitions.add_kind(kind);
        for path in operations::paths(kind) {
            let mut entry = Map::new();
            for operation in &path.operations {
                if let Body::Object(name) = &operation.body {
                    definitions.want(name);
                }
                if !operation.response.is_empty() {
                    definitions.want(&operation.response);
                }
                entry.insert(operation.method.into(), render(operation, group, version));
            }
            entry.insert("parameters".into(), path.parameters.iter().map(|name| shared(name)).collect());
            paths.insert(path.path, entry.into());
        }
    }
    for name in ["APIResourceList", "DeleteOptions", "Patch", "Status"] {
        definitions.want(&format!("{}.{name}", operations::META));
    }
    let (path, discovery) = discovery(group, version);
    paths.insert(path, discovery);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "components": {"schemas": definitions.finish(), "securitySchemes": {"BearerToken": {
            "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
        }}},
    })
}

/// The root index: path of each document below `/openapi/v3` (`apis/apps/v1`) to its hash.
pub fn index(hashes: &BTreeMap<String, String>) -> Value {
    let entry = |(path, hash): (&String, &String)| (path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
    json!({"paths": hashes.iter().map(entry).collect::<Map<String, Value>>()})
}

/// `api/v1` or `apis/apps/v1`: a document's key in the index.
pub fn key(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The hash of a document's bytes, as upstream: SHA-512 in upper-case hexadecimal. It is the ETag too.
pub fn hash(document: &[u8]) -> String {
    sha2::Sha512::digest(document).iter().map(|byte| format!("{byte:02X}")).collect()
}

fn discovery(group: &str, version: &str) -> (String, Value) {
    let path = if group.is_empty() { format!("/api/{version}/") } else { format!("/apis/{group}/{version}/") };
    let answer = answers(&PRODUCES, &format!("{}.APIResourceList", operations::META));
    let id = format!("get{}APIResources", operations::tag(group, version).replace('_', ""));
    let operation = json!({
        "tags": [operations::tag(group, version)], "description": "get available resources", "operationId": id,
        "responses": {"200": answer, "401": {"description": "Unauthorized"}},
    });
    (path, json!({"get": operation}))
}

fn shared(name: &str) -> Value {
    let (kind, description) = parameter(name);
    let place = if name == "pretty" { "query" } else { "path" };
    let mut value = json!({"name": name, "in": place, "description": description, "schema": {"type": kind, "uniqueItems": true}});
    if place == "path"
        && let Some(map) = value.as_object_mut()
    {
        map.insert("required".into(), true.into());
    }
    value
}

fn query(name: &str) -> Value {
    let (kind, description) = parameter(name);
    json!({"name": name, "in": "query", "description": description, "schema": {"type": kind, "uniqueItems": true}})
}

fn answers(types: &[&str], definition: &str) -> Value {
    let schema = Style::V3.reference(definition);
    let content: Map<String, Value> = types.iter().map(|name| ((*name).to_owned(), json!({"schema": schema}))).collect();
    json!({"description": "OK", "content": content})
}

fn render(operation: &Operation, group: &str, version: &str) -> Value {
    let mut responses = Map::new();
    if operation.response.is_empty() {
        responses.insert("200".into(), json!({"description": "OK", "content": {"*/*": {"schema": {"type": "string"}}}}));
    } else {
        let mut types = PRODUCES.to_vec();
        if operation.watchable {
            types.extend(PRODUCES_WATCH);
        }
        let answer = answers(&types, &operation.response);
        if matches!(operation.method, "post" | "put" | "patch") {
            responses.insert("201".into(), answer.clone());
        }
        if matches!(operation.method, "post" | "delete") {
            responses.insert("202".into(), answer.clone());
        }
        responses.insert("200".into(), answer);
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    let mut value = json!({
        "tags": [operations::tag(group, version)],
        "description": operation.summary,
        "operationId": operation.id,
        "parameters": operation.query.iter().map(|name| query(name)).collect::<Vec<_>>(),
        "responses": responses,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": operation.gvk,
    });
    if let (Some(map), Some(body)) = (value.as_object_mut(), body(&operation.body)) {
        map.insert("requestBody".into(), body);
    }
    value
}

fn body(body: &Body) -> Option<Value> {
    let content = |types: &[&str], definition: &str| -> Map<String, Value> {
        let schema = Style::V3.reference(definition);
        types.iter().map(|name| ((*name).to_owned(), json!({"schema": schema}))).collect()
    };
    match body {
        Body::None => None,
        Body::Object(definition) => Some(json!({"content": content(&["*/*"], definition), "required": true})),
        Body::Options => Some(json!({"content": content(&["*/*"], &format!("{}.DeleteOptions", operations::META))})),
        Body::Patch { strategic } => {
            let mut types = PATCHES.to_vec();
            types.extend(strategic.then_some(STRATEGIC));
            Some(json!({"content": content(&types, &format!("{}.Patch", operations::META)), "required": true}))
        }
    }
}
