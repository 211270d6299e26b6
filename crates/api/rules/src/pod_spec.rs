//! What every pod has in common, alone or in a template: defaults in [`defaults`], validation of the spec here, of its
//! containers in [`containers`], of its volumes in [`volumes`]; which fields of a pod may still change in [`update`].
//!
//! Source: upstream `pkg/apis/core/v1/defaults.go` and `pkg/apis/core/validation/validation.go`.

pub mod containers;
pub mod defaults;
pub mod scheduling;
pub mod update;
pub mod volumes;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, labels, one_of, sentences};
use crate::metadata;
use crate::value::{at, flag, int, list, text};

/// Validates a pod template (`spec.template`): its metadata and its spec.
pub fn validate_template(template: &Value, path: &Path) -> Errors {
    let meta = at(template, "metadata");
    let mut errors = labels(at(meta, "labels"), &path.child("labels"));
    errors.extend(metadata::annotations(meta, &path.child("annotations")));
    errors.extend(validate(at(template, "spec"), &path.child("spec")));
    errors
}

pub fn validate(spec: &Value, path: &Path) -> Errors {
    let mut errors = volumes::validate(spec, path);
    errors.extend(containers::validate(spec, path));
    errors.extend(one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"]));
    errors.extend(one_of(spec, path, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]));
    errors.extend(security_context(spec, path));
    errors.extend(image_pull_secrets(spec, path));
    errors.extend(scheduling::validate(spec, path));
    errors.extend(dns_config(spec, path));
    errors.extend(names_in(spec, path));
    errors.extend(numbers(spec, path));
    errors.extend(host_aliases(spec, path));
    errors
}

/// What is allowed but most likely not meant (upstream: `pkg/api/pod/warnings.go`).
pub fn warnings(spec: &Value, path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for kind in ["initContainers", "containers"] {
        for (index, container) in list(spec, kind).iter().enumerate() {
            let here = path.child(kind).index(index);
            let mut seen = std::collections::BTreeSet::new();
            for (index, variable) in list(container, "env").iter().enumerate() {
                let name = text(variable, "name");
                if !seen.insert(name) {
                    let at = here.child("env").index(index);
                    found.push(format!("{at}: hides previous definition of {name:?}, which may be dropped when using apply"));
                }
            }
        }
    }
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        found.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    found
}

fn numbers(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if let Some(seconds) = int(spec, "activeDeadlineSeconds") {
        errors.extend(sentences(&path.child("activeDeadlineSeconds"), seconds, names::in_range(seconds, 1, i32::MAX.into())));
    }
    if int(spec, "terminationGracePeriodSeconds").is_none() {
        errors.push(Error::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    errors
}

/// Fields that are names of other objects or of hosts.
fn names_in(spec: &Value, path: &Path) -> Errors {
    type Check = fn(&str) -> Vec<String>;
    let checks: [(&str, Check); 6] = [
        ("serviceAccountName", names::dns1123_subdomain),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ];
    let given = checks.iter().map(|(field, check)| (field, text(spec, field), check)).filter(|(_, value, _)| !value.is_empty());
    given.flat_map(|(field, value, check)| sentences(&path.child(field), value, check(value))).collect()
}

fn security_context(spec: &Value, path: &Path) -> Errors {
    let context = at(spec, "securityContext");
    let path_here = path.child("securityContext");
    let mut errors = user_and_group(context, &path_here);
    for (index, group) in list(context, "supplementalGroups").iter().enumerate() {
        let group = group.as_i64().unwrap_or(-1);
        errors.extend(sentences(&path_here.child("supplementalGroups").index(index), group, user_range(group)));
    }
    if let Some(group) = int(context, "fsGroup") {
        errors.extend(sentences(&path_here.child("fsGroup"), group, user_range(group)));
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let sentence = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(Error::invalid(&path.child("shareProcessNamespace"), true, sentence));
    }
    for (index, sysctl) in list(context, "sysctls").iter().enumerate() {
        if text(sysctl, "name").is_empty() {
            errors.push(Error::required(&path_here.child("sysctls").index(index).child("name"), ""));
        }
    }
    errors
}

fn user_range(id: i64) -> Vec<String> {
    names::in_range(id, 0, i32::MAX.into())
}

/// `runAsUser` and `runAsGroup` of a pod's or container's security context.
pub fn user_and_group(context: &Value, path: &Path) -> Errors {
    let given = ["runAsUser", "runAsGroup"].into_iter().filter_map(|field| int(context, field).map(|id| (field, id)));
    given.flat_map(|(field, id)| sentences(&path.child(field), id, user_range(id))).collect()
}

fn image_pull_secrets(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if secret.as_object().is_some_and(|secret| secret.keys().any(|key| key != "name")) {
            let sentence = "only name may be set";
            errors.push(Error::invalid(&path.child("imagePullSecrets").index(index), secret.clone(), sentence));
        }
    }
    errors
}

fn dns_config(spec: &Value, path: &Path) -> Errors {
    let config = at(spec, "dnsConfig");
    let here = path.child("dnsConfig");
    let servers = list(config, "nameservers");
    let mut errors = Errors::new();
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            errors.push(Error::required(&here, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return errors;
        }
        if servers.is_empty() {
            errors.push(Error::required(&here.child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None"));
        }
    }
    if servers.len() > 3 {
        let sentence = "must not have more than 3 nameservers";
        errors.push(Error::invalid(&here.child("nameservers"), servers.to_vec(), sentence));
    }
    for (index, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        errors.extend(sentences(&here.child("nameservers").index(index), server, names::ip(server)));
    }
    for (index, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(Error::required(&here.child("options").index(index), "must not be empty"));
        }
    }
    errors
}

fn host_aliases(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, alias) in list(spec, "hostAliases").iter().enumerate() {
        let here = path.child("hostAliases").index(index);
        let ip = text(alias, "ip");
        errors.extend(sentences(&here.child("ip"), ip, names::ip(ip)));
        for (index, host) in list(alias, "hostnames").iter().filter_map(Value::as_str).enumerate() {
            errors.extend(sentences(&here.child("hostnames").index(index), host, names::dns1123_subdomain(host)));
        }
    }
    errors
}
