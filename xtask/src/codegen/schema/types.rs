//! Writing the types: a file per group and version, and the index over all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use super::HEAD;
use super::facts::{Facts, Field, Type};

/// The one field where a type that is atomic elsewhere is granular (`structType=granular`): it gets a second static.
const GRANULAR: &str = "Granular";

pub fn write(facts: &Facts, folder: &Path) -> anyhow::Result<()> {
    let mut files: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for name in facts.types.keys().filter(|name| is_struct(facts, name)) {
        files.entry(module(name)).or_default().push(name);
    }
    for (module, names) in &files {
        let mut file = File { facts, module, shared: Shared::default(), body: String::new() };
        for name in names {
            file.write_type(name);
        }
        std::fs::write(folder.join(format!("types/{module}.rs")), file.finish())?;
    }
    std::fs::write(folder.join("types.rs"), index(facts, &files))?;
    Ok(())
}

/// Whether the definition becomes a `Type`; the others are scalars or any JSON.
fn is_struct(facts: &Facts, name: &str) -> bool {
    let opaque = ["FieldsV1", "RawExtension", "Patch"];
    match facts.types.get(name) {
        Some(Type { t: Some(kind), .. }) if kind != "object" => false,
        Some(_) => !opaque.iter().any(|last| name.ends_with(&format!(".{last}"))),
        None => false,
    }
}

/// `io.k8s.api.apps.v1.Deployment` lives in `apps_v1`.
fn module(definition: &str) -> String {
    let parts: Vec<&str> = definition.split('.').collect();
    match parts.as_slice() {
        [.., "pkg", "version", _] => "version".into(),
        [.., group, version, _] => format!("{group}_{version}").replace('-', "_"),
        _ => "other".into(),
    }
}

fn kind(definition: &str) -> &str {
    definition.rsplit('.').next().unwrap_or(definition)
}

/// Lists, maps and enumerations of a file, each written once.
#[derive(Default)]
struct Shared {
    numbers: BTreeMap<String, usize>,
    body: String,
}

impl Shared {
    fn named(&mut self, prefix: &str, kind: &str, value: String) -> String {
        let next = self.numbers.len();
        let number = *self.numbers.entry(value.clone()).or_insert(next);
        if number == next {
            let _ = writeln!(self.body, "static {prefix}{number}: {kind} = {value};");
        }
        format!("{prefix}{number}")
    }
    fn strings(&mut self, values: &[String]) -> String {
        if values.is_empty() {
            return "&[]".into();
        }
        let texts: Vec<String> = values.iter().map(|value| format!("s({value:?})")).collect();
        let name = self.named("E", &format!("[Str; {}]", values.len()), format!("[{}]", texts.join(", ")));
        format!("&{name}")
    }
}

struct File<'a> {
    facts: &'a Facts,
    module: &'a str,
    shared: Shared,
    body: String,
}

impl File<'_> {
    fn write_type(&mut self, name: &str) {
        let facts = self.facts;
        let Some(definition) = facts.types.get(name) else { return };
        let mut fields = String::new();
        for (json, field) in &definition.f {
            let line = self.field(name, json, field, definition.req.contains(json));
            let _ = writeln!(fields, "    {line},");
        }
        let ident = kind(name);
        let atomic = definition.mt.as_deref() == Some("atomic");
        let _ = writeln!(self.body, "static {ident}Fields: [Field; {}] = [\n{fields}];", definition.f.len());
        if definition.unions.is_empty() {
            let _ = writeln!(self.body, "pub static {ident}: Type = t({name:?}, &{ident}Fields, {atomic});");
        } else {
            let unions: Vec<String> = definition.unions.iter().map(|union| format!("s({:?})", union.to_string())).collect();
            let (count, list) = (unions.len(), unions.join(", "));
            let _ = writeln!(self.body, "static {ident}Unions: [Str; {count}] = [{list}];");
            let _ = writeln!(self.body, "pub static {ident}: Type = tu({name:?}, &{ident}Fields, {atomic}, &{ident}Unions);");
        }
        if granular_twin(facts, name) {
            let _ = writeln!(self.body, "pub static {ident}{GRANULAR}: Type = t({name:?}, &{ident}Fields, false);");
        }
    }

    fn field(&mut self, definition: &str, json: &str, field: &Field, required: bool) -> String {
        let go = self.facts.go(definition, json, field, required);
        // The data keep the format of a plain field only; for maps of bytes Go tells.
        let bytes = go.name.ends_with("[]uint8").then(|| "byte".to_owned());
        let schema = self.schema(&field.t, &Field { fmt: bytes.or(field.fmt.clone()), ..field.clone() });
        let flags = u8::from(required) | u8::from(go.pointer) << 1 | u8::from(go.omit) << 2;
        let plain = format!("f({json:?}, {schema}, {}, {flags}, {:?}", go.number, go.name);
        let default = field.def.as_ref().map(default_text);
        if default.is_none() && field.values.is_empty() && field.ps.is_none() && go.embedded.is_empty() {
            return format!("{plain})");
        }
        let default = default.map_or("None".to_owned(), |text| format!("Some({text:?})"));
        let values = self.shared.strings(&field.values);
        let outer = go.embedded.first().copied().unwrap_or(0);
        let inner = go.embedded.get(1).copied().unwrap_or(0);
        format!("x{plain}, {default}, {values}, {}, {outer}, {inner})", patch(field))
    }

    fn schema(&mut self, kind: &str, field: &Field) -> String {
        if let Some(items) = kind.strip_prefix("[]") {
            let items = self.schema(items, field);
            let topology = match field.lt.as_deref() {
                Some("set") => "Topology::Set".to_owned(),
                Some("map") => format!("Topology::Map(Slice::Static({}))", self.shared.strings(&field.lk)),
                _ => "Topology::Atomic".to_owned(),
            };
            let name = self.shared.named("L", "List", format!("List {{ items: {items}, topology: {topology} }}"));
            return format!("Schema::List(Ref::Static(&{name}))");
        }
        if let Some(values) = kind.strip_prefix("map:") {
            let values = self.schema(values, &Field { lt: None, ..field.clone() });
            let atomic = field.mt.as_deref() == Some("atomic");
            let name = self.shared.named("M", "Map", format!("Map {{ values: {values}, atomic: {atomic} }}"));
            return format!("Schema::Map(Ref::Static(&{name}))");
        }
        match (kind, field.fmt.as_deref()) {
            ("string", Some("byte")) => "Schema::Bytes".into(),
            ("string", _) => "Schema::String".into(),
            ("boolean", _) => "Schema::Bool".into(),
            ("integer", Some("int32")) => "Schema::Int32".into(),
            ("integer", _) => "Schema::Int64".into(),
            ("number", _) => "Schema::Float64".into(),
            ("io.k8s.apimachinery.pkg.api.resource.Quantity", _) => "Schema::Quantity".into(),
            ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", _) => "Schema::IntOrString".into(),
            ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", _) => "Schema::Time".into(),
            ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", _) => "Schema::MicroTime".into(),
            (name, _) if is_struct(self.facts, name) => self.object(name, field.mt.as_deref() == Some("granular")),
            _ => "Schema::Any".into(),
        }
    }

    fn object(&self, name: &str, granular: bool) -> String {
        let module = module(name);
        let ident = if granular { format!("{}{GRANULAR}", kind(name)) } else { kind(name).to_owned() };
        let path = if module == self.module { ident } else { format!("super::{module}::{ident}") };
        format!("Schema::Object(Ref::Static(&{path}))")
    }

    fn finish(self) -> String {
        format!(
            "{HEAD}#![allow(missing_docs, non_upper_case_globals, unused_imports)]\n\nuse crate::table::make::*;\n\n{}{}",
            self.shared.body, self.body
        )
    }
}

/// Whether some field refers to this atomic type as a granular one.
fn granular_twin(facts: &Facts, name: &str) -> bool {
    let mut fields = facts.types.values().flat_map(|definition| definition.f.values());
    fields.any(|field| field.t == name && field.mt.as_deref() == Some("granular"))
}

/// JSON text of a default; Go constants are named in the data and spelled out here.
fn default_text(value: &serde_json::Value) -> String {
    match value.as_str() {
        Some("ref(AzureDataDiskCachingReadWrite)") => "\"ReadWrite\"".into(),
        Some("ref(AzureSharedBlobDisk)") => "\"Shared\"".into(),
        _ => value.to_string(),
    }
}

fn patch(field: &Field) -> String {
    let Some(strategy) = field.ps.as_deref() else { return "Patch::NONE".into() };
    let has = |name: &str| strategy.split(',').any(|part| part == name);
    let key = field.pk.as_ref().map_or("None".to_owned(), |key| format!("Some(s({key:?}))"));
    format!("Patch {{ merge: {}, replace: {}, retain_keys: {}, merge_key: {key} }}", has("merge"), has("replace"), has("retainKeys"))
}

fn index(facts: &Facts, files: &BTreeMap<String, Vec<&String>>) -> String {
    let mut text = format!("{HEAD}#![allow(missing_docs)]\n\nuse crate::model::Type;\n\n");
    for module in files.keys() {
        let _ = writeln!(text, "#[rustfmt::skip]\npub mod {module};");
    }
    text.push('\n');
    let names: BTreeSet<&String> = files.values().flatten().copied().collect();
    let _ = writeln!(text, "/// Every type by its definition name, in order of the names.");
    let _ = writeln!(text, "pub static TYPES: [(&str, &Type); {}] = [", names.len());
    for name in &names {
        let _ = writeln!(text, "    ({name:?}, &{}::{}),", module(name), kind(name));
    }
    text.push_str("];\n\n");
    let mut kinds: BTreeMap<(&str, &str, &str), &String> = BTreeMap::new();
    for name in &names {
        for gvk in facts.types.get(*name).map(|definition| definition.gvk.as_slice()).unwrap_or_default() {
            let mut parts = gvk.split('/');
            let mut next = || parts.next().unwrap_or_default();
            kinds.insert((next(), next(), next()), name);
        }
    }
    let _ = writeln!(text, "/// Every kind: group, version, kind, in their order.");
    let _ = writeln!(text, "pub static KINDS: [((&str, &str, &str), &Type); {}] = [", kinds.len());
    for (gvk, name) in kinds {
        let _ = writeln!(text, "    ({gvk:?}, &{}::{}),", module(name), kind(name));
    }
    text.push_str("];\n");
    text
}
