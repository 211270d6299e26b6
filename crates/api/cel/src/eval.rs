//! Running an expression: a walk over the tree that pays for every step.
//!
//! Source: cel-go `interpreter` (what absorbs errors, what costs how much).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ast::{ACCUMULATOR, Expr, Fold, Kind, Literal};
use crate::error::{EvalError, no_such_overload};
use crate::library;
use crate::value::{List, Map, Text, Value};

/// The variables of one evaluation.
#[derive(Clone, Default)]
pub struct Activation<'a> {
    variables: Vec<(&'a str, Value<'a>)>,
    composed: Option<(&'a str, &'a dyn Composed<'a>)>,
}

/// A variable whose fields are expressions themselves, evaluated at their first use (`variables` of admission policies).
pub trait Composed<'a>: Send + Sync {
    fn field(&self, name: &str, budget: &mut Budget<'_>) -> Option<Result<Value<'a>, EvalError>>;
}

impl<'a> Activation<'a> {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn with(mut self, name: &'a str, value: Value<'a>) -> Self {
        self.variables.push((name, value));
        self
    }
    pub fn with_composed(mut self, name: &'a str, composed: &'a dyn Composed<'a>) -> Self {
        self.composed = Some((name, composed));
        self
    }
    fn get(&self, name: &str) -> Option<Value<'a>> {
        self.variables.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    }
}

/// What may still be spent on one request's expressions, and who may interrupt them.
#[derive(Clone, Debug)]
pub struct Budget<'b> {
    pub remaining: u64,
    /// Of one evaluation.
    pub per_call: u64,
    pub interrupt: Option<&'b AtomicBool>,
    spent: u64,
}

impl Default for Budget<'_> {
    fn default() -> Self {
        Self::new(crate::REQUEST_BUDGET)
    }
}

impl<'b> Budget<'b> {
    pub fn new(remaining: u64) -> Self {
        Self { remaining, per_call: crate::PER_CALL_LIMIT, interrupt: None, spent: 0 }
    }
    pub fn interrupted_by(mut self, interrupt: &'b AtomicBool) -> Self {
        self.interrupt = Some(interrupt);
        self
    }

    fn spend(&mut self, cost: u64) -> Result<(), EvalError> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.per_call {
            return Err(EvalError::CostExceeded);
        }
        if self.spent > self.remaining {
            return Err(EvalError::BudgetExceeded);
        }
        Ok(())
    }
}

pub(crate) fn run<'a>(expr: &'a Expr, activation: &Activation<'a>, budget: &mut Budget<'_>) -> Result<Value<'a>, EvalError> {
    let outer = std::mem::take(&mut budget.spent);
    let mut evaluation = Evaluation { activation, budget, scopes: Vec::new() };
    let outcome = evaluation.expr(expr);
    budget.remaining = budget.remaining.saturating_sub(budget.spent);
    budget.spent = outer;
    outcome
}

struct Evaluation<'r, 'a, 'b> {
    activation: &'r Activation<'a>,
    budget: &'r mut Budget<'b>,
    scopes: Vec<(&'a str, Value<'a>)>,
}

type Evaluated<'a> = Result<Value<'a>, EvalError>;

impl<'a> Evaluation<'_, 'a, '_> {
    fn expr(&mut self, expr: &'a Expr) -> Evaluated<'a> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(constant(literal)),
            Kind::Ident(name) => {
                self.budget.spend(1)?;
                self.ident(name)
            }
            Kind::Select { operand, field, test, optional } => self.select(expr, operand, field, *test, *optional),
            Kind::Call { function, target, args } => self.call(function, target.as_deref(), args),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => {
                let mut made: Vec<(Value<'a>, Value<'a>)> = Vec::with_capacity(entries.len());
                for entry in entries {
                    let key = self.expr(&entry.key)?;
                    let value = self.expr(&entry.value)?;
                    let value = match (entry.optional, value) {
                        (true, Value::Optional(Some(inner))) => (*inner).clone(),
                        (true, Value::Optional(None)) => continue,
                        (_, value) => value,
                    };
                    if made.iter().any(|(known, _)| known.equal(&key)) {
                        return Err(EvalError::failed("Failed with repeated key"));
                    }
                    made.push((key, value));
                }
                self.budget.spend(30)?;
                Ok(Value::map(made))
            }
            Kind::Struct { name, fields } => {
                let mut made = Vec::with_capacity(fields.len());
                for field in fields {
                    match (field.optional, self.expr(&field.value)?) {
                        (true, Value::Optional(Some(inner))) => made.push((field.name.clone(), (*inner).clone())),
                        (true, Value::Optional(None)) => {}
                        (_, value) => made.push((field.name.clone(), value)),
                    }
                }
                self.budget.spend(40)?;
                Ok(Value::Struct(Arc::new((name.clone(), made))))
            }
            Kind::Fold(fold) => self.fold(fold),
            Kind::Bind { var, init, body } => {
                let value = self.expr(init)?;
                self.scopes.push((var, value));
                let result = self.expr(body);
                self.scopes.pop();
                result
            }
        }
    }

    fn ident(&self, name: &str) -> Evaluated<'a> {
        if let Some((_, value)) = self.scopes.iter().rev().find(|(known, _)| *known == name) {
            return Ok(value.clone());
        }
        match self.activation.get(name) {
            Some(value) => Ok(value),
            None if crate::check::is_type_name(name) => Ok(Value::Type(name.into())),
            None => Err(EvalError::failed(format!("no such attribute(s): {name}"))),
        }
    }

    fn list(&mut self, items: &'a [(Expr, bool)]) -> Evaluated<'a> {
        let constant = items.iter().all(|(item, _)| matches!(item.kind, Kind::Literal(_)));
        let mut made = Vec::with_capacity(items.len());
        self.items(items, &mut made)?;
        // Lists of literals are made once, when cel-go plans the program.
        self.budget.spend(if constant && !items.is_empty() { 0 } else { 10 })?;
        Ok(Value::list(made))
    }

    fn items(&mut self, items: &'a [(Expr, bool)], made: &mut Vec<Value<'a>>) -> Result<(), EvalError> {
        for (item, optional) in items {
            match (optional, self.expr(item)?) {
                (true, Value::Optional(Some(inner))) => made.push((*inner).clone()),
                (true, Value::Optional(None)) => {}
                (_, value) => made.push(value),
            }
        }
        Ok(())
    }

    fn select(&mut self, expr: &'a Expr, operand: &'a Expr, field: &'a str, test: bool, optional: bool) -> Evaluated<'a> {
        if let Kind::Ident(name) = &operand.kind
            && let Some((composed_name, composed)) = self.activation.composed
            && name == composed_name
            && !self.scopes.iter().any(|(known, _)| known == name)
        {
            self.budget.spend(2)?;
            return match (composed.field(field, self.budget), test) {
                (found, true) => Ok(Value::Bool(found.is_some())),
                (Some(found), _) => found,
                (None, _) => Err(no_such_key(field)),
            };
        }
        if let Some(name) = expr.qualified() {
            if let Some(value) = self.activation.get(&name) {
                self.budget.spend(1)?;
                return Ok(value);
            }
            if crate::check::is_type_name(&name) {
                return Ok(Value::Type(name.into()));
            }
        }
        let from = self.expr(operand)?;
        if test {
            return Ok(Value::Bool(has_member(&from, field)?));
        }
        self.budget.spend(1)?;
        match from {
            Value::Optional(None) => Ok(Value::NONE),
            Value::Optional(Some(inner)) => Ok(wrapped(inner.member(field))),
            from if optional => Ok(wrapped(from.member(field))),
            Value::Map(_) | Value::Struct(_) => from.member(field).ok_or_else(|| no_such_key(field)),
            _ => Err(no_such_overload()),
        }
    }

    fn call(&mut self, function: &'a str, target: Option<&'a Expr>, args: &'a [Expr]) -> Evaluated<'a> {
        match (function, args) {
            ("_&&_", [left, right]) => return self.logic(left, right, false),
            ("_||_", [left, right]) => return self.logic(left, right, true),
            ("_?_:_", [condition, truthy, falsy]) => {
                return match self.expr(condition)? {
                    Value::Bool(true) => self.expr(truthy),
                    Value::Bool(false) => self.expr(falsy),
                    _ => Err(no_such_overload()),
                };
            }
            ("@not_strictly_false", [inner]) => {
                let outcome = self.expr(inner);
                self.budget.spend(1)?;
                return match outcome {
                    Err(fatal) if fatal.is_fatal() => Err(fatal),
                    Ok(Value::Bool(false)) => Ok(Value::Bool(false)),
                    _ => Ok(Value::Bool(true)),
                };
            }
            ("_+_", [Expr { kind: Kind::Ident(name), .. }, Expr { kind: Kind::List(items), .. }]) if name == ACCUMULATOR => {
                return self.append(items);
            }
            ("or" | "orValue", [other]) if target.is_some() => {
                let Some(target) = target else { return Err(no_such_overload()) };
                let value = self.expr(target)?;
                self.budget.spend(1)?;
                return match (value, function) {
                    (Value::Optional(Some(inner)), "orValue") => Ok((*inner).clone()),
                    (some @ Value::Optional(Some(_)), _) => Ok(some),
                    (Value::Optional(None), _) => self.expr(other),
                    _ => Err(no_such_overload()),
                };
            }
            _ => {}
        }
        let mut values: [Value<'a>; 4] = [Value::Null, Value::Null, Value::Null, Value::Null];
        let mut count = 0;
        for part in target.into_iter().chain(args) {
            let value = self.expr(part)?;
            match values.get_mut(count) {
                Some(slot) => *slot = value,
                None => return Err(no_such_overload()),
            }
            count += 1;
        }
        let values = values.get(..count).unwrap_or_default();
        let result = library::call(function, values)?;
        self.budget.spend(crate::cost::of_call(function, values, &result))?;
        Ok(result)
    }

    /// `&&` and `||`: an operand that decides makes the other's error not matter.
    fn logic(&mut self, left: &'a Expr, right: &'a Expr, decisive: bool) -> Evaluated<'a> {
        let left = self.expr(left);
        match &left {
            Ok(Value::Bool(truth)) if *truth == decisive => return Ok(Value::Bool(decisive)),
            Err(error) if error.is_fatal() => return left,
            _ => {}
        }
        let right = self.expr(right);
        match (left, right) {
            (_, Ok(Value::Bool(truth))) if truth == decisive => Ok(Value::Bool(decisive)),
            (_, Err(error)) if error.is_fatal() => Err(error),
            (Err(error), _) => Err(error),
            (_, Err(error)) => Err(error),
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => Ok(Value::Bool(!decisive)),
            _ => Err(no_such_overload()),
        }
    }

    /// `@result + [item]` of a macro: the accumulator is nobody else's, so that the item is added in place.
    fn append(&mut self, items: &'a [(Expr, bool)]) -> Evaluated<'a> {
        let mut made = Vec::with_capacity(1);
        self.items(items, &mut made)?;
        self.budget.spend(1 + 10 + 1)?;
        let slot = self.scopes.iter_mut().rev().find(|(known, _)| *known == ACCUMULATOR);
        let Some((_, slot)) = slot else { return Err(no_such_overload()) };
        match std::mem::replace(slot, Value::Null) {
            Value::List(List::Owned(mut list)) => {
                Arc::make_mut(&mut list).extend(made);
                Ok(Value::List(List::Owned(list)))
            }
            _ => Err(no_such_overload()),
        }
    }

    fn fold(&mut self, fold: &'a Fold) -> Evaluated<'a> {
        let range = self.expr(&fold.range)?;
        let init = self.expr(&fold.init)?;
        let depth = self.scopes.len();
        self.scopes.push((ACCUMULATOR, init));
        let outcome = match &range {
            Value::List(list) => {
                let items = list.iter().enumerate().map(|(at, item)| match &fold.var2 {
                    Some(_) => (Value::Int(at as i64), item),
                    None => (item, Value::Null),
                });
                self.steps(fold, items, depth)
            }
            Value::Map(map) => self.steps(fold, map.iter(), depth),
            _ => Err(no_such_overload()),
        };
        let outcome = outcome.and_then(|()| self.expr(&fold.result));
        self.scopes.truncate(depth);
        outcome
    }

    fn steps(&mut self, fold: &'a Fold, items: impl Iterator<Item = (Value<'a>, Value<'a>)>, depth: usize) -> Result<(), EvalError> {
        let mut failed: Option<EvalError> = None;
        for (first, second) in items {
            if self.budget.interrupt.is_some_and(|interrupt| interrupt.load(Ordering::Relaxed)) {
                return Err(EvalError::Interrupted);
            }
            self.scopes.push((&fold.var, first));
            if let Some(var2) = &fold.var2 {
                self.scopes.push((var2, second));
            }
            let outcome = self.step(fold, &mut failed);
            self.scopes.truncate(depth + 1);
            match outcome? {
                Some(value) => self.accumulate(depth, value),
                None => break,
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The accumulator's next value; `None` at the end of the loop. An accumulator that is an error (`all` over something that fails)
    /// may still be saved by a later item.
    fn step(&mut self, fold: &'a Fold, failed: &mut Option<EvalError>) -> Result<Option<Value<'a>>, EvalError> {
        if let Some(error) = failed.take() {
            // cel-go: `error && x` and `error || x` are decided by x alone.
            let Kind::Call { function, args, .. } = &fold.step.kind else { return Err(error) };
            let decisive = match function.as_str() {
                "_&&_" => false,
                "_||_" => true,
                _ => return Err(error),
            };
            self.budget.spend(3)?;
            let Some(predicate) = args.get(1) else { return Err(error) };
            return match self.expr(predicate) {
                Ok(Value::Bool(truth)) if truth == decisive => Ok(Some(Value::Bool(decisive))),
                Err(fatal) if fatal.is_fatal() => Err(fatal),
                _ => {
                    *failed = Some(error);
                    Ok(Some(Value::Bool(!decisive)))
                }
            };
        }
        if !matches!(self.expr(&fold.condition)?, Value::Bool(true)) {
            return Ok(None);
        }
        match self.expr(&fold.step) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_fatal() => Err(error),
            Err(error) => match &fold.step.kind {
                Kind::Call { function, .. } if function == "_&&_" || function == "_||_" => {
                    *failed = Some(error);
                    Ok(Some(Value::Bool(function == "_&&_")))
                }
                _ => Err(error),
            },
        }
    }

    fn accumulate(&mut self, depth: usize, value: Value<'a>) {
        if let Some((_, slot)) = self.scopes.get_mut(depth) {
            *slot = value;
        }
    }
}

fn wrapped(found: Option<Value<'_>>) -> Value<'_> {
    found.map_or(Value::NONE, Value::some)
}

fn no_such_key(name: &str) -> EvalError {
    EvalError::failed(format!("no such key: {name}"))
}

fn has_member(from: &Value<'_>, field: &str) -> Result<bool, EvalError> {
    match from {
        Value::Map(Map::Json { .. } | Map::Owned(_)) | Value::Struct(_) => Ok(from.member(field).is_some()),
        Value::Map(map) => Ok(map.contains(&Value::string(field))),
        Value::Optional(None) => Ok(false),
        Value::Optional(Some(inner)) => has_member(inner, field),
        _ => Err(no_such_overload()),
    }
}

fn constant(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(truth) => Value::Bool(*truth),
        Literal::Int(number) => Value::Int(*number),
        Literal::Uint(number) => Value::Uint(*number),
        Literal::Double(number) => Value::Double(*number),
        Literal::String(text) => Value::String(Text::Borrowed(text)),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}
