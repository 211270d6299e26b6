//! v1 ConfigMap.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, base64_size, data_keys};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, entries, flag, same};
use crate::{Column, Part, Rules};

pub struct ConfigMap;

/// The most bytes that the values of a ConfigMap or Secret may have together.
pub const DATA_SIZE_MAX: usize = 1024 * 1024;

const COLUMNS: &[Column] = &[NAME, shown("Data", "string", "Number of entries."), AGE];

impl Rules for ConfigMap {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "ConfigMap")
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let (data, binary) = (at(object, "data"), at(object, "binaryData"));
        let mut errors = data_keys(data, &Path::new("data"));
        for (key, _) in entries(object, "data") {
            if binary.get(key).is_some() {
                errors.push(Error::invalid(&Path::new("data").key(key), key.clone(), "duplicate of key present in binaryData"));
            }
        }
        errors.extend(data_keys(binary, &Path::new("binaryData")));
        let size: usize = entries(object, "data").map(|(_, value)| value.as_str().map_or(0, str::len)).sum();
        if size + base64_size(object, "binaryData") > DATA_SIZE_MAX {
            errors.push(Error::too_long(&Path::new("[]"), DATA_SIZE_MAX));
        }
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Error> {
        frozen(new, old, &["data", "binaryData"])
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let count = entries(object, "data").count() + entries(object, "binaryData").count();
        vec![printing::name(object), count.into(), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

/// What `immutable: true` forbids.
pub fn frozen(new: &Value, old: &Value, fields: &[&str]) -> Errors {
    if !flag(old, "immutable") {
        return Errors::new();
    }
    let sentence = "field is immutable when `immutable` is set";
    let mut errors = Errors::new();
    if !flag(new, "immutable") {
        errors.push(Error::forbidden(&Path::new("immutable"), sentence));
    }
    let changed = fields.iter().filter(|field| !same(at(new, field), at(old, field)));
    errors.extend(changed.map(|field| Error::forbidden(&Path::new(field), sentence)));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_must_be_file_names_and_frozen_data_stays() {
        let object = json!({"data": {"a/b": "x"}, "binaryData": {"a": "eA=="}});
        let found = ConfigMap.validate(&object);
        assert_eq!(found.len(), 1);
        assert!(found[0].to_string().starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key must consist of"));
        let (old, new) = (json!({"immutable": true, "data": {"a": "1"}}), json!({"immutable": true, "data": {"a": "2"}}));
        let found: Vec<String> = ConfigMap.validate_update(&new, &old, Part::Main).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["data: Forbidden: field is immutable when `immutable` is set"]);
    }

    #[test]
    fn too_much_data_is_refused() {
        let object = json!({"data": {"a": "x".repeat(DATA_SIZE_MAX + 1)}});
        let found: Vec<String> = ConfigMap.validate(&object).iter().map(Error::body).collect();
        assert_eq!(found, ["Too long: may not be more than 1048576 bytes"]);
    }
}
