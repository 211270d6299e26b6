//! Defaults that stand in the table or in a CRD's schema (`+default`, `default:`). Those that need code are the rules' own.
//!
//! Source: kube-openapi's `+default` marker and defaulter-gen; apiextensions-apiserver `pkg/apiserver/schema/defaulting`.

use serde_json::{Map, Value};

use crate::model::{Field, Schema, Slice, Type};

/// Sets every default that is missing, in nested objects, list items and map values too. Absent objects are not made for it.
/// In objects of a CRD a `null` that is not allowed counts as absent.
pub fn apply(value: &mut Value, schema: &Schema) {
    match (schema, value) {
        (Schema::Object(found), Value::Object(map)) => object(map, found),
        (Schema::List(list), Value::Array(items)) => items.iter_mut().for_each(|item| apply(item, &list.items)),
        (Schema::Map(map), Value::Object(entries)) => entries.values_mut().for_each(|entry| apply(entry, &map.values)),
        _ => {}
    }
}

fn object(map: &mut Map<String, Value>, found: &Type) {
    let custom = matches!(found.fields, Slice::Owned(_));
    for field in found.fields.iter() {
        if custom && !field.nullable && map.get(&*field.json).is_some_and(Value::is_null) {
            map.remove(&*field.json);
        }
        if let Some(default) = missing(map, field, custom) {
            map.insert(field.json.to_string(), default);
        }
        if let Some(value) = map.get_mut(&*field.json) {
            apply(value, &field.schema);
        }
    }
}

/// The field's default where the object lacks a value.
fn missing(map: &Map<String, Value>, field: &Field, custom: bool) -> Option<Value> {
    let text = field.default.as_ref()?;
    let absent = match map.get(&*field.json) {
        None => true,
        Some(Value::Null) => !custom,
        // To Go an empty text without a pointer is as good as none.
        Some(Value::String(text)) => !custom && !field.pointer && text.is_empty(),
        Some(_) => false,
    };
    if !absent {
        return None;
    }
    let default: Value = serde_json::from_str(text).ok()?;
    // Go would drop it again when it writes the object.
    let dropped = !custom && field.omit_empty && !field.pointer && (default == 0 || default == "" || default == false);
    (!dropped).then_some(default)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Ref, Str};
    use crate::table;

    fn defaulted(kind: (&str, &str, &str), mut value: Value) -> Value {
        let found = table::by_gvk(kind.0, kind.1, kind.2).unwrap();
        apply(&mut value, &Schema::Object(Ref::Static(found)));
        value
    }

    #[test]
    fn defaults_reach_into_list_items() {
        let pod = json!({"spec": {"containers": [{"ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}],
            "livenessProbe": {"grpc": {"port": 1}}}]}});
        let expected = json!({"spec": {"containers": [{"ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}],
            "livenessProbe": {"grpc": {"port": 1, "service": ""}}}]}});
        assert_eq!(defaulted(("", "v1", "Pod"), pod), expected);
    }

    #[test]
    fn zero_defaults_that_go_would_not_write_are_not_set() {
        let pod = json!({"spec": {"containers": [{"envFrom": [{"configMapRef": {"optional": true}}]}], "imagePullSecrets": [{}]}});
        assert_eq!(defaulted(("", "v1", "Pod"), pod.clone()), pod);
    }

    #[test]
    fn custom_types_take_defaults_of_defaults_and_lose_forbidden_nulls() {
        let custom = |fields: Vec<Field>| Type {
            name: Str::Owned("custom".into()),
            fields: Slice::Owned(fields.into()),
            atomic: false,
            preserve_unknown: false,
            embedded_resource: false,
            unions: Slice::Static(&[]),
        };
        let default = |name: &str, schema, text: &str| Field { default: Some(Str::Owned(text.into())), ..Field::new(name, schema) };
        let inner = custom(vec![default("size", Schema::Int32, "3")]);
        let fields = vec![
            default("disk", Schema::Object(Ref::Owned(inner.into())), "{}"),
            Field::new("gone", Schema::String),
            Field { nullable: true, ..default("kept", Schema::String, "\"x\"") },
            default("empty", Schema::String, "\"y\""),
        ];
        let schema = Schema::Object(Ref::Owned(custom(fields).into()));
        let mut value = json!({"gone": null, "kept": null, "empty": ""});
        apply(&mut value, &schema);
        assert_eq!(value, json!({"disk": {"size": 3}, "kept": null, "empty": ""}));
    }
}
