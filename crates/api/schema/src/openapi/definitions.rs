//! Types as JSON schemas, with everything they refer to.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Describe, Form, Kind, Style, custom, gvk};
use crate::model::{Field, Schema, Topology, Type};
use crate::table;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// Renders definitions and remembers which others they need.
pub struct Definitions<'a> {
    style: Style,
    describe: Describe<'a>,
    done: Map<String, Value>,
    wanted: BTreeSet<String>,
    gvks: BTreeMap<&'static str, Vec<Value>>,
}

impl<'a> Definitions<'a> {
    pub fn new(style: Style, describe: Describe<'a>) -> Self {
        let mut gvks: BTreeMap<&'static str, Vec<Value>> = BTreeMap::new();
        for ((group, version, kind), found) in table::kinds() {
            gvks.entry(&found.name).or_default().push(gvk(group, version, kind));
        }
        for name in ["DeleteOptions", "WatchEvent"] {
            if let Some(found) = table::find(&format!("{META}.{name}")) {
                gvks.insert(&found.name, of_every_version(name));
            }
        }
        Self { style, describe, done: Map::new(), wanted: BTreeSet::new(), gvks }
    }

    /// Adds a resource's kind and list.
    pub fn add_kind(&mut self, kind: &Kind) {
        match &kind.form {
            Form::Table(_) => {
                self.want(&kind.definition());
                if let Some(list) = kind.list_definition() {
                    self.want(&list);
                }
            }
            Form::Custom(schema) => {
                self.want(&format!("{META}.ObjectMeta"));
                self.want(&format!("{META}.ListMeta"));
                let style = self.style;
                let list = kind.list_definition();
                for (name, mut value) in custom::definitions(kind, schema, style) {
                    self.describe_common(&mut value, list.as_ref() == Some(&name));
                    self.done.insert(name, value);
                }
            }
        }
    }

    /// Adds a definition of the table and, in the end, all it refers to.
    pub fn want(&mut self, definition: &str) {
        if !self.done.contains_key(definition) {
            self.wanted.insert(definition.to_owned());
        }
    }

    pub fn finish(mut self) -> Map<String, Value> {
        while let Some(name) = self.wanted.pop_first() {
            if self.done.contains_key(&name) {
                continue;
            }
            let value = self.render(&name);
            self.done.insert(name, value);
        }
        self.done
    }

    fn render(&mut self, name: &str) -> Value {
        let mut value = match (leaf(name, self.style), table::find(name)) {
            (Some(leaf), _) => leaf,
            (None, Some(found)) => self.structure(found),
            (None, None) => json!({"type": "object"}),
        };
        self.describe(&mut value, name, "");
        value
    }

    /// What every object's `apiVersion`, `kind` and `metadata` are, said in the words of a built-in kind.
    fn describe_common(&self, value: &mut Value, list: bool) {
        let like = if list { "io.k8s.api.core.v1.ConfigMapList" } else { "io.k8s.api.core.v1.ConfigMap" };
        for field in ["apiVersion", "kind", "metadata"] {
            match value.get_mut("properties").and_then(|properties| properties.get_mut(field)) {
                Some(property) if property.get("description").is_none() => self.describe(property, like, field),
                _ => {}
            }
        }
    }

    fn describe(&self, value: &mut Value, definition: &str, field: &str) {
        if let (Some(map), Some(text)) = (value.as_object_mut(), (self.describe)(definition, field)) {
            map.insert("description".into(), text.into());
        }
    }

    fn structure(&mut self, found: &'static Type) -> Value {
        let mut properties = Map::new();
        for field in found.fields.iter() {
            let mut value = self.property(found, field);
            self.describe(&mut value, &found.name, &field.json);
            properties.insert(field.json.to_string(), value);
        }
        let mut value = Map::new();
        value.insert("type".into(), "object".into());
        if !properties.is_empty() {
            value.insert("properties".into(), properties.into());
        }
        let required: Vec<Value> = found.fields.iter().filter(|field| field.required).map(|field| field.json.to_string().into()).collect();
        if !required.is_empty() {
            value.insert("required".into(), required.into());
        }
        if found.atomic {
            value.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if GRANULAR.contains(&(&found.name, "")) {
            value.insert("x-kubernetes-map-type".into(), "granular".into());
        }
        let unions: Vec<Value> = found.unions.iter().filter_map(|union| serde_json::from_str(union).ok()).collect();
        if !unions.is_empty() {
            value.insert("x-kubernetes-unions".into(), unions.into());
        }
        if let Some(gvks) = self.gvks.get(&*found.name) {
            value.insert("x-kubernetes-group-version-kind".into(), gvks.clone().into());
        }
        Value::Object(value)
    }

    fn property(&mut self, owner: &Type, field: &Field) -> Value {
        let mut value = self.schema(&field.schema, &field.go);
        let style = self.style;
        let Some(map) = value.as_object_mut() else { return value };
        if let Schema::List(list) = &field.schema {
            let unmarked = is_unmarked(owner, &field.json);
            list_type(map, &list.topology, unmarked);
        }
        if let Schema::Map(found) = &field.schema
            && found.atomic
        {
            map.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if GRANULAR.contains(&(&owner.name, &field.json)) {
            map.insert("x-kubernetes-map-type".into(), "granular".into());
        }
        // Bytes are a list to Go; one of them is marked as such.
        if &*owner.name == "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec" && &*field.json == "caBundle" {
            map.insert("x-kubernetes-list-type".into(), "atomic".into());
        }
        patch_rules(map, field);
        if style == Style::V3 {
            if let Some(default) = field.default.as_ref().and_then(|text| serde_json::from_str::<Value>(text).ok()) {
                map.insert("default".into(), default);
            }
            if !field.enumeration.is_empty() && matches!(field.schema, Schema::String) {
                let values: Vec<Value> = field.enumeration.iter().map(|value| value.to_string().into()).collect();
                map.insert("enum".into(), values.into());
            }
        }
        value
    }

    /// The schema of a value; `go` is its type in Go, which tells one kind of any JSON from another.
    fn schema(&mut self, schema: &Schema, go: &str) -> Value {
        match schema {
            Schema::String | Schema::Duration => json!({"type": "string"}),
            Schema::Bool => json!({"type": "boolean"}),
            Schema::Int32 => json!({"type": "integer", "format": "int32"}),
            Schema::Int64 => json!({"type": "integer", "format": "int64"}),
            Schema::Float64 => json!({"type": "number", "format": "double"}),
            Schema::Bytes => json!({"type": "string", "format": "byte"}),
            Schema::Quantity => self.reference(QUANTITY),
            Schema::IntOrString => self.reference(INT_OR_STRING),
            Schema::Time => self.reference(&format!("{META}.Time")),
            Schema::MicroTime => self.reference(&format!("{META}.MicroTime")),
            Schema::Any => self.any(go),
            Schema::Object(found) => self.reference(&found.name),
            Schema::List(list) => {
                let items = self.schema(&list.items, go.strip_prefix("[]").unwrap_or_default());
                json!({"type": "array", "items": items})
            }
            Schema::Map(map) => {
                let go = match go.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
                    Some((_, value)) => value,
                    // The one map that has a name of its own.
                    None if go.ends_with("JSONSchemaDependencies") => "JSONSchemaPropsOrStringArray",
                    None => "",
                };
                let values = self.schema(&map.values, go);
                json!({"type": "object", "additionalProperties": values})
            }
        }
    }

    fn any(&mut self, go: &str) -> Value {
        match go.rsplit('.').next().unwrap_or_default() {
            "RawExtension" => self.reference(RAW_EXTENSION),
            "FieldsV1" => self.reference(&format!("{META}.FieldsV1")),
            name if name.starts_with("JSON") => self.reference(&format!("{EXTENSIONS}.{name}")),
            _ => json!({"type": "object"}),
        }
    }

    /// v3 allows nothing beside `$ref`, so upstream wraps it to be able to describe the field.
    fn reference(&mut self, definition: &str) -> Value {
        self.want(definition);
        match self.style {
            Style::V2 => Style::V2.reference(definition),
            Style::V3 => json!({"allOf": [Style::V3.reference(definition)]}),
        }
    }
}

/// A kind that every version of every group has.
fn of_every_version(kind: &str) -> Vec<Value> {
    let versions: BTreeSet<(&str, &str)> = crate::resources::all().iter().map(|resource| (resource.group, resource.version)).collect();
    versions.into_iter().map(|(group, version)| gvk(group, version, kind)).collect()
}

/// Definitions that are no structs.
fn leaf(name: &str, style: Style) -> Option<Value> {
    let value = match (name, style) {
        (QUANTITY, Style::V2) => json!({"type": "string"}),
        (QUANTITY, Style::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        (INT_OR_STRING, Style::V2) => json!({"type": "string", "format": "int-or-string"}),
        (INT_OR_STRING, Style::V3) => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        (RAW_EXTENSION, _) => json!({"type": "object"}),
        _ => match (name.strip_prefix(META).unwrap_or_default(), name.strip_prefix(EXTENSIONS).unwrap_or_default()) {
            (".Time" | ".MicroTime", _) => json!({"type": "string", "format": "date-time"}),
            (".FieldsV1" | ".Patch", _) => json!({"type": "object"}),
            (_, ".JSON" | ".JSONSchemaPropsOrArray" | ".JSONSchemaPropsOrBool" | ".JSONSchemaPropsOrStringArray") => json!({}),
            _ => return None,
        },
    };
    Some(value)
}

/// The table does not tell an unmarked list from an atomic one; lists of kinds are unmarked, and one more.
fn is_unmarked(owner: &Type, field: &str) -> bool {
    field == "items" && owner.field("metadata").is_some()
        || *owner.name == *"io.k8s.apimachinery.pkg.apis.meta.v1.APIResource" && field == "verbs"
}

/// Maps and structs that say of themselves that they are merged, which is what all do that say nothing.
const GRANULAR: [(&str, &str); 3] = [
    ("io.k8s.api.core.v1.PersistentVolumeClaimStatus", "allocatedResourceStatuses"),
    ("io.k8s.api.core.v1.PersistentVolumeSpec", "claimRef"),
    ("io.k8s.api.lifecycle.v1alpha1.ResponderStatus", ""),
];

fn list_type(map: &mut Map<String, Value>, topology: &Topology, unmarked: bool) {
    match topology {
        Topology::Atomic if unmarked => {}
        Topology::Atomic => {
            map.insert("x-kubernetes-list-type".into(), "atomic".into());
        }
        Topology::Set => {
            map.insert("x-kubernetes-list-type".into(), "set".into());
        }
        Topology::Map(keys) => {
            let keys: Vec<Value> = keys.iter().map(|key| key.to_string().into()).collect();
            map.insert("x-kubernetes-list-map-keys".into(), keys.into());
            map.insert("x-kubernetes-list-type".into(), "map".into());
        }
    }
}

fn patch_rules(map: &mut Map<String, Value>, field: &Field) {
    let rule = &field.patch;
    let words = [("merge", rule.merge), ("replace", rule.replace), ("retainKeys", rule.retain_keys)];
    let strategy: Vec<&str> = words.into_iter().filter(|(_, on)| *on).map(|(word, _)| word).collect();
    if !strategy.is_empty() {
        map.insert("x-kubernetes-patch-strategy".into(), strategy.join(",").into());
    }
    if let Some(key) = &rule.merge_key {
        map.insert("x-kubernetes-patch-merge-key".into(), key.to_string().into());
    }
}
