//! Containers, init containers and ephemeral containers of a pod.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::{Quantity, names, quantity};
use serde_json::Value;

use super::{user_and_group, volumes};
use crate::checks::{Errors, nonnegative, one_of, port_number_or_name, protocol, sentences};
use crate::value::{at, entries, flag, has, int, list, text};

pub fn validate(spec: &Value, path: &Path) -> Errors {
    let volume_names: BTreeSet<&str> = list(spec, "volumes").iter().map(|volume| text(volume, "name")).collect();
    let mut errors = Errors::new();
    if list(spec, "containers").is_empty() {
        errors.push(Error::required(&path.child("containers"), ""));
    }
    let mut taken = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        if kind == "initContainers" {
            // Init containers run one after another: their host ports may repeat those of others.
            host_ports.clear();
        }
        for (index, container) in list(spec, kind).iter().enumerate() {
            let here = path.child(kind).index(index);
            let name = text(container, "name");
            errors.extend(common(container, &volume_names, &here));
            if !name.is_empty() && !taken.insert(name) {
                errors.push(Error::duplicate(&here.child("name"), name));
            }
            match kind {
                "containers" => errors.extend(for_regular(container, &here)),
                "initContainers" => errors.extend(for_init(container, &here)),
                _ => errors.extend(for_ephemeral(container, &here)),
            }
            if kind == "containers" {
                errors.extend(host_port_conflicts(container, &mut host_ports, &here));
            }
        }
    }
    errors
}

fn common(container: &Value, volume_names: &BTreeSet<&str>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (name, image) = (text(container, "name"), text(container, "image"));
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        errors.extend(sentences(&path.child("name"), name, names::dns1123_label(name)));
    }
    if image.is_empty() {
        errors.push(Error::required(&path.child("image"), ""));
    } else if image.trim() != image {
        errors.push(Error::invalid(&path.child("image"), image, "must not have leading or trailing whitespace"));
    }
    errors.extend(one_of(container, path, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"]));
    errors.extend(ports(container, path));
    errors.extend(env(container, path));
    errors.extend(env_from(container, path));
    errors.extend(volumes::mounts(container, volume_names, path));
    errors.extend(one_of(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]));
    errors.extend(resources(at(container, "resources"), &path.child("resources")));
    errors.extend(security_context(container, &path.child("securityContext")));
    errors
}

fn for_regular(container: &Value, path: &Path) -> Errors {
    let mut errors = lifecycle(container, path);
    errors.extend(probes(container, path));
    errors
}

/// A restartable init container is a sidecar: it may have probes and hooks, the others not.
fn for_init(container: &Value, path: &Path) -> Errors {
    let restart = text(container, "restartPolicy");
    if restart == "Always" {
        return for_regular(container, path);
    }
    let mut errors = Errors::new();
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if has(container, field) {
            errors.push(Error::forbidden(&path.child(field), "may not be set for init containers without restartPolicy=Always"));
        }
    }
    errors
}

fn for_ephemeral(container: &Value, path: &Path) -> Errors {
    let fields = ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources"];
    let set = fields.into_iter().filter(|field| match at(container, field) {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    });
    set.map(|field| Error::forbidden(&path.child(field), "cannot be set for an Ephemeral Container")).collect()
}

fn ports(container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut taken = BTreeSet::new();
    for (index, port) in list(container, "ports").iter().enumerate() {
        let here = path.child("ports").index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            let complaints = names::port_name(name);
            if complaints.is_empty() && !taken.insert(name) {
                errors.push(Error::duplicate(&here.child("name"), name));
            }
            errors.extend(sentences(&here.child("name"), name, complaints));
        }
        match int(port, "containerPort").unwrap_or(0) {
            0 => errors.push(Error::required(&here.child("containerPort"), "")),
            number => errors.extend(sentences(&here.child("containerPort"), number, names::port_number(number))),
        }
        match int(port, "hostPort").unwrap_or(0) {
            0 => {}
            number => errors.extend(sentences(&here.child("hostPort"), number, names::port_number(number))),
        }
        errors.extend(protocol(port, &here));
    }
    errors
}

fn host_port_conflicts(container: &Value, taken: &mut BTreeSet<String>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, port) in list(container, "ports").iter().enumerate() {
        let number = int(port, "hostPort").unwrap_or(0);
        let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
        if number != 0 && !taken.insert(key.clone()) {
            errors.push(Error::duplicate(&path.child("ports").index(index).child("hostPort"), key));
        }
    }
    errors
}

fn env(container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, variable) in list(container, "env").iter().enumerate() {
        let here = path.child("env").index(index);
        match text(variable, "name") {
            "" => errors.push(Error::required(&here.child("name"), "")),
            name => errors.extend(sentences(&here.child("name"), name, names::env_var_name(name))),
        }
        if has(variable, "valueFrom") {
            errors.extend(value_from(variable, &here.child("valueFrom")));
        }
    }
    errors
}

/// The fields of a pod that the downward API offers to the environment.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn value_from(variable: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let source = at(variable, "valueFrom");
    let kinds: Vec<&str> = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]
        .into_iter()
        .filter(|kind| has(source, kind))
        .collect();
    if has(source, "fieldRef") {
        errors.extend(field_reference(at(source, "fieldRef"), &path.child("fieldRef")));
    }
    for kind in ["configMapKeyRef", "secretKeyRef"].into_iter().filter(|kind| has(source, kind)) {
        let (reference, here) = (at(source, kind), path.child(kind));
        let name = text(reference, "name");
        errors.extend(sentences(&here.child("name"), name, names::dns1123_subdomain(name)));
        match text(reference, "key") {
            "" => errors.push(Error::required(&here.child("key"), "")),
            key => errors.extend(sentences(&here.child("key"), key, names::config_map_key(key))),
        }
    }
    let sentence = if kinds.is_empty() {
        "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
    } else if !text(variable, "value").is_empty() {
        "may not be specified when `value` is not empty"
    } else if kinds.len() > 1 {
        "may not have more than one field specified at a time"
    } else {
        return errors;
    };
    errors.push(Error::invalid(path, "", sentence));
    errors
}

fn field_reference(reference: &Value, path: &Path) -> Errors {
    let field = text(reference, "fieldPath");
    if field.is_empty() {
        return vec![Error::required(&path.child("fieldPath"), "")];
    }
    // One label or annotation: metadata.labels['key'].
    let subscript = |map: &str| field.strip_prefix(map).is_some_and(|rest| rest.starts_with("['") && rest.ends_with("']"));
    if subscript("metadata.labels") || subscript("metadata.annotations") || ENV_FIELDS.contains(&field) {
        return Errors::new();
    }
    vec![Error::not_supported(&path.child("fieldPath"), field, &ENV_FIELDS)]
}

fn env_from(container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, source) in list(container, "envFrom").iter().enumerate() {
        let here = path.child("envFrom").index(index);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            errors.extend(sentences(&here.child("prefix"), prefix, names::env_var_name(prefix)));
        }
        let kinds: Vec<&str> = ["configMapRef", "secretRef"].into_iter().filter(|kind| has(source, kind)).collect();
        for kind in &kinds {
            let name = text(at(source, kind), "name");
            errors.extend(sentences(&here.child(kind).child("name"), name, names::dns1123_subdomain(name)));
        }
        match kinds.len() {
            0 => errors.push(Error::invalid(&path.child("envFrom"), "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errors.push(Error::invalid(&path.child("envFrom"), "", "may not have more than one field specified at a time")),
        }
    }
    errors
}

/// Requests and limits: known names, no negative amounts, requests within limits.
pub fn resources(resources: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for kind in ["limits", "requests"] {
        for (name, amount) in entries(resources, kind) {
            let here = path.child(kind).key(name);
            errors.extend(resource_name(name, &here));
            let Some(amount) = quantity::from_json(amount) else { continue };
            if amount.is_negative() {
                errors.push(Error::invalid(&here, amount.to_string(), "must be greater than or equal to 0"));
            } else if is_whole(name) && !amount.is_integer() {
                errors.push(Error::invalid(&here, amount.to_string(), "must be an integer"));
            }
            if kind == "requests" {
                errors.extend(within_limit(name, amount, at(resources, "limits").get(name), &path.child("requests")));
            }
        }
    }
    errors
}

fn within_limit(name: &str, request: Quantity, limit: Option<&Value>, path: &Path) -> Option<Error> {
    let limit = limit.and_then(quantity::from_json);
    let no_overcommit = is_whole(name) || name.starts_with("hugepages-");
    match limit {
        Some(limit) if no_overcommit && request != limit => {
            Some(Error::invalid(path, request.to_string(), format!("must be equal to {name} limit of {limit}")))
        }
        Some(limit) if request > limit => {
            Some(Error::invalid(path, request.to_string(), format!("must be less than or equal to {name} limit of {limit}")))
        }
        None if no_overcommit => Some(Error::required(&path.clone(), "Limit must be set for non overcommitable resources")),
        _ => None,
    }
}

/// Extended resources (`example.com/gpu`) are counted, not divided.
fn is_whole(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

fn resource_name(name: &str, path: &Path) -> Errors {
    let mut errors = sentences(path, name, names::qualified_name(name));
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if errors.is_empty() && !name.contains('/') && !standard {
        errors.push(Error::invalid(path, name, "must be a standard resource for containers"));
    }
    errors
}

fn security_context(container: &Value, path: &Path) -> Errors {
    let context = at(container, "securityContext");
    let mut errors = user_and_group(context, path);
    let escalation_refused = at(context, "allowPrivilegeEscalation").as_bool() == Some(false);
    let admin = list(context, "capabilities.add").iter().any(|capability| capability == "CAP_SYS_ADMIN");
    for (bad, sentence) in [
        (flag(context, "privileged"), "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"),
        (admin, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"),
    ] {
        if escalation_refused && bad {
            errors.push(Error::invalid(path, context.clone(), sentence));
        }
    }
    errors
}

fn lifecycle(container: &Value, path: &Path) -> Errors {
    let hooks = ["postStart", "preStop"].into_iter().filter(|hook| has(container, &format!("lifecycle.{hook}")));
    hooks
        .flat_map(|hook| {
            let handler = at(container, &format!("lifecycle.{hook}"));
            handler_errors(handler, &["exec", "httpGet", "tcpSocket", "sleep"], &path.child("lifecycle").child(hook))
        })
        .collect()
}

fn probes(container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let (probe, here) = (at(container, name), path.child(name));
        if probe.is_null() {
            continue;
        }
        errors.extend(handler_errors(probe, &["exec", "httpGet", "tcpSocket", "grpc"], &here));
        for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
            errors.extend(nonnegative(probe, &here, field));
        }
        let threshold = int(probe, "successThreshold").unwrap_or(1);
        if name != "readinessProbe" && threshold != 1 {
            errors.push(Error::invalid(&here.child("successThreshold"), threshold, "must be 1"));
        }
        let grace = int(probe, "terminationGracePeriodSeconds");
        match grace {
            Some(_) if name == "readinessProbe" => {
                let sentence = "must not be set for readinessProbes";
                errors.push(Error::invalid(&here.child("terminationGracePeriodSeconds"), grace, sentence));
            }
            Some(seconds) if seconds <= 0 => {
                errors.push(Error::invalid(&here.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0"));
            }
            _ => {}
        }
    }
    errors
}

/// Exactly one action out of `kinds`.
fn handler_errors(handler: &Value, kinds: &[&str], path: &Path) -> Errors {
    let given: Vec<&str> = kinds.iter().copied().filter(|kind| has(handler, kind)).collect();
    let mut errors = Errors::new();
    if given.is_empty() {
        errors.push(Error::required(path, "must specify a handler type"));
    }
    for (position, kind) in given.into_iter().enumerate() {
        let (action, here) = (at(handler, kind), path.child(kind));
        if position > 0 {
            errors.push(Error::forbidden(&here, "may not specify more than 1 handler type"));
            continue;
        }
        match kind {
            "exec" if list(action, "command").is_empty() => errors.push(Error::required(&here.child("command"), "")),
            "httpGet" => errors.extend(http_get(action, &here)),
            "tcpSocket" => errors.extend(port_number_or_name(at(action, "port"), &here.child("port"))),
            "grpc" => {
                let port = int(action, "port").unwrap_or(0);
                errors.extend(sentences(&here.child("port"), port, names::port_number(port)));
            }
            _ => {}
        }
    }
    errors
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
    for (index, header) in list(action, "httpHeaders").iter().enumerate() {
        let name = text(header, "name");
        errors.extend(sentences(&path.child("httpHeaders").index(index).child("name"), name, names::http_header_name(name)));
    }
    errors
}
