//! The type checker: every node gets a type, every call the overloads that fit, or the expression is refused in cel-go's words.
//!
//! Source: cel-go `checker`.

use std::collections::HashMap;

use crate::Env;
use crate::ast::{Expr, Fold, Kind, Literal};
use crate::declarations::{Overload, overloads};
use crate::error::Issue;
use crate::types::Type;

/// What is known after checking, by the ids of nodes.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    pub types: Vec<Type>,
    /// Of calls: which of the function's overloads may be meant.
    pub overloads: HashMap<usize, Vec<usize>>,
}

pub struct Checker<'e> {
    env: &'e Env,
    types: Vec<Type>,
    chosen: HashMap<usize, Vec<usize>>,
    /// What each stand-in was found to be.
    bound: Vec<Option<Type>>,
    scopes: Vec<(String, Type)>,
    pub issues: Vec<Issue>,
}

/// Checks an expression whose ids are below `ids`.
pub fn check(env: &Env, expr: &Expr, ids: usize) -> Result<Checked, Vec<Issue>> {
    let mut checker =
        Checker { env, types: vec![Type::Dyn; ids], chosen: HashMap::new(), bound: Vec::new(), scopes: Vec::new(), issues: Vec::new() };
    checker.expr(expr);
    if !checker.issues.is_empty() {
        return Err(checker.issues);
    }
    let types = std::mem::take(&mut checker.types);
    let types = types.iter().map(|found| checker.resolved(found, true)).collect();
    Ok(Checked { types, overloads: checker.chosen })
}

impl Checker<'_> {
    fn complain(&mut self, at: usize, message: String) -> Type {
        // After a hundred complaints nobody reads on (cel-go's limit).
        if self.issues.len() < 100 {
            self.issues.push(Issue { at, message });
        }
        Type::Dyn
    }

    fn expr(&mut self, expr: &Expr) -> Type {
        let found = match &expr.kind {
            Kind::Literal(literal) => literal_type(literal),
            Kind::Ident(name) => self.ident(expr.at, name),
            Kind::Select { operand, field, test, optional } => self.select(expr, operand, field, *test, *optional),
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List(items) => {
                let mut joined = None;
                for (item, optional) in items {
                    let found = self.expr(item);
                    let found = if *optional { self.unwrapped(item.at, found) } else { found };
                    self.join(item.at, &mut joined, found);
                }
                let items = joined.unwrap_or_else(|| self.fresh());
                Type::list(items)
            }
            Kind::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for entry in entries {
                    let key = self.expr(&entry.key);
                    self.join(entry.key.at, &mut keys, key);
                    let value = self.expr(&entry.value);
                    let value = if entry.optional { self.unwrapped(entry.value.at, value) } else { value };
                    self.join(entry.value.at, &mut values, value);
                }
                let key = keys.unwrap_or_else(|| self.fresh());
                let value = values.unwrap_or_else(|| self.fresh());
                Type::map(key, value)
            }
            Kind::Struct { name, fields } => self.structure(expr, name, fields),
            Kind::Fold(fold) => self.fold(fold),
            Kind::Bind { var, init, body } => {
                let found = self.expr(init);
                self.scopes.push((var.clone(), found));
                let found = self.expr(body);
                self.scopes.pop();
                found
            }
        };
        if let Some(slot) = self.types.get_mut(expr.id) {
            *slot = found.clone();
        }
        found
    }

    fn ident(&mut self, at: usize, name: &str) -> Type {
        if let Some((_, found)) = self.scopes.iter().rev().find(|(known, _)| known == name) {
            return found.clone();
        }
        if let Some(found) = self.env.variable(name) {
            return found.clone();
        }
        if is_type_name(name) {
            return Type::Type;
        }
        self.complain(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &str, test: bool, optional: bool) -> Type {
        if let Some(name) = expr.qualified() {
            if let Some(found) = self.env.variable(&name) {
                return found.clone();
            }
            if is_type_name(&name) {
                return Type::Type;
            }
        }
        let from = self.expr(operand);
        let mut from = self.resolved(&from, false);
        let mut wrapped = optional;
        if let Type::Optional(inner) = &from {
            let inner = self.resolved(inner, false);
            wrapped = true;
            from = inner;
        }
        let found = match &from {
            Type::Map(map) => map.1.clone(),
            Type::Object(object) => match object.field(field) {
                Some(found) => found.ty,
                None => return self.complain(expr.at, format!("undefined field '{field}'")),
            },
            Type::Dyn | Type::Var(_) => Type::Dyn,
            other => return self.complain(expr.at, format!("type '{other}' does not support field selection")),
        };
        match (test, wrapped) {
            (true, _) => Type::Bool,
            (_, true) => Type::optional(found),
            _ => found,
        }
    }

    fn structure(&mut self, expr: &Expr, name: &str, fields: &[crate::ast::StructField]) -> Type {
        let Some(found) = self.env.structs.as_ref().and_then(|structs| structs.find(name)) else {
            for field in fields {
                self.expr(&field.value);
            }
            return self.complain(expr.at, format!("undeclared reference to '{name}' (in container '')"));
        };
        for field in fields {
            let given = self.expr(&field.value);
            let given = if field.optional { self.unwrapped(field.value.at, given) } else { given };
            match found.field(&field.name) {
                None => {
                    self.complain(field.at, format!("undefined field '{}'", field.name));
                }
                Some(wanted) if !self.assignable(&given, &wanted.ty) => {
                    let (wanted, given) = (self.resolved(&wanted.ty, true), self.resolved(&given, true));
                    let what = format!("expected type of field '{}' is '{wanted}' but provided type is '{given}'", field.name);
                    self.complain(field.at, what);
                }
                Some(_) => {}
            }
        }
        Type::Object(found)
    }

    fn call(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Type {
        let mut given: Vec<Type> = Vec::with_capacity(args.len() + 1);
        let parts = target.into_iter().chain(args);
        for part in parts {
            given.push(match &part.kind {
                // What is formatted may be of many types.
                Kind::List(items) if function == "format" => {
                    items.iter().for_each(|(item, _)| drop(self.expr(item)));
                    Type::list(Type::Dyn)
                }
                _ => self.expr(part),
            });
        }
        if function == "_?._" {
            return Type::optional(Type::Dyn);
        }
        let known = overloads(function);
        if known.is_empty() || self.env.lacks(function) {
            return self.complain(expr.at, format!("undeclared reference to '{function}' (in container '')"));
        }
        self.literals(function, args);
        match self.resolve(known, target.is_some(), &given) {
            Some((chosen, result)) => {
                self.chosen.insert(expr.id, chosen);
                result
            }
            None => {
                let words = self.signature(target.is_some(), &given);
                self.complain(expr.at, format!("found no matching overload for '{function}' applied to '{words}'"))
            }
        }
    }

    /// Literals that can be judged now (cel-go's AST validators).
    fn literals(&mut self, function: &str, args: &[Expr]) {
        let Some(last) = args.last() else { return };
        let Kind::Literal(Literal::String(text)) = &last.kind else { return };
        let bad = match function {
            "matches" => crate::pattern::compile(text).err(),
            "duration" => crate::library::time::duration(text).err().map(|error| error.to_string()),
            "timestamp" => crate::library::time::timestamp(text).err().map(|error| error.to_string()),
            _ => None,
        };
        if bad.is_some() {
            self.complain(last.at, format!("invalid {function} argument"));
        }
    }

    fn resolve(&mut self, known: &'static [Overload], method: bool, given: &[Type]) -> Option<(Vec<usize>, Type)> {
        let mut chosen = Vec::new();
        let mut result: Option<Type> = None;
        for (number, overload) in known.iter().enumerate() {
            if overload.method != method || overload.params.len() != given.len() {
                continue;
            }
            let before = self.bound.clone();
            let mut names = HashMap::new();
            let params: Vec<Type> = overload.params.iter().map(|param| self.instance(param, &mut names)).collect();
            if !given.iter().zip(&params).all(|(given, param)| self.assignable(given, param)) {
                self.bound = before;
                continue;
            }
            let instance = self.instance(&overload.result, &mut names);
            let found = self.resolved(&instance, false);
            result = Some(match result {
                Some(other) if !other.same(&found) => Type::Dyn,
                _ => found,
            });
            chosen.push(number);
        }
        result.map(|result| (chosen, result))
    }

    fn signature(&self, method: bool, given: &[Type]) -> String {
        let words: Vec<String> = given.iter().map(|found| self.resolved(found, true).to_string()).collect();
        match (method, words.split_first()) {
            (true, Some((receiver, rest))) => format!("{receiver}.({})", rest.join(", ")),
            _ => format!("({})", words.join(", ")),
        }
    }

    fn fold(&mut self, fold: &Fold) -> Type {
        let range = self.expr(&fold.range);
        let range = self.resolved(&range, false);
        let (first, second) = match &range {
            Type::List(list) if fold.var2.is_some() => (Type::Int, list.items.clone()),
            Type::List(list) => (list.items.clone(), Type::Dyn),
            Type::Map(map) => (map.0.clone(), map.1.clone()),
            Type::Dyn | Type::Var(_) => (Type::Dyn, Type::Dyn),
            other => {
                let what = format!("expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)");
                self.complain(fold.range.at, what);
                (Type::Dyn, Type::Dyn)
            }
        };
        let accumulator = self.expr(&fold.init);
        self.scopes.push((crate::ast::ACCUMULATOR.into(), accumulator.clone()));
        self.scopes.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.scopes.push((var2.clone(), second));
        }
        let condition = self.expr(&fold.condition);
        self.expected(fold.condition.at, &condition, &Type::Bool);
        let step = self.expr(&fold.step);
        self.expected(fold.step.at, &step, &accumulator);
        self.scopes.pop();
        if fold.var2.is_some() {
            self.scopes.pop();
        }
        let result = self.expr(&fold.result);
        self.scopes.pop();
        self.resolved(&result, false)
    }

    fn expected(&mut self, at: usize, given: &Type, wanted: &Type) {
        if !self.assignable(given, wanted) {
            let (given, wanted) = (self.resolved(given, true), self.resolved(wanted, true));
            self.complain(at, format!("expected type '{wanted}' but found '{given}'"));
        }
    }

    /// Literals hold values of one type.
    fn join(&mut self, at: usize, joined: &mut Option<Type>, found: Type) {
        match joined {
            None => *joined = Some(found),
            Some(first) => {
                let first_type = first.clone();
                if !self.assignable(&found, &first_type) {
                    let (wanted, given) = (self.resolved(&first_type, true), self.resolved(&found, true));
                    self.complain(at, format!("expected type '{wanted}' but found '{given}'"));
                }
            }
        }
    }

    fn unwrapped(&mut self, at: usize, found: Type) -> Type {
        match self.resolved(&found, false) {
            Type::Optional(inner) => (*inner).clone(),
            Type::Dyn => Type::Dyn,
            other => self.complain(at, format!("expected type 'optional_type({other})' but found '{other}'")),
        }
    }

    fn fresh(&mut self) -> Type {
        self.bound.push(None);
        Type::Var(self.bound.len() - 1)
    }

    /// A declared type with its parameters replaced by stand-ins.
    fn instance(&mut self, declared: &Type, names: &mut HashMap<char, Type>) -> Type {
        match declared {
            Type::Param(name) => match names.get(name) {
                Some(found) => found.clone(),
                None => {
                    let fresh = self.fresh();
                    names.insert(*name, fresh.clone());
                    fresh
                }
            },
            Type::List(list) => Type::list(self.instance(&list.items, names)),
            Type::Map(map) => Type::map(self.instance(&map.0, names), self.instance(&map.1, names)),
            Type::Optional(inner) => Type::optional(self.instance(inner, names)),
            other => other.clone(),
        }
    }

    /// A type with what is known of its stand-ins; unknown ones become `dyn` at the end.
    fn resolved(&self, found: &Type, end: bool) -> Type {
        match found {
            Type::Var(number) => match self.bound.get(*number).and_then(Option::as_ref) {
                Some(bound) => self.resolved(bound, end),
                None if end => Type::Dyn,
                None => found.clone(),
            },
            Type::List(list) => match self.resolved(&list.items, end) {
                items if items.same(&list.items) => found.clone(),
                items => Type::list(items),
            },
            Type::Map(map) => Type::map(self.resolved(&map.0, end), self.resolved(&map.1, end)),
            Type::Optional(inner) => Type::optional(self.resolved(inner, end)),
            other => other.clone(),
        }
    }

    fn assignable(&mut self, given: &Type, wanted: &Type) -> bool {
        let (given, wanted) = (self.shallow(given), self.shallow(wanted));
        match (&given, &wanted) {
            (Type::Var(a), Type::Var(b)) if a == b => true,
            (_, Type::Var(number)) => self.bind(*number, &given),
            (Type::Var(number), _) => self.bind(*number, &wanted),
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::Null, Type::Object(_) | Type::Opaque(_) | Type::Optional(_) | Type::Timestamp | Type::Duration) => true,
            (Type::Object(_) | Type::Opaque(_) | Type::Optional(_) | Type::Timestamp | Type::Duration, Type::Null) => true,
            (Type::List(a), Type::List(b)) => self.assignable(&a.items, &b.items),
            (Type::Map(a), Type::Map(b)) => self.assignable(&a.0, &b.0) && self.assignable(&a.1, &b.1),
            (Type::Optional(a), Type::Optional(b)) => self.assignable(a, b),
            _ => given.same(&wanted),
        }
    }

    fn shallow(&self, found: &Type) -> Type {
        match found {
            Type::Var(number) => match self.bound.get(*number).and_then(Option::as_ref) {
                Some(bound) => self.shallow(bound),
                None => found.clone(),
            },
            other => other.clone(),
        }
    }

    fn bind(&mut self, number: usize, to: &Type) -> bool {
        if self.occurs(number, to) {
            return false;
        }
        if let Some(slot) = self.bound.get_mut(number) {
            *slot = Some(to.clone());
        }
        true
    }

    fn occurs(&self, number: usize, inside: &Type) -> bool {
        match self.shallow(inside) {
            Type::Var(other) => other == number,
            Type::List(list) => self.occurs(number, &list.items),
            Type::Map(map) => self.occurs(number, &map.0) || self.occurs(number, &map.1),
            Type::Optional(inner) => self.occurs(number, &inner),
            _ => false,
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

/// Names that stand for types.
pub fn is_type_name(name: &str) -> bool {
    matches!(
        name,
        "bool"
            | "int"
            | "uint"
            | "double"
            | "string"
            | "bytes"
            | "list"
            | "map"
            | "null_type"
            | "type"
            | "dyn"
            | "google.protobuf.Timestamp"
            | "google.protobuf.Duration"
            | "optional_type"
            | "net.IP"
            | "net.CIDR"
            | "kubernetes.Quantity"
            | "kubernetes.URL"
            | "kubernetes.Semver"
    )
}
