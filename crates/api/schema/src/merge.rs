//! The three ways to change an object by a patch document: JSON merge patch, JSON patch, strategic merge patch.
//!
//! Every function is pure, works on `serde_json::Value` and leaves the target unchanged when it returns an error.
//! The wording of errors, and which HTTP status they become, is upstream's (`endpoints/handlers/patch.go`).

pub(crate) mod go_format;
mod json_patch;
mod strategic;

use meta::Status;
use serde_json::{Map, Value};

pub use json_patch::{COPY_BYTES_MAX, OPERATIONS_MAX, json_patch};
pub use strategic::strategic_merge_patch;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The document is not a patch: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch has more operations than allowed: 413.
    #[error("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {0}")]
    TooManyOperations(usize),
    /// The patch does not apply to this object (a `test` failed, a path is missing): 422.
    #[error("{0}")]
    DoesNotApply(String),
    /// The patch contradicts the schema or its own directives: 400. Upstream answers 500 with the bare message, although only the
    /// client can mend it.
    #[error("{0}")]
    Contradiction(String),
}

impl Error {
    /// The API's reply.
    pub fn status(&self) -> Status {
        let message = self.to_string();
        match self {
            Error::Malformed(_) | Error::Contradiction(_) => Status::bad_request(message),
            Error::TooManyOperations(_) => Status::request_entity_too_large(format!("Request entity too large: {message}")),
            Error::DoesNotApply(_) => {
                let mut status = Status::failure(422, "Invalid", "the server rejected our request due to an error in our request");
                status.details = Some(meta::status::Details::default());
                status
            }
        }
    }
}

/// A value as Go's `%v` prints it.
pub fn go_text(value: &Value) -> String {
    go_format::plain(value)
}

/// What Go's JSON decoder calls a value.
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Applies a JSON merge patch (RFC 7386).
///
/// As upstream's library, and unlike the RFC's letter, `null`s inside objects inside arrays are dropped too where the
/// patch brings a value that replaces no object.
pub fn json_merge_patch(target: &mut Value, patch: &Value) {
    match (target.as_object_mut(), patch.as_object()) {
        (Some(target), Some(patch)) => merge_objects(target, patch),
        (Some(_), None) => *target = patch.clone(),
        (None, _) => *target = without_nulls(patch),
    }
}

fn merge_objects(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
            continue;
        }
        match target.get_mut(key) {
            Some(current) if !current.is_null() => json_merge_patch(current, value),
            _ => {
                target.insert(key.clone(), without_nulls(value));
            }
        }
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), without_nulls(value))).collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        scalar => scalar.clone(),
    }
}

#[cfg(test)]
mod tests;
