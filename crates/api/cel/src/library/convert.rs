//! Conversions between types.

use base64::Engine as _;

use super::{Called, Opaque, time};
use crate::error::{EvalError, no_such_overload};
use crate::value::Value;

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    let [value] = args else { return None };
    Some(match function {
        "int" => int(value),
        "uint" => uint(value),
        "double" => double(value),
        "string" => string(value),
        "bytes" => match value {
            Value::Bytes(_) => Ok(value.clone()),
            Value::String(text) => Ok(Value::Bytes(text.as_bytes().into())),
            _ => Err(no_such_overload()),
        },
        "bool" => match value {
            Value::Bool(_) => Ok(value.clone()),
            Value::String(text) => match &**text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
                _ => Err(failed("string", "bool")),
            },
            _ => Err(no_such_overload()),
        },
        "dyn" => Ok(value.clone()),
        "type" => Ok(Value::Type(value.type_name().into())),
        "timestamp" => match value {
            Value::Timestamp(_) => Ok(value.clone()),
            Value::String(text) => time::timestamp(text).map(Value::Timestamp),
            Value::Int(seconds) => time::from_seconds(*seconds),
            _ => Err(no_such_overload()),
        },
        "duration" => match value {
            Value::Duration(_) => Ok(value.clone()),
            Value::String(text) => time::duration(text).map(Value::Duration),
            Value::Int(nanoseconds) => Ok(Value::Duration(*nanoseconds)),
            _ => Err(no_such_overload()),
        },
        _ => return None,
    })
}

fn failed(from: &str, to: &str) -> EvalError {
    EvalError::failed(format!("type conversion error from '{from}' to '{to}'"))
}

fn int<'a>(value: &Value<'a>) -> Called<'a> {
    let overflow = || EvalError::failed("integer overflow");
    match value {
        Value::Int(_) => Ok(value.clone()),
        Value::Uint(number) => i64::try_from(*number).map(Value::Int).map_err(|_| overflow()),
        Value::Double(number) if number.is_finite() && number.abs() < 9.223_372_036_854_775e18 => Ok(Value::Int(*number as i64)),
        Value::Double(_) => Err(overflow()),
        Value::String(text) => text.parse().map(Value::Int).map_err(|_| failed("string", "int")),
        Value::Timestamp(at) => Ok(Value::Int(at.as_second())),
        Value::Duration(nanoseconds) => Ok(Value::Int(*nanoseconds)),
        _ => Err(no_such_overload()),
    }
}

fn uint<'a>(value: &Value<'a>) -> Called<'a> {
    let overflow = || EvalError::failed("unsigned integer overflow");
    match value {
        Value::Uint(_) => Ok(value.clone()),
        Value::Int(number) => u64::try_from(*number).map(Value::Uint).map_err(|_| overflow()),
        Value::Double(number) if *number >= 0.0 && *number < 1.844_674_407_370_955e19 => Ok(Value::Uint(*number as u64)),
        Value::Double(_) => Err(overflow()),
        Value::String(text) => text.parse().map(Value::Uint).map_err(|_| failed("string", "uint")),
        _ => Err(no_such_overload()),
    }
}

fn double<'a>(value: &Value<'a>) -> Called<'a> {
    match value {
        Value::Double(_) => Ok(value.clone()),
        Value::Int(number) => Ok(Value::Double(*number as f64)),
        Value::Uint(number) => Ok(Value::Double(*number as f64)),
        Value::String(text) => text.parse().map(Value::Double).map_err(|_| failed("string", "double")),
        _ => Err(no_such_overload()),
    }
}

fn string<'a>(value: &Value<'a>) -> Called<'a> {
    match value {
        Value::String(_) => Ok(value.clone()),
        Value::Opaque(Opaque::Ip(_) | Opaque::Cidr(_)) => to_string(value).map(Value::string).ok_or_else(no_such_overload),
        Value::Opaque(_) | Value::Null => Err(no_such_overload()),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Value::string(text)),
            Err(_) => Err(EvalError::failed("invalid UTF-8 in bytes, cannot convert to string")),
        },
        other => to_string(other).map(Value::string).ok_or_else(no_such_overload),
    }
}

/// The text of a value that has one.
pub fn to_string(value: &Value<'_>) -> Option<String> {
    Some(match value {
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Double(number) => go_double(*number),
        Value::String(text) => text.to_string(),
        Value::Timestamp(at) => at.to_string(),
        Value::Duration(nanoseconds) => time::duration_text(*nanoseconds),
        Value::Bytes(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes),
        Value::Opaque(opaque) => opaque.text()?,
        Value::Type(name) => name.to_string(),
        Value::Null => "null".into(),
        _ => return None,
    })
}

/// As Go's `strconv.FormatFloat(x, 'g', -1, 64)`.
pub fn go_double(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let exponent = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    if !(-4..21).contains(&exponent) {
        let text = format!("{number:e}");
        return match text.split_once('e') {
            Some((digits, exponent)) => {
                let (sign, digits_of) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
                format!("{digits}e{sign}{digits_of:0>2}")
            }
            None => text,
        };
    }
    number.to_string()
}
