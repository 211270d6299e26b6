//! What expressions cost: at worst, before they are accepted ([`estimate`]), and in fact, while they run.
//!
//! Source: cel-go `checker/cost.go`, `interpreter/runtimecost.go`; apiserver `pkg/cel/library/cost.go`. Numbers are part of the API: they
//! decide which rules a CRD may hold.

use std::collections::HashMap;

use crate::ast::{ACCUMULATOR, Expr, Fold, Kind, Literal};
use crate::check::Checked;
use crate::types::Type;
use crate::value::Value;

mod actual;
mod calls;

pub(crate) use actual::of_call;

/// Of strings, per character.
pub(crate) const TRAVERSAL: f64 = 0.1;
/// Of regular expressions, per character.
pub(crate) const REGEX: f64 = 0.25;

/// Knows the largest sizes of variables and their parts.
pub trait Sizes {
    /// `path` begins with a variable; then come field names, `@items`, `@keys`, `@values`. Strings in characters, lists and maps in
    /// entries. `None` where nothing is known.
    fn max_size(&self, path: &[String]) -> Option<u64>;
}

/// [`Sizes`] that knows nothing.
pub struct Unknown;

impl Sizes for Unknown {
    fn max_size(&self, _path: &[String]) -> Option<u64> {
        None
    }
}

/// A range, of costs or of sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub min: u64,
    pub max: u64,
}

impl Cost {
    pub const UNKNOWN: Cost = Cost { min: 0, max: u64::MAX };

    pub fn fixed(cost: u64) -> Self {
        Self { min: cost, max: cost }
    }
    pub fn plus(self, other: Cost) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }
    pub fn times(self, other: Cost) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }
    pub fn scaled(self, factor: f64) -> Self {
        let scale = |number: u64| {
            let scaled = (number as f64 * factor).ceil();
            if scaled >= 18_446_744_073_709_551_615.0 { u64::MAX } else { scaled as u64 }
        };
        Self { min: scale(self.min), max: scale(self.max) }
    }
    pub fn union(self, other: Cost) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// Sizes of a container's keys and values.
#[derive(Clone, Copy, Debug)]
struct Entries {
    key: Cost,
    value: Cost,
}

struct Local {
    name: String,
    path: Vec<String>,
    size: Option<Cost>,
    entries: Option<Entries>,
}

pub(crate) struct Estimator<'e> {
    checked: &'e Checked,
    sizes: &'e dyn Sizes,
    paths: HashMap<usize, Vec<String>>,
    known: HashMap<usize, Cost>,
    entries: HashMap<usize, Entries>,
    locals: Vec<Local>,
}

/// A part of a call, as its price is computed from it.
pub(crate) struct Part<'e> {
    pub expr: &'e Expr,
    pub ty: Type,
    pub path: Vec<String>,
    pub size: Option<Cost>,
}

pub(crate) fn estimate(expr: &Expr, checked: &Checked, sizes: &dyn Sizes) -> Cost {
    let mut estimator =
        Estimator { checked, sizes, paths: HashMap::new(), known: HashMap::new(), entries: HashMap::new(), locals: Vec::new() };
    estimator.cost(expr)
}

impl Estimator<'_> {
    fn ty(&self, expr: &Expr) -> Type {
        self.checked.types.get(expr.id).cloned().unwrap_or(Type::Dyn)
    }

    fn cost(&mut self, expr: &Expr) -> Cost {
        match &expr.kind {
            Kind::Literal(_) => Cost::default(),
            Kind::Ident(name) => {
                let path = self.local(name).map_or_else(|| vec![name.clone()], |local| local.path.clone());
                self.paths.insert(expr.id, path);
                Cost::fixed(1)
            }
            Kind::Select { operand, field, test, .. } => {
                let cost = self.cost(operand);
                if *test {
                    return cost;
                }
                let mut path = self.path(operand);
                path.push(field.clone());
                self.paths.insert(expr.id, path);
                match self.ty(operand) {
                    Type::Map(_) | Type::Object(_) => cost.plus(Cost::fixed(1)),
                    _ => cost,
                }
            }
            Kind::Call { function, target, args } => self.call(expr, function, target.as_deref(), args),
            Kind::List(items) => {
                let mut cost = Cost::fixed(10);
                let mut size = Cost { min: if items.is_empty() { 0 } else { u64::MAX }, max: 0 };
                for (item, _) in items {
                    cost = cost.plus(self.cost(item));
                    size = size.union(self.size_or_unknown(item));
                }
                self.entries.insert(expr.id, Entries { key: Cost::fixed(1), value: size });
                cost
            }
            Kind::Map(entries) => {
                let mut cost = Cost::fixed(30);
                let empty = Cost { min: if entries.is_empty() { 0 } else { u64::MAX }, max: 0 };
                let (mut key, mut value) = (empty, empty);
                for entry in entries {
                    cost = cost.plus(self.cost(&entry.key)).plus(self.cost(&entry.value));
                    key = key.union(self.size_or_unknown(&entry.key));
                    value = value.union(self.size_or_unknown(&entry.value));
                }
                self.entries.insert(expr.id, Entries { key, value });
                cost
            }
            Kind::Struct { fields, .. } => fields.iter().fold(Cost::fixed(40), |cost, field| cost.plus(self.cost(&field.value))),
            Kind::Fold(fold) => self.fold(expr, fold),
            Kind::Bind { var, init, body } => {
                // The empty range of cel-go's expansion is a list.
                let mut cost = Cost::fixed(10).plus(self.cost(init));
                let local = Local { name: var.clone(), path: self.path(init), size: self.size(init), entries: self.entries_of(init) };
                self.locals.push(local);
                cost = cost.plus(self.cost(body));
                let (size, entries) = (self.size(body), self.entries_of(body));
                self.locals.pop();
                self.keep(expr, size, entries);
                cost
            }
        }
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|local| local.name == name)
    }

    fn path(&self, expr: &Expr) -> Vec<String> {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&expr.id).cloned().unwrap_or_default()
    }

    fn keep(&mut self, expr: &Expr, size: Option<Cost>, entries: Option<Entries>) {
        if let Some(size) = size {
            self.known.insert(expr.id, size);
        }
        if let Some(entries) = entries {
            self.entries.insert(expr.id, entries);
        }
    }

    fn fold(&mut self, expr: &Expr, fold: &Fold) -> Cost {
        let mut cost = self.cost(&fold.range);
        cost = cost.plus(self.cost(&fold.init));
        let init = Local {
            name: ACCUMULATOR.into(),
            path: self.path(&fold.init),
            size: self.size(&fold.init),
            entries: self.entries_of(&fold.init),
        };
        self.locals.push(init);
        let entries = self.entries_of(&fold.range);
        let is_list = matches!(self.ty(&fold.range), Type::List(_));
        let part = |estimator: &Self, name: &str, step: &str, size| {
            let mut path = estimator.path(&fold.range);
            path.push(step.to_owned());
            Local { name: name.to_owned(), path, size, entries: None }
        };
        let (key, value) = (entries.map(|entries| entries.key), entries.map(|entries| entries.value));
        let (key_step, value_step) = if is_list { ("@indices", "@items") } else { ("@keys", "@values") };
        let pushed = match &fold.var2 {
            Some(var2) => {
                let (first, second) = (part(self, &fold.var, key_step, key), part(self, var2, value_step, value));
                self.locals.push(first);
                self.locals.push(second);
                2
            }
            None => {
                let (step, size) = if is_list { ("@items", value) } else { ("@keys", key) };
                let local = part(self, &fold.var, step, size);
                self.locals.push(local);
                1
            }
        };
        let condition = self.cost(&fold.condition);
        let step = self.cost(&fold.step);
        let step_entries = self.entries_of(&fold.step);
        self.locals.truncate(self.locals.len() - pushed);
        cost = cost.plus(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        cost = cost.plus(count.times(step.plus(condition)));
        match &fold.init.kind {
            Kind::Literal(_) => {
                let size = self.size(&fold.init);
                self.keep(expr, size, None);
            }
            Kind::List(_) | Kind::Map(_) => self.keep(expr, Some(count), step_entries),
            _ => {}
        }
        cost
    }

    fn entries_of(&self, expr: &Expr) -> Option<Entries> {
        if let Some(entries) = self.entries.get(&expr.id) {
            return Some(*entries);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.entries,
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Cost {
        self.size(expr).unwrap_or(Cost::UNKNOWN)
    }

    fn size(&mut self, expr: &Expr) -> Option<Cost> {
        if let Some(size) = self.known.get(&expr.id) {
            return Some(*size);
        }
        if let Some(size) = literal_size(expr) {
            return Some(Cost::fixed(size));
        }
        let ty = self.ty(expr);
        if let Some(size) = self.declared(&self.path(expr), &ty) {
            self.known.insert(expr.id, size);
            return Some(size);
        }
        if ty.is_scalar() {
            return Some(Cost::fixed(1));
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name)?.size,
            _ => None,
        }
    }

    /// The size that the schema gives a path.
    pub(crate) fn declared(&self, path: &[String], _ty: &Type) -> Option<Cost> {
        if path.is_empty() || path.first().is_some_and(|first| first.starts_with('@')) {
            return None;
        }
        self.sizes.max_size(path).map(|max| Cost { min: 0, max })
    }

    fn part<'p>(&mut self, expr: &'p Expr) -> Part<'p> {
        let mut path = self.path(expr);
        if path.first().is_some_and(|first| first == ACCUMULATOR) {
            path.clear();
        }
        Part { expr, ty: self.ty(expr), path, size: self.size(expr) }
    }

    fn call(&mut self, expr: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Cost {
        if let ("dyn", [inner]) = (function, args) {
            let cost = self.cost(inner).plus(Cost::fixed(1));
            let (size, entries) = (self.size(inner), self.entries_of(inner));
            self.keep(expr, size, entries);
            return cost;
        }
        let costs: Vec<Cost> = args.iter().map(|arg| self.cost(arg)).collect();
        let mut sum = Cost::default();
        if let Some(target) = target {
            sum = sum.plus(self.cost(target));
        }
        let target = target.map(|target| self.part(target));
        let parts: Vec<Part<'_>> = args.iter().map(|arg| self.part(arg)).collect();
        let call = calls::Call { function, target: target.as_ref(), args: &parts, costs: &costs };
        let overloads = self.checked.overloads.get(&expr.id).cloned().unwrap_or_default();
        let (cost, size) = calls::price(self, &call, &overloads);
        self.track(expr, function, &parts);
        let size = size.or_else(|| self.size(expr));
        self.keep(expr, size, None);
        sum.plus(cost)
    }

    /// Paths and sizes of the entries through indexes, sums and choices.
    fn track(&mut self, expr: &Expr, function: &str, args: &[Part<'_>]) {
        match (function, args) {
            ("_[_]" | "_[?_]", [from, _]) => {
                let step = if matches!(from.ty, Type::List(_)) { "@items" } else { "@values" };
                let mut path = self.path(from.expr);
                path.push(step.into());
                self.paths.insert(expr.id, path);
                if let Some(entries) = self.entries_of(from.expr) {
                    self.known.insert(expr.id, entries.value);
                }
            }
            ("_+_", [a, b]) | ("_?_:_", [_, a, b]) => {
                if let (Some(a), Some(b)) = (self.entries_of(a.expr), self.entries_of(b.expr)) {
                    let joined = Entries { key: a.key.union(b.key), value: a.value.union(b.value) };
                    self.entries.insert(expr.id, joined);
                }
            }
            _ => {}
        }
    }
}

fn literal_size(expr: &Expr) -> Option<u64> {
    Some(match &expr.kind {
        Kind::Literal(Literal::String(text)) => crate::value::char_count(text) as u64,
        Kind::Literal(Literal::Bytes(bytes)) => bytes.len() as u64,
        Kind::Literal(_) => 1,
        Kind::List(items) => items.len() as u64,
        Kind::Map(entries) => entries.len() as u64,
        _ => return None,
    })
}

/// What it costs to look at every part of a value.
pub(crate) fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::String(text) => (text.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => list.iter().map(|item| traversal(&item)).sum(),
        Value::Map(map) => map.iter().map(|(key, value)| traversal(&key) + traversal(&value)).sum(),
        _ => 1,
    }
}
