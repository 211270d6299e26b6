//! The form in which a type is known: const-constructible for the built-in table, owned for CRDs.

use std::ops::Deref;
use std::sync::Arc;

/// A reference into the static table, or a shared owned part of a CRD's schema.
#[derive(Debug)]
pub enum Ref<T: 'static> {
    Static(&'static T),
    Owned(Arc<T>),
}

impl<T> Deref for Ref<T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Ref::Static(value) => value,
            Ref::Owned(value) => value,
        }
    }
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        match self {
            Ref::Static(value) => Ref::Static(value),
            Ref::Owned(value) => Ref::Owned(value.clone()),
        }
    }
}

/// A static slice or a shared owned one.
#[derive(Debug)]
pub enum Slice<T: 'static> {
    Static(&'static [T]),
    Owned(Arc<[T]>),
}

impl<T> Deref for Slice<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Slice::Static(values) => values,
            Slice::Owned(values) => values,
        }
    }
}

impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        match self {
            Slice::Static(values) => Slice::Static(values),
            Slice::Owned(values) => Slice::Owned(values.clone()),
        }
    }
}

/// A static or shared owned string.
#[derive(Clone, Debug)]
pub enum Str {
    Static(&'static str),
    Owned(Arc<str>),
}

impl Deref for Str {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Str::Static(text) => text,
            Str::Owned(text) => text,
        }
    }
}

/// What a value may be.
#[derive(Clone, Debug)]
pub enum Schema {
    String,
    Bool,
    Int32,
    Int64,
    Float64,
    /// Go `[]byte`: a base64 string in JSON.
    Bytes,
    Quantity,
    IntOrString,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// Go's duration text, such as `1m30s`.
    Duration,
    /// Any JSON, kept as it is (RawExtension, `JSON`, FieldsV1, `x-kubernetes-preserve-unknown-fields`).
    Any,
    Object(Ref<Type>),
    List(Ref<List>),
    Map(Ref<Map>),
}

/// A struct.
///
/// Static fields are those of a built-in type, in order of their names: values are read and written as Go does. Owned fields, even when
/// there are none, are those of a CRD: values are only pruned and defaulted.
#[derive(Debug)]
pub struct Type {
    /// The OpenAPI definition name (`io.k8s.api.core.v1.PodSpec`), or the CRD's path.
    pub name: Str,
    pub fields: Slice<Field>,
    /// Server-side apply treats the struct as one value (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// Unknown fields are kept (CRDs).
    pub preserve_unknown: bool,
    /// A complete object with kind, apiVersion and metadata stands here.
    pub embedded_resource: bool,
    /// Unions as JSON text, for OpenAPI only: merging does not need them.
    pub unions: Slice<Str>,
}

impl Type {
    /// The field with this JSON name. Fields of the table stand in order of their names.
    pub fn field(&self, json: &str) -> Option<&Field> {
        if let Slice::Static(fields) = &self.fields
            && fields.len() > 8
            && let Ok(at) = fields.binary_search_by(|field| (*field.json).cmp(json))
        {
            return fields.get(at);
        }
        self.fields.iter().find(|field| &*field.json == json)
    }
}

/// One field of a struct.
#[derive(Debug)]
pub struct Field {
    /// The name in JSON.
    pub json: Str,
    pub schema: Schema,
    /// The protobuf field number; 0 where there is none (TypeMeta, CRDs).
    pub pb: u32,
    /// Where Go embeds a struct that is a message of its own on the wire: that message's field number in the parent, else 0.
    pub pb_inline: u32,
    /// The same once more, inside that message (webhook rules), else 0.
    pub pb_inline_inner: u32,
    /// Go's name of the field's type, pointer taken off (`v1.PullPolicy`, `map[string]string`): errors show it. Empty for CRDs.
    pub go: Str,
    pub required: bool,
    /// Go has a pointer: absent and zero differ.
    pub pointer: bool,
    /// Go drops the zero value when it writes JSON.
    pub omit_empty: bool,
    /// `null` is a value of its own (CRDs).
    pub nullable: bool,
    /// The default as JSON text.
    pub default: Option<Str>,
    /// The closed set of values; empty where it is open.
    pub enumeration: Slice<Str>,
    /// Strategic merge patch.
    pub patch: Patch,
}

impl Field {
    /// A plain optional field without default, enumeration or patch rule: the base for those of CRDs (`Field { required, ..Field::new(…) }`).
    pub fn new(json: &str, schema: Schema) -> Field {
        Field {
            json: Str::Owned(json.into()),
            schema,
            pb: 0,
            pb_inline: 0,
            pb_inline_inner: 0,
            go: Str::Static(""),
            required: false,
            pointer: false,
            omit_empty: false,
            nullable: false,
            default: None,
            enumeration: Slice::Static(&[]),
            patch: Patch::NONE,
        }
    }
}

/// A field's strategic merge patch rule (`patchStrategy`, `patchMergeKey`).
#[derive(Clone, Debug)]
pub struct Patch {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
    pub merge_key: Option<Str>,
}

impl Patch {
    pub const NONE: Patch = Patch { merge: false, replace: false, retain_keys: false, merge_key: None };
}

#[derive(Debug)]
pub struct List {
    pub items: Schema,
    pub topology: Topology,
}

/// How server-side apply treats a list (`x-kubernetes-list-type`).
#[derive(Clone, Debug)]
pub enum Topology {
    Atomic,
    Set,
    /// Associative by these keys of its items.
    Map(Slice<Str>),
}

#[derive(Debug)]
pub struct Map {
    pub values: Schema,
    pub atomic: bool,
}

// Errors and table dumps print a string as itself.
impl std::fmt::Display for Str {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self)
    }
}
