//! v1 Secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use super::config_map::{DATA_SIZE_MAX, frozen};
use crate::checks::{Errors, base64_size, data_keys, immutable};
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{self, annotation, at, entries, remove, set_default_text, text};
use crate::{Column, Part, Rules};

pub struct Secret;

const COLUMNS: &[Column] = &[NAME, shown("Type", "string", "What the secret is for."), shown("Data", "string", "Number of entries."), AGE];

impl Rules for Secret {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "Secret")
    }
    /// `stringData` is written into `data` and never kept.
    fn default(&self, object: &mut Value) {
        set_default_text(object, "type", "Opaque");
        let Some(Value::Object(plain)) = remove(object, "stringData") else { return };
        if plain.is_empty() {
            return;
        }
        if let Some(data) = value::object_at(object, "data") {
            let encoded = plain.into_iter().map(|(key, text)| (key, STANDARD.encode(text.as_str().unwrap_or("")).into()));
            data.extend(encoded);
        }
    }
    /// The type cannot be changed, so an update may leave it out.
    fn prepare_update(&self, new: &mut Value, old: &Value, _part: Part) {
        if text(new, "type").is_empty() {
            value::keep(new, old, "type");
        }
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let path = Path::new("data");
        let mut errors = data_keys(at(object, "data"), &path);
        if base64_size(object, "data") > DATA_SIZE_MAX {
            errors.push(Error::too_long(&path, DATA_SIZE_MAX));
        }
        errors.extend(by_type(object, &path));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Error> {
        let mut errors = immutable(&Path::new("type"), at(new, "type"), at(old, "type"));
        errors.extend(frozen(new, old, &["data"]));
        errors
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("type", text(object, "type").to_owned())]
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["type"]
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let count = entries(object, "data").count();
        vec![printing::name(object), text(object, "type").into(), count.into(), printing::age(object, now)]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

fn by_type(object: &Value, path: &Path) -> Errors {
    let data = at(object, "data");
    let missing = |keys: &[&str]| -> Errors {
        keys.iter().filter(|key| data.get(**key).is_none()).map(|key| Error::required(&path.key(key), "")).collect()
    };
    match text(object, "type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            let named = annotation(object, key).is_some_and(|name| !name.is_empty());
            if named { Errors::new() } else { vec![Error::required(&Path::new("metadata").child("annotations").key(key), "")] }
        }
        "kubernetes.io/dockercfg" => [missing(&[".dockercfg"]), json_in(data, ".dockercfg", path)].concat(),
        "kubernetes.io/dockerconfigjson" => [missing(&[".dockerconfigjson"]), json_in(data, ".dockerconfigjson", path)].concat(),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            missing(&["username", "password"])
        }
        "kubernetes.io/ssh-auth" => missing(&["ssh-privatekey"]),
        "kubernetes.io/tls" => missing(&["tls.crt", "tls.key"]),
        _ => Errors::new(),
    }
}

fn json_in(data: &Value, key: &str, path: &Path) -> Errors {
    let Some(encoded) = data.get(key).and_then(Value::as_str) else { return Errors::new() };
    let decoded = STANDARD.decode(encoded).unwrap_or_default();
    match serde_json::from_slice::<Value>(&decoded) {
        Ok(Value::Object(_)) => Errors::new(),
        _ => vec![Error::invalid(&path.key(key), "<secret contents redacted>", "invalid JSON")],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn string_data_is_stored_encoded() {
        let mut object = json!({"data": {"a": "eA==", "b": "eA=="}, "stringData": {"b": "hello"}});
        Secret.default(&mut object);
        assert_eq!(object, json!({"type": "Opaque", "data": {"a": "eA==", "b": "aGVsbG8="}}));
    }

    #[test]
    fn typed_secrets_need_their_keys() {
        let cases = [
            (json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), vec!["data[tls.key]: Required value"]),
            (
                json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}}),
                vec!["data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": invalid JSON"],
            ),
            (
                json!({"type": "kubernetes.io/service-account-token"}),
                vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
            ),
            (json!({"type": "kubernetes.io/basic-auth", "data": {"username": ""}}), vec![]),
            (json!({"type": "my/own"}), vec![]),
        ];
        for (object, expected) in cases {
            let found: Vec<String> = Secret.validate(&object).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{object}");
        }
        let found = Secret.validate_update(&json!({"type": "a"}), &json!({"type": "b"}), Part::Main);
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["type: Invalid value: \"a\": field is immutable"]);
    }
}
