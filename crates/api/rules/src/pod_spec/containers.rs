//! Containers, init containers and ephemeral containers of a pod. Their environment is in [`env`], their probes and hooks in
//! [`handlers`].

pub mod env;
mod handlers;

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use super::{Context, security, volumes};
use crate::checks::{Errors, one_of, protocol, required, required_formed, sentences};
use crate::resources;
use crate::value::{at, has, int, list, text};

pub fn validate(spec: &Value, context: &Context<'_>, path: &Path) -> Errors {
    let mut errors = regular(spec, context, &path.child("containers"));
    errors.extend(init(spec, context, &path.child("initContainers")));
    errors.extend(ephemeral(spec, context, &path.child("ephemeralContainers")));
    errors
}

fn regular(spec: &Value, context: &Context<'_>, path: &Path) -> Errors {
    let containers = list(spec, "containers");
    if containers.is_empty() {
        return vec![Error::required(path, "")];
    }
    let mut errors = Errors::new();
    let mut taken = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let here = path.index(index);
        errors.extend(common(container, context, &here));
        let name = text(container, "name");
        if !taken.insert(name) {
            errors.push(Error::duplicate(&here.child("name"), name));
        }
        errors.extend(handlers::validate(container, context.grace_seconds, &here));
        errors.extend(restart_policy(container, &here));
        errors.extend(stop_signal(container, spec, &here));
    }
    let mut host_ports = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        errors.extend(host_port_conflicts(container, &mut host_ports, &path.index(index)));
    }
    errors
}

/// An init container that always restarts is a sidecar: it may have probes and hooks, the others not.
fn init(spec: &Value, context: &Context<'_>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut taken: BTreeSet<&str> = list(spec, "containers").iter().map(|container| text(container, "name")).collect();
    for (index, container) in list(spec, "initContainers").iter().enumerate() {
        let here = path.index(index);
        errors.extend(common(container, context, &here));
        errors.extend(restart_policy(container, &here));
        let name = text(container, "name");
        if !name.is_empty() && !taken.insert(name) {
            errors.push(Error::duplicate(&here.child("name"), name));
        }
        // They run one after another: their host ports may repeat those of others.
        errors.extend(host_port_conflicts(container, &mut BTreeSet::new(), &path.index(0)));
        if text(container, "restartPolicy") == "Always" {
            errors.extend(handlers::validate(container, context.grace_seconds, &here));
            errors.extend(stop_signal(container, spec, &here));
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if has(container, field) {
                errors.push(Error::forbidden(&here.child(field), "may not be set for init containers without restartPolicy=Always"));
            }
        }
    }
    errors
}

/// The fields that an ephemeral container may not have.
const NOT_EPHEMERAL: [&str; 9] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

fn ephemeral(spec: &Value, context: &Context<'_>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let lasting: BTreeSet<&str> =
        ["containers", "initContainers"].iter().flat_map(|kind| list(spec, kind)).map(|container| text(container, "name")).collect();
    let mut taken = lasting.clone();
    for (index, container) in list(spec, "ephemeralContainers").iter().enumerate() {
        let here = path.index(index);
        errors.extend(common(container, context, &here));
        errors.extend(padded_image(container, &here));
        let (name, target) = (text(container, "name"), text(container, "targetContainerName"));
        if !taken.insert(name) {
            errors.push(Error::duplicate(&here.child("name"), name));
        }
        if !target.is_empty() && !lasting.contains(target) {
            errors.push(Error::not_found(&here.child("targetContainerName"), target));
        }
        let sentence = "cannot be set for an Ephemeral Container";
        let given = NOT_EPHEMERAL.into_iter().filter(|field| match at(container, field) {
            Value::Null => false,
            Value::Object(map) => !map.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        });
        errors.extend(given.map(|field| Error::forbidden(&here.child(field), sentence)));
        for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
            let given = ["subPath", "subPathExpr"].into_iter().filter(|field| !text(mount, field).is_empty());
            errors.extend(given.map(|field| Error::forbidden(&here.child("volumeMounts").index(index).child(field), sentence)));
        }
    }
    errors
}

/// What holds for containers of pods, not of templates.
pub fn only_of_pods(spec: &Value, path: &Path) -> Errors {
    let all = ["containers", "initContainers"].into_iter().flat_map(|kind| {
        let parent = path.child(kind);
        list(spec, kind).iter().enumerate().map(move |(index, container)| (parent.index(index), container))
    });
    all.filter_map(|(here, container)| padded_image(container, &here)).collect()
}

fn padded_image(container: &Value, path: &Path) -> Option<Error> {
    let image = text(container, "image");
    let sentence = "must not have leading or trailing whitespace";
    (image.trim() != image).then(|| Error::invalid(&path.child("image"), image, sentence))
}

/// Every container of a spec with its path.
pub fn all<'a>(spec: &'a Value, path: &Path) -> impl Iterator<Item = (Path, &'a Value)> {
    let lists = ["initContainers", "containers", "ephemeralContainers"].map(|kind| (path.child(kind), list(spec, kind)));
    lists
        .into_iter()
        .flat_map(|(parent, containers)| containers.iter().enumerate().map(move |(index, container)| (parent.index(index), container)))
}

fn common(container: &Value, context: &Context<'_>, path: &Path) -> Errors {
    let mut errors = required_formed(container, path, "name", names::dns1123_label);
    errors.extend(required(container, path, "image"));
    errors.extend(one_of(container, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"]));
    errors.extend(ports(container, &path.child("ports")));
    errors.extend(env::validate(container, path));
    errors.extend(volumes::mounts(container, &context.volumes, path));
    errors.extend(volumes::devices(container, &context.volumes, path));
    errors.extend(one_of(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]));
    errors.extend(resources::of_container(at(container, "resources"), &context.claims, &path.child("resources")));
    errors.extend(resize_policy(list(container, "resizePolicy"), context, &path.child("resizePolicy")));
    errors.extend(security::of_container(at(container, "securityContext"), context.host_users, &path.child("securityContext")));
    errors
}

fn ports(container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut taken = BTreeSet::new();
    for (index, port) in list(container, "ports").iter().enumerate() {
        let here = path.index(index);
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
        if number == 0 {
            continue;
        }
        let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
        if !taken.insert(key.clone()) {
            errors.push(Error::duplicate(&path.child("ports").index(index).child("hostPort"), key));
        }
    }
    errors
}

fn resize_policy(policies: &[Value], context: &Context<'_>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, policy) in policies.iter().enumerate() {
        let (resource, restart) = (text(policy, "resourceName"), text(policy, "restartPolicy"));
        if !seen.insert(resource) {
            errors.push(Error::duplicate(&path.index(index), resource));
        }
        match resource {
            "cpu" | "memory" => {}
            "" => errors.push(Error::required(path, "")),
            other => errors.push(Error::not_supported(path, other, &["cpu", "memory"])),
        }
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => errors.push(Error::required(path, "")),
            other => errors.push(Error::not_supported(path, other, &["NotRequired", "RestartContainer"])),
        }
        if context.restart_policy == "Never" && restart != "NotRequired" {
            errors.push(Error::invalid(path, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'"));
        }
    }
    errors
}

/// A container's own restart policy and rules (KEP-5307, on by default since 1.35).
fn restart_policy(container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let rules = list(container, "restartPolicyRules");
    let policy = path.child("restartPolicy");
    match at(container, "restartPolicy").as_str() {
        None if !rules.is_empty() => errors.push(Error::required(&policy, "must specify restartPolicy when restart rules are used")),
        Some(given) if !matches!(given, "Always" | "Never" | "OnFailure") => {
            errors.push(Error::not_supported(&policy, given, &["Always", "Never", "OnFailure"]));
        }
        _ => {}
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.push(Error::too_many(&path, rules.len(), 20));
    }
    for (index, rule) in rules.iter().enumerate() {
        let here = path.index(index);
        if !matches!(text(rule, "action"), "Restart" | "RestartAllContainers") {
            errors.push(Error::not_supported(&here.child("action"), text(rule, "action"), &["Restart", "RestartAllContainers"]));
        }
        let (codes, inner) = (at(rule, "exitCodes"), here.child("exitCodes"));
        if codes.is_null() {
            errors.push(Error::required(&inner, "must be specified"));
            continue;
        }
        if !matches!(text(codes, "operator"), "In" | "NotIn") {
            errors.push(Error::not_supported(&inner.child("operator"), text(codes, "operator"), &["In", "NotIn"]));
        }
        let values = list(codes, "values").len();
        if values > 255 {
            errors.push(Error::too_many(&inner.child("values"), values, 255));
        }
    }
    errors
}

/// A stop signal needs to know the system that delivers it (KEP-4960).
fn stop_signal(container: &Value, spec: &Value, path: &Path) -> Errors {
    let signal = text(container, "lifecycle.stopSignal");
    if signal.is_empty() {
        return Errors::new();
    }
    let here = path.child("lifecycle").child("stopSignal");
    match text(spec, "os.name") {
        "" => vec![Error::forbidden(&here, "may not be set for containers with empty `spec.os.name`")],
        "windows" if !matches!(signal, "SIGKILL" | "SIGTERM") => vec![Error::not_supported(&here, signal, &["SIGKILL", "SIGTERM"])],
        _ => Errors::new(),
    }
}
