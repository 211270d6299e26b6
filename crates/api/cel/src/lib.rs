//! The Common Expression Language as Kubernetes speaks it: parsed, checked, priced, evaluated under a budget.
//!
//! Way in: an [`Env`] says which variables there are; [`Env::compile`] makes a [`Program`] or a [`CompileError`] in cel-go's form;
//! [`Program::evaluate`] runs it over borrowed JSON with an [`Activation`] and a [`Budget`]. A program is compiled once and shared.
//! Read in this order: [`types`], [`value`], `lexer`, `parser`, `macros`, `declarations` (every function's signature), `check`, [`cost`]
//! (what an expression may cost at worst), `eval`, [`library`] (what the functions do). Pure; no I/O, no tasks: an authorizer is asked
//! through a trait of the caller's.
//!
//! ```ignore
//! use cel::{Activation, Budget, Env, Type, Value};
//! let env = Env::new().with("self", Type::Dyn);
//! let program = env.compile("self.replicas <= 5 && self.names.all(n, n.startsWith('a'))").unwrap();
//! let object = serde_json::json!({"replicas": 3, "names": ["ab", "ac"]});
//! let activation = Activation::new().with("self", Value::json(&object, &Type::Dyn));
//! assert_eq!(program.evaluate(&activation, &mut Budget::default()).unwrap().as_bool(), Some(true));
//! ```
//!
//! Source: the CEL language definition; cel-go for words and costs; apiserver `pkg/cel` for the environment of 1.37.

mod ast;
mod check;
pub mod cost;
mod declarations;
pub mod device;
mod error;
mod eval;
mod lexer;
pub mod library;
mod macros;
mod parser;
pub mod pattern;
pub mod types;
pub mod value;

use std::sync::Arc;

pub use error::{CompileError, EvalError, Issue};
pub use eval::{Activation, Budget};
pub use library::authorizer;
pub use types::{Field, ListType, ObjectType, Topology, Type};
pub use value::Value;

/// One evaluation may cost this much (upstream: `PerCallLimit`).
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// All expressions of one request together (upstream: `RuntimeCELCostBudget`).
pub const REQUEST_BUDGET: u64 = 10_000_000;
/// Match conditions of one webhook (upstream: `RuntimeCELCostBudgetMatchConditions`).
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;

/// Finds the types that `Name{…}` may construct.
pub trait StructTypes: Send + Sync {
    fn find(&self, name: &str) -> Option<Arc<dyn ObjectType>>;
}

/// What expressions may refer to.
#[derive(Clone, Default)]
pub struct Env {
    variables: Vec<(String, Type)>,
    structs: Option<Arc<dyn StructTypes>>,
    hidden: Vec<&'static str>,
}

impl Env {
    /// Kubernetes' functions, no variables.
    pub fn new() -> Self {
        Self::default()
    }
    pub fn with(mut self, name: &str, ty: Type) -> Self {
        self.variables.push((name.to_owned(), ty));
        self
    }
    /// Types that may be constructed (`Object{…}`, `JSONPatch{…}` in MutatingAdmissionPolicies).
    pub fn with_structs(mut self, structs: Arc<dyn StructTypes>) -> Self {
        self.structs = Some(structs);
        self
    }
    /// Takes a function away.
    pub fn without(mut self, function: &'static str) -> Self {
        self.hidden.push(function);
        self
    }
    fn lacks(&self, function: &str) -> bool {
        self.hidden.contains(&function)
    }
    pub fn variable(&self, name: &str) -> Option<&Type> {
        self.variables.iter().rev().find(|(known, _)| known == name).map(|(_, ty)| ty)
    }

    /// Parses and checks.
    pub fn compile(&self, source: &str) -> Result<Program, CompileError> {
        let (expr, ids) = parser::parse(source)?;
        match check::check(self, &expr, ids) {
            Ok(checked) => Ok(Program { source: source.into(), expr, checked }),
            Err(issues) => Err(CompileError { source: source.to_owned(), issues }),
        }
    }
}

/// A checked expression.
#[derive(Clone, Debug)]
pub struct Program {
    source: Arc<str>,
    expr: ast::Expr,
    checked: check::Checked,
}

impl Program {
    pub fn source(&self) -> &str {
        &self.source
    }
    /// The type of its value.
    pub fn result_type(&self) -> &Type {
        self.checked.types.get(self.expr.id).unwrap_or(&Type::Dyn)
    }

    /// The value, and what it cost taken from the budget.
    pub fn evaluate<'a>(&'a self, activation: &Activation<'a>, budget: &mut Budget<'_>) -> Result<Value<'a>, EvalError> {
        eval::run(&self.expr, activation, budget)
    }

    /// What it may cost at least and at most. `sizes` knows the largest sizes of parts of variables.
    pub fn estimate(&self, sizes: &dyn cost::Sizes) -> cost::Cost {
        cost::estimate(&self.expr, &self.checked, sizes)
    }

    /// Whether it mentions this variable.
    pub fn mentions(&self, variable: &str) -> bool {
        fn inside(expr: &ast::Expr, name: &str) -> bool {
            matches!(&expr.kind, ast::Kind::Ident(found) if found == name) || expr.children().into_iter().any(|child| inside(child, name))
        }
        inside(&self.expr, variable)
    }

    /// The field names that are asked of this variable directly (`variables.x`); upstream orders composed expressions by them.
    pub fn fields_of(&self, variable: &str) -> Vec<String> {
        fn collect(expr: &ast::Expr, name: &str, found: &mut Vec<String>) {
            if let ast::Kind::Select { operand, field, .. } = &expr.kind
                && matches!(&operand.kind, ast::Kind::Ident(ident) if ident == name)
                && !found.contains(field)
            {
                found.push(field.clone());
            }
            expr.children().into_iter().for_each(|child| collect(child, name, found));
        }
        let mut found = Vec::new();
        collect(&self.expr, variable, &mut found);
        found
    }
}

#[cfg(test)]
mod tests;
