//! When a job's pods, and the job, count as failed or done: `podFailurePolicy`, `successPolicy`, `podReplacementPolicy`; and what the
//! job's status may become.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use super::condition;
use crate::checks::{Errors, immutable, nonnegative, sentences};
use crate::value::{at, has, int, list, text};

const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
const RULES_MAX: usize = 20;

pub fn failure(spec: &Value, path: &Path) -> Errors {
    let policy = at(spec, "podFailurePolicy");
    let rules = list(policy, "rules");
    let mut errors = Errors::new();
    if rules.len() > RULES_MAX {
        errors.push(Error::too_many(&path.child("rules"), rules.len(), RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        errors.extend(failure_rule(rule, spec, &path.child("rules").index(index)));
    }
    errors
}

fn failure_rule(rule: &Value, spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let action = text(rule, "action");
    match action {
        "" => errors.push(Error::required(&path.child("action"), "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]")),
        "FailIndex" if !has(spec, "backoffLimitPerIndex") => {
            errors.push(Error::invalid(&path.child("action"), action, "requires the backoffLimitPerIndex to be set"));
        }
        _ if ACTIONS.contains(&action) => {}
        other => errors.push(Error::not_supported(&path.child("action"), other, &ACTIONS)),
    }
    let (codes, conditions) = (at(rule, "onExitCodes"), list(rule, "onPodConditions"));
    if !codes.is_null() {
        errors.extend(exit_codes(codes, spec, &path.child("onExitCodes")));
    }
    errors.extend(pod_conditions(conditions, &path.child("onPodConditions")));
    match (codes.is_null(), conditions.is_empty()) {
        (false, false) => {
            errors.push(Error::invalid_unprinted(path, "specifying both OnExitCodes and OnPodConditions is not supported"));
        }
        (true, true) => errors.push(Error::invalid_unprinted(path, "specifying one of OnExitCodes and OnPodConditions is required")),
        _ => {}
    }
    errors
}

fn exit_codes(codes: &Value, spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let operator = text(codes, "operator");
    match operator {
        "" => errors.push(Error::required(&path.child("operator"), "valid values: [\"In\" \"NotIn\"]")),
        "In" | "NotIn" => {}
        other => errors.push(Error::not_supported(&path.child("operator"), other, &["In", "NotIn"])),
    }
    if let Some(name) = at(codes, "containerName").as_str() {
        let template = at(spec, "template.spec");
        let known = ["containers", "initContainers"].iter().flat_map(|kind| list(template, kind)).any(|c| text(c, "name") == name);
        if !known {
            let sentence = "must be one of the container or initContainer names in the pod template";
            errors.push(Error::invalid(&path.child("containerName"), name, sentence));
        }
    }
    let (values, here) = (list(codes, "values"), path.child("values"));
    if values.is_empty() {
        errors.push(Error::invalid(&here, at(codes, "values").clone(), "at least one value is required"));
    } else if values.len() > 255 {
        errors.push(Error::too_many(&here, values.len(), 255));
    }
    let numbers: Vec<i64> = values.iter().filter_map(Value::as_i64).collect();
    let mut seen = BTreeSet::new();
    for (index, number) in numbers.iter().enumerate() {
        if operator == "In" && *number == 0 {
            errors.push(Error::invalid(&here.index(index), 0, "must not be 0 for the In operator"));
        }
        if !seen.insert(*number) {
            errors.push(Error::duplicate(&here.index(index), *number));
        }
    }
    if !numbers.is_sorted() {
        errors.push(Error::invalid(&here, values.to_vec(), "must be ordered"));
    }
    errors
}

fn pod_conditions(patterns: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    if patterns.len() > RULES_MAX {
        errors.push(Error::too_many(path, patterns.len(), RULES_MAX));
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let here = path.index(index);
        let kind = text(pattern, "type");
        errors.extend(sentences(&here.child("type"), kind, names::qualified_name(kind)));
        match text(pattern, "status") {
            "" => errors.push(Error::required(&here.child("status"), "valid values: [\"False\" \"True\" \"Unknown\"]")),
            "False" | "True" | "Unknown" => {}
            other => errors.push(Error::not_supported(&here.child("status"), other, &["False", "True", "Unknown"])),
        }
    }
    errors
}

pub fn success(spec: &Value, path: &Path) -> Errors {
    let policy = at(spec, "successPolicy");
    if policy.is_null() {
        return Errors::new();
    }
    if text(spec, "completionMode") != "Indexed" {
        return vec![Error::invalid(path, policy.clone(), "requires indexed completion mode")];
    }
    let (rules, here) = (list(policy, "rules"), path.child("rules"));
    let mut errors = Errors::new();
    if rules.is_empty() {
        errors.push(Error::required(&here, "at least one rules must be specified when the successPolicy is specified"));
    }
    if rules.len() > RULES_MAX {
        errors.push(Error::too_many(&here, rules.len(), RULES_MAX));
    }
    let completions = int(spec, "completions").unwrap_or(0);
    for (index, rule) in rules.iter().enumerate() {
        errors.extend(success_rule(rule, completions, &here.index(index)));
    }
    errors
}

fn success_rule(rule: &Value, completions: i64, path: &Path) -> Errors {
    let (count, indexes) = (int(rule, "succeededCount"), at(rule, "succeededIndexes").as_str());
    let mut errors = Errors::new();
    if count.is_none() && indexes.is_none() {
        errors.push(Error::required(path, "at least one of succeededCount or succeededIndexes must be specified"));
    }
    let mut total = 0;
    if let Some(indexes) = indexes {
        let here = path.child("succeededIndexes");
        if indexes.len() > 64 * 1024 {
            errors.push(Error::too_long(&here, 64 * 1024));
        }
        match count_indexes(indexes, completions) {
            Ok(found) => total = found,
            Err(why) => errors.push(Error::invalid(&here, indexes, format!("error parsing succeededIndexes: {why}"))),
        }
    }
    if let Some(count) = count {
        let here = path.child("succeededCount");
        errors.extend(nonnegative(rule, path, "succeededCount"));
        if count > completions {
            let sentence = format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.push(Error::invalid(&here, count, sentence));
        }
        if indexes.is_some() && count > total {
            let sentence = format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)");
            errors.push(Error::invalid(&here, count, sentence));
        }
    }
    errors
}

/// How many indexes `0,2-4` names.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let number = |digits: &str| {
        let parsed = digits.parse::<i64>().map_err(|_| format!("cannot convert string to integer for index: {digits:?}"))?;
        if parsed >= completions {
            return Err(format!("too large index: {digits:?}"));
        }
        Ok(parsed)
    };
    let (mut total, mut last) = (0, None);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let limits: Vec<&str> = part.split('-').collect();
        let (first, end) = match limits.as_slice() {
            [one] => (number(one)?, number(one)?),
            [first, end] => (number(first)?, number(end)?),
            _ => {
                return Err(format!(
                    "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if last.is_some_and(|last| last >= first) {
            let last = last.unwrap_or(0);
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        if limits.len() == 2 && first >= end {
            return Err(format!("non-increasing order, previous: {first}, current: {end}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

pub fn replacement(spec: &Value, path: &Path) -> Option<Error> {
    let given = at(spec, "podReplacementPolicy").as_str()?;
    let allowed: &[&str] = if has(spec, "podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    (!allowed.contains(&given)).then(|| Error::not_supported(path, given, allowed))
}

/// A job that ended stays ended (upstream: `ValidateJobStatusUpdate`).
pub fn status(new: &Value, old: &Value) -> Errors {
    let (status, path) = (at(new, "status"), Path::new("status"));
    let mut errors: Errors =
        ["active", "succeeded", "failed", "ready", "terminating"].into_iter().flat_map(|field| nonnegative(status, &path, field)).collect();
    if let (Some(ready), Some(active)) = (int(status, "ready"), int(status, "active"))
        && ready > active
    {
        errors.push(Error::invalid(&path.child("ready"), ready, "must be less than or equal to active"));
    }
    let conditions = path.child("conditions");
    for kind in ["Failed", "Complete"] {
        if condition(old, kind) && !condition(new, kind) {
            let sentence = format!("cannot disable the terminal {kind}=True condition");
            errors.push(Error::invalid_unprinted(&conditions, sentence));
        }
    }
    if condition(new, "Complete") && condition(new, "Failed") {
        errors.push(Error::invalid_unprinted(&conditions, "cannot set Complete=True and Failed=true conditions"));
    }
    let finished = condition(new, "Complete") || condition(new, "Failed");
    if finished && int(status, "active").unwrap_or(0) > 0 {
        errors.push(Error::invalid(&path.child("active"), int(status, "active"), "active>0 is invalid for finished job"));
    }
    if has(status, "completionTime") && !condition(new, "Complete") {
        let here = path.child("completionTime");
        errors.push(Error::invalid(
            &here,
            at(status, "completionTime").clone(),
            "cannot set completionTime when there is no Complete=True condition",
        ));
    }
    if condition(new, "Complete") && !has(status, "completionTime") {
        errors.push(Error::required(&path.child("completionTime"), "completionTime is required for Complete jobs"));
    }
    if condition(old, "Complete") && has(at(old, "status"), "completionTime") {
        errors.extend(immutable(&path.child("completionTime"), at(status, "completionTime"), at(old, "status.completionTime")));
    }
    errors
}
