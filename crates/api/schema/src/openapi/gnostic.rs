//! Version 2 documents as gnostic's protobuf, which kubectl asks for.
//!
//! Source of the numbers: gnostic `openapiv2/OpenAPIv2.proto`. Extensions are YAML texts inside; JSON is YAML.

use serde_json::{Map, Value};

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
    fn text(&mut self, field: u32, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str).filter(|text| !text.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }
    fn texts(&mut self, field: u32, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }
    fn flag(&mut self, field: u32, value: Option<&Value>) {
        if value == Some(&Value::Bool(true)) {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }
    fn message(&mut self, field: u32, message: Message) {
        self.bytes(field, &message.0);
    }
    /// `NamedX { name = 1, value = 2 }`.
    fn named(&mut self, field: u32, name: &str, value: Message) {
        let mut entry = Message::default();
        entry.bytes(1, name.as_bytes());
        entry.message(2, value);
        self.message(field, entry);
    }
    fn extensions(&mut self, field: u32, map: &Map<String, Value>) {
        for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
            self.named(field, name, any(value));
        }
    }
}

/// `Any { yaml = 2 }`.
fn any(value: &Value) -> Message {
    let mut message = Message::default();
    message.bytes(2, value.to_string().as_bytes());
    message
}

fn entries(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flatten()
}

/// Encodes a version 2 document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, document.get("swagger"));
    let mut info = Message::default();
    info.text(1, document.pointer("/info/title"));
    info.text(2, document.pointer("/info/version"));
    message.message(2, info);
    let mut paths = Message::default();
    for (path, item) in entries(document.get("paths")) {
        paths.named(2, path, path_item(item));
    }
    message.message(8, paths);
    let mut definitions = Message::default();
    for (name, value) in entries(document.get("definitions")) {
        definitions.named(1, name, schema(value));
    }
    message.message(9, definitions);
    for requirement in document.get("security").and_then(Value::as_array).into_iter().flatten() {
        let mut encoded = Message::default();
        for (name, scopes) in entries(Some(requirement)) {
            let mut list = Message::default();
            list.texts(1, Some(scopes));
            encoded.named(1, name, list);
        }
        message.message(12, encoded);
    }
    let mut security = Message::default();
    for (name, definition) in entries(document.get("securityDefinitions")) {
        let mut key = Message::default();
        for (field, word) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
            key.text(field, definition.get(word));
        }
        let mut item = Message::default();
        item.message(2, key);
        security.named(1, name, item);
    }
    message.message(13, security);
    message.0
}

fn path_item(item: &Value) -> Message {
    let mut message = Message::default();
    let methods = [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")];
    for (field, method) in methods {
        if let Some(found) = item.get(method) {
            message.message(field, operation(found));
        }
    }
    parameters(&mut message, 9, item.get("parameters"));
    message
}

fn operation(value: &Value) -> Message {
    let mut message = Message::default();
    message.texts(1, value.get("tags"));
    message.text(3, value.get("description"));
    message.text(5, value.get("operationId"));
    message.texts(6, value.get("produces"));
    message.texts(7, value.get("consumes"));
    parameters(&mut message, 8, value.get("parameters"));
    let mut responses = Message::default();
    for (code, response) in entries(value.get("responses")) {
        responses.named(1, code, response_value(response));
    }
    message.message(9, responses);
    message.texts(10, value.get("schemes"));
    if let Some(map) = value.as_object() {
        message.extensions(13, map);
    }
    message
}

fn response_value(value: &Value) -> Message {
    let mut response = Message::default();
    response.text(1, value.get("description"));
    if let Some(found) = value.get("schema") {
        let mut item = Message::default();
        item.message(1, schema(found));
        response.message(2, item);
    }
    let mut message = Message::default();
    message.message(1, response);
    message
}

fn parameters(message: &mut Message, field: u32, list: Option<&Value>) {
    for value in list.and_then(Value::as_array).into_iter().flatten() {
        let mut parameter = Message::default();
        match value.get("in").and_then(Value::as_str) {
            Some("body") => {
                let mut body = Message::default();
                body.text(1, value.get("description"));
                body.text(2, value.get("name"));
                body.text(3, value.get("in"));
                body.flag(4, value.get("required"));
                if let Some(found) = value.get("schema") {
                    body.message(5, schema(found));
                }
                parameter.message(1, body);
            }
            place => {
                // Query parameters have allow_empty_value between name and type, path parameters have not.
                let (number, kind, unique) = if place == Some("path") { (4, 5, 19) } else { (3, 6, 20) };
                let mut inner = Message::default();
                inner.flag(1, value.get("required"));
                inner.text(2, value.get("in"));
                inner.text(3, value.get("description"));
                inner.text(4, value.get("name"));
                inner.text(kind, value.get("type"));
                inner.flag(unique, value.get("uniqueItems"));
                let mut outer = Message::default();
                outer.message(number, inner);
                parameter.message(2, outer);
            }
        }
        let mut item = Message::default();
        item.message(1, parameter);
        message.message(field, item);
    }
}

fn schema(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, value.get("$ref"));
    message.text(2, value.get("format"));
    message.text(4, value.get("description"));
    if let Some(default) = value.get("default") {
        message.message(5, any(default));
    }
    message.text(13, value.get("pattern"));
    message.texts(19, value.get("required"));
    for choice in value.get("enum").and_then(Value::as_array).into_iter().flatten() {
        message.message(20, any(choice));
    }
    if let Some(values) = value.get("additionalProperties") {
        let mut item = Message::default();
        match values {
            Value::Bool(_) => item.flag(2, Some(values)),
            _ => item.message(1, schema(values)),
        }
        message.message(21, item);
    }
    if value.get("type").is_some() {
        let mut kinds = Message::default();
        kinds.text(1, value.get("type"));
        message.message(22, kinds);
    }
    if let Some(items) = value.get("items") {
        let mut item = Message::default();
        item.message(1, schema(items));
        message.message(23, item);
    }
    if value.get("properties").is_some() {
        let mut properties = Message::default();
        for (name, property) in entries(value.get("properties")) {
            properties.named(1, name, schema(property));
        }
        message.message(25, properties);
    }
    if let Some(map) = value.as_object() {
        message.extensions(31, map);
    }
    message
}
