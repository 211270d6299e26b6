//! What an expression is once its macros are expanded.

/// A node. Ids are dense and start at 0; `at` is where the node stands in the source, in characters.
#[derive(Clone, Debug)]
pub struct Expr {
    pub id: usize,
    pub at: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Literal(Literal),
    Ident(String),
    /// `operand.field`; `test` is `has(operand.field)`, `optional` is `operand.?field`.
    Select {
        operand: Box<Expr>,
        field: String,
        test: bool,
        optional: bool,
    },
    /// Operators are calls with names such as `_+_`; namespaced functions (`sets.contains`) have no target.
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// Items; `true` marks `?item`.
    List(Vec<(Expr, bool)>),
    Map(Vec<Entry>),
    Struct {
        name: String,
        fields: Vec<StructField>,
    },
    Fold(Box<Fold>),
    /// `cel.bind(var, init, body)`.
    Bind {
        var: String,
        init: Box<Expr>,
        body: Box<Expr>,
    },
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub struct StructField {
    pub name: String,
    pub at: usize,
    pub value: Expr,
    pub optional: bool,
}

/// A comprehension, as every macro over lists and maps becomes one.
#[derive(Clone, Debug)]
pub struct Fold {
    pub range: Expr,
    pub var: String,
    pub var2: Option<String>,
    pub init: Expr,
    /// Evaluated before each step; `false` ends the loop.
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

/// The accumulator's name: no identifier of the language.
pub const ACCUMULATOR: &str = "@result";

#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(std::sync::Arc<str>),
    Bytes(std::sync::Arc<[u8]>),
}

impl Expr {
    /// `a.b.c` as a name, where the node is nothing but identifiers.
    pub fn qualified(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.clone()),
            Kind::Select { operand, field, test: false, optional: false } => Some(format!("{}.{field}", operand.qualified()?)),
            _ => None,
        }
    }

    /// The node's children in order of evaluation.
    pub fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            Kind::Literal(_) | Kind::Ident(_) => Vec::new(),
            Kind::Select { operand, .. } => vec![operand],
            Kind::Call { target, args, .. } => target.as_deref().into_iter().chain(args).collect(),
            Kind::List(items) => items.iter().map(|(item, _)| item).collect(),
            Kind::Map(entries) => entries.iter().flat_map(|entry| [&entry.key, &entry.value]).collect(),
            Kind::Struct { fields, .. } => fields.iter().map(|field| &field.value).collect(),
            Kind::Fold(fold) => vec![&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result],
            Kind::Bind { init, body, .. } => vec![init, body],
        }
    }
}
