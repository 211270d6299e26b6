//! A CRD's own schema as definitions.
//!
//! Source: apiextensions-apiserver `pkg/controller/openapi/builder`, `pkg/controller/openapi/v2`.

use serde_json::{Map, Value, json};

use super::{Kind, Style, gvk};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// The definitions of a custom kind and of its list, by name.
pub fn definitions(kind: &Kind, schema: &Value, style: Style) -> Vec<(String, Value)> {
    let mut object = if schema.is_object() { schema.clone() } else { json!({"type": "object"}) };
    if style == Style::V2 && object["x-kubernetes-preserve-unknown-fields"] == true {
        // With properties, older clients would refuse every other field.
        object = json!({"type": "object", "x-kubernetes-group-version-kind": [kind.gvk()]});
    } else {
        if style == Style::V2 {
            narrow(&mut object);
        }
        embed(&mut object, style);
        complete(&mut object, kind.gvk(), "ObjectMeta", style);
    }
    let mut all = vec![(kind.definition(), object)];
    if let Some(name) = kind.list_definition() {
        let items = json!({"type": "array", "items": style.reference(&kind.definition())});
        let mut list = json!({"type": "object", "required": ["items"], "properties": {"items": items}});
        complete(&mut list, gvk(&kind.group, &kind.version, &kind.list_kind), "ListMeta", style);
        all.push((name, list));
    }
    all
}

/// Adds what every object has.
fn complete(object: &mut Value, gvk: Value, metadata: &str, style: Style) {
    let Some(map) = object.as_object_mut() else { return };
    map.entry("type").or_insert("object".into());
    map.insert("x-kubernetes-group-version-kind".into(), json!([gvk]));
    let properties = map.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    let Some(properties) = properties.as_object_mut() else { return };
    for name in ["apiVersion", "kind"] {
        properties.entry(name).or_insert_with(|| json!({"type": "string"}));
    }
    let reference = style.reference(&format!("{META}.{metadata}"));
    let metadata = if style == Style::V3 { json!({"allOf": [reference]}) } else { reference };
    properties.insert("metadata".into(), metadata);
}

/// Gives embedded resources what every object has.
fn embed(schema: &mut Value, style: Style) {
    let Some(map) = schema.as_object_mut() else { return };
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|inner| embed(inner, style));
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(word) {
            embed(inner, style);
        }
    }
    let says = |word: &str| map.get(word) == Some(&Value::Bool(true));
    if !says("x-kubernetes-embedded-resource") || (style == Style::V2 && says("x-kubernetes-preserve-unknown-fields")) {
        return;
    }
    let reference = style.reference(&format!("{META}.ObjectMeta"));
    let metadata = if style == Style::V3 { json!({"allOf": [reference]}) } else { reference };
    let fields = [("apiVersion", json!({"type": "string"})), ("kind", json!({"type": "string"})), ("metadata", metadata)];
    if let Some(properties) = map.entry("properties").or_insert_with(|| json!({})).as_object_mut() {
        properties.extend(fields.map(|(name, schema)| (name.to_owned(), schema)));
    }
    if let Some(required) = map.entry("required").or_insert_with(|| json!([])).as_array_mut() {
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|known| known == name) {
                required.push(name.into());
            }
        }
    }
}

/// Takes out what version 2 of OpenAPI cannot say, and what its older clients misread.
fn narrow(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for word in ["oneOf", "anyOf", "not", "allOf", "default", "nullable", "x-kubernetes-validations"] {
        let nullable = word == "nullable" && map.get(word) == Some(&Value::Bool(true));
        map.remove(word);
        if nullable {
            // A client would refuse the null.
            map.retain(|word, _| !matches!(word.as_str(), "type" | "items" | "properties" | "additionalProperties"));
        }
    }
    if map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        map.remove("type");
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        map.retain(|word, _| !matches!(word.as_str(), "items" | "properties"));
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(narrow);
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(word) {
            narrow(inner);
        }
    }
}
