//! Types of expressions, and the JSON forms that values of them come in.

use std::fmt;
use std::sync::Arc;

use crate::lexer::RESERVED;

/// What an expression's value is.
#[derive(Clone, Debug)]
pub enum Type {
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<ListType>),
    /// Keys, values.
    Map(Arc<(Type, Type)>),
    Optional(Arc<Type>),
    /// The type of a type (`type(x)`).
    Type,
    /// A type of a library, such as `kubernetes.Quantity`.
    Opaque(&'static str),
    Object(Arc<dyn ObjectType>),
    /// `A` in a function's declaration.
    Param(char),
    /// A parameter's stand-in during checking.
    Var(usize),
}

#[derive(Clone, Debug)]
pub struct ListType {
    pub items: Type,
    pub topology: Topology,
}

/// `x-kubernetes-list-type`: it decides equality and `+`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    #[default]
    Atomic,
    Set,
    /// Associative by these JSON fields.
    Map(Vec<String>),
}

/// A struct, made of a schema. Fields are asked for one by one, so that recursive types need no copies.
pub trait ObjectType: Send + Sync + fmt::Debug {
    /// As errors show it.
    fn name(&self) -> &str;
    /// The field with this name in CEL (see [`escape`]).
    fn field(&self, name: &str) -> Option<Field>;
    /// The names in JSON of all fields, for comparisons and loops.
    fn json_names(&self) -> Vec<String>;
}

#[derive(Clone, Debug)]
pub struct Field {
    /// The name in JSON.
    pub json: String,
    pub ty: Type,
}

impl Type {
    pub fn list(items: Type) -> Type {
        Type::List(Arc::new(ListType { items, topology: Topology::Atomic }))
    }
    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new((key, value)))
    }
    pub fn optional(inner: Type) -> Type {
        Type::Optional(Arc::new(inner))
    }
    /// A value of this type may stand for anything at check time.
    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn)
    }
    /// Of a size known from the type alone.
    pub fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
            Type::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }
    /// The same type, type parameters and topology aside.
    pub fn same(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::List(a), Type::List(b)) => a.items.same(&b.items),
            (Type::Map(a), Type::Map(b)) => a.0.same(&b.0) && a.1.same(&b.1),
            (Type::Optional(a), Type::Optional(b)) => a.same(b),
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Object(a), Type::Object(b)) => a.name() == b.name(),
            (Type::Param(a), Type::Param(b)) => a == b,
            (Type::Var(a), Type::Var(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other) && !matches!(self, Type::List(_) | Type::Map(_)),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::List(list) => write!(f, "list({})", list.items),
            Type::Map(map) => write!(f, "map({}, {})", map.0, map.1),
            Type::Optional(inner) => write!(f, "optional_type({inner})"),
            Type::Type => f.write_str("type"),
            Type::Opaque(name) => f.write_str(name),
            Type::Object(object) => f.write_str(object.name()),
            Type::Param(name) => write!(f, "{name}"),
            Type::Var(_) => f.write_str("dyn"),
        }
    }
}

/// Words that the lexer reads as something else than names; with [`RESERVED`] these are the names that no field may have as they are.
const LITERALS: [&str; 4] = ["true", "false", "null", "in"];

/// A JSON field's name as an identifier: `a-b` is `a__dash__b`, `namespace` is `__namespace__`. `None` where it has none.
///
/// Source: apiserver `pkg/cel/escaping.go`.
pub fn escape(name: &str) -> Option<String> {
    let mut chars = name.chars();
    if !chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_') {
        return None;
    }
    if !chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/')) {
        return None;
    }
    if LITERALS.contains(&name) || RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    Some(name.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}
