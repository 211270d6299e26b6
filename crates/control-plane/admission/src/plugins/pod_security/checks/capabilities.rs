//! Which capabilities containers may add, and that they drop the others.

use std::collections::BTreeSet;

use rules::value::{list, text};
use serde_json::Value;

use super::super::policy::Level;
use super::{Check, Finding, Pod, containers, finding, quoted};

pub static BASELINE: Check = Check { level: Level::Baseline, versions: &[(0, baseline)], replaces: None };
pub static RESTRICTED: Check =
    Check { level: Level::Restricted, versions: &[(22, restricted), (25, unless_windows)], replaces: Some(&BASELINE) };

/// What container runtimes give by themselves.
const DEFAULT: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What one container adds beyond `allowed`.
fn added(container: &Value, allowed: &[&str]) -> Vec<String> {
    let words = list(container, "securityContext.capabilities.add").iter().filter_map(Value::as_str);
    words.filter(|word| !allowed.contains(word)).map(str::to_owned).collect()
}

/// The containers that add too much, and what.
fn forbidden(pod: &Pod<'_>, allowed: &[&str]) -> Option<String> {
    let mut all = BTreeSet::new();
    let mut bad = Vec::new();
    for container in pod.containers() {
        let more = added(container, allowed);
        if !more.is_empty() {
            bad.push(text(container, "name").to_owned());
            all.extend(more);
        }
    }
    (!bad.is_empty()).then(|| format!("{} must not include {} in securityContext.capabilities.add", containers(&bad), quoted(&all)))
}

fn baseline(pod: &Pod<'_>) -> Option<Finding> {
    finding("non-default capabilities", forbidden(pod, &DEFAULT)?)
}

fn unless_windows(pod: &Pod<'_>) -> Option<Finding> {
    if pod.is_windows() { None } else { restricted(pod) }
}

fn restricted(pod: &Pod<'_>) -> Option<Finding> {
    let keeping = pod.names(|container| !list(container, "securityContext.capabilities.drop").iter().any(|word| word == "ALL"));
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    details.extend(forbidden(pod, &["NET_BIND_SERVICE"]));
    if details.is_empty() { None } else { finding("unrestricted capabilities", details.join("; ")) }
}
