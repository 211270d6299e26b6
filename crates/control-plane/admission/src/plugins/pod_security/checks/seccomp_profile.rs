//! System calls stay filtered: never switched off (baseline), and asked for (restricted).

use std::collections::BTreeSet;

use rules::value::{has, text};
use serde_json::Value;

use super::super::policy::Level;
use super::{Check, Finding, Pod, containers, finding, plural, quoted, word};

pub static BASELINE: Check = Check { level: Level::Baseline, versions: &[(0, annotations), (19, fields)], replaces: None };
pub static RESTRICTED: Check =
    Check { level: Level::Restricted, versions: &[(19, restricted), (25, unless_windows)], replaces: Some(&BASELINE) };

const REASON: &str = "seccompProfile";
const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// Before the fields came (1.19).
fn annotations(pod: &Pod<'_>) -> Option<Finding> {
    let fine = |value: &str| matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
    let keys = std::iter::once(POD.to_owned()).chain(pod.containers().map(|container| format!("{CONTAINER}{}", text(container, "name"))));
    let bad = keys.filter_map(|key| {
        let value = pod.annotations.get(&key)?.as_str()?;
        (!fine(value)).then(|| format!("{key}={value:?}"))
    });
    let bad: BTreeSet<String> = bad.collect();
    if bad.is_empty() {
        return None;
    }
    let all: Vec<String> = bad.iter().cloned().collect();
    finding(REASON, format!("forbidden {} {}", plural(bad.len(), "annotation", "annotations"), all.join(", ")))
}

fn is_fine(kind: &Value) -> bool {
    matches!(kind.as_str(), Some("RuntimeDefault" | "Localhost"))
}

fn fields(pod: &Pod<'_>) -> Option<Finding> {
    let (setters, values) = pod.setters("seccompProfile.type", |kind| !is_fine(kind), word);
    if setters.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.seccompProfile.type to {}", setters.join(" and "), quoted(&values));
    finding(REASON, detail)
}

fn unless_windows(pod: &Pod<'_>) -> Option<Finding> {
    if pod.is_windows() { None } else { restricted(pod) }
}

fn restricted(pod: &Pod<'_>) -> Option<Finding> {
    let explicit = fields(pod);
    if explicit.is_some() || has(pod.spec, "securityContext.seccompProfile.type") {
        return explicit;
    }
    let silent = pod.names(|container| !has(container, "securityContext.seccompProfile"));
    if silent.is_empty() {
        return None;
    }
    let must = "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    finding(REASON, format!("pod or {} {must}", containers(&silent)))
}
