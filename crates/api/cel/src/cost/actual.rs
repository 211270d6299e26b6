//! The price of a call that was made.

use super::{REGEX, TRAVERSAL, traversal};
use crate::library::Opaque;
use crate::value::Value;

fn scaled(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

fn regex(text: u64, pattern: u64) -> u64 {
    // One is added so that an empty text does not make the pattern free.
    ((1.0 + text as f64) * TRAVERSAL).ceil() as u64 * scaled(pattern, REGEX)
}

/// Of a call with these arguments (the receiver first) and this result.
pub fn of_call(function: &str, args: &[Value<'_>], result: &Value<'_>) -> u64 {
    let size = |at: usize| args.get(at).map_or(1, Value::cost_size);
    let is_text = |at: usize| matches!(args.get(at), Some(Value::String(_) | Value::Bytes(_)));
    match function {
        "_==_" | "_!=_" => match args.first() {
            Some(Value::Opaque(_)) => 1,
            _ => scaled(size(0).min(size(1)), TRAVERSAL),
        },
        "_<_" | "_<=_" | "_>_" | "_>=_" if is_text(0) => scaled(size(0).min(size(1)), TRAVERSAL),
        "_+_" if is_text(0) => scaled(size(0).saturating_add(size(1)), TRAVERSAL),
        "@in" if matches!(args.get(1), Some(Value::List(_))) => size(1),
        "matches" => regex(size(0), size(1)),
        "find" | "findAll" => regex(size(0), size(1)),
        "contains" => scaled(size(0), TRAVERSAL) * scaled(size(1), TRAVERSAL),
        "startsWith" | "endsWith" | "format" | "strings.quote" => scaled(size(0), TRAVERSAL),
        "bytes" | "string" if is_text(0) && args.first().map(Value::type_name) != Some(result.type_name()) => scaled(size(0), TRAVERSAL),
        "check" => 350_000,
        "fieldSelector" | "labelSelector" => {
            let length = size(1);
            10 + scaled(length, TRAVERSAL) + scaled(scaled(length, 0.5), 50.0)
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => args.first().map_or(1, traversal),
        "url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "jsonpatch.escapeKey" => scaled(size(0), TRAVERSAL),
        "replace" | "split" => scaled(size(0), 2.0 * TRAVERSAL),
        "join" => scaled(result.cost_size(), 2.0 * TRAVERSAL),
        "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => scaled(size(0), TRAVERSAL),
        "ip" if matches!(args.first(), Some(Value::String(_))) => scaled(size(0), TRAVERSAL),
        "ip.isCanonical" => scaled(size(0), 2.0 * TRAVERSAL),
        "containsIP" => scaled(2 * size(0), TRAVERSAL) + if is_text(1) { scaled(size(1), TRAVERSAL) } else { 0 },
        "containsCIDR" => {
            scaled(2 * size(0), TRAVERSAL) + scaled(size(0), TRAVERSAL) + 1 + if is_text(1) { scaled(size(1), TRAVERSAL) } else { 0 }
        }
        "validate" => match args.first() {
            Some(Value::Opaque(Opaque::Format(format))) => regex(size(1), format.regex_size),
            _ => 1,
        },
        "sets.contains" | "sets.equivalent" | "sets.intersects" => 1 + size(0).saturating_mul(size(1)),
        "distinct" => size(0).saturating_mul(size(0)).max(1),
        "sort" | "@sortByAssociatedKeys" | "reverse" | "flatten" | "slice" | "lists.range" => size(0).max(result.cost_size()).max(1),
        "_?_:_" => 0,
        _ => 1,
    }
}
