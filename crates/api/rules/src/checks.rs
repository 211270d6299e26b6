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
        errors.extend(sentences(&path.child("key"), key, names::qualified_name(key)));
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
        () if ip.is_unspecified() => "may not be unspecified (0.0.0.0 or ::)",
        () if ip.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        () if link_local => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        () if link_local_multicast => "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        () => return Errors::new(),
    };
    vec![Error::invalid(path, address, sentence)]
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
