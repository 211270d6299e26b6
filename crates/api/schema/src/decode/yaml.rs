//! YAML as go-yaml reads it: YAML 1.1 booleans and octal numbers, merge keys, whole floats as integers.

use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use super::{Error, Parsed};

/// Objects nest two levels per field; CRD schemas are the deepest that occur.
const DEPTH_MAX: usize = 200;

/// Reads one YAML document. A repeated key is reported in go-yaml's words; the last one wins.
pub fn parse_yaml(bytes: &[u8]) -> Result<Parsed, Error> {
    if let Some(parsed) = from_json(bytes) {
        return Ok(parsed);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| syntax("yaml: invalid leading UTF-8 octet"))?;
    match read(text, DuplicateKeyPolicy::Error) {
        Ok(value) => Ok(value.into()),
        Err(serde_saphyr::Error::DuplicateMappingKey { key, location }) => {
            let key = key.unwrap_or_default();
            let repeated = format!("yaml: unmarshal errors:\n  line {}: key {key:?} already set in map", location.line());
            let value = read(text, DuplicateKeyPolicy::LastWins).map_err(|error| refused(&error))?;
            Ok(Parsed { value, duplicates: vec![repeated], keys: Vec::new() })
        }
        Err(error) => Err(refused(&error)),
    }
}

/// The part of YAML that is JSON, which is what programs send, read in a fraction of the time. `None` for all else, and for what has to be
/// said in YAML's words or by its rules (repeated keys, merge keys, depth).
fn from_json(bytes: &[u8]) -> Option<Parsed> {
    let plain = bytes.trim_ascii_start().first() == Some(&b'{') && !bytes.windows(3).any(|three| three == b"\"<<");
    let mut parsed = plain.then(|| super::parse_json(bytes).ok()).flatten()?;
    if !parsed.duplicates.is_empty() || depth(&parsed.value) > DEPTH_MAX / 2 {
        return None;
    }
    whole_floats(&mut parsed.value);
    Some(parsed)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn read(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Value, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: DEPTH_MAX },
        duplicate_keys: duplicate_keys,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let mut value = serde_saphyr::from_str_with_options(text, options)?;
    whole_floats(&mut value);
    Ok(value)
}

fn syntax(message: &str) -> Error {
    Error::Syntax(format!("error converting YAML to JSON: {message}"))
}

fn refused(error: &serde_saphyr::Error) -> Error {
    match error.location() {
        Some(place) => syntax(&format!("yaml: line {}: {error}", place.line())),
        None => syntax(&format!("yaml: {error}")),
    }
}

/// Go's YAML-to-JSON step prints `1e3` as `1000`, which then is an integer.
fn whole_floats(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|_| number.is_f64())
                && float.fract() == 0.0
                && float.abs() < 1e15
            {
                // In range by the check above.
                *value = Value::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_floats),
        Value::Object(map) => map.values_mut().for_each(whole_floats),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_reads_as_go_yaml_reads_it() {
        let text = "a: 0644\nb: yes\nc: \"yes\"\nd: 1e3\ne: 1.5\nf: ~\ng: {h: [1, two]}\n8080: x\nl: |\n  text\n";
        let expected =
            json!({"a": 420, "b": true, "c": "yes", "d": 1000, "e": 1.5, "f": null, "g": {"h": [1, "two"]}, "8080": "x", "l": "text\n"});
        assert_eq!(parse_yaml(text.as_bytes()).unwrap().value, expected);
        let merged = "base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n";
        assert_eq!(parse_yaml(merged.as_bytes()).unwrap().value["use"], json!({"x": 1, "y": 2}));
    }

    #[test]
    fn json_read_as_yaml_is_what_yamls_reader_makes_of_it() {
        let cases = [
            r#"{"a": 1.0, "b": 1e3, "c": 1.5, "d": "yes", "e": [null, true, -0, 12345678901234567890, 1e300], "f": "\u00e4\n\ud83d\ude00", "": {}}"#,
            r#" {"a":{"b":["1", "0644", "~", "null", "2026-11-21", "1_000"]}}"#,
        ];
        for text in cases {
            let slow = read(text, DuplicateKeyPolicy::Error).unwrap();
            assert_eq!(from_json(text.as_bytes()).unwrap().value, slow, "{text}");
        }
        for text in [r#"{"a": 0644}"#, "{a: b}", r#"{"a": 1, "a": 2}"#, r#"{"<<": {"a": 1}}"#, "{\"a\": 1} # end", "a: b"] {
            assert!(from_json(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn repeated_keys_are_reported_in_go_yamls_words() {
        let parsed = parse_yaml(b"spec:\n  replicas: 1\n  replicas: 2\n").unwrap();
        assert_eq!(parsed.duplicates, ["yaml: unmarshal errors:\n  line 3: key \"replicas\" already set in map"]);
        assert_eq!(parsed.value["spec"]["replicas"], 2);
    }

    #[test]
    fn malformed_yaml_names_its_line() {
        let message = parse_yaml(b"a: b\nc: [\n").unwrap_err().to_string();
        assert!(message.starts_with("error converting YAML to JSON: yaml: line "), "{message}");
    }
}
