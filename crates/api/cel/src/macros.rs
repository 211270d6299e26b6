//! Calls that are loops: each macro becomes a comprehension, as in cel-go, so that costs come out alike.

use crate::ast::{ACCUMULATOR, Expr, Fold, Kind, Literal};
use crate::error::Issue;
use crate::parser::Parser;

type Expanded = Result<Expr, Issue>;

/// `has(a.b)`.
pub fn has(parser: &mut Parser, at: usize, mut args: Vec<Expr>) -> Expanded {
    match args.pop() {
        Some(Expr { kind: Kind::Select { operand, field, test: false, optional: false }, .. }) => {
            Ok(parser.make(at, Kind::Select { operand, field, test: true, optional: false }))
        }
        _ => Err(Issue { at, message: "invalid argument to has() macro".into() }),
    }
}

/// `cel.bind(name, value, body)`.
pub fn bind(parser: &mut Parser, at: usize, args: Vec<Expr>) -> Expanded {
    let mut args = args.into_iter();
    match (args.next(), args.next(), args.next()) {
        (Some(var), Some(init), Some(body)) => {
            let Kind::Ident(var) = var.kind else {
                return Err(Issue { at: var.at, message: "cel.bind() variable names must be simple identifiers".into() });
            };
            Ok(parser.make(at, Kind::Bind { var, init: Box::new(init), body: Box::new(body) }))
        }
        _ => Err(Issue { at, message: "cel.bind() takes three arguments".into() }),
    }
}

/// `target.name(args)`: a macro, or a plain method.
pub fn method(parser: &mut Parser, at: usize, target: Expr, name: &str, args: Vec<Expr>) -> Expanded {
    match (name, args.len()) {
        ("all" | "exists" | "exists_one" | "existsOne" | "filter", 2) | ("map", 2 | 3) => one_variable(parser, at, target, name, args),
        ("all" | "exists" | "existsOne", 3) | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => {
            two_variables(parser, at, target, name, args)
        }
        ("optMap" | "optFlatMap", 2) => optional(parser, at, target, name, args),
        ("sortBy", 2) => sort_by(parser, at, target, args),
        _ => Ok(parser.make(at, Kind::Call { function: name.into(), target: Some(Box::new(target)), args })),
    }
}

fn variable(expr: Expr) -> Result<String, Issue> {
    match expr.kind {
        Kind::Ident(name) if name != ACCUMULATOR && name != "__result__" => Ok(name),
        Kind::Ident(_) => Err(Issue { at: expr.at, message: "iteration variable overwrites accumulator variable".into() }),
        _ => Err(Issue { at: expr.at, message: "argument must be a simple name".into() }),
    }
}

struct Parts {
    init: Expr,
    condition: Expr,
    step: Expr,
    result: Expr,
}

fn one_variable(parser: &mut Parser, at: usize, target: Expr, name: &str, args: Vec<Expr>) -> Expanded {
    let mut args = args.into_iter();
    let Some(first) = args.next() else { return Err(Issue { at, message: "a macro needs a variable".into() }) };
    let first_at = first.at;
    let var = variable(first)?;
    let rest: Vec<Expr> = args.collect();
    let parts = match name {
        "filter" => {
            let item = parser.ident(first_at, &var);
            append(parser, at, item, rest)
        }
        "map" => {
            let mut rest = rest;
            let value = rest.pop();
            let value = value.unwrap_or_else(|| parser.literal(at, Literal::Null));
            append(parser, at, value, rest)
        }
        _ => quantifier(parser, at, name, rest),
    };
    Ok(fold(parser, at, target, var, None, parts))
}

fn two_variables(parser: &mut Parser, at: usize, target: Expr, name: &str, args: Vec<Expr>) -> Expanded {
    let mut args = args.into_iter();
    let (Some(first), Some(second)) = (args.next(), args.next()) else {
        return Err(Issue { at, message: "the macro needs two variables".into() });
    };
    let second_at = second.at;
    let (var, var2) = (variable(first)?, variable(second)?);
    if var == var2 {
        return Err(Issue { at: second_at, message: format!("duplicate variable name: {var}") });
    }
    let mut rest: Vec<Expr> = args.collect();
    let parts = match name {
        "transformList" | "transformMap" | "transformMapEntry" => {
            let value = rest.pop().unwrap_or_else(|| parser.literal(at, Literal::Null));
            match name {
                "transformList" => append(parser, at, value, rest),
                _ => {
                    let init = parser.make(at, Kind::Map(Vec::new()));
                    let accumulator = parser.ident(at, ACCUMULATOR);
                    let step = if name == "transformMap" {
                        let key = parser.ident(at, &var);
                        parser.call(at, "@mapInsert", vec![accumulator, key, value])
                    } else {
                        parser.call(at, "@mapInsert", vec![accumulator, value])
                    };
                    collect(parser, at, init, step, rest)
                }
            }
        }
        _ => quantifier(parser, at, name, rest),
    };
    Ok(fold(parser, at, target, var, Some(var2), parts))
}

fn fold(parser: &mut Parser, at: usize, range: Expr, var: String, var2: Option<String>, parts: Parts) -> Expr {
    let Parts { init, condition, step, result } = parts;
    parser.make(at, Kind::Fold(Box::new(Fold { range, var, var2, init, condition, step, result })))
}

/// `all`, `exists`, `exists_one`.
fn quantifier(parser: &mut Parser, at: usize, name: &str, mut rest: Vec<Expr>) -> Parts {
    let predicate = rest.pop().unwrap_or_else(|| parser.literal(at, Literal::Bool(true)));
    let accumulator = parser.ident(at, ACCUMULATOR);
    let result = parser.ident(at, ACCUMULATOR);
    match name {
        "all" => {
            let init = parser.literal(at, Literal::Bool(true));
            let inner = parser.ident(at, ACCUMULATOR);
            let condition = parser.call(at, "@not_strictly_false", vec![inner]);
            let step = parser.call(at, "_&&_", vec![accumulator, predicate]);
            Parts { init, condition, step, result }
        }
        "exists" => {
            let init = parser.literal(at, Literal::Bool(false));
            let inner = parser.ident(at, ACCUMULATOR);
            let not = parser.call(at, "!_", vec![inner]);
            let condition = parser.call(at, "@not_strictly_false", vec![not]);
            let step = parser.call(at, "_||_", vec![accumulator, predicate]);
            Parts { init, condition, step, result }
        }
        _ => {
            let init = parser.literal(at, Literal::Int(0));
            let condition = parser.literal(at, Literal::Bool(true));
            let one = parser.literal(at, Literal::Int(1));
            let more = parser.ident(at, ACCUMULATOR);
            let sum = parser.call(at, "_+_", vec![more, one]);
            let step = parser.call(at, "_?_:_", vec![predicate, sum, accumulator]);
            let one = parser.literal(at, Literal::Int(1));
            let result = parser.call(at, "_==_", vec![result, one]);
            Parts { init, condition, step, result }
        }
    }
}

/// A list of `value`s; `filter` holds at most one condition.
fn append(parser: &mut Parser, at: usize, value: Expr, filter: Vec<Expr>) -> Parts {
    let init = parser.make(at, Kind::List(Vec::new()));
    let accumulator = parser.ident(at, ACCUMULATOR);
    let item = parser.make(at, Kind::List(vec![(value, false)]));
    let step = parser.call(at, "_+_", vec![accumulator, item]);
    collect(parser, at, init, step, filter)
}

fn collect(parser: &mut Parser, at: usize, init: Expr, step: Expr, mut filter: Vec<Expr>) -> Parts {
    let condition = parser.literal(at, Literal::Bool(true));
    let step = match filter.pop() {
        Some(filter) => {
            let unchanged = parser.ident(at, ACCUMULATOR);
            parser.call(at, "_?_:_", vec![filter, step, unchanged])
        }
        None => step,
    };
    let result = parser.ident(at, ACCUMULATOR);
    Parts { init, condition, step, result }
}

/// `target.optMap(x, f)`: `target.hasValue() ? optional.of(f(target.value())) : optional.none()`.
fn optional(parser: &mut Parser, at: usize, target: Expr, name: &str, args: Vec<Expr>) -> Expanded {
    let mut args = args.into_iter();
    let (Some(var), Some(body)) = (args.next(), args.next()) else {
        return Err(Issue { at, message: format!("{name}() takes two arguments") });
    };
    let var_at = var.at;
    let Kind::Ident(var) = var.kind else {
        return Err(Issue { at: var_at, message: format!("{name}() variable name must be a simple identifier") });
    };
    let hidden = "@optional".to_owned();
    let method = |parser: &mut Parser, function: &str| {
        let target = parser.ident(at, "@optional");
        parser.make(at, Kind::Call { function: function.into(), target: Some(Box::new(target)), args: Vec::new() })
    };
    let has_value = method(parser, "hasValue");
    let value = method(parser, "value");
    let body = parser.make(at, Kind::Bind { var, init: Box::new(value), body: Box::new(body) });
    let some = if name == "optMap" { parser.call(at, "optional.of", vec![body]) } else { body };
    let none = parser.call(at, "optional.none", Vec::new());
    let choice = parser.call(at, "_?_:_", vec![has_value, some, none]);
    Ok(parser.make(at, Kind::Bind { var: hidden, init: Box::new(target), body: Box::new(choice) }))
}

/// `list.sortBy(x, key)`: the list beside its keys, sorted together.
fn sort_by(parser: &mut Parser, at: usize, target: Expr, args: Vec<Expr>) -> Expanded {
    let target_name = "@sorted".to_owned();
    let range = parser.ident(at, &target_name);
    let keys = one_variable(parser, at, range, "map", args)?;
    let list = parser.ident(at, &target_name);
    let sorted = parser.make(at, Kind::Call { function: "@sortByAssociatedKeys".into(), target: Some(Box::new(list)), args: vec![keys] });
    Ok(parser.make(at, Kind::Bind { var: target_name, init: Box::new(target), body: Box::new(sorted) }))
}
