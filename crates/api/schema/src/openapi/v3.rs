//! `/openapi/v3` and the document of each group and version under it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::Digest;

use super::definitions::Definitions;
use super::operations::{self, Body, Discovery, Operation, PATCHES, STRATEGIC, parameter};
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
    let own = format!("/{}/", key(group, version));
    for known in operations::discovery(kinds).iter().filter(|known| known.path == own) {
        paths.insert(known.path.clone(), told(known));
    }
    whole(paths, definitions)
}

/// The documents beside those of the versions: `api`, `apis`, `apis/apps`, `version`, …, by their keys in the index.
pub fn others(kinds: &[Kind]) -> Vec<String> {
    let versions: std::collections::BTreeSet<String> = kinds.iter().map(|kind| key(&kind.group, &kind.version)).collect();
    let paths = operations::discovery(kinds).into_iter().map(|known| known.path.trim_matches('/').to_owned());
    paths.filter(|path| !versions.contains(path)).collect()
}

/// One of [`others`]; `None` where there is none of this key.
pub fn other(key: &str, kinds: &[Kind], describe: Describe<'_>) -> Option<Value> {
    let known = operations::discovery(kinds).into_iter().find(|known| known.path.trim_matches('/') == key)?;
    let mut definitions = Definitions::new(Style::V3, describe);
    if !known.response.is_empty() {
        definitions.want(&known.response);
    }
    let paths = [(known.path.clone(), told(&known))].into_iter().collect();
    Some(whole(paths, definitions))
}

fn whole(paths: Map<String, Value>, definitions: Definitions<'_>) -> Value {
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

fn told(known: &Discovery) -> Value {
    let answer = match known.response.is_empty() {
        true => text_answer(&known.produces),
        false => answers(&known.produces, &known.response, "200"),
    };
    json!({"get": {
        "tags": [known.tag], "description": known.summary, "operationId": known.id,
        "responses": {"200": answer, "401": {"description": "Unauthorized"}},
    }})
}

fn text_answer(types: &[&str]) -> Value {
    let content: Map<String, Value> = types.iter().map(|name| ((*name).to_owned(), json!({"schema": {"type": "string"}}))).collect();
    json!({"description": "OK", "content": content})
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

fn answers(types: &[&str], definition: &str, code: &str) -> Value {
    let schema = Style::V3.reference(definition);
    let content: Map<String, Value> = types.iter().map(|name| ((*name).to_owned(), json!({"schema": schema}))).collect();
    json!({"description": super::v2::said(code), "content": content})
}

fn render(operation: &Operation, group: &str, version: &str) -> Value {
    let mut responses = Map::new();
    if operation.response.is_empty() {
        responses.insert("200".into(), text_answer(&operation.produces()));
    } else {
        for code in operation.codes() {
            responses.insert((*code).into(), answers(&operation.produces(), &operation.response, code));
        }
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
