//! Bodies into trees and trees into protobuf; what is wrong with a body in upstream's words.

use meta::Status;
use serde_json::Value;

use crate::context::{Context, FieldValidation};
use crate::negotiate::Media;

/// Reads a body as a tree, with no look at its type.
pub fn parse(bytes: &[u8], media: Media) -> Result<Value, Status> {
    let value: Value = match media {
        Media::Json => serde_json::from_slice(bytes).map_err(|error| unreadable("json", &error))?,
        Media::Yaml => yaml(bytes)?,
        Media::Protobuf => return from_protobuf(bytes),
    };
    if value.is_object() { Ok(value) } else { Err(unreadable("json", &format!("cannot unmarshal {} into Go value of type struct", go_kind(&value)))) }
}

fn yaml(bytes: &[u8]) -> Result<Value, Status> {
    let text = std::str::from_utf8(bytes).map_err(|error| unreadable("yaml", &error))?;
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| unreadable("yaml", &error))
}

fn unreadable(form: &str, error: &dyn std::fmt::Display) -> Status {
    Status::bad_request(format!("couldn't get version/kind; {form} parse error: {error}"))
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `None` where the kind has no protobuf form.
pub fn to_protobuf(_value: &Value) -> Option<Vec<u8>> {
    None
}

fn from_protobuf(_bytes: &[u8]) -> Result<Value, Status> {
    Err(Status::unsupported_media_type(crate::negotiate::PROTOBUF, &[crate::negotiate::JSON, crate::negotiate::YAML]))
}

/// Tells the client about fields that were dropped, as `fieldValidation` wants it.
pub fn report(context: &Context, validation: FieldValidation, findings: Vec<String>) -> Result<(), Status> {
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => findings.into_iter().for_each(|finding| context.warn(finding)),
        FieldValidation::Strict if findings.is_empty() => {}
        FieldValidation::Strict => return Err(Status::bad_request(format!("strict decoding error: {}", findings.join(", ")))),
    }
    Ok(())
}

/// One frame of a protobuf watch stream; `None` where the object has no protobuf form.
pub fn watch_frame(_word: &str, _object: &Value) -> Option<bytes::Bytes> {
    None
}

/// From a tree as the client sent it to an object of the kind in its stored version: typed, pruned, defaulted.
pub fn decode(context: &Context, kind: &crate::registry::catalog::Kind, mut object: Value, options: &crate::context::WriteOptions) -> Result<Value, Status> {
    expect_type(&mut object, kind)?;
    report(context, options.validation, Vec::new())?;
    if kind.converts() {
        object = crate::convert::to_storage(kind, object);
    }
    kind.storage.rules.default(&mut object);
    Ok(object)
}

/// kind and apiVersion of the body are those of the path; absent ones are filled in.
fn expect_type(object: &mut Value, kind: &crate::registry::catalog::Kind) -> Result<(), Status> {
    let given = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
    let (api_version, name) = (given("apiVersion"), given("kind"));
    let wanted = kind.api_version();
    if !name.is_empty() && name != kind.facts.kind {
        let version = api_version.rsplit('/').next().unwrap_or_default().to_owned();
        let message = format!("{name} in version {version:?} cannot be handled as a {}: converting (v1.{name}) to (v1.{}): unknown conversion", kind.facts.kind, kind.facts.kind);
        return Err(Status::bad_request(message));
    }
    if !api_version.is_empty() && api_version != wanted {
        let message = format!("the API version in the data ({api_version}) does not match the expected API version ({wanted})");
        return Err(Status::bad_request(message));
    }
    object["apiVersion"] = wanted.into();
    object["kind"] = kind.facts.kind.into();
    Ok(())
}
