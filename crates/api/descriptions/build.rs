//! Collects the descriptions of the API's types from the source text of k8s-openapi, which carries them for its `schemars`
//! feature. Reading the text costs a fraction of a second; compiling it with that feature took half a minute.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Definition and field (empty: the definition itself) to its description.
type Found = BTreeMap<(String, String), String>;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../../Cargo.lock");
    let mut found = Found::new();
    folder(&source()?.join("src/v1_37"), &mut found)?;
    if found.len() < 3_000 {
        return Err(format!("only {} descriptions found in k8s-openapi: has its form changed?", found.len()).into());
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptions.zz");
    let mut encoder = flate2::write::ZlibEncoder::new(std::fs::File::create(out)?, flate2::Compression::best());
    for ((definition, field), text) in &found {
        // Record and unit separators: neither is in the texts.
        write!(encoder, "{definition}\u{1f}{field}\u{1f}{text}\u{1e}")?;
    }
    encoder.finish()?;
    Ok(())
}

/// Where cargo keeps the crate's source: its registry, or wherever `cargo metadata` says (vendored, patched).
///
/// The registry comes first because `cargo metadata` wants the packages of all members and features, which a plain build lacks.
fn source() -> Result<PathBuf, Box<dyn Error>> {
    match in_registry() {
        Some(path) => Ok(path),
        None => by_metadata(),
    }
}

fn in_registry() -> Option<PathBuf> {
    let lock = std::fs::read_to_string("../../../Cargo.lock").ok()?;
    let (_, entry) = lock.split_once("name = \"k8s-openapi\"\nversion = \"")?;
    let (version, _) = entry.split_once('"')?;
    let default = || std::env::home_dir().map(|home| home.join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(default)?;
    let indexes = std::fs::read_dir(cargo.join("registry/src")).ok()?;
    let mut sources = indexes.flatten().map(|index| index.path().join(format!("k8s-openapi-{version}")));
    sources.find(|path| path.join("src/v1_37").is_dir())
}

fn by_metadata() -> Result<PathBuf, Box<dyn Error>> {
    let cargo = std::env::var("CARGO")?;
    let output = Command::new(cargo).args(["metadata", "--format-version", "1", "--offline"]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("no packages in cargo metadata")?;
    let package = packages.iter().find(|package| package["name"] == "k8s-openapi").ok_or("k8s-openapi is no dependency")?;
    let manifest = package["manifest_path"].as_str().ok_or("k8s-openapi has no manifest")?;
    Ok(Path::new(manifest).parent().ok_or("k8s-openapi has no folder")?.to_owned())
}

fn folder(path: &Path, found: &mut Found) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            folder(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            file(&std::fs::read_to_string(&path)?, found);
        }
    }
    Ok(())
}

/// The generated `json_schema` bodies are regular: a definition's own words stand 12 columns in, its properties 16, theirs 20.
fn file(text: &str, found: &mut Found) {
    let (mut definition, mut property) = (String::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.contains("fn schema_name()") {
            definition = lines.next().and_then(literal).unwrap_or_default();
            property.clear();
            continue;
        }
        if definition.is_empty() {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let rest = line.trim_start();
        if indent == 16 && (rest.ends_with("{")) {
            property = literal(rest).unwrap_or_default();
        } else if let Some(value) =
            rest.strip_prefix("\"description\": ").or(rest.strip_prefix("schema_obj.ensure_object().insert(\"description\".into(), "))
            && let Some(text) = literal(value)
        {
            let field = if indent == 12 { String::new() } else { property.clone() };
            if indent == 12 || !field.is_empty() {
                found.entry((definition.clone(), field)).or_insert(text);
            }
        }
    }
}

/// The Rust string literal at the start of a text.
fn literal(text: &str) -> Option<String> {
    let mut letters = text.trim_start().strip_prefix('"')?.chars();
    let mut value = String::new();
    loop {
        match letters.next()? {
            '"' => return Some(value),
            '\\' => match letters.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                'u' => {
                    let hex: String = letters.by_ref().skip(1).take_while(|letter| *letter != '}').collect();
                    value.push(u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32)?);
                }
                other => value.push(other),
            },
            letter => value.push(letter),
        }
    }
}
