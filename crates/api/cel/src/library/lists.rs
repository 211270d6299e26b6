//! Lists and sets: Kubernetes' list library, cel-go's `ext.Lists` and `ext.Sets`.

use std::cmp::Ordering;

use super::Called;
use crate::error::{EvalError, no_such_overload};
use crate::value::{List, Value};

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Called<'a>> {
    if let ("lists.range", [Value::Int(count)]) = (function, args) {
        if *count > 1_000_000 {
            return Some(Err(EvalError::CostExceeded));
        }
        return Some(Ok(Value::list((0..*count).map(Value::Int).collect())));
    }
    let (Value::List(list), rest) = args.split_first()? else { return None };
    Some(match (function, rest) {
        ("sets.contains", [Value::List(other)]) => Ok(Value::Bool(other.iter().all(|item| list.contains(&item)))),
        ("sets.equivalent", [Value::List(other)]) => {
            Ok(Value::Bool(other.iter().all(|item| list.contains(&item)) && list.iter().all(|item| other.contains(&item))))
        }
        ("sets.intersects", [Value::List(other)]) => Ok(Value::Bool(other.iter().any(|item| list.contains(&item)))),
        ("isSorted", []) => is_sorted(list),
        ("sum", []) => sum(list),
        ("min", []) => extreme(list, Ordering::is_lt, "min"),
        ("max", []) => extreme(list, Ordering::is_gt, "max"),
        ("includes", [item]) => Ok(Value::Bool(list.contains(item))),
        ("indexOf", [item]) => Ok(Value::Int(list.iter().position(|known| known.equal(item)).map_or(-1, |at| at as i64))),
        ("lastIndexOf", [item]) => {
            let last = (0..list.len()).rev().find(|at| list.get(*at).is_some_and(|known| known.equal(item)));
            Ok(Value::Int(last.map_or(-1, |at| at as i64)))
        }
        ("slice", [Value::Int(from), Value::Int(to)]) => slice(list, *from, *to),
        ("flatten", []) => Ok(Value::list(flatten(list, 1))),
        ("flatten", [Value::Int(depth)]) if *depth < 0 => Err(EvalError::failed("level must be non-negative")),
        ("flatten", [Value::Int(depth)]) => Ok(Value::list(flatten(list, (*depth).min(100)))),
        ("distinct", []) => {
            let mut seen: Vec<Value<'a>> = Vec::new();
            for item in list.iter() {
                if !seen.iter().any(|known| known.equal(&item)) {
                    seen.push(item);
                }
            }
            Ok(Value::list(seen))
        }
        ("reverse", []) => Ok(Value::list((0..list.len()).rev().filter_map(|at| list.get(at)).collect())),
        ("sort", []) => sorted(list, list),
        ("@sortByAssociatedKeys", [Value::List(keys)]) => sorted(list, keys),
        ("first", []) => Ok(list.get(0).map_or(Value::NONE, Value::some)),
        ("last", []) => Ok(list.len().checked_sub(1).and_then(|at| list.get(at)).map_or(Value::NONE, Value::some)),
        _ => return None,
    })
}

fn is_sorted<'a>(list: &List<'_>) -> Called<'a> {
    let mut previous: Option<Value<'_>> = None;
    for item in list.iter() {
        if let Some(previous) = previous
            && previous.compare(&item).ok_or_else(no_such_overload)?.is_gt()
        {
            return Ok(Value::Bool(false));
        }
        previous = Some(item);
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(list: &List<'a>) -> Called<'a> {
    let mut total: Option<Value<'a>> = None;
    for item in list.iter() {
        total = Some(match total {
            None => item,
            Some(total) => super::call("_+_", &[total, item])?,
        });
    }
    Ok(total.unwrap_or(Value::Int(0)))
}

fn extreme<'a>(list: &List<'a>, better: fn(Ordering) -> bool, name: &str) -> Called<'a> {
    let mut best: Option<Value<'a>> = None;
    for item in list.iter() {
        best = match best {
            Some(known) if !better(item.compare(&known).ok_or_else(no_such_overload)?) => Some(known),
            _ => Some(item),
        };
    }
    best.ok_or_else(|| EvalError::failed(format!("{name} called on empty list")))
}

fn slice<'a>(list: &List<'a>, from: i64, to: i64) -> Called<'a> {
    let length = list.len() as i64;
    if from < 0 || to < 0 {
        return Err(EvalError::failed(format!("cannot slice({from}, {to}), negative indexes not supported")));
    }
    if from > to {
        return Err(EvalError::failed(format!("cannot slice({from}, {to}), start index must be less than or equal to end index")));
    }
    if to > length {
        return Err(EvalError::failed(format!("cannot slice({from}, {to}), list is length {length}")));
    }
    Ok(Value::list(list.iter().skip(from as usize).take((to - from) as usize).collect()))
}

fn flatten<'a>(list: &List<'a>, depth: i64) -> Vec<Value<'a>> {
    let mut out = Vec::new();
    for item in list.iter() {
        match item {
            Value::List(inner) if depth > 0 => out.extend(flatten(&inner, depth - 1)),
            other => out.push(other),
        }
    }
    out
}

fn sorted<'a>(list: &List<'a>, keys: &List<'a>) -> Called<'a> {
    if list.len() != keys.len() {
        return Err(no_such_overload());
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.iter().zip(list.iter()).collect();
    if let Some((first, _)) = pairs.first()
        && pairs.iter().any(|(key, _)| key.compare(first).is_none())
    {
        return Err(EvalError::failed("list elements must be comparable"));
    }
    pairs.sort_by(|(a, _), (b, _)| a.compare(b).unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, value)| value).collect()))
}
