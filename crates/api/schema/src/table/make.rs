//! The short words in which the generated files are written.

pub use crate::model::{Field, List, Map, Patch, Ref, Schema, Slice, Str, Topology, Type};

/// A static string.
pub const fn s(text: &'static str) -> Str {
    Str::Static(text)
}

/// A type of the table.
pub const fn t(name: &'static str, fields: &'static [Field], atomic: bool) -> Type {
    tu(name, fields, atomic, &[])
}

/// A type with unions, each as JSON text (`x-kubernetes-unions`).
pub const fn tu(name: &'static str, fields: &'static [Field], atomic: bool, unions: &'static [Str]) -> Type {
    Type {
        name: Str::Static(name),
        fields: Slice::Static(fields),
        atomic,
        preserve_unknown: false,
        embedded_resource: false,
        unions: Slice::Static(unions),
    }
}

/// A field without default, enumeration, patch rule and embedding. `flags`: 1 required, 2 pointer, 4 omit_empty.
pub const fn f(json: &'static str, schema: Schema, pb: u32, flags: u8, go: &'static str) -> Field {
    xf(json, schema, pb, flags, go, None, &[], Patch::NONE, 0, 0)
}

/// A field with everything. `default` is JSON text; `outer` and `inner` are the messages it is embedded in on the wire.
#[allow(clippy::too_many_arguments)]
pub const fn xf(
    json: &'static str,
    schema: Schema,
    pb: u32,
    flags: u8,
    go: &'static str,
    default: Option<&'static str>,
    enumeration: &'static [Str],
    patch: Patch,
    outer: u32,
    inner: u32,
) -> Field {
    Field {
        json: Str::Static(json),
        schema,
        pb,
        pb_inline: outer,
        pb_inline_inner: inner,
        go: Str::Static(go),
        required: flags & 1 != 0,
        pointer: flags & 2 != 0,
        omit_empty: flags & 4 != 0,
        nullable: false,
        default: match default {
            Some(text) => Some(Str::Static(text)),
            None => None,
        },
        enumeration: Slice::Static(enumeration),
        patch,
    }
}
