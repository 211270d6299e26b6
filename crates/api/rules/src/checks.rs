//! Validations that many kinds share. Each returns its complaints; source: upstream `pkg/apis/core/validation`.

use std::net::IpAddr;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::value::{self, at, entries, list, text};

pub type Errors = Vec<Error>;

/// One `Invalid value` per sentence.
pub fn sentences(path: &Path, value: impl Into<Value>, complaints: Vec<String>) -> Errors {
    let value = value.into();
    complaints.into_iter().map(|complaint| Error::invalid(path, value.clone(), complaint)).collect()
}

/// A text that must be there.
pub fn required(object: &Value, parent: &Path, field: &str) -> Errors {
    if text(object, field).is_empty() { vec![Error::required(&parent.child(field), "")] } else { Errors::new() }
}

/// A text of a given form, where there is one.
pub fn formed(object: &Value, parent: &Path, field: &str, check: fn(&str) -> Vec<String>) -> Errors {
    match text(object, field) {
        "" => Errors::new(),
        given => sentences(&parent.child(field), given, check(given)),
    }
}

/// A text of a given form that must be there.
pub fn required_formed(object: &Value, parent: &Path, field: &str, check: fn(&str) -> Vec<String>) -> Errors {
    let mut errors = required(object, parent, field);
    errors.extend(formed(object, parent, field, check));
    errors
}

/// A word out of a closed set, where the field is given at all (Go: a pointer). `supported` is in upstream's order.
pub fn supported(object: &Value, parent: &Path, field: &str, supported: &[&str]) -> Errors {
    match at(object, field).as_str() {
        Some(found) if !supported.contains(&found) => vec![Error::not_supported(&parent.child(field), found, supported)],
        _ => Errors::new(),
    }
}

/// A number, where there is one, must be above 0.
pub fn positive(object: &Value, parent: &Path, field: &str) -> Errors {
    match value::int(object, field) {
        Some(number) if number <= 0 => vec![Error::invalid(&parent.child(field), number, "must be greater than zero")],
        _ => Errors::new(),
    }
}

/// A number, where there is one, must lie between two others.
pub fn in_range(object: &Value, parent: &Path, field: &str, min: i64, max: i64) -> Errors {
    value::int(object, field).map_or_else(Errors::new, |number| sentences(&parent.child(field), number, names::in_range(number, min, max)))
}

/// A key of a label.
pub fn label_name(key: &str, path: &Path) -> Errors {
    sentences(path, key, names::qualified_name(key))
}

/// Whether a map or list holds anything.
pub fn any(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// The same text twice in a list is a `Duplicate value` at its index.
pub fn unique<'a>(words: impl IntoIterator<Item = &'a str>, path: &Path) -> Errors {
    let mut seen = std::collections::BTreeSet::new();
    let words = words.into_iter().enumerate();
    words.filter(|(_, word)| !seen.insert(*word)).map(|(index, word)| Error::duplicate(&path.index(index), word)).collect()
}

/// A number, where there is one, must not be negative.
pub fn nonnegative(object: &Value, parent: &Path, field: &str) -> Errors {
    match value::int(object, field) {
        Some(number) if number < 0 => vec![Error::invalid(&parent.child(field), number, "must be greater than or equal to 0")],
        _ => Vec::new(),
    }
}

pub fn immutable(path: &Path, new: &Value, old: &Value) -> Errors {
    if value::same(new, old) { Vec::new() } else { vec![Error::invalid(path, new.clone(), "field is immutable")] }
}

/// As [`immutable`], in the words of upstream's declarative validation, which does not print the value.
pub fn fixed(path: &Path, new: &Value, old: &Value) -> Errors {
    if value::same(new, old) { Vec::new() } else { vec![Error::invalid(path, Value::Null, "field is immutable")] }
}

/// Exactly one of the members must be there, an empty one included (upstream's declarative `+union`).
pub fn union_of(object: &Value, path: &Path, members: &[&str]) -> Errors {
    let quoted = |words: &[&str]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    let given: Vec<&str> = members.iter().copied().filter(|member| value::has(object, member)).collect();
    match given.as_slice() {
        [_] => Vec::new(),
        [] => vec![Error::invalid(path, "", format!("must specify one of: {}", quoted(members)))],
        several => {
            vec![Error::invalid(path, format!("{{{}}}", quoted(several)), format!("must specify exactly one of: {}", quoted(members)))]
        }
    }
}

/// A number, where there is one, must not be below `min`.
pub fn at_least(object: &Value, parent: &Path, field: &str, min: i64) -> Errors {
    match value::int(object, field) {
        Some(number) if number < min => {
            vec![Error::invalid(&parent.child(field), number, format!("must be greater than or equal to {min}"))]
        }
        _ => Vec::new(),
    }
}

/// A number, where there is one, must not be above `max`.
pub fn at_most(object: &Value, parent: &Path, field: &str, max: i64) -> Errors {
    match value::int(object, field) {
        Some(number) if number > max => vec![Error::invalid(&parent.child(field), number, format!("must be less than or equal to {max}"))],
        _ => Vec::new(),
    }
}

/// A required word out of a closed set, in upstream's order.
pub fn one_of(object: &Value, parent: &Path, field: &str, supported: &[&str]) -> Errors {
    match text(object, field) {
        "" => vec![Error::required(&parent.child(field), "")],
        found if supported.contains(&found) => Vec::new(),
        found => vec![Error::not_supported(&parent.child(field), found, supported)],
    }
}

pub fn labels(labels: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or("");
        errors.extend(sentences(path, key.clone(), names::qualified_name(key)));
        errors.extend(sentences(path, value, names::label_value(value)));
    }
    errors
}

/// A `metav1.LabelSelector`.
pub fn label_selector(selector: &Value, path: &Path) -> Errors {
    let mut errors = labels(at(selector, "matchLabels"), &path.child("matchLabels"));
    for (index, expression) in list(selector, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = list(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(Error::required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.push(Error::forbidden(&path.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator")),
        }
        let key = text(expression, "key");
        errors.extend(label_name(key, &path.child("key")));
        for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
            errors.extend(sentences(&path.child("values").index(index), value, names::label_value(value)));
        }
    }
    errors
}

/// A port given as number or name.
pub fn port_number_or_name(port: &Value, path: &Path) -> Errors {
    match port {
        Value::String(name) => sentences(path, name.clone(), names::port_name(name)),
        other => sentences(path, other.clone(), names::port_number(other.as_i64().unwrap_or(0))),
    }
}

/// A required protocol.
pub fn protocol(port: &Value, path: &Path) -> Errors {
    one_of(port, path, "protocol", &["SCTP", "TCP", "UDP"])
}

/// An endpoint's address must not lead back into the node or to many machines.
pub fn non_special_ip(address: &str, path: &Path) -> Errors {
    let Ok(ip) = address.parse::<IpAddr>() else { return sentences(path, address, names::ip(address)) };
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02),
    };
    let sentence = match () {
        () if ip.is_unspecified() => return vec![Error::invalid(path, address, format!("may not be unspecified ({address})"))],
        () if ip.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        () if link_local => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        () if link_local_multicast => "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        () => return Errors::new(),
    };
    vec![Error::invalid(path, address, sentence)]
}

/// A `metav1.Condition` list: types unique, every field of its form.
pub fn conditions(conditions: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = std::collections::BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let here = path.index(index);
        let kind = text(condition, "type");
        if !seen.insert(kind) {
            errors.push(Error::duplicate(&here, kind));
        }
        if kind.is_empty() {
            errors.push(Error::required(&here.child("type"), "is required"));
        } else {
            errors.extend(label_name(kind, &here.child("type")));
        }
        errors.extend(one_of(condition, &here, "status", &["False", "True", "Unknown"]));
        if let Some(generation) = value::int(condition, "observedGeneration").filter(|generation| *generation < 0) {
            errors.push(Error::invalid(&here.child("observedGeneration"), generation, "must be greater than or equal to zero"));
        }
        errors.extend(required(condition, &here, "lastTransitionTime"));
        errors.extend(required_formed(condition, &here, "reason", condition_reason));
        for (field, max) in [("reason", 1024), ("message", 32 * 1024)] {
            if text(condition, field).len() > max {
                errors.push(Error::too_long(&here.child(field), max));
            }
        }
    }
    errors
}

fn condition_reason(reason: &str) -> Vec<String> {
    let bytes = reason.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"_,:".contains(byte);
    let last = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    if bytes.first().is_some_and(u8::is_ascii_alphabetic) && bytes.iter().all(inner) && bytes.last().is_some_and(last) {
        return Vec::new();
    }
    let sentence = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters \
                    or '_,:', and must end with an alphanumeric character or '_'";
    let examples = ["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"];
    vec![names::regex_error(sentence, "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", &examples)]
}

/// The keys of `data` of ConfigMaps and Secrets, and their size in bytes.
pub fn data_keys(data: &Value, path: &Path) -> Errors {
    let keys = data.as_object().into_iter().flatten().map(|(key, _)| key);
    keys.flat_map(|key| sentences(&path.key(key), key.clone(), names::config_map_key(key))).collect()
}

/// An int-or-percent field: not negative, or digits and a percent sign.
pub fn int_or_percent(object: &Value, parent: &Path, field: &str) -> Errors {
    let path = parent.child(field);
    match at(object, field) {
        Value::String(text) => sentences(&path, text.clone(), names::percent(text)),
        _ => nonnegative(object, parent, field),
    }
}

/// A percentage above 100 is refused.
pub fn at_most_hundred_percent(object: &Value, parent: &Path, field: &str) -> Errors {
    let percent = text(object, field).strip_suffix('%').and_then(|digits| digits.parse::<i64>().ok());
    match percent {
        Some(percent) if percent > 100 => {
            vec![Error::invalid(&parent.child(field), text(object, field), "must not be greater than 100%")]
        }
        _ => Vec::new(),
    }
}

/// Bytes of all keys and (decoded) values of base64 maps.
pub fn base64_size(object: &Value, path: &str) -> usize {
    entries(object, path).map(|(_, value)| value.as_str().map_or(0, |text| text.trim_end_matches('=').len() * 3 / 4)).sum()
}

/// `example.com/signer`: a domain and a path. Source: certificates' `ValidateSignerName`.
pub fn signer_name(name: &str, path: &Path) -> Errors {
    if name.is_empty() {
        return vec![Error::required(path, "")];
    }
    let segments: Vec<&str> = name.split('/').collect();
    let [domain, signer] = segments.as_slice() else {
        return vec![Error::invalid(path, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")];
    };
    let mut errors: Errors = names::dns1123_subdomain(domain)
        .into_iter()
        .map(|complaint| Error::invalid(path, *domain, format!("validating label {domain:?}: {complaint}")))
        .collect();
    if domain.split('.').count() < 2 {
        errors.push(Error::invalid(path, *domain, "should be a domain with at least two segments separated by dots"));
    }
    for complaint in names::dns1123_subdomain(signer) {
        errors.push(Error::invalid(path, *signer, format!("validating label {signer:?}: {complaint}")));
    }
    if domain.len() + signer.len() + 1 > 571 {
        errors.push(Error::too_long(path, 571));
    }
    errors
}

/// An IPv6 address that is not written as RFC 5952 says works, but not everywhere.
pub fn ip_warning(address: &str, path: &Path) -> Option<String> {
    let parsed: IpAddr = address.parse().ok()?;
    let printed = parsed.to_string();
    (parsed.is_ipv6() && printed != address)
        .then(|| format!("{path}: IPv6 address {address:?} should be in RFC 5952 canonical format ({printed:?})"))
}
