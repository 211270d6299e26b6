//! `/proc` stays masked; the baseline excepts pods in a user namespace since 1.35.

use std::collections::BTreeSet;

use rules::value::text;

use super::super::policy::Level;
use super::{Check, Finding, Pod, containers, finding, quoted};

pub static BASELINE: Check = Check { level: Level::Baseline, versions: &[(0, run), (35, unless_in_user_namespace)], replaces: None };
pub static RESTRICTED: Check = Check { level: Level::Restricted, versions: &[(35, run)], replaces: Some(&BASELINE) };

fn unless_in_user_namespace(pod: &Pod<'_>) -> Option<Finding> {
    if pod.has_user_namespace() { None } else { run(pod) }
}

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let is_bad = |mount: &str| !matches!(mount, "" | "Default");
    let bad = pod.names(|container| is_bad(text(container, "securityContext.procMount")));
    if bad.is_empty() {
        return None;
    }
    let kinds = pod.containers().map(|container| text(container, "securityContext.procMount")).filter(|mount| is_bad(mount));
    let kinds: BTreeSet<&str> = kinds.collect();
    finding("procMount", format!("{} must not set securityContext.procMount to {}", containers(&bad), quoted(&kinds)))
}
