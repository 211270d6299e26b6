//! What the schema says about the object that is being merged.

use super::super::Error;
use crate::model::{Field, Schema, Type};

/// The type of the object at hand; anything that is no struct has no rules for its fields.
#[derive(Clone, Copy)]
pub(super) enum Place<'s> {
    Struct(&'s Type),
    Other(&'static str),
}

/// A field's rule.
#[derive(Clone, Copy, Default)]
pub(super) struct Rule<'s> {
    pub merge: bool,
    pub replace: bool,
    pub merge_key: Option<&'s str>,
}

impl<'s> Place<'s> {
    pub(super) fn root(schema: &'s Type) -> Self {
        Place::Struct(schema)
    }

    /// Go's kind of the type, as messages name it.
    pub(super) fn go_kind(self) -> &'static str {
        match self {
            Place::Struct(_) => "struct",
            Place::Other(kind) => kind,
        }
    }

    fn of(schema: &'s Schema) -> Self {
        match schema {
            Schema::Object(schema) => Place::Struct(schema),
            Schema::List(_) | Schema::Bytes => Place::Other("slice"),
            Schema::Map(_) => Place::Other("map"),
            Schema::Bool => Place::Other("bool"),
            Schema::Int32 => Place::Other("int32"),
            Schema::Int64 | Schema::Duration => Place::Other("int64"),
            Schema::Float64 => Place::Other("float64"),
            Schema::String => Place::Other("string"),
            Schema::Any | Schema::Quantity | Schema::IntOrString | Schema::Time | Schema::MicroTime => Place::Other("struct"),
        }
    }

    fn field(self, key: &str) -> Result<&'s Field, Error> {
        let Place::Struct(schema) = self else {
            return Err(Error::Contradiction(format!(
                "merging an object in json but data type is not struct, instead is: {}",
                self.go_kind()
            )));
        };
        let folded = || schema.fields.iter().find(|field| field.json.eq_ignore_ascii_case(key));
        schema.field(key).or_else(folded).ok_or_else(|| {
            let name = schema.name.rsplit('.').next().unwrap_or_default();
            Error::Contradiction(format!("unable to find api field in struct {name} for the json field {key:?}"))
        })
    }

    /// The object in field `key`, and the field's rule.
    pub(super) fn object(self, key: &str) -> Result<(Place<'s>, Rule<'s>), Error> {
        let field = self.field(key)?;
        Ok((Place::of(&field.schema), rule(field)))
    }

    /// The elements of the list in field `key`, and the field's rule.
    pub(super) fn list(self, key: &str) -> Result<(Place<'s>, Rule<'s>), Error> {
        let field = self.field(key)?;
        match &field.schema {
            Schema::List(list) => Ok((Place::of(&list.items), rule(field))),
            other => Err(Error::Contradiction(format!("expected slice or array type, but got: {}", Place::of(other).go_kind()))),
        }
    }
}

fn rule(field: &Field) -> Rule<'_> {
    Rule { merge: field.patch.merge, replace: field.patch.replace, merge_key: field.patch.merge_key.as_deref() }
}
