//! The price of a call that may be made: a range over all that its arguments may be.

use super::{Cost, Estimator, Part, REGEX, TRAVERSAL};
use crate::ast::{Kind, Literal};
use crate::declarations::overloads;
use crate::types::Type;

pub struct Call<'c, 'e> {
    pub function: &'c str,
    pub target: Option<&'c Part<'e>>,
    pub args: &'c [Part<'e>],
    pub costs: &'c [Cost],
}

type Priced = (Cost, Option<Cost>);

impl Call<'_, '_> {
    fn paid(&self) -> Cost {
        self.costs.iter().fold(Cost::default(), |sum, cost| sum.plus(*cost))
    }
    fn size(&self, at: usize) -> Cost {
        self.args.get(at).and_then(|part| part.size).unwrap_or(Cost::UNKNOWN)
    }
    /// The receiver's size, or the first argument's.
    fn subject(&self) -> Cost {
        match self.target {
            Some(target) => target.size.unwrap_or(Cost::UNKNOWN),
            None => self.size(0),
        }
    }
}

/// The price with its arguments' and the size of the result, over all overloads that may be meant.
pub fn price(estimator: &Estimator<'_>, call: &Call<'_, '_>, chosen: &[usize]) -> Priced {
    let known = overloads(call.function);
    let mut total: Option<Priced> = None;
    for number in chosen {
        let first = known.get(*number).and_then(|overload| overload.params.first()).cloned().unwrap_or(Type::Dyn);
        let second = known.get(*number).and_then(|overload| overload.params.get(1)).cloned().unwrap_or(Type::Dyn);
        let (cost, size) = one(estimator, call, &first, &second);
        total = Some(match total {
            None => (cost, size),
            Some((known, known_size)) => (
                known.union(cost),
                match (known_size, size) {
                    (Some(a), Some(b)) => Some(a.union(b)),
                    (a, b) => a.or(b),
                },
            ),
        });
    }
    total.unwrap_or_else(|| (Cost::fixed(1).plus(call.paid()), None))
}

fn one(estimator: &Estimator<'_>, call: &Call<'_, '_>, first: &Type, second: &Type) -> Priced {
    if let (Type::String | Type::List(_) | Type::Dyn, "indexOf" | "lastIndexOf") | (_, "isSorted" | "sum" | "max" | "min" | "includes") =
        (first, call.function)
    {
        return (scan(estimator, call).plus(call.paid()), None);
    }
    let subject = call.subject();
    let text = |cost: Cost| (cost.plus(call.paid()), None);
    match call.function {
        "_||_" | "_&&_" => {
            let (left, right) = (call.costs.first().copied().unwrap_or_default(), call.costs.get(1).copied().unwrap_or_default());
            (Cost { min: left.min, max: left.plus(right).max }, None)
        }
        "_?_:_" => {
            let cost = |at: usize| call.costs.get(at).copied().unwrap_or_default();
            (cost(0).plus(cost(1).union(cost(2))), Some(call.size(1).union(call.size(2))))
        }
        "_==_" if is_library(call) => (Cost::fixed(1).plus(call.paid()), None),
        "_==_" | "_!=_" => text(comparison(call)),
        "_<_" | "_<=_" | "_>_" | "_>=_" if matches!(first, Type::String | Type::Bytes) => text(comparison(call)),
        "_+_" if matches!(first, Type::String | Type::Bytes) => {
            let size = call.size(0).plus(call.size(1));
            (size.scaled(TRAVERSAL).plus(call.paid()), Some(size))
        }
        "_+_" if matches!(first, Type::List(_)) => (Cost::fixed(1).plus(call.paid()), Some(call.size(0).plus(call.size(1)))),
        "@in" if matches!(second, Type::List(_)) => text(call.size(1)),
        "matches" | "find" | "findAll" => {
            let pattern = if call.target.is_some() { call.size(0) } else { call.size(1) };
            let cost = subject.plus(Cost::fixed(1)).scaled(TRAVERSAL).times(pattern.scaled(REGEX)).plus(call.paid());
            (cost, (call.function != "matches").then_some(Cost { min: 0, max: subject.max }))
        }
        "contains" => text(subject.scaled(TRAVERSAL).times(call.size(0).scaled(TRAVERSAL))),
        "startsWith" | "endsWith" => text(call.size(0).scaled(TRAVERSAL)),
        "format" => text(subject.scaled(TRAVERSAL)),
        "strings.quote" => {
            let size = Cost { min: subject.min.saturating_add(2), max: subject.max.saturating_mul(2).saturating_add(2) };
            (subject.scaled(TRAVERSAL).plus(call.paid()), Some(size))
        }
        "bytes" if matches!(first, Type::String) => {
            let size = Cost { min: subject.min, max: subject.max.saturating_mul(4) };
            (subject.scaled(TRAVERSAL).plus(call.paid()), Some(size))
        }
        "string" if matches!(first, Type::Bytes) => {
            let size = Cost { min: subject.min / 4, max: subject.max };
            (subject.scaled(TRAVERSAL).plus(call.paid()), Some(size))
        }
        // cel-go leaves the size of a number's text open, and so the price of every message with a number in it.
        "string" if first.is_scalar() => (Cost::fixed(1).plus(call.paid()), Some(Cost { min: 1, max: 64 })),
        "check" => text(Cost::fixed(350_000)),
        "fieldSelector" | "labelSelector" => {
            let length = call.size(0);
            text(Cost::fixed(10).plus(length.scaled(TRAVERSAL)).plus(length.scaled(0.5).scaled(50.0)))
        }
        "url" | "jsonpatch.escapeKey" | "lowerAscii" | "upperAscii" | "substring" | "trim" => {
            (subject.scaled(TRAVERSAL).plus(call.paid()), Some(subject))
        }
        "replace" => (subject.scaled(2.0 * TRAVERSAL).plus(call.paid()), Some(replaced(subject, call.size(0), call.size(1)))),
        "split" => {
            let limit = call.args.get(1).and_then(|part| match &part.expr.kind {
                Kind::Literal(Literal::Int(limit)) => u64::try_from(*limit).ok(),
                _ => None,
            });
            (subject.scaled(2.0 * TRAVERSAL).plus(call.paid()), Some(Cost { min: 0, max: limit.unwrap_or(subject.max) }))
        }
        "join" => {
            let mut size = Cost::default();
            if let Some((items, _)) = call.target.and_then(|target| items(estimator, target)) {
                size = subject.times(items);
            }
            if !call.args.is_empty() {
                let separators = Cost { min: subject.min.saturating_sub(1), max: subject.max.saturating_sub(1) };
                size = size.plus(call.size(0).times(separators));
            }
            (size.scaled(TRAVERSAL).plus(call.paid()), Some(size))
        }
        "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => text(call.size(0).scaled(TRAVERSAL)),
        "ip" if matches!(first, Type::String) => text(call.size(0).scaled(TRAVERSAL)),
        "ip.isCanonical" => text(call.size(0).scaled(2.0 * TRAVERSAL)),
        "containsIP" | "containsCIDR" => {
            let bytes = Cost { min: 4, max: 16 };
            let mut cost = bytes.plus(bytes).scaled(TRAVERSAL);
            if call.function == "containsCIDR" {
                cost = cost.plus(bytes.scaled(TRAVERSAL)).plus(Cost::fixed(1));
            }
            if matches!(second, Type::String) {
                cost = cost.plus(call.size(0).scaled(TRAVERSAL));
            }
            text(cost)
        }
        "validate" => text(call.size(0).scaled(TRAVERSAL).scaled(128.0 * REGEX)),
        "sets.contains" | "sets.equivalent" | "sets.intersects" => text(call.size(0).times(call.size(1)).plus(Cost::fixed(1))),
        "distinct" => (subject.times(subject).plus(call.paid()), Some(subject)),
        "sort" | "@sortByAssociatedKeys" | "reverse" | "slice" => (subject.plus(call.paid()).plus(Cost::fixed(1)), Some(subject)),
        _ => text(Cost::fixed(1)),
    }
}

/// O(n) over the receiver's items.
fn scan(estimator: &Estimator<'_>, call: &Call<'_, '_>) -> Cost {
    let subject = call.subject();
    let Some(target) = call.target else { return subject };
    match items(estimator, target) {
        Some((size, true)) => subject.times(Cost::fixed(1).plus(size.scaled(TRAVERSAL))),
        Some((_, false)) => subject,
        None if call.function == "includes" => subject,
        None => subject.scaled(TRAVERSAL),
    }
}

/// The size of a list's items, and whether they are texts.
fn items(estimator: &Estimator<'_>, part: &Part<'_>) -> Option<(Cost, bool)> {
    let Type::List(list) = &part.ty else { return None };
    let is_text = matches!(list.items, Type::String | Type::Bytes);
    let mut path = part.path.clone();
    if !path.is_empty() {
        path.push("@items".into());
    }
    Some((estimator.declared(&path, &list.items).unwrap_or(Cost::UNKNOWN), is_text))
}

fn comparison(call: &Call<'_, '_>) -> Cost {
    let max = call.size(0).max.min(call.size(1).max);
    Cost { min: u64::from(max > 0), max }.scaled(TRAVERSAL)
}

/// Equality of values of the libraries is one step.
fn is_library(call: &Call<'_, '_>) -> bool {
    call.args.iter().all(|part| matches!(part.ty, Type::Opaque(_)))
}

fn replaced(size: Cost, from: Cost, to: Cost) -> Cost {
    let (mut count, mut kept) = (Cost::default(), Cost::default());
    if from.min == 0 {
        count.max = size.max.saturating_add(1);
        kept.max = size.max;
    } else if to.max <= from.min {
        kept.max = size.max;
    } else {
        count.max = size.max.div_ceil(from.min);
    }
    if from.max == 0 {
        count.min = size.min.saturating_add(1);
        kept.min = size.min;
    } else if from.max <= to.min {
        kept.min = size.min;
    } else {
        count.min = size.min.div_ceil(from.max);
    }
    count.times(to).plus(kept)
}
