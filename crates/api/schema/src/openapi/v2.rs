//! `/openapi/v2`: everything that is served in one document.

use serde_json::{Map, Value, json};

use super::definitions::Definitions;
use super::operations::{self, Body, Discovery, Operation, PATCHES, STRATEGIC, parameter};
use super::{Describe, Kind, Style, VERSION};

pub use super::gnostic::encode as protobuf;

/// The media type of [`protobuf`] in answers.
pub const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What clients ask for; it is no well-formed media type, so answers must not bear it.
pub const PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The document of all `kinds`.
pub fn document(kinds: &[Kind], describe: Describe<'_>) -> Value {
    let mut definitions = Definitions::new(Style::V2, describe);
    let mut paths = Map::new();
    for kind in kinds {
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
                entry.insert(operation.method.into(), render(operation, kind));
            }
            entry.insert("parameters".into(), path.parameters.iter().map(|name| shared(name)).collect());
            paths.insert(path.path, entry.into());
        }
    }
    for known in operations::discovery(kinds) {
        if !known.response.is_empty() {
            definitions.want(&known.response);
        }
        paths.insert(known.path.clone(), json!({"get": told(&known)}));
    }
    for name in ["DeleteOptions", "Patch", "Status", "WatchEvent"] {
        definitions.want(&format!("{}.{name}", operations::META));
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "definitions": definitions.finish(),
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
        }},
        "security": [{"BearerToken": []}],
    })
}

fn shared(name: &str) -> Value {
    let place = if name == "pretty" { "query" } else { "path" };
    in_place(name, place)
}

fn in_place(name: &str, place: &str) -> Value {
    let (kind, description) = parameter(name);
    let mut value = json!({"name": name, "in": place, "description": description, "type": kind, "uniqueItems": true});
    if place == "path"
        && let Some(map) = value.as_object_mut()
    {
        map.insert("required".into(), true.into());
    }
    value
}

fn render(operation: &Operation, kind: &Kind) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    let mut consumes = vec!["*/*"];
    let body = |definition: &str, required: bool| {
        let mut value = json!({"name": "body", "in": "body", "schema": Style::V2.reference(definition)});
        if required {
            value["required"] = true.into();
        }
        value
    };
    match &operation.body {
        Body::None => {}
        Body::Object(definition) => parameters.push(body(definition, true)),
        Body::Options => parameters.push(body(&format!("{}.DeleteOptions", operations::META), false)),
        Body::Patch { strategic } => {
            consumes = PATCHES.to_vec();
            consumes.extend(strategic.then_some(STRATEGIC));
            parameters.push(body(&format!("{}.Patch", operations::META), true));
        }
    }
    parameters.extend(operation.query.iter().map(|name| in_place(name, "query")));
    let schema = if operation.response.is_empty() { json!({"type": "string"}) } else { Style::V2.reference(&operation.response) };
    let mut responses: Map<String, Value> =
        operation.codes().iter().map(|code| ((*code).to_owned(), json!({"description": said(code), "schema": schema}))).collect();
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    json!({
        "tags": [operations::tag(&kind.group, &kind.version)],
        "description": operation.summary,
        "operationId": operation.id,
        "consumes": consumes,
        "produces": operation.produces(),
        "schemes": ["https"],
        "parameters": parameters,
        "responses": responses,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": operation.gvk,
    })
}

/// The word of a code of success.
pub fn said(code: &str) -> &'static str {
    match code {
        "201" => "Created",
        "202" => "Accepted",
        _ => "OK",
    }
}

fn told(known: &Discovery) -> Value {
    let schema = if known.response.is_empty() { json!({"type": "string"}) } else { Style::V2.reference(&known.response) };
    let mut operation = json!({
        "tags": [known.tag],
        "description": known.summary,
        "operationId": known.id,
        "produces": known.produces,
        "schemes": ["https"],
        "responses": {"200": {"description": "OK", "schema": schema}, "401": {"description": "Unauthorized"}},
    });
    if !known.response.is_empty() {
        operation["consumes"] = known.produces.clone().into();
    }
    operation
}
