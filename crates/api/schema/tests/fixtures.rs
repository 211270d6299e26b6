//! Upstream's golden files: every kind with every field filled, as JSON, YAML and protobuf.
//!
//! The published data lies beside the repository, in `../shared/spec`; without it these tests fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use schema::decode::{self, Mode};
use schema::model::Type;
use schema::{cbor, protobuf, table};
use serde_json::Value;

fn spec() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/spec")
}

/// The newest fixtures of kinds in the table: name without extension to extension to bytes.
fn fixtures() -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
    let folder = tempfile::tempdir().unwrap();
    let archive = spec().join("api-testdata.tar.xz");
    let status = Command::new("tar").arg("xJf").arg(&archive).arg("-C").arg(folder.path()).status().unwrap();
    assert!(status.success(), "cannot unpack {}", archive.display());
    let mut all: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder.path().join("testdata/HEAD")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (stem, extension) = name.rsplit_once('.').unwrap();
        all.entry(stem.to_owned()).or_default().insert(extension.to_owned(), std::fs::read(&path).unwrap());
    }
    all
}

fn kind_of(value: &Value) -> Option<&'static Type> {
    let api_version = value["apiVersion"].as_str()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    table::by_gvk(group, version, value["kind"].as_str()?)
}

/// Name, type, JSON, and the files by extension.
type Fixture = (String, &'static Type, Value, BTreeMap<String, Vec<u8>>);

/// Fixtures whose kind the table knows, each with its JSON.
fn known() -> Vec<Fixture> {
    let mut known = Vec::new();
    for (name, files) in fixtures() {
        let value = decode::parse_json(&files["json"]).unwrap().value;
        if let Some(found) = kind_of(&value) {
            known.push((name, found, value, files));
        }
    }
    assert!(known.len() > 100, "only {} fixtures", known.len());
    known
}

/// The first place where two values differ, with both sides.
fn difference(path: &str, left: &Value, right: &Value) -> Option<String> {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let side = |map: &serde_json::Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or("(absent)".into());
            keys.into_iter().find_map(|key| difference(&format!("{path}.{key}"), &side(a, key), &side(b, key)))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(at, (a, b))| difference(&format!("{path}[{at}]"), a, b))
        }
        _ => (left != right).then(|| format!("{path}: {left} is not {right}")),
    }
}

fn check(differences: Vec<String>) {
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn every_fixture_decodes_strictly_to_itself() {
    let fixtures = known();
    let read = |(name, found, value, _): &Fixture| match decode::decode_type(value.clone(), found, Mode::Strict) {
        Ok((decoded, _)) => difference(name, &decoded, value),
        Err(error) => Some(format!("{name}: {error}")),
    };
    check(fixtures.iter().filter_map(read).collect());
}

#[test]
fn yaml_and_json_of_every_fixture_are_the_same_object() {
    let fixtures = known();
    let read = |(name, found, value, files): &Fixture| {
        let yaml = decode::parse_yaml(files.get("yaml")?);
        match yaml.and_then(|yaml| decode::decode_type(yaml, found, Mode::Strict)) {
            Ok((decoded, _)) => difference(name, &decoded, value),
            Err(error) => Some(format!("{name}: {error}")),
        }
    };
    check(fixtures.iter().filter_map(read).collect());
}

#[test]
fn protobuf_and_json_of_every_fixture_are_the_same_object() {
    let fixtures = known();
    let read = |(name, found, value, files): &Fixture| match protobuf::decode(files.get("pb")?, Some(found)) {
        Ok(object) => difference(name, &object.value, value),
        Err(error) => Some(format!("{name}: {error}")),
    };
    check(fixtures.iter().filter_map(read).collect());
}

#[test]
fn cbor_and_json_of_every_fixture_are_the_same_object() {
    let fixtures = known();
    let read = |(name, found, value, _): &Fixture| {
        let decoded = cbor::decode(&cbor::encode(value)).unwrap();
        let (decoded, _) = decode::decode_type(decoded, found, Mode::Strict).unwrap();
        difference(name, &decoded, value)
    };
    check(fixtures.iter().filter_map(read).collect());
}

/// Field order differs from Go's, so bytes are compared by their number, and by what they decode to.
#[test]
fn every_fixture_is_written_in_as_many_bytes_as_go_writes() {
    let fixtures = known();
    let write = |(name, found, value, files): &Fixture| {
        let ours = protobuf::encode(value, found);
        let message = protobuf::encode_message_json(value.to_string().as_bytes(), found).unwrap();
        assert_eq!(message, protobuf::encode_message(value, found), "{name}: from bytes");
        let theirs = files.get("pb")?;
        match protobuf::decode(&ours, Some(found)) {
            Ok(object) if object.value != *value => difference(name, &object.value, value),
            Ok(_) => (ours.len() != theirs.len()).then(|| format!("{name}: {} bytes, Go writes {}", ours.len(), theirs.len())),
            Err(error) => Some(format!("{name}: {error}")),
        }
    };
    check(fixtures.iter().filter_map(write).collect());
}

/// An object in which every value of one kind is replaced by its zero.
fn emptied(value: &Value, of: &str) -> Value {
    match value {
        Value::String(_) if of == "strings" => "".into(),
        Value::Number(_) if of == "numbers" => 0.into(),
        Value::Bool(_) if of == "booleans" => false.into(),
        Value::Array(items) if of == "first items" => items.iter().map(|_| Value::Null).collect(),
        Value::Array(_) if of == "lists" => Value::Array(Vec::new()),
        Value::Array(items) => items.iter().map(|item| emptied(item, of)).collect(),
        Value::Object(map) if of == "objects" && map.values().all(|value| !value.is_object()) => Value::Object(Default::default()),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), emptied(value, of))).collect(),
        _ if of == "leaves" => Value::Null,
        other => other.clone(),
    }
}

/// Go's protobuf does not tell an empty list from none.
fn without_empty_lists(value: &Value) -> Value {
    match value {
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => items.iter().map(without_empty_lists).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), without_empty_lists(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn zero_values_survive_both_codecs_as_they_would_in_go() {
    let mut differences = Vec::new();
    let mut tried = 0;
    for (name, found, value, _) in known() {
        for of in ["strings", "numbers", "booleans", "first items", "lists", "objects", "leaves"] {
            let mut given = emptied(&value, of);
            given["apiVersion"] = value["apiVersion"].clone();
            given["kind"] = value["kind"].clone();
            // An empty quantity or time is refused, as in Go.
            let Ok((once, _)) = decode::decode_type(given, found, Mode::Ignore) else { continue };
            tried += 1;
            let (twice, _) = decode::decode_type(once.clone(), found, Mode::Ignore).unwrap();
            differences.extend(difference(&format!("{name} ({of}, decoded twice)"), &twice, &once));
            let read = protobuf::decode(&protobuf::encode(&once, found), Some(found)).unwrap().value;
            let (left, right) = (without_empty_lists(&read), without_empty_lists(&once));
            differences.extend(difference(&format!("{name} ({of}, through protobuf)"), &left, &right));
        }
    }
    assert!(tried > 500, "{tried}");
    check(differences);
}
