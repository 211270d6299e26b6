//! What a write to a pod's status must fulfil (upstream: `ValidatePodStatusUpdate`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, immutable, sentences};
use crate::pod_spec::update;
use crate::value::{at, has, int, list, text};

pub fn validate(new: &Value, old: &Value) -> Errors {
    let path = Path::new("status");
    let mut errors = update::annotations(new, old);
    for (index, condition) in list(new, "status.conditions").iter().enumerate() {
        let kind = text(condition, "type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            let here = Path::new("metadata").child("conditions").index(index).child("Type");
            errors.extend(sentences(&here, kind, names::qualified_name(kind)));
        }
    }
    let nominated = text(new, "status.nominatedNodeName");
    if !nominated.is_empty() && nominated != text(old, "status.nominatedNodeName") {
        errors.extend(sentences(&path.child("nominatedNodeName"), nominated, names::dns1123_subdomain(nominated)));
    }
    errors.extend(immutable(&path.child("qosClass"), at(new, "status.qosClass"), at(old, "status.qosClass")));
    for field in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        errors.extend(no_way_back(new, old, field, &path.child(field)));
    }
    errors.extend(addresses(new, "podIPs", &path.child("podIPs")));
    errors.extend(host_addresses(new, &path.child("hostIPs")));
    errors
}

/// A container that ended for good does not run again.
fn no_way_back(new: &Value, old: &Value, field: &str, path: &Path) -> Errors {
    let ephemeral = field.starts_with("ephemeral");
    let policy = if ephemeral { "Never" } else { text(old, "spec.restartPolicy") };
    if policy == "Always" {
        return Errors::new();
    }
    let mut errors = Errors::new();
    let after = list(at(new, "status"), field);
    for (index, before) in list(at(old, "status"), field).iter().enumerate() {
        let Some(code) = int(before, "state.terminated.exitCode") else { continue };
        let name = text(before, "name");
        // A container may have a restart policy of its own.
        let containers = list(old, "spec.containers").iter().chain(list(old, "spec.initContainers"));
        let own = containers.into_iter().any(|c| text(c, "name") == name && has(c, "restartPolicy"));
        let runs = |after: &Value| text(after, "name") == name && !has(after, "state.terminated");
        if (policy != "OnFailure" || code == 0) && !own && after.iter().any(runs) {
            errors.push(Error::forbidden(&path.index(index).child("state"), "may not be transitioned to non-terminated state"));
        }
    }
    errors
}

/// At most one address of each family, none twice.
fn addresses(pod: &Value, field: &str, path: &Path) -> Errors {
    let ips: Vec<&str> = list(at(pod, "status"), field).iter().map(|ip| text(ip, "ip")).collect();
    let mut errors = Errors::new();
    for (index, ip) in ips.iter().enumerate() {
        errors.extend(sentences(&path.index(index), *ip, names::ip(ip)));
    }
    if ips.len() < 2 {
        return errors;
    }
    let parsed: Vec<bool> = ips.iter().filter_map(|ip| ip.parse().ok()).map(|ip: IpAddr| ip.is_ipv6()).collect();
    if ips.len() > 2 || !(parsed.contains(&true) && parsed.contains(&false)) {
        let sentence = "may specify no more than one IP for each IP family";
        errors.push(Error::invalid(path, at(at(pod, "status"), field).clone(), sentence));
    }
    let mut seen = BTreeSet::new();
    for (index, ip) in ips.into_iter().enumerate() {
        if !seen.insert(ip) {
            errors.push(Error::duplicate(&path.index(index), serde_json::json!({"ip": ip})));
        }
    }
    errors
}

fn host_addresses(pod: &Value, path: &Path) -> Errors {
    let Some(first) = list(pod, "status.hostIPs").first() else { return Errors::new() };
    let mut errors = Errors::new();
    if text(first, "ip") != text(pod, "status.hostIP") {
        errors.push(Error::invalid(&path.index(0).child("ip"), text(first, "ip"), "must be equal to `hostIP`"));
    }
    errors.extend(addresses(pod, "hostIPs", path));
    errors
}
