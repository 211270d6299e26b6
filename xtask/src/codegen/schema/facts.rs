//! Reading: the published tables in the form in which they lie on disk.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

const GO_TYPES: &str = include_str!("go-types.txt");

pub struct Facts {
    pub types: BTreeMap<String, Type>,
    /// Definition and field to what Go says.
    pub go: BTreeMap<(String, String), Go>,
}

#[derive(Deserialize, Clone)]
pub struct Type {
    #[serde(default)]
    pub req: Vec<String>,
    #[serde(default)]
    pub gvk: Vec<String>,
    pub t: Option<String>,
    #[serde(default)]
    pub f: BTreeMap<String, Field>,
    /// `atomic` or `granular`.
    pub mt: Option<String>,
    #[serde(default)]
    pub unions: Vec<Value>,
}

#[derive(Deserialize, Clone)]
pub struct Field {
    pub t: String,
    pub fmt: Option<String>,
    pub lt: Option<String>,
    #[serde(default)]
    pub lk: Vec<String>,
    pub mt: Option<String>,
    pub ps: Option<String>,
    pub pk: Option<String>,
    pub pb: Option<u32>,
    pub def: Option<Value>,
    #[serde(default, rename = "enum")]
    pub values: Vec<String>,
    pub ptr: Option<u8>,
    #[serde(default)]
    pub mk: Vec<String>,
}

/// One line of `go-types.txt`.
#[derive(Clone, Default)]
pub struct Go {
    pub omit: bool,
    pub pointer: bool,
    pub number: u32,
    pub name: String,
    pub embedded: Vec<u32>,
}

impl Facts {
    pub fn read(spec: &Path) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct File {
            types: BTreeMap<String, Type>,
        }
        let text = std::fs::read_to_string(spec.join("fields-1.37.json")).context("fields-1.37.json")?;
        let file: File = serde_json::from_str(&text).context("fields-1.37.json")?;
        Ok(Self { types: file.types, go: go_types()? })
    }

    /// What Go says of a field; where it is newer than the Go sources, what its markers and being required suggest.
    pub fn go(&self, definition: &str, name: &str, field: &Field, required: bool) -> Go {
        if let Some(go) = self.go.get(&(definition.to_owned(), name.to_owned())) {
            return go.clone();
        }
        let pointer = field.ptr.is_some();
        let optional = !required || field.mk.iter().any(|marker| marker.ends_with("optional"));
        let structure = field.t.starts_with("io.k8s.") && !pointer;
        Go { omit: (optional || pointer) && !structure, pointer, number: field.pb.unwrap_or(0), ..Go::default() }
    }
}

fn go_types() -> anyhow::Result<BTreeMap<(String, String), Go>> {
    let mut all = BTreeMap::new();
    let mut definition = "";
    for line in GO_TYPES.lines().filter(|line| !line.starts_with('#')) {
        let Some(rest) = line.strip_prefix(' ') else {
            definition = line;
            continue;
        };
        let words: Vec<&str> = rest.split(' ').collect();
        let [name, flags, number, go, path @ ..] = words.as_slice() else { anyhow::bail!("go-types.txt: {line:?}") };
        let embedded = path.iter().flat_map(|path| path.split('.')).map(str::parse).collect::<Result<_, _>>()?;
        let facts =
            Go { omit: flags.contains('o'), pointer: flags.contains('p'), number: number.parse()?, name: (*go).to_owned(), embedded };
        all.insert((definition.to_owned(), (*name).to_owned()), facts);
    }
    Ok(all)
}
