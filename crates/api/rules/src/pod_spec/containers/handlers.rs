//! What a kubelet does to a container: probes and lifecycle hooks.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, nonnegative, port_number_or_name, sentences};
use crate::value::{at, has, int, list, text};

/// `grace_seconds` is the pod's termination grace period, where it is known.
pub fn validate(container: &Value, grace_seconds: Option<i64>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for hook in ["postStart", "preStop"] {
        let handler = at(at(container, "lifecycle"), hook);
        if !handler.is_null() {
            let kinds = ["exec", "httpGet", "tcpSocket", "sleep"];
            errors.extend(handler_errors(handler, &kinds, grace_seconds, &path.child("lifecycle").child(hook)));
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = at(container, name);
        if !probe.is_null() {
            errors.extend(probe_errors(name, probe, &path.child(name)));
        }
    }
    errors
}

fn probe_errors(name: &str, probe: &Value, path: &Path) -> Errors {
    let mut errors = handler_errors(probe, &["exec", "httpGet", "tcpSocket", "grpc"], None, path);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errors.extend(nonnegative(probe, path, field));
    }
    let grace = int(probe, "terminationGracePeriodSeconds");
    if let Some(seconds) = grace.filter(|seconds| *seconds <= 0) {
        errors.push(Error::invalid(&path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0"));
    }
    if name == "readinessProbe" {
        if let Some(seconds) = grace {
            let here = path.child("terminationGracePeriodSeconds");
            errors.push(Error::invalid(&here, seconds, "must not be set for readinessProbes"));
        }
        return errors;
    }
    let threshold = int(probe, "successThreshold").unwrap_or(1);
    if threshold != 1 {
        errors.push(Error::invalid(&path.child("successThreshold"), threshold, "must be 1"));
    }
    errors
}

/// Exactly one action out of `kinds`.
fn handler_errors(handler: &Value, kinds: &[&str], grace_seconds: Option<i64>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut given = kinds.iter().filter(|kind| has(handler, kind)).peekable();
    if given.peek().is_none() {
        errors.push(Error::required(path, "must specify a handler type"));
    }
    for (position, kind) in given.enumerate() {
        let (action, here) = (at(handler, kind), path.child(kind));
        if position > 0 {
            errors.push(Error::forbidden(&here, "may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" if list(action, "command").is_empty() => errors.push(Error::required(&here.child("command"), "")),
            "httpGet" => errors.extend(http_get(action, &here)),
            "tcpSocket" => errors.extend(port_number_or_name(at(action, "port"), &here.child("port"))),
            "grpc" => {
                let port = int(action, "port").unwrap_or(0);
                errors.extend(sentences(&here.child("port"), port, names::port_number(port)));
            }
            "sleep" => errors.extend(sleep(action, grace_seconds, &here)),
            _ => {}
        }
    }
    errors
}

fn sleep(action: &Value, grace_seconds: Option<i64>, path: &Path) -> Option<Error> {
    let (seconds, grace) = (int(action, "seconds").unwrap_or(0), grace_seconds?);
    let sentence = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
    (seconds < 0 || seconds > grace).then(|| Error::invalid(path, seconds, sentence))
}

fn http_get(action: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if text(action, "path").is_empty() {
        errors.push(Error::required(&path.child("path"), ""));
    }
    errors.extend(port_number_or_name(at(action, "port"), &path.child("port")));
    if !matches!(text(action, "scheme"), "HTTP" | "HTTPS") {
        errors.push(Error::not_supported(&path.child("scheme"), text(action, "scheme"), &["HTTP", "HTTPS"]));
    }
    for header in list(action, "httpHeaders") {
        let name = text(header, "name");
        errors.extend(sentences(&path.child("httpHeaders"), name, names::http_header_name(name)));
    }
    errors
}
