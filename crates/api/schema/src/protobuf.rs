//! Built-in objects as protobuf, both ways, through the table.
//!
//! A body is `k8s\0` and a `runtime.Unknown` that names kind and version and holds the object's message. Decoding is safe on any bytes:
//! lengths are checked, nesting is bounded, and what comes out went through [`crate::decode`] like a JSON body.
//! Kinds of CRDs have no protobuf: the caller answers 406 or 415. Fields that are newer than the published numbers are left out.
//! Source: apimachinery `pkg/runtime/serializer/protobuf`, the `generated.proto` files.

use serde_json::Value;

use crate::decode::{self, Mode};
use crate::model::Type;
use crate::table;

mod read;
mod tree;
mod wire;
mod write;

/// The media type of bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The media type of a watch: frames of four bytes of length (big endian) and a `WatchEvent`.
pub const MEDIA_TYPE_WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch";

const MAGIC: &[u8; 4] = b"k8s\0";

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("unexpected EOF")]
    End,
    #[error("proto: {0}")]
    Wire(&'static str),
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    Unknown { api_version: String, kind: String },
    /// The embedded JSON, or a value in it, is not what the table says.
    #[error(transparent)]
    Value(#[from] decode::Error),
}

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Empty where the body names none: the caller knows the kind from the path.
    pub api_version: String,
    pub kind: String,
    /// With `apiVersion` and `kind` where the body names them.
    pub value: Value,
}

/// Whether bytes start as a protobuf body does.
pub fn is_envelope(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads a body. `fallback` is the type of a body that names no kind.
pub fn decode(bytes: &[u8], fallback: Option<&'static Type>) -> Result<Object, Error> {
    read::envelope(bytes, fallback, 0)
}

/// Writes a body. `value` is an object as [`crate::decode`] leaves it; apiVersion and kind are taken from it.
pub fn encode(value: &Value, found: &Type) -> Vec<u8> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    envelope(text("apiVersion"), text("kind"), &encode_message(value, found))
}

/// The object's message alone, without kind and version: an item of a list.
pub fn encode_message(value: &Value, found: &Type) -> Vec<u8> {
    let mut out = wire::Writer::default();
    write::object(&mut out, value, found);
    out.finish()
}

/// [`encode_message`] from the object's JSON, without a copy of its texts; `None` where it is none. Stored objects are sent so.
pub fn encode_message_json(json: &[u8], found: &Type) -> Option<Vec<u8>> {
    let tree: tree::Borrowed<'_> = serde_json::from_slice(json).ok()?;
    let mut out = wire::Writer::with_capacity(json.len());
    write::object(&mut out, &tree, found);
    Some(out.finish())
}

/// Wraps a message as a body.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = wire::Writer::with_capacity(message.len() + api_version.len() + kind.len() + 24);
    out.raw(MAGIC);
    out.nested(1, |meta| {
        meta.bytes(1, api_version.as_bytes());
        meta.bytes(2, kind.as_bytes());
    });
    out.bytes(2, message);
    out.bytes(3, b"");
    out.bytes(4, b"");
    out.finish()
}

/// A list's body from its metadata and the messages of its items.
pub fn list<'a>(api_version: &str, kind: &str, metadata: &Value, items: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = wire::Writer::default();
    if let Some(found) = table::find("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta") {
        out.nested(1, |inner| write::object(inner, metadata, found));
    }
    for item in items {
        out.bytes(2, item);
    }
    envelope(api_version, kind, &out.finish())
}

/// One frame of a watch; `object` is a body.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = wire::Writer::with_capacity(object.len() + 32);
    out.raw(&[0; 4]);
    out.bytes(1, event.as_bytes());
    out.nested(2, |raw| raw.bytes(1, object));
    let mut frame = out.finish();
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    if let Some(head) = frame.get_mut(..4) {
        head.copy_from_slice(&length.to_be_bytes());
    }
    frame
}

/// Reads an object's message of a known type.
pub fn decode_message(bytes: &[u8], found: &'static Type) -> Result<Value, Error> {
    let value = read::object(bytes, found, 0)?;
    Ok(decode::decode_type(value, found, Mode::Ignore)?.0)
}

#[cfg(test)]
mod tests;
