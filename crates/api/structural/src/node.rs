//! An `openAPIV3Schema`, read once.

use std::collections::BTreeMap;

use serde_json::Value;

/// One schema. Absent texts are empty, absent flags false.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub ty: String,
    pub format: String,
    pub nullable: bool,
    pub default: Option<Value>,
    /// Boxed: a tree's leaf has room for eleven, and most objects have few.
    pub properties: BTreeMap<String, Box<Node>>,
    pub additional: Option<Additional>,
    pub items: Option<Box<Node>>,
    pub required: Vec<String>,
    pub enumeration: Option<Vec<Value>>,
    pub minimum: Option<Value>,
    pub maximum: Option<Value>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<Value>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub pattern: String,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub all_of: Vec<Node>,
    pub any_of: Vec<Node>,
    pub one_of: Vec<Node>,
    pub not: Option<Box<Node>>,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    pub list_type: String,
    pub list_map_keys: Vec<String>,
    pub map_type: String,
    /// `x-kubernetes-validations`.
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
pub enum Additional {
    Any(bool),
    Schema(Box<Node>),
}

#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    pub field_path: String,
    pub optional_old_self: Option<bool>,
}

impl Node {
    pub fn read(schema: &Value) -> Self {
        let text = |name: &str| schema[name].as_str().unwrap_or_default().to_owned();
        let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
        let count = |name: &str| schema[name].as_u64();
        let present = |name: &str| schema.get(name).filter(|value| !value.is_null()).cloned();
        let nodes = |name: &str| schema[name].as_array().into_iter().flatten().map(Node::read).collect();
        let texts =
            |name: &str| schema[name].as_array().into_iter().flatten().filter_map(|value| value.as_str().map(str::to_owned)).collect();
        let boxed = |name: &str| schema.get(name).filter(|value| value.is_object()).map(|value| Box::new(Node::read(value)));
        Self {
            ty: text("type"),
            format: text("format"),
            nullable: flag("nullable"),
            default: present("default"),
            properties: schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.clone(), Box::new(Node::read(value))))
                .collect(),
            additional: match &schema["additionalProperties"] {
                Value::Bool(any) => Some(Additional::Any(*any)),
                value if value.is_object() => Some(Additional::Schema(Box::new(Node::read(value)))),
                _ => None,
            },
            items: boxed("items"),
            required: texts("required"),
            enumeration: schema["enum"].as_array().cloned(),
            minimum: present("minimum"),
            maximum: present("maximum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            multiple_of: present("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            pattern: text("pattern"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            all_of: nodes("allOf"),
            any_of: nodes("anyOf"),
            one_of: nodes("oneOf"),
            not: boxed("not"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            list_type: text("x-kubernetes-list-type"),
            list_map_keys: texts("x-kubernetes-list-map-keys"),
            map_type: text("x-kubernetes-map-type"),
            rules: schema["x-kubernetes-validations"].as_array().into_iter().flatten().map(Rule::read).collect(),
        }
    }

    /// The schema of additional properties.
    pub fn additional_schema(&self) -> Option<&Node> {
        match &self.additional {
            Some(Additional::Schema(node)) => Some(node),
            _ => None,
        }
    }

    /// The schema of a property, declared or additional.
    pub fn property(&self, name: &str) -> Option<&Node> {
        self.properties.get(name).map(Box::as_ref).or_else(|| self.additional_schema())
    }
}

impl Rule {
    fn read(rule: &Value) -> Self {
        let text = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        Self {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: rule["optionalOldSelf"].as_bool(),
        }
    }
}
