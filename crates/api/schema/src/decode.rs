//! From a request's bytes to the object as the API knows it.
//!
//! Built-in types get what Go's decoding and encoding would make of them: wrong types are errors in Go's words, unknown fields are
//! dropped (and reported), `null` and empty values are written or left out as the struct tags say, quantities and times become canonical.
//! Types of CRDs (owned ones) are only pruned: their values are judged by validation, not here.
//! Source: `sigs.k8s.io/json`, apimachinery `pkg/runtime/serializer/json`, apiserver `pkg/endpoints/handlers`.

use meta::Status;
use serde_json::Value;

use crate::model::{Ref, Schema, Type};

mod json;
mod path;
mod scalar;
mod structural;
mod walk;
mod yaml;

pub use json::parse_json;
pub(crate) use scalar::{base64 as base64_text, bytes as base64_bytes};
pub use walk::zero;
pub use yaml::parse_yaml;

/// What `fieldValidation` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Unknown and repeated fields are errors.
    Strict,
    /// They are warnings (the server's default).
    #[default]
    Warn,
    Ignore,
}

impl Mode {
    /// The query parameter's value; an empty one is `Warn`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Strict" => Some(Self::Strict),
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            _ => None,
        }
    }
}

/// A document and its repeated keys (`spec.replicas` in JSON, go-yaml's sentence in YAML).
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub value: Value,
    pub duplicates: Vec<String>,
    /// Where keys are repeated in JSON: the paths of all keys as the document has them.
    pub(crate) keys: Vec<String>,
}

impl From<Value> for Parsed {
    fn from(value: Value) -> Self {
        Self { value, duplicates: Vec::new(), keys: Vec::new() }
    }
}

/// A sentence for a `Warning:` header, such as `unknown field "spec.foo"`.
pub type Warning = String;

/// Why a document is not the object.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Not JSON or YAML; Go's sentence.
    #[error("{0}")]
    Syntax(String),
    /// A value of a wrong type or form; Go's sentence.
    #[error("{0}")]
    Type(String),
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

impl Error {
    /// The 400 for a body that claims to be `kind` in `version` (of its apiVersion, without the group) where `expected` is served.
    pub fn status(&self, kind: &str, version: &str, expected: &str, body: &[u8]) -> Status {
        match self {
            Error::Syntax(text) if text.starts_with("error converting YAML") => unrecognized(expected, text, body),
            Error::Syntax(text) => unrecognized(expected, &format!("couldn't get version/kind; json parse error: {text}"), body),
            _ => Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {expected}: {self}")),
        }
    }
}

fn unrecognized(expected: &str, why: &str, body: &[u8]) -> Status {
    Status::bad_request(format!("the object provided is unrecognized (must be of type {expected}): {why} ({})", summary(body)))
}

/// The body's first thirty bytes, in hexadecimal where it is no JSON object.
fn summary(body: &[u8]) -> String {
    let (shown, more) = match body.get(..30) {
        Some(start) if body.len() > 30 => (start, " ..."),
        _ => (body, ""),
    };
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(shown)),
        Some(_) => shown.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + more,
    }
}

/// Decodes a document as `schema`: the object as Go would write it again, and what there is to warn of.
pub fn decode(document: impl Into<Parsed>, schema: &Schema, mode: Mode) -> Result<(Value, Vec<Warning>), Error> {
    let Parsed { mut value, duplicates, keys } = document.into();
    let mut unknown = Vec::new();
    walk::root(&mut value, schema, &mut unknown)?;
    let repeated = |path: String| if path.starts_with("yaml:") { path } else { format!("duplicate field {path:?}") };
    let mut found: Vec<(usize, String)> = duplicates.into_iter().map(|path| (place(&keys, &path, 1), repeated(path))).collect();
    found.extend(unknown.into_iter().map(|path| (place(&keys, &path, 0), format!("unknown field {path:?}"))));
    // Go finds both while it reads a type of its own; of a custom resource the repeated fields are found first.
    if matches!(schema, Schema::Object(Ref::Static(_))) {
        found.sort_by_key(|(place, _)| *place);
    }
    let mut found: Vec<String> = found.into_iter().map(|(_, sentence)| sentence).collect();
    // Upstream stops collecting at a hundred.
    found.truncate(100);
    match mode {
        Mode::Ignore => Ok((value, Vec::new())),
        Mode::Strict if !found.is_empty() => Err(Error::Strict(found)),
        _ => Ok((value, found)),
    }
}

/// Where in the document the key stands for the `nth` time; all the same where that is not known.
fn place(keys: &[String], path: &str, nth: usize) -> usize {
    keys.iter().enumerate().filter(|(_, key)| *key == path).nth(nth).map_or(0, |(place, _)| place)
}

/// [`decode`] for a built-in type.
pub fn decode_type(document: impl Into<Parsed>, found: &'static Type, mode: Mode) -> Result<(Value, Vec<Warning>), Error> {
    decode(document, &Schema::Object(Ref::Static(found)), mode)
}

#[cfg(test)]
mod tests;
