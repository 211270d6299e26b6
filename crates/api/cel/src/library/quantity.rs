//! Quantities.

use meta::Quantity;
use meta::quantity::Format;

use super::{Called, Opaque};
use crate::error::EvalError;
use crate::value::Value;

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    Some(match (function, args) {
        ("quantity", [Value::String(text)]) => Quantity::parse(text).map(made).map_err(|error| EvalError::failed(error.to_string())),
        ("isQuantity", [Value::String(text)]) => Ok(Value::Bool(Quantity::parse(text).is_ok())),
        (_, [Value::Opaque(Opaque::Quantity(quantity)), rest @ ..]) => return method(function, quantity, rest),
        _ => return None,
    })
}

fn made<'a>(quantity: Quantity) -> Value<'a> {
    Value::Opaque(Opaque::Quantity(quantity))
}

fn method<'a>(function: &str, quantity: &Quantity, rest: &[Value<'a>]) -> Option<Called<'a>> {
    let zero = Quantity::new(0, Format::DecimalSi);
    let whole = || quantity.is_integer().then(|| quantity.value());
    Some(match (function, rest) {
        ("sign", []) => Ok(Value::Int(quantity.cmp(&zero) as i64)),
        ("isInteger", []) => Ok(Value::Bool(whole().is_some())),
        ("asInteger", []) => whole().map(Value::Int).ok_or_else(|| EvalError::failed("cannot convert value to integer")),
        ("asApproximateFloat", []) => Ok(Value::Double(approximate(quantity))),
        ("add", [other]) => return operand(other).map(|other| Ok(made(*quantity + other))),
        ("sub", [other]) => return operand(other).map(|other| Ok(made(*quantity - other))),
        ("isGreaterThan", [Value::Opaque(Opaque::Quantity(other))]) => Ok(Value::Bool(quantity.cmp(other).is_gt())),
        ("isLessThan", [Value::Opaque(Opaque::Quantity(other))]) => Ok(Value::Bool(quantity.cmp(other).is_lt())),
        ("compareTo", [Value::Opaque(Opaque::Quantity(other))]) => Ok(Value::Int(quantity.cmp(other) as i64)),
        _ => return None,
    })
}

/// Fractions are known to the thousandth.
fn approximate(quantity: &Quantity) -> f64 {
    if quantity.is_integer() { quantity.value() as f64 } else { quantity.milli_value() as f64 / 1_000.0 }
}

fn operand(value: &Value<'_>) -> Option<Quantity> {
    match value {
        Value::Opaque(Opaque::Quantity(quantity)) => Some(*quantity),
        Value::Int(number) => Some(Quantity::new(*number, Format::DecimalSi)),
        _ => None,
    }
}
