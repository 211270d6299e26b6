//! `x-kubernetes-validations`: compiled with the schema, run over objects under a budget.
//!
//! Source: apiextensions-apiserver `pkg/apiserver/schema/cel`; KEP-2876, KEP-4008 (ratcheting).

pub mod types;

use std::collections::BTreeMap;

use cel::{Activation, Budget, Env, EvalError, Program, Type, Value};
use meta::field::{Error, Path};
use serde_json::Value as Json;

use crate::node::{Node, Rule};

/// A rule that compiled.
#[derive(Debug)]
pub struct Compiled {
    pub rule: Rule,
    pub program: Program,
    pub message: Option<Program>,
    pub uses_old_self: bool,
}

/// The rules of a schema, in the schema's shape; branches without rules are left out.
#[derive(Debug)]
pub struct Rules {
    /// The JSON type of the values here.
    kind: String,
    ty: Type,
    own: Vec<Compiled>,
    properties: BTreeMap<String, Rules>,
    additional: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
    /// For the items' counterparts in the old list.
    node: Option<Box<Node>>,
}

const MESSAGE_BYTES_MAX: usize = 5 << 10;

/// Compiles what compiles: what does not was refused when the CRD was written. `None` where there are no rules.
pub fn compile(node: &Node) -> Option<Rules> {
    compile_at(node, true)
}

fn compile_at(node: &Node, root: bool) -> Option<Rules> {
    let properties: BTreeMap<String, Rules> =
        node.properties.iter().filter_map(|(name, child)| Some((name.clone(), compile_at(child, child.embedded)?))).collect();
    let additional = node.additional_schema().and_then(|child| compile_at(child, child.embedded)).map(Box::new);
    let items = node.items.as_ref().and_then(|child| compile_at(child, child.embedded)).map(Box::new);
    let ty = types::declared(node, root || node.embedded);
    let own: Vec<Compiled> = match &ty {
        Some(ty) => rules_of(node).filter_map(|rule| compile_rule(rule, ty).ok()).collect(),
        None => Vec::new(),
    };
    if own.is_empty() && properties.is_empty() && additional.is_none() && items.is_none() {
        return None;
    }
    let keyed = items.is_some().then(|| {
        let names = node.items.as_deref().map(|items| Node { properties: items.properties.clone(), ..Node::default() });
        Box::new(Node {
            list_type: node.list_type.clone(),
            list_map_keys: node.list_map_keys.clone(),
            items: names.map(Box::new),
            ..Node::default()
        })
    });
    Some(Rules { kind: node.ty.clone(), ty: ty.unwrap_or(Type::Dyn), own, properties, additional, items, node: keyed })
}

/// Those under `allOf` count as the schema's own.
fn rules_of(node: &Node) -> impl Iterator<Item = &Rule> {
    node.rules.iter().chain(node.all_of.iter().flat_map(|inner| &inner.rules))
}

fn env(ty: &Type, rule: &Rule) -> Env {
    let old = if rule.optional_old_self == Some(true) { Type::optional(ty.clone()) } else { ty.clone() };
    Env::new().with("self", ty.clone()).with("oldSelf", old)
}

/// Why a rule is refused.
#[derive(Debug)]
pub enum Refused {
    Rule(String),
    Message(String),
}

pub fn compile_rule(rule: &Rule, ty: &Type) -> Result<Compiled, Refused> {
    let env = env(ty, rule);
    let program = env.compile(rule.rule.trim()).map_err(|error| Refused::Rule(format!("compilation failed: {error}")))?;
    if !matches!(program.result_type(), Type::Bool) {
        return Err(Refused::Rule("cel expression must evaluate to a bool".into()));
    }
    let message = match rule.message_expression.as_str() {
        "" => None,
        text => {
            let program = env.compile(text).map_err(|error| Refused::Message(format!("messageExpression compilation failed: {error}")))?;
            if !matches!(program.result_type(), Type::String) {
                return Err(Refused::Message("messageExpression must evaluate to a string".into()));
            }
            Some(program)
        }
    };
    let uses_old_self = program.mentions("oldSelf");
    Ok(Compiled { rule: rule.clone(), program, message, uses_old_self })
}

struct Run<'r> {
    errors: Vec<Error>,
    budget: Budget<'r>,
    /// The budget is spent: nothing more is evaluated.
    over: bool,
}

/// Judges an object; `old` is absent at its creation.
pub fn validate(rules: &Rules, value: &Json, old: Option<&Json>) -> Vec<Error> {
    let mut run = Run { errors: Vec::new(), budget: Budget::default(), over: false };
    walk(rules, value, old, &Path::root(), &mut run);
    run.errors
}

fn walk(rules: &Rules, value: &Json, old: Option<&Json>, path: &Path, run: &mut Run<'_>) {
    if value.is_null() || run.over {
        return;
    }
    own(rules, value, old.filter(|old| !old.is_null()), path, run);
    match value {
        Json::Object(map) => {
            for (name, child) in map {
                let before = old.and_then(|old| old.get(name));
                match (rules.properties.get(name), &rules.additional) {
                    (Some(inner), _) => walk(inner, child, before, &path.child(name), run),
                    (None, Some(inner)) => walk(inner, child, before, &path.key(name), run),
                    _ => {}
                }
            }
        }
        Json::Array(items) => {
            if let Some(inner) = &rules.items {
                let before = old.and_then(Json::as_array);
                for (at, item) in items.iter().enumerate() {
                    let counterpart = match (&rules.node, before) {
                        (Some(node), Some(before)) => crate::lists::counterpart(node, item, before),
                        _ => None,
                    };
                    walk(inner, item, counterpart, &path.index(at), run);
                }
            }
        }
        _ => {}
    }
}

fn own(rules: &Rules, value: &Json, old: Option<&Json>, path: &Path, run: &mut Run<'_>) {
    for compiled in &rules.own {
        if run.over {
            return;
        }
        let optional = compiled.rule.optional_old_self == Some(true);
        if compiled.uses_old_self && old.is_none() && !optional {
            continue;
        }
        let mut activation = Activation::new().with("self", Value::json(value, &rules.ty));
        let before = old.map(|old| Value::json(old, &rules.ty));
        match (optional, before) {
            (true, before) => activation = activation.with("oldSelf", before.map_or(Value::NONE, Value::some)),
            (false, Some(before)) => activation = activation.with("oldSelf", before),
            (false, None) => {}
        }
        let outcome = compiled.program.evaluate(&activation, &mut run.budget);
        if matches!(outcome, Ok(Value::Bool(true))) {
            continue;
        }
        let ratcheted = !compiled.uses_old_self && old.is_some_and(|old| old == value);
        match outcome {
            Ok(_) => {
                let error = failed(rules, compiled, value, &activation, path, run);
                if !ratcheted {
                    run.errors.push(error);
                }
            }
            Err(error) => {
                run.over = error.is_fatal();
                run.errors.push(Error::invalid(path, rules.kind.as_str(), words(&error, &compiled.rule)));
            }
        }
    }
}

/// The rule's message, else the rule itself.
fn named(rule: &Rule) -> &str {
    if rule.message.is_empty() { rule.rule.trim() } else { rule.message.trim() }
}

fn words(error: &EvalError, rule: &Rule) -> String {
    let name = named(rule);
    match error {
        EvalError::BudgetExceeded | EvalError::Interrupted => {
            "validation failed due to running out of cost budget, no further validation rules will be run".into()
        }
        EvalError::CostExceeded => {
            format!("'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {name}")
        }
        EvalError::Failed(text) if text.starts_with("no such overload") => {
            format!("'{error}': call arguments did not match a supported operator, function or macro signature for rule: {name}")
        }
        EvalError::Failed(text) => format!("{text} evaluating rule: {name}"),
    }
}

fn failed<'a>(rules: &Rules, compiled: &'a Compiled, value: &Json, activation: &Activation<'a>, path: &Path, run: &mut Run<'_>) -> Error {
    let rule = &compiled.rule;
    let own = compiled.message.as_ref().and_then(|program| message(program, activation, &mut run.budget));
    let detail = own.unwrap_or_else(|| match rule.message.trim() {
        "" => format!("failed rule: {}", rule.rule.trim()),
        message => message.to_owned(),
    });
    let path = match rule.field_path.as_str() {
        "" => path.clone(),
        below => path.child(&normalized(below)),
    };
    match rule.reason.as_str() {
        "FieldValueForbidden" => Error::forbidden(&path, detail),
        "FieldValueRequired" => Error::required(&path, detail),
        "FieldValueDuplicate" => Error::duplicate(&path, value.clone()),
        _ if matches!(rules.kind.as_str(), "object" | "array") => Error::invalid_unprinted(&path, detail),
        _ => Error::invalid(&path, value.clone(), detail),
    }
}

fn message<'a>(program: &'a Program, activation: &Activation<'a>, budget: &mut Budget<'_>) -> Option<String> {
    let value = program.evaluate(activation, budget).ok()?;
    let text = value.as_str()?.trim();
    let usable = !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
    usable.then(|| text.to_owned())
}

/// `.a['b-c'].d` as a field path: `a[b-c].d`, with properties as they are named.
fn normalized(path: &str) -> String {
    path.trim_start_matches('.').replace("['", ".").replace("']", "")
}
