//! What can be asked of a device's capacity.

use meta::field::{Error, Path};
use meta::{Quantity, quantity};
use serde_json::Value;

use crate::checks::Errors;
use crate::value::{at, has, list};

pub fn validate(capacity: &Value, shared: bool, path: &Path) -> Errors {
    let (policy, path) = (at(capacity, "requestPolicy"), path.child("requestPolicy"));
    match (policy.is_null(), shared) {
        (true, _) => Errors::new(),
        (false, false) => vec![Error::forbidden(&path, "allowMultipleAllocations must be true")],
        (false, true) => policy_errors(policy, quantity::from_json(at(capacity, "value")).unwrap_or_default(), &path),
    }
}

fn policy_errors(policy: &Value, whole: Quantity, path: &Path) -> Errors {
    let (values, range) = (list(policy, "validValues"), has(policy, "validRange"));
    let field = match (values.is_empty(), range) {
        (true, false) => return Errors::new(),
        (false, true) => {
            let sentence = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            return vec![Error::forbidden(path, sentence)];
        }
        (false, false) => "validValues",
        (true, true) => "validRange",
    };
    let Some(default) = quantity::from_json(at(policy, "default")) else {
        return vec![Error::required(&path.child("default"), format!("required when {field} is defined"))];
    };
    match range {
        true => range_errors(at(policy, "validRange"), default, whole, &path.child(field)),
        false => value_errors(values, default, whole, &path.child(field)),
    }
}

fn value_errors(values: &[Value], default: Quantity, whole: Quantity, path: &Path) -> Errors {
    let values: Vec<_> = values.iter().filter_map(quantity::from_json).collect();
    let mut errors = Errors::new();
    for (index, pair) in values.windows(2).enumerate().filter(|(_, pair)| pair[0] > pair[1]) {
        let sentence = "values must be sorted in ascending order";
        errors.push(Error::invalid(&path.index(index + 1), pair[1].to_string(), sentence));
    }
    if values.len() > 10 {
        errors.push(Error::too_many(path, values.len(), 10));
        return errors;
    }
    for (index, value) in values.iter().enumerate() {
        if *value > whole {
            let sentence = format!("option is larger than capacity value: {whole}");
            errors.push(Error::invalid(&path.index(index), value.to_string(), sentence));
        }
        if values[..index].contains(value) {
            errors.push(Error::duplicate(&path.index(index), value.to_string()));
        }
    }
    if !values.contains(&default) {
        errors.push(Error::invalid(path, default.to_string(), "default value is not valid according to the requestPolicy"));
    }
    errors
}

fn range_errors(range: &Value, default: Quantity, whole: Quantity, path: &Path) -> Errors {
    let bound = |field: &str| quantity::from_json(at(range, field));
    let Some(min) = bound("min") else {
        return vec![Error::required(&path.child("min"), "required when validRange is defined")];
    };
    let max = bound("max");
    let mut errors = Errors::new();
    let mut refuse = |wrong: bool, field: &str, value: Quantity, sentence: String| {
        if wrong {
            errors.push(Error::invalid(&path.child(field), value.to_string(), sentence));
        }
    };
    refuse(min > whole, "min", min, format!("min is larger than capacity value: {whole}"));
    refuse(default < min, "default", default, format!("default is less than min: {min}"));
    if let Some(max) = max {
        refuse(min > max, "max", min, format!("min is larger than max: {max}"));
        refuse(max > whole, "max", max, format!("max is larger than capacity value: {whole}"));
        refuse(default > max, "default", default, format!("default is more than max: {max}"));
    }
    if let Some(step) = bound("step") {
        if step.is_zero() || step.is_negative() {
            refuse(true, "step", step, "must be greater than zero".into());
            return errors;
        }
        let first = min + step;
        refuse(first > whole, "step", step, format!("one step {first} is larger than capacity value: {whole}"));
        for value in std::iter::once(default).chain(max) {
            let off = (value - min).value().checked_rem(step.value()).is_none_or(|rest| rest != 0);
            refuse(off, "step", value, format!("value is not a multiple of a given step ({step}) from ({min})"));
        }
    }
    errors
}
