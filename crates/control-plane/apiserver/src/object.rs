//! The stored form of an object, made so that it can be served without parsing it.
//!
//! Stored bytes are compact JSON that begins `{"kind":…,"apiVersion":…,"metadata":{`. The resourceVersion is not stored (it is the
//! store's revision): it is spliced in as the first member of `metadata` when the bytes are sent.

pub mod splice;

use std::cell::RefCell;
use std::sync::OnceLock;

use bytes::Bytes;
pub use meta::scan;
use serde_json::{Map, Value};

/// One version of one object: the store's own bytes and what is needed to serve and to select it.
#[derive(Debug)]
pub struct Object {
    pub key: Bytes,
    /// The stored form.
    pub bytes: Bytes,
    pub revision: u64,
    /// Where `metadata`'s members begin in `bytes`.
    members: u32,
    /// Where the value of `metadata.labels` lies in `bytes`; found by the first selector that asks.
    labels: OnceLock<(u32, u32)>,
    pub(crate) fields: OnceLock<crate::selection::Fields>,
}

impl Object {
    /// Bytes that another writer laid out differently are brought into the stored form; what is no object at all is `None`.
    pub fn new(key: Bytes, bytes: Bytes, revision: u64) -> Option<Self> {
        let (bytes, members) = match metadata_members(&bytes) {
            Some(members) => (bytes, members),
            None => {
                let value: Value = serde_json::from_slice(&bytes).ok()?;
                let bytes = encode(&value);
                let members = metadata_members(&bytes)?;
                (bytes, members)
            }
        };
        Some(Self { key, bytes, revision, members: u32::try_from(members).ok()?, labels: OnceLock::new(), fields: OnceLock::new() })
    }

    /// The same state under another revision (a deletion has its own).
    pub fn at(&self, revision: u64) -> Self {
        let (key, bytes) = (self.key.clone(), self.bytes.clone());
        Self { key, bytes, revision, members: self.members, labels: self.labels.clone(), fields: OnceLock::new() }
    }

    /// The raw value at a path below `metadata`, or all of it.
    pub fn metadata(&self, path: &[&str]) -> Option<&[u8]> {
        // One byte before the first member: the brace.
        let from = self.bytes.get(self.members as usize - 1..)?;
        if path.is_empty() { scan::value(from) } else { scan::find(from, path) }
    }

    /// The raw value at a path from the root.
    pub fn member(&self, path: &[&str]) -> Option<&[u8]> {
        scan::find(&self.bytes, path)
    }

    /// A label's value. Labels are stored validated: they have no escapes.
    pub fn label(&self, name: &str) -> Option<&str> {
        let (from, to) = *self.labels.get_or_init(|| self.find_labels().unwrap_or_default());
        let labels = self.bytes.get(from as usize..to as usize)?;
        scan::members(labels).find(|(key, _)| *key == name.as_bytes()).and_then(|(_, value)| scan::plain(value))
    }

    fn find_labels(&self) -> Option<(u32, u32)> {
        let labels = self.metadata(&["labels"])?;
        let from = labels.as_ptr() as usize - self.bytes.as_ptr() as usize;
        Some((u32::try_from(from).ok()?, u32::try_from(from + labels.len()).ok()?))
    }

    pub fn name(&self) -> &str {
        let from = self.key.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        self.key.get(from..).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }

    /// Empty where the object has none.
    pub fn namespace(&self) -> &str {
        self.metadata(&["namespace"]).and_then(scan::plain).unwrap_or_default()
    }

    pub fn uid(&self) -> &str {
        self.metadata(&["uid"]).and_then(scan::plain).unwrap_or_default()
    }

    /// Appends the object as clients see it.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let (head, tail) = self.bytes.split_at(self.members as usize);
        out.extend_from_slice(head);
        self.write_tail(tail, out);
    }

    /// Appends the object as an item of a typed list: without kind and apiVersion, as upstream sends it.
    pub fn write_item(&self, out: &mut Vec<u8>) {
        let (_, tail) = self.bytes.split_at(self.members as usize);
        out.extend_from_slice(b"{\"metadata\":{");
        self.write_tail(tail, out);
    }

    /// Appends a PartialObjectMetadata of this version of `meta.k8s.io` with `metadata`, which is this object's.
    pub fn write_metadata(&self, metadata: &[u8], version: &str, out: &mut Vec<u8>) {
        for part in ["{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/", version, "\",\"metadata\":{"] {
            out.extend_from_slice(part.as_bytes());
        }
        self.write_tail(metadata.get(1..).unwrap_or_default(), out);
        out.push(b'}');
    }

    fn write_tail(&self, tail: &[u8], out: &mut Vec<u8>) {
        use std::io::Write;
        if self.revision == 0 {
            // A dry run: the object was never stored.
            return out.extend_from_slice(tail);
        }
        let comma = if tail.first() == Some(&b'}') { "" } else { "," };
        let _ = write!(out, "\"resourceVersion\":\"{}\"{comma}", self.revision);
        out.extend_from_slice(tail);
    }

    pub fn json(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.bytes.len() + 48);
        self.write_json(&mut out);
        out.into()
    }

    /// The object as a tree, resourceVersion included.
    pub fn value(&self) -> Value {
        decode(&self.bytes, self.revision)
    }
}

/// Room for writing objects that a thread keeps, at most, in bytes.
const SCRATCH_MAX: usize = 256 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The stored form of a tree. These bytes are kept for as long as the object lives: they are written elsewhere first, so that they get a place
/// of just their size.
pub fn encode(object: &Value) -> Bytes {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        write(scratch, object);
        let bytes = Bytes::copy_from_slice(scratch);
        scratch.shrink_to(SCRATCH_MAX);
        bytes
    })
}

fn write(out: &mut Vec<u8>, object: &Value) {
    let empty = Map::new();
    let members = object.as_object().unwrap_or(&empty);
    out.push(b'{');
    for name in ["kind", "apiVersion"] {
        if let Some(text) = members.get(name)
            && text.is_string()
        {
            write_member(out, name, text);
            out.push(b',');
        }
    }
    out.extend_from_slice(b"\"metadata\":{");
    let mut first = true;
    for (name, value) in members.get("metadata").and_then(Value::as_object).into_iter().flatten() {
        if name == "resourceVersion" || name == "selfLink" {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        write_member(out, name, value);
    }
    out.push(b'}');
    for (name, value) in members {
        if matches!(name.as_str(), "kind" | "apiVersion" | "metadata") {
            continue;
        }
        out.push(b',');
        write_member(out, name, value);
    }
    out.push(b'}');
}

fn write_member(out: &mut Vec<u8>, name: &str, value: &Value) {
    // Writing JSON into memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, name);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

/// A stored form as a tree, with its resourceVersion. Bytes that are no object become an empty one.
pub fn decode(bytes: &[u8], revision: u64) -> Value {
    let mut value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    set_revision(&mut value, revision);
    value
}

pub fn set_revision(object: &mut Value, revision: u64) {
    metadata_mut(object).insert("resourceVersion".into(), revision.to_string().into());
}

/// The stored form after a change of the tree.
pub fn edited<E>(object: &Object, change: impl FnOnce(&mut Value) -> Result<(), E>) -> Result<Bytes, E> {
    let mut value = object.value();
    change(&mut value)?;
    Ok(encode(&value))
}

/// `metadata` as a map, made where it is missing or something else.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = &mut object["metadata"];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// A text field of `metadata`; empty where it is absent.
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// Where the members of `metadata` begin, if `bytes` is in the stored form.
fn metadata_members(bytes: &[u8]) -> Option<usize> {
    const METADATA: &[u8] = b"\"metadata\":{";
    let mut at = 1;
    if bytes.first() != Some(&b'{') {
        return None;
    }
    for name in [b"\"kind\":\"".as_slice(), b"\"apiVersion\":\"".as_slice()] {
        if bytes.get(at..)?.starts_with(name) {
            at += name.len();
            let end = bytes.get(at..)?.iter().position(|byte| *byte == b'"')?;
            at += end + 1;
            if bytes.get(at) != Some(&b',') {
                return None;
            }
            at += 1;
        }
    }
    bytes.get(at..)?.starts_with(METADATA).then_some(at + METADATA.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn served_bytes_equal_the_object_with_its_revision() {
        let cases = [
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"metadata": "{"}}),
            json!({"kind": "A", "apiVersion": "b/v1", "metadata": {}}),
            json!({"metadata": {"name": "bare", "labels": {"x": "y"}}, "aaa": 1}),
        ];
        for mut case in cases {
            let stored = Object::new(Bytes::new(), encode(&case), 7).unwrap();
            set_revision(&mut case, 7);
            assert_eq!(serde_json::from_slice::<Value>(&stored.json()).unwrap(), case);
            assert_eq!(stored.value(), case);
            let mut partial = Vec::new();
            stored.write_metadata(stored.metadata(&[]).unwrap(), "v1", &mut partial);
            let wanted = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": case["metadata"]});
            assert_eq!(serde_json::from_slice::<Value>(&partial).unwrap(), wanted);
            let mut item = Vec::new();
            stored.write_item(&mut item);
            let members = case.as_object_mut().unwrap();
            members.remove("kind");
            members.remove("apiVersion");
            assert_eq!(serde_json::from_slice::<Value>(&item).unwrap(), case);
        }
    }

    #[test]
    fn foreign_layouts_are_brought_into_the_stored_form() {
        let bytes =
            Bytes::from_static(br#"{ "data": {}, "metadata": {"name": "x", "resourceVersion": "3"}, "kind": "K", "apiVersion": "v1" }"#);
        let object = Object::new(Bytes::new(), bytes, 9).unwrap();
        assert_eq!(object.value()["metadata"]["resourceVersion"], "9");
        assert!(Object::new(Bytes::new(), Bytes::from_static(b"not json"), 1).is_none());
    }
}
