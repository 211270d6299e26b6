//! Operators, sizes, membership, optionals.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Called;
use crate::error::{EvalError, no_such_overload};
use crate::value::{Map, Text, Value};

/// `None` where the function is none of these, or takes other values.
pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    Some(match (function, args) {
        ("_==_", [a, b]) => Ok(Value::Bool(a.equal(b))),
        ("_!=_", [a, b]) => Ok(Value::Bool(!a.equal(b))),
        ("!_", [Value::Bool(truth)]) => Ok(Value::Bool(!truth)),
        ("-_", [Value::Int(number)]) => number.checked_neg().map(Value::Int).ok_or_else(int_overflow),
        ("-_", [Value::Double(number)]) => Ok(Value::Double(-number)),
        ("_<_", [a, b]) => order(a, b, Ordering::is_lt),
        ("_<=_", [a, b]) => order(a, b, Ordering::is_le),
        ("_>_", [a, b]) => order(a, b, Ordering::is_gt),
        ("_>=_", [a, b]) => order(a, b, Ordering::is_ge),
        ("_+_", [a, b]) => add(a, b),
        ("_-_", [a, b]) => subtract(a, b),
        ("_*_" | "_/_" | "_%_", [a, b]) => multiply(function, a, b),
        ("@in", [item, Value::List(list)]) => Ok(Value::Bool(list.contains(item))),
        ("@in", [key, Value::Map(map)]) => Ok(Value::Bool(map.contains(key))),
        ("_[_]", [from, key]) => index(from, key),
        ("_[?_]", [from, key]) => Ok(optional_index(from, key)),
        ("size", [value]) => size(value),
        ("@mapInsert", [Value::Map(map), Value::Map(more)]) => insert(map, more.iter().collect()),
        ("@mapInsert", [Value::Map(map), key, value]) => insert(map, vec![(key.clone(), value.clone())]),
        ("optional.of", [value]) => Ok(Value::some(value.clone())),
        ("optional.none", []) => Ok(Value::NONE),
        ("optional.ofNonZeroValue", [value]) => Ok(if is_zero(value) { Value::NONE } else { Value::some(value.clone()) }),
        ("optional.unwrap" | "unwrapOpt", [Value::List(list)]) => Ok(Value::list(
            list.iter()
                .filter_map(|item| match item {
                    Value::Optional(Some(inner)) => Some((*inner).clone()),
                    Value::Optional(None) => None,
                    other => Some(other),
                })
                .collect(),
        )),
        ("hasValue", [Value::Optional(inner)]) => Ok(Value::Bool(inner.is_some())),
        ("value", [Value::Optional(Some(inner))]) => Ok((**inner).clone()),
        ("value", [Value::Optional(None)]) => Err(EvalError::failed("optional.none() dereference")),
        _ => return None,
    })
}

fn int_overflow() -> EvalError {
    EvalError::failed("integer overflow")
}

fn order<'a>(a: &Value<'_>, b: &Value<'_>, test: fn(Ordering) -> bool) -> Called<'a> {
    match a.compare(b) {
        Some(order) => Ok(Value::Bool(test(order))),
        None if matches!((a, b), (Value::Double(_), _) | (_, Value::Double(_))) => Ok(Value::Bool(false)),
        None => Err(no_such_overload()),
    }
}

fn add<'a>(a: &Value<'a>, b: &Value<'a>) -> Called<'a> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int).ok_or_else(int_overflow),
        (Value::Uint(a), Value::Uint(b)) => {
            a.checked_add(*b).map(Value::Uint).ok_or_else(|| EvalError::failed("unsigned integer overflow"))
        }
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => {
            let mut text = String::with_capacity(a.len() + b.len());
            text.push_str(a);
            text.push_str(b);
            Ok(Value::string(text))
        }
        (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes([&**a, &**b].concat().into())),
        (Value::List(a), Value::List(b)) => Ok(a.concat(b)),
        (Value::Timestamp(at), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(at)) => super::time::shift(*at, *by),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(|| EvalError::failed("duration overflow"))
        }
        _ => Err(no_such_overload()),
    }
}

fn subtract<'a>(a: &Value<'a>, b: &Value<'a>) -> Called<'a> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.checked_sub(*b).map(Value::Int).ok_or_else(int_overflow),
        (Value::Uint(a), Value::Uint(b)) => {
            a.checked_sub(*b).map(Value::Uint).ok_or_else(|| EvalError::failed("unsigned integer overflow"))
        }
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => {
            let difference = a.as_nanosecond() - b.as_nanosecond();
            i64::try_from(difference).map(Value::Duration).map_err(|_| EvalError::failed("duration overflow"))
        }
        (Value::Timestamp(at), Value::Duration(by)) => {
            super::time::shift(*at, by.checked_neg().ok_or_else(|| EvalError::failed("duration overflow"))?)
        }
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(|| EvalError::failed("duration overflow"))
        }
        _ => Err(no_such_overload()),
    }
}

fn multiply<'a>(function: &str, a: &Value<'_>, b: &Value<'_>) -> Called<'a> {
    let by_zero = || EvalError::failed(if function == "_/_" { "division by zero" } else { "modulus by zero" });
    match (a, b) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) if function != "_*_" => Err(by_zero()),
        (Value::Int(a), Value::Int(b)) => match function {
            "_*_" => a.checked_mul(*b),
            "_/_" => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Int)
        .ok_or_else(int_overflow),
        (Value::Uint(a), Value::Uint(b)) => match function {
            "_*_" => a.checked_mul(*b),
            "_/_" => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Uint)
        .ok_or_else(|| EvalError::failed("unsigned integer overflow")),
        (Value::Double(a), Value::Double(b)) if function == "_*_" => Ok(Value::Double(a * b)),
        (Value::Double(a), Value::Double(b)) if function == "_/_" => Ok(Value::Double(a / b)),
        _ => Err(no_such_overload()),
    }
}

/// A whole number as an index.
pub fn position(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::Uint(number) => i64::try_from(*number).ok(),
        Value::Double(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
        _ => None,
    }
}

fn index<'a>(from: &Value<'a>, key: &Value<'a>) -> Called<'a> {
    match from {
        Value::List(list) => {
            let at = position(key).ok_or_else(|| EvalError::failed(format!("unsupported index type '{}' in list", key.type_name())))?;
            let found = usize::try_from(at).ok().and_then(|at| list.get(at));
            found.ok_or_else(|| EvalError::failed(format!("index out of bounds: {at}")))
        }
        Value::Map(map) => map.get(key).ok_or_else(|| {
            let key = super::convert::to_string(key).unwrap_or_default();
            EvalError::failed(format!("no such key: {key}"))
        }),
        Value::Optional(_) => Ok(optional_index(from, key)),
        _ => Err(no_such_overload()),
    }
}

fn optional_index<'a>(from: &Value<'a>, key: &Value<'a>) -> Value<'a> {
    let found = match from {
        Value::Optional(Some(inner)) => return optional_index(inner, key),
        Value::List(list) => position(key).and_then(|at| usize::try_from(at).ok()).and_then(|at| list.get(at)),
        Value::Map(map) => map.get(key),
        _ => None,
    };
    found.map_or(Value::NONE, Value::some)
}

fn size<'a>(value: &Value<'_>) -> Called<'a> {
    let size = match value {
        Value::String(text) => crate::value::char_count(text),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(list) => list.len(),
        Value::Map(map) => map.len(),
        _ => return Err(no_such_overload()),
    };
    Ok(Value::Int(size as i64))
}

fn insert<'a>(map: &Map<'a>, more: Vec<(Value<'a>, Value<'a>)>) -> Called<'a> {
    let mut entries: Arc<Vec<(Value<'a>, Value<'a>)>> = match map {
        Map::Owned(entries) => entries.clone(),
        Map::Json { .. } | Map::Forgiving(_) => Arc::new(map.iter().collect()),
    };
    let all = Arc::make_mut(&mut entries);
    for (key, value) in more {
        if all.iter().any(|(known, _)| known.equal(&key)) {
            let key = super::convert::to_string(&key).unwrap_or_default();
            return Err(EvalError::failed(format!("insert failed: key {key} already exists")));
        }
        all.push((key, value));
    }
    Ok(Value::Map(Map::Owned(entries)))
}

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null | Value::Optional(None) => true,
        Value::Bool(truth) => !truth,
        Value::Int(number) => *number == 0,
        Value::Uint(number) => *number == 0,
        Value::Double(number) => *number == 0.0,
        Value::String(text) => Text::is_empty(text),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::Duration(nanoseconds) => *nanoseconds == 0,
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
        _ => false,
    }
}

impl Text<'_> {
    fn is_empty(&self) -> bool {
        str::is_empty(self)
    }
}
