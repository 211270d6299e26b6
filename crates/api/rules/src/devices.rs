//! Dynamic resource allocation: what claims, classes and slices share.

use std::collections::{BTreeMap, BTreeSet};

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, any, formed, label_name, one_of, required_formed, sentences, supported, unique};
use crate::pod_spec::volumes::sources::driver_name;
use crate::value::{at, has, int, items_mut, list, set_default, sub, text};

pub const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];
const REQUESTS_MAX: usize = 32;
const EXPRESSION_BYTES_MAX: usize = 10 * 1024;
pub const PARAMETERS_BYTES_MAX: usize = 10 * 1024;

/// The requests of a claim and, by request, its alternatives: constraints and results name them.
pub type Requests<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Checks each item, unless there are too many.
pub fn each(object: &Value, parent: &Path, field: &str, max: usize, check: impl Fn(&Value, &Path) -> Errors) -> Errors {
    let (items, path) = (list(object, field), parent.child(field));
    if items.len() > max {
        return vec![Error::too_many(&path, items.len(), max)];
    }
    items.iter().enumerate().flat_map(|(index, item)| check(item, &path.index(index))).collect()
}

/// As [`each`], and no two items with the same text in `key`.
pub fn each_once(object: &Value, parent: &Path, field: &str, max: usize, key: &str, check: impl Fn(&Value, &Path) -> Errors) -> Errors {
    let mut errors = each(object, parent, field, max, check);
    if list(object, field).len() <= max {
        errors.extend(unique(list(object, field).iter().map(|item| text(item, key)), &parent.child(field)));
    }
    errors
}

/// As [`each_once`], of plain texts.
fn each_word(object: &Value, parent: &Path, field: &str, max: usize, check: impl Fn(&str, &Path) -> Errors) -> Errors {
    let mut errors = each(object, parent, field, max, |word, path| check(word.as_str().unwrap_or_default(), path));
    if list(object, field).len() <= max {
        errors.extend(unique(list(object, field).iter().filter_map(Value::as_str), &parent.child(field)));
    }
    errors
}

pub fn device_name(object: &Value, parent: &Path, field: &str) -> Errors {
    let name = text(object, field);
    sentences(&parent.child(field), name, names::dns1123_label(name))
}

pub fn pool_name(object: &Value, parent: &Path, field: &str) -> Errors {
    let (name, path) = (text(object, field), parent.child(field));
    if name.is_empty() {
        return vec![Error::required(&path, "")];
    }
    let mut errors = Errors::new();
    if name.len() > names::DNS1123_SUBDOMAIN_LENGTH_MAX {
        errors.push(Error::too_long(&path, names::DNS1123_SUBDOMAIN_LENGTH_MAX));
    }
    errors.extend(name.split('/').flat_map(|part| sentences(&path, part, names::dns1123_subdomain(part))));
    errors
}

/// The name of an attribute or capacity: an identifier, perhaps in a driver's domain.
pub fn qualified(name: &str, path: &Path) -> Errors {
    let identifier = |id: &str| {
        let mut errors = Errors::new();
        if id.len() > 32 {
            errors.push(Error::too_long(path, 32));
        }
        errors.extend(sentences(path, id, names::c_identifier(id)));
        errors
    };
    let parts: Vec<_> = name.split('/').collect();
    match parts[..] {
        [id] => identifier(id),
        [domain, id] => {
            let mut errors = match domain {
                "" => vec![Error::invalid(path, "", "the domain must not be empty")],
                _ => driver_name(domain, path),
            };
            match id {
                "" => errors.push(Error::invalid(path, "", "the name must not be empty")),
                _ => errors.extend(identifier(id)),
            }
            errors
        }
        _ => vec![Error::invalid(path, name, "must not contain more than one slash")],
    }
}

pub fn fully_qualified(name: &str, path: &Path) -> Errors {
    let mut errors = qualified(name, path);
    if !name.contains('/') {
        errors.push(Error::invalid(path, name, "a fully qualified name must be a domain and a name separated by a slash"));
    }
    errors
}

/// Fills in what a claim's requests leave out. `claim` is the object with `devices`.
pub fn default_claim(claim: &mut Value) {
    for request in items_mut(claim, "devices.requests") {
        if let Some(exactly) = sub(request, "exactly") {
            default_request(exactly);
        }
        items_mut(request, "firstAvailable").for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    if text(request, "allocationMode").is_empty() {
        set_default(request, "allocationMode", "ExactCount");
    }
    if text(request, "allocationMode") == "ExactCount" && int(request, "count").unwrap_or(0) == 0 {
        crate::value::set(request, "count", 1);
    }
    for toleration in items_mut(request, "tolerations") {
        crate::value::set_default_text(toleration, "operator", "Equal");
    }
}

pub fn requests(claim: &Value) -> Requests<'_> {
    let alternatives = |request| list(request, "firstAvailable").iter().map(|one| text(one, "name")).collect();
    list(claim, "devices.requests").iter().map(|request| (text(request, "name"), alternatives(request))).collect()
}

pub fn claim(spec: &Value, path: &Path) -> Errors {
    let (known, devices, path) = (requests(spec), at(spec, "devices"), path.child("devices"));
    let mut errors = each_once(devices, &path, "requests", REQUESTS_MAX, "name", request);
    errors.extend(each(devices, &path, "constraints", 32, |constraint, path| {
        let mut errors = request_references(constraint, path, &known);
        match ["matchAttribute", "distinctAttribute"].into_iter().find(|field| has(constraint, field)) {
            Some(field) => errors.extend(fully_qualified(text(constraint, field), &path.child(field))),
            None => errors.push(Error::required(
                path,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
            )),
        }
        errors
    }));
    errors.extend(each(devices, &path, "config", 32, |config, path| {
        let mut errors = request_references(config, path, &known);
        errors.extend(configuration(config, path));
        errors
    }));
    errors
}

pub fn request_references(object: &Value, path: &Path, known: &Requests<'_>) -> Errors {
    each_word(object, path, "requests", REQUESTS_MAX, |name, path| request_reference(name, path, known))
}

pub fn request_reference(name: &str, path: &Path, known: &Requests<'_>) -> Errors {
    const SENTENCE: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<_> = name.split('/').collect();
    if parts.len() > 2 {
        return vec![Error::invalid(path, name, SENTENCE)];
    }
    let mut errors: Errors = parts.iter().flat_map(|part| sentences(path, *part, names::dns1123_label(part))).collect();
    let found = match parts[..] {
        [request] => known.contains_key(request),
        [request, one] => known.get(request).is_some_and(|alternatives| alternatives.contains(one)),
        _ => false,
    };
    if !found {
        errors.push(Error::invalid(path, name, SENTENCE));
    }
    errors
}

fn request(request: &Value, path: &Path) -> Errors {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    let mut errors = device_name(request, path, "name");
    match (has(request, "exactly"), any(at(request, "firstAvailable"))) {
        (false, false) => errors.push(Error::required(path, ONE)),
        (true, true) => errors.push(Error::invalid(path, Value::Null, format!("{ONE}, but multiple fields are set"))),
        (false, true) => errors.extend(each_once(request, path, "firstAvailable", 8, "name", |one, path| {
            let mut errors = device_name(one, path, "name");
            errors.extend(exact_request(one, path));
            errors
        })),
        (true, false) => errors.extend(exact_request(at(request, "exactly"), &path.child("exactly"))),
    }
    errors
}

fn exact_request(request: &Value, path: &Path) -> Errors {
    let mut errors = required_formed(request, path, "deviceClassName", names::dns1123_subdomain);
    errors.extend(selectors(request, path));
    let (mode, count) = (text(request, "allocationMode"), int(request, "count").unwrap_or(0));
    match mode {
        "All" if count != 0 => {
            errors.push(Error::invalid(&path.child("count"), count, "must not be specified when allocationMode is 'All'"));
        }
        "ExactCount" if count <= 0 => errors.push(Error::invalid(&path.child("count"), count, "must be greater than zero")),
        "All" | "ExactCount" => {}
        _ => errors.push(Error::not_supported(&path.child("allocationMode"), mode, &["All", "ExactCount"])),
    }
    errors.extend(each(request, path, "tolerations", 16, toleration));
    errors
}

/// Their expressions must compile: what does not would keep every pod that uses it from every node.
pub fn selectors(object: &Value, path: &Path) -> Errors {
    each(object, path, "selectors", 32, |selector, path| {
        let here = path.child("cel");
        let expression = text(selector, "cel.expression");
        match has(selector, "cel") {
            false => vec![Error::required(&here, "")],
            true if expression.len() > EXPRESSION_BYTES_MAX => {
                vec![Error::too_long(&here.child("expression"), EXPRESSION_BYTES_MAX)]
            }
            true => cel::device::compile(expression)
                .err()
                .map(|error| Error::invalid(&here.child("expression"), expression, error.to_string()))
                .into_iter()
                .collect(),
        }
    })
}

pub fn configuration(config: &Value, path: &Path) -> Errors {
    let (opaque, path) = (at(config, "opaque"), path.child("opaque"));
    if opaque.is_null() {
        return vec![Error::required(&path, "")];
    }
    let mut errors = driver_name(text(opaque, "driver"), &path.child("driver"));
    errors.extend(raw(at(opaque, "parameters"), &path.child("parameters"), PARAMETERS_BYTES_MAX));
    errors
}

/// A JSON object of limited size.
pub fn raw(data: &Value, path: &Path, bytes_max: usize) -> Errors {
    match data {
        Value::Null => vec![Error::required(path, "")],
        Value::Object(_) if data.to_string().len() > bytes_max => vec![Error::too_long(path, bytes_max)],
        Value::Object(_) => Errors::new(),
        _ => vec![Error::invalid(path, "<value omitted>", "must be a valid JSON object")],
    }
}

pub fn toleration(toleration: &Value, path: &Path) -> Errors {
    let mut errors = match text(toleration, "key") {
        "" => Errors::new(),
        key => label_name(key, &path.child("key")),
    };
    let (value, here) = (text(toleration, "value"), path.child("value"));
    match text(toleration, "operator") {
        "Exists" if !value.is_empty() => errors.push(Error::invalid(&here, value, "must be empty for operator `Exists`")),
        "Equal" => errors.extend(sentences(&here, value, names::label_value(value))),
        _ => errors.extend(one_of(toleration, path, "operator", &["Equal", "Exists"])),
    }
    if !text(toleration, "effect").is_empty() {
        errors.extend(supported(toleration, path, "effect", &EFFECTS));
    }
    errors
}

/// `old` is what was stored: an effect that is not new stays as it is.
pub fn taint(taint: &Value, old: Option<&Value>, path: &Path) -> Errors {
    let mut errors = label_name(text(taint, "key"), &path.child("key"));
    errors.extend(formed(taint, path, "value", names::label_value));
    if old.is_none_or(|old| text(old, "effect") != text(taint, "effect")) {
        errors.extend(one_of(taint, path, "effect", &EFFECTS));
    }
    errors
}

/// Conditions that an allocated device waits for, and those on which it gives up.
pub fn binding_conditions(object: &Value, path: &Path) -> Errors {
    const WAIT: &str = "bindingConditions";
    const FAIL: &str = "bindingFailureConditions";
    let mut errors = each_word(object, path, WAIT, 4, label_name);
    errors.extend(each_word(object, path, FAIL, 4, label_name));
    let (wait, fail) = (list(object, WAIT), list(object, FAIL));
    for (index, condition) in fail.iter().enumerate().filter(|(_, condition)| wait.contains(condition)) {
        let sentence = "bindingFailureConditions must not overlap with bindingConditions";
        errors.push(Error::invalid(&path.child(FAIL).index(index), condition.clone(), sentence));
    }
    for (field, items, other, others) in [(WAIT, wait, FAIL, fail), (FAIL, fail, WAIT, wait)] {
        if items.is_empty() && !others.is_empty() {
            errors.push(Error::invalid(&path.child(field), items.to_vec(), format!("{field} are required to use {other}")));
        }
    }
    errors
}
