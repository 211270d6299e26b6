//! Texts and regular expressions. Positions count characters.

use super::{Called, convert};
use crate::error::{EvalError, no_such_overload};
use crate::pattern;
use crate::value::{List, Value, char_count};

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    if let ("strings.quote", [Value::String(text)]) = (function, args) {
        return Some(Ok(Value::string(quote(text))));
    }
    if let ("jsonpatch.escapeKey", [Value::String(text)]) = (function, args) {
        return Some(Ok(Value::string(text.replace('~', "~0").replace('/', "~1"))));
    }
    if let ("join", [Value::List(list), rest @ ..]) = (function, args) {
        return Some(join(list, rest.first().and_then(Value::as_str).unwrap_or_default()));
    }
    let (Value::String(text), rest) = args.split_first()? else { return None };
    Some(match (function, rest) {
        ("contains", [Value::String(part)]) => Ok(Value::Bool(text.contains(&**part))),
        ("startsWith", [Value::String(part)]) => Ok(Value::Bool(text.starts_with(&**part))),
        ("endsWith", [Value::String(part)]) => Ok(Value::Bool(text.ends_with(&**part))),
        ("matches", [Value::String(regex)]) => compiled(regex).map(|regex| Value::Bool(regex.is_match(text))),
        ("find", [Value::String(regex)]) => compiled(regex).map(|regex| Value::string(regex.find(text).map_or("", |found| found.as_str()))),
        ("findAll", [Value::String(regex)]) => find_all(text, regex, -1),
        ("findAll", [Value::String(regex), Value::Int(limit)]) => find_all(text, regex, *limit),
        ("charAt", [Value::Int(at)]) => char_at(text, *at),
        ("indexOf", [Value::String(part)]) => Ok(Value::Int(index_of(text, part, 0))),
        ("indexOf", [Value::String(part), Value::Int(from)]) => match usize::try_from(*from) {
            Ok(start) if start <= char_count(text) => Ok(Value::Int(index_of(text, part, start))),
            _ => Err(out_of_range(*from)),
        },
        ("lastIndexOf", [Value::String(part)]) => Ok(Value::Int(last_index_of(text, part, usize::MAX))),
        ("lastIndexOf", [Value::String(part), Value::Int(from)]) => match usize::try_from(*from) {
            Ok(start) if start <= char_count(text) => Ok(Value::Int(last_index_of(text, part, start))),
            _ => Err(out_of_range(*from)),
        },
        ("lowerAscii", []) => Ok(Value::string(text.to_ascii_lowercase())),
        ("upperAscii", []) => Ok(Value::string(text.to_ascii_uppercase())),
        ("replace", [Value::String(from), Value::String(to)]) => Ok(Value::string(text.replace(&**from, to))),
        ("replace", [Value::String(from), Value::String(to), Value::Int(limit)]) => Ok(Value::string(match usize::try_from(*limit) {
            Ok(limit) => text.replacen(&**from, to, limit),
            Err(_) => text.replace(&**from, to),
        })),
        ("split", [Value::String(separator)]) => Ok(split(text, separator, -1)),
        ("split", [Value::String(separator), Value::Int(limit)]) => Ok(split(text, separator, *limit)),
        ("substring", [Value::Int(from)]) => substring(text, *from, char_count(text) as i64),
        ("substring", [Value::Int(from), Value::Int(to)]) => substring(text, *from, *to),
        ("trim", []) => Ok(Value::string(text.trim())),
        ("format", [Value::List(list)]) => format(text, list).map(Value::string),
        _ => return None,
    })
}

fn out_of_range(index: i64) -> EvalError {
    EvalError::failed(format!("index out of range: {index}"))
}

fn compiled(regex: &str) -> Result<std::sync::Arc<regex::Regex>, EvalError> {
    pattern::cached(regex).map_err(EvalError::failed)
}

fn find_all<'a>(text: &str, regex: &str, limit: i64) -> Called<'a> {
    let regex = compiled(regex)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(Value::list(regex.find_iter(text).take(limit).map(|found| Value::string(found.as_str())).collect()))
}

fn char_at<'a>(text: &str, at: i64) -> Called<'a> {
    let length = char_count(text) as i64;
    if at == length {
        return Ok(Value::string(""));
    }
    let found = usize::try_from(at).ok().and_then(|at| text.chars().nth(at));
    found.map(|c| Value::string(c.to_string())).ok_or_else(|| out_of_range(at))
}

fn byte_of(text: &str, chars: usize) -> usize {
    text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at)
}

fn index_of(text: &str, part: &str, from: usize) -> i64 {
    let start = byte_of(text, from);
    match text.get(start..).and_then(|rest| rest.find(part)) {
        Some(at) => char_count(&text[..start + at]) as i64,
        None => -1,
    }
}

fn last_index_of(text: &str, part: &str, from: usize) -> i64 {
    let limit = if from == usize::MAX { text.len() } else { byte_of(text, from).saturating_add(part.len()).min(text.len()) };
    let mut limit = limit;
    while !text.is_char_boundary(limit) {
        limit -= 1;
    }
    match text.get(..limit).and_then(|head| head.rfind(part)) {
        Some(at) => char_count(&text[..at]) as i64,
        None => -1,
    }
}

fn substring<'a>(text: &str, from: i64, to: i64) -> Called<'a> {
    let length = char_count(text) as i64;
    if from > to {
        return Err(EvalError::failed(format!("invalid substring range. start: {from}, end: {to}")));
    }
    if from < 0 || from > length {
        return Err(out_of_range(from));
    }
    if to > length {
        return Err(out_of_range(to));
    }
    Ok(Value::string(text.chars().skip(from as usize).take((to - from) as usize).collect::<String>()))
}

/// As Go's `strings.SplitN`.
fn split<'a>(text: &str, separator: &str, limit: i64) -> Value<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<Value<'a>> = match (limit, separator) {
        (0, _) => Vec::new(),
        (_, "") => {
            let mut parts: Vec<String> = text.chars().take(limit.saturating_sub(1)).map(String::from).collect();
            let rest: String = text.chars().skip(parts.len()).collect();
            if !rest.is_empty() {
                parts.push(rest);
            }
            parts.into_iter().map(Value::string).collect()
        }
        _ => text.splitn(limit, separator).map(Value::string).collect(),
    };
    Value::list(parts)
}

fn join<'a>(list: &List<'a>, separator: &str) -> Called<'a> {
    let mut out = String::new();
    for (number, item) in list.iter().enumerate() {
        if number > 0 {
            out.push_str(separator);
        }
        out.push_str(item.as_str().ok_or_else(no_such_overload)?);
    }
    Ok(Value::string(out))
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// `'%s is %d'.format([…])`: `%s %d %f %e %b %o %x %X %%`, with a precision.
fn format(text: &str, list: &List<'_>) -> Result<String, EvalError> {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    let mut arguments = list.iter();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.peek().filter(|c| c.is_ascii_digit()) {
                digits.push(*digit);
                chars.next();
            }
            let wanted: usize = digits.parse().map_err(|_| EvalError::failed("could not parse formatting clause: precision"))?;
            precision = Some(wanted.min(100));
        }
        let verb = chars.next().ok_or_else(|| EvalError::failed("unexpected end of string"))?;
        let number = out.len();
        let _ = number;
        let argument = arguments.next().ok_or_else(|| EvalError::failed("index 0 out of range"))?;
        out.push_str(&formatted(verb, precision, &argument)?);
    }
    Ok(out)
}

fn formatted(verb: char, precision: Option<usize>, value: &Value<'_>) -> Result<String, EvalError> {
    let wrong = || EvalError::failed(format!("error during formatting: no formatting function for %{verb} over {}", value.type_name()));
    Ok(match (verb, value) {
        ('s', value) => display(value),
        ('d', Value::Int(number)) => number.to_string(),
        ('d', Value::Uint(number)) => number.to_string(),
        ('d' | 'f' | 'e', Value::Double(number)) if !number.is_finite() => convert::go_double(*number).replace("Inf", "Infinity"),
        ('f', value) => format!("{:.*}", precision.unwrap_or(6), float(value).ok_or_else(wrong)?),
        ('e', value) => {
            let text = format!("{:.*e}", precision.unwrap_or(6), float(value).ok_or_else(wrong)?);
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        ('b', Value::Int(number)) => signed(*number, |n| format!("{n:b}")),
        ('b', Value::Uint(number)) => format!("{number:b}"),
        ('b', Value::Bool(truth)) => u8::from(*truth).to_string(),
        ('o', Value::Int(number)) => signed(*number, |n| format!("{n:o}")),
        ('o', Value::Uint(number)) => format!("{number:o}"),
        ('x', Value::Int(number)) => signed(*number, |n| format!("{n:x}")),
        ('X', Value::Int(number)) => signed(*number, |n| format!("{n:X}")),
        ('x', Value::Uint(number)) => format!("{number:x}"),
        ('X', Value::Uint(number)) => format!("{number:X}"),
        ('x', Value::String(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
        ('X', Value::String(text)) => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
        ('x', Value::Bytes(bytes)) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ('X', Value::Bytes(bytes)) => bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
        _ => return Err(wrong()),
    })
}

fn float(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Double(number) => Some(*number),
        Value::Int(number) => Some(*number as f64),
        Value::Uint(number) => Some(*number as f64),
        _ => None,
    }
}

fn signed(number: i64, digits: impl Fn(u64) -> String) -> String {
    let text = digits(number.unsigned_abs());
    if number < 0 { format!("-{text}") } else { text }
}

/// What `%s` shows.
fn display(value: &Value<'_>) -> String {
    match value {
        Value::List(list) => format!("[{}]", list.iter().map(|item| display(&item)).collect::<Vec<_>>().join(", ")),
        Value::Map(map) => {
            let mut entries: Vec<String> = map.iter().map(|(key, value)| format!("{}: {}", display(&key), display(&value))).collect();
            entries.sort();
            format!("{{{}}}", entries.join(", "))
        }
        other => convert::to_string(other).unwrap_or_else(|| other.type_name().to_owned()),
    }
}
