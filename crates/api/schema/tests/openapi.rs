//! The OpenAPI document of everything against the published ones.
//!
//! The published data lies beside the repository, in `../shared/spec`; without it these tests fail.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use schema::openapi::{Kind, undescribed, v2};
use schema::resources::Served;
use serde_json::{Map, Value};

fn published(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/spec").join(name);
    let output = Command::new("gzip").arg("-dc").arg(&path).output().unwrap();
    assert!(output.status.success(), "cannot unpack {}", path.display());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ours() -> Value {
    let kinds: Vec<Kind> = Served::parse("api/all=true").unwrap().resources().filter_map(Kind::built_in).collect();
    v2::document(&kinds, &undescribed)
}

/// A schema without its descriptions.
fn bare(schema: &Value) -> Value {
    let Some(map) = schema.as_object() else { return schema.clone() };
    let inner = |(name, value): (&String, &Value)| {
        let value = match name.as_str() {
            "properties" => value.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), bare(value))).collect(),
            "items" | "additionalProperties" => bare(value),
            _ => value.clone(),
        };
        (name.clone(), value)
    };
    let mut bare: Map<String, Value> = map.iter().filter(|(name, _)| *name != "description").map(inner).collect();
    // A set: its order is that of Go's fields there, of the names here.
    if let Some(Value::Array(required)) = bare.get_mut("required") {
        required.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
    }
    bare.into()
}

fn difference(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => difference(&format!("{path}.{key}"), a, b, found),
                    (Some(a), None) => found.push(format!("{path}.{key}: only ours: {a}")),
                    (_, Some(b)) => found.push(format!("{path}.{key}: only theirs: {b}")),
                    _ => {}
                }
            }
        }
        _ if ours != theirs => found.push(format!("{path}: {ours} is not {theirs}")),
        _ => {}
    }
}

#[test]
fn definitions_are_the_published_ones() {
    let (ours, theirs) = (ours(), published("swagger-1.37-rebuilt.json.gz"));
    let mut found = Vec::new();
    for (name, definition) in ours["definitions"].as_object().unwrap() {
        match theirs["definitions"].get(name) {
            // They name groups of bodies that are no resources, and versions of the past.
            Some(published) if ["DeleteOptions", "WatchEvent"].iter().any(|kind| name.ends_with(&format!(".meta.v1.{kind}"))) => {
                assert!(definition["x-kubernetes-group-version-kind"].as_array().unwrap().len() > 30);
                let mut published = bare(published);
                published["x-kubernetes-group-version-kind"] = definition["x-kubernetes-group-version-kind"].clone();
                difference(name, &bare(definition), &published, &mut found);
            }
            Some(published) => difference(name, &bare(definition), &bare(published), &mut found),
            None => found.push(format!("{name}: not published")),
        }
    }
    for name in theirs["definitions"].as_object().unwrap().keys() {
        if ours["definitions"].get(name).is_none() {
            found.push(format!("{name}: missing"));
        }
    }
    assert!(found.is_empty(), "{}:\n{}", found.len(), found.join("\n"));
}

/// The parameters of an operation by place and name, those of its path included.
fn parameters(document: &Value, item: &Value, operation: &Value) -> BTreeMap<String, Value> {
    let lists = [&item["parameters"], &operation["parameters"]];
    let resolve = |parameter: &Value| match parameter["$ref"].as_str() {
        Some(reference) => document["parameters"][reference.rsplit('/').next().unwrap_or_default()].clone(),
        None => parameter.clone(),
    };
    let all = lists.iter().filter_map(|list| list.as_array()).flatten().map(resolve);
    all.map(|parameter| (format!("{}:{}", parameter["in"].as_str().unwrap(), parameter["name"].as_str().unwrap()), bare(&parameter)))
        .collect()
}

#[test]
fn operations_are_those_of_the_release_before() {
    let (ours, theirs) = (ours(), published("swagger.json.gz"));
    let mut found = Vec::new();
    let mut compared = 0;
    for (path, item) in ours["paths"].as_object().unwrap() {
        let Some(published) = theirs["paths"].get(path) else { continue };
        for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters") {
            let Some(other) = published.get(method) else {
                found.push(format!("{method} {path}: not published"));
                continue;
            };
            compared += 1;
            let at = format!("{method} {path}");
            for field in ["operationId", "tags", "schemes", "x-kubernetes-action", "x-kubernetes-group-version-kind"] {
                difference(&format!("{at} {field}"), &operation[field], &other[field], &mut found);
            }
            for field in ["consumes", "produces"] {
                let set = |value: &Value| value.as_array().into_iter().flatten().map(Value::to_string).collect::<BTreeSet<_>>();
                let words = |value: &Value| Value::from(set(value).into_iter().collect::<Vec<_>>());
                difference(&format!("{at} {field}"), &words(&operation[field]), &words(&other[field]), &mut found);
            }
            let (a, b) = (parameters(&ours, item, operation), parameters(&theirs, published, other));
            difference(&format!("{at} parameters"), &serde_json::json!(a), &serde_json::json!(b), &mut found);
            let codes = |value: &Value| Value::from(value["responses"].as_object().unwrap().keys().cloned().collect::<Vec<_>>());
            difference(&format!("{at} responses"), &codes(operation), &codes(other), &mut found);
            difference(&format!("{at} 200"), &operation["responses"]["200"]["schema"], &other["responses"]["200"]["schema"], &mut found);
        }
    }
    // Deprecated watch paths are served and, since 1.37's own list lacks them, not published. Versions that 1.37 removed are gone.
    let now = published("swagger-1.37-rebuilt.json.gz");
    let kept = |path: &str| {
        let listed = |path: &str| now["paths"].get(path).is_some() && !path.starts_with("/logs/");
        listed(path) || listed(path.trim_end_matches('/'))
    };
    for (path, item) in theirs["paths"].as_object().unwrap().iter().filter(|(path, _)| kept(path)) {
        match ours["paths"].get(path) {
            None => found.push(format!("{path}: missing")),
            Some(known) => {
                let missing = item.as_object().unwrap().keys().filter(|method| known.get(method).is_none());
                found.extend(missing.map(|method| format!("{method} {path}: missing")));
            }
        }
    }
    assert!(compared > 600, "{compared}");
    assert!(found.is_empty(), "{} in {compared}:\n{}", found.len(), found.join("\n"));
}
