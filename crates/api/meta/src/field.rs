//! Paths into an object and what is wrong at them, in the wording of upstream's `field.Error`.

use std::fmt;

use serde_json::Value;

/// A path such as `spec.containers[0].image` or `metadata.annotations[a/b]`. Empty is the object itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn root() -> Self {
        Self::default()
    }
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self::new(name) } else { self.with([".", name, ""]) }
    }
    pub fn index(&self, index: usize) -> Self {
        match index {
            // Valid objects pass here for every item: no formatting machinery for the usual ones.
            0..=9 => self.with(["[", &"0123456789"[index..=index], "]"]),
            _ => self.with(["[", &index.to_string(), "]"]),
        }
    }
    pub fn key(&self, key: &str) -> Self {
        self.with(["[", key, "]"])
    }
    /// `base` joined with the names of `path`, dotted.
    pub fn dotted(&self, path: &str) -> Self {
        path.split('.').fold(self.clone(), |here, name| here.child(name))
    }
    fn with(&self, parts: [&str; 3]) -> Self {
        let mut text = String::with_capacity(self.0.len() + parts.iter().map(|part| part.len()).sum::<usize>());
        text.push_str(&self.0);
        parts.iter().for_each(|part| text.push_str(part));
        Self(text)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// The machine-readable reason of a cause (upstream: `field.ErrorType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl Type {
    /// The `reason` of a Status cause.
    pub fn reason(self) -> &'static str {
        match self {
            Type::NotFound => "FieldValueNotFound",
            Type::Required => "FieldValueRequired",
            Type::Duplicate => "FieldValueDuplicate",
            Type::Invalid => "FieldValueInvalid",
            Type::NotSupported => "FieldValueNotSupported",
            Type::Forbidden => "FieldValueForbidden",
            Type::TooLong => "FieldValueTooLong",
            Type::TooMany => "FieldValueTooMany",
            Type::Internal => "InternalError",
            Type::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
    fn words(self) -> &'static str {
        match self {
            Type::NotFound => "Not found",
            Type::Required => "Required value",
            Type::Duplicate => "Duplicate value",
            Type::Invalid | Type::TypeInvalid => "Invalid value",
            Type::NotSupported => "Unsupported value",
            Type::Forbidden => "Forbidden",
            Type::TooLong => "Too long",
            Type::TooMany => "Too many",
            Type::Internal => "Internal error",
        }
    }
}

/// Stands for a value that is not to be printed (upstream: `OmitValueType`).
const OMITTED: &str = "\u{0}omitted";

/// One complaint about one field; prints as `spec.replicas: Invalid value: -1: must be …`.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub kind: Type,
    pub path: Path,
    pub value: Value,
    pub detail: String,
}

impl Error {
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self { kind: Type::Required, path: path.clone(), value: Value::Null, detail: detail.into() }
    }
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { kind: Type::Invalid, path: path.clone(), value: value.into(), detail: detail.into() }
    }
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self { kind: Type::Duplicate, path: path.clone(), value: value.into(), detail: String::new() }
    }
    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self { kind: Type::NotFound, path: path.clone(), value: value.into(), detail: String::new() }
    }
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self { kind: Type::Forbidden, path: path.clone(), value: Value::Null, detail: detail.into() }
    }
    /// `supported` is printed in the order given: upstream's callers list some sets sorted, some not.
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|word| format!("{word:?}")).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Self { kind: Type::NotSupported, path: path.clone(), value: value.into(), detail }
    }
    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self { kind: Type::Internal, path: path.clone(), value: Value::Null, detail: detail.into() }
    }
    pub fn too_long(path: &Path, bytes_max: usize) -> Self {
        let detail = format!("may not be more than {bytes_max} bytes");
        Self { kind: Type::TooLong, path: path.clone(), value: Value::Null, detail }
    }
    /// The value is left out of the sentence.
    pub fn invalid_unprinted(path: &Path, detail: impl Into<String>) -> Self {
        Self { kind: Type::Invalid, path: path.clone(), value: OMITTED.into(), detail: detail.into() }
    }
    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let detail = format!("must have at most {max} {}", if max == 1 { "item" } else { "items" });
        Self { kind: Type::TooMany, path: path.clone(), value: actual.into(), detail }
    }

    /// The sentence without the path: the `message` of a Status cause.
    pub fn body(&self) -> String {
        let words = self.kind.words();
        let head = match self.kind {
            Type::Required | Type::Forbidden | Type::TooLong | Type::Internal => words.to_owned(),
            _ if self.value == OMITTED => words.to_owned(),
            _ => format!("{words}: {}", go_value(&self.value)),
        };
        if self.detail.is_empty() { head } else { format!("{head}: {}", self.detail) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// A value as upstream prints it in a field error: strings quoted, the rest as compact JSON.
fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}
