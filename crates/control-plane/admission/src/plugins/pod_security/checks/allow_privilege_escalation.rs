//! A process may not gain more rights than its parent (`no_new_privs`).

use rules::value::at;

use super::super::policy::Level;
use super::{Check, Finding, Pod, containers, finding};

pub static CHECK: Check = Check { level: Level::Restricted, versions: &[(8, run), (25, unless_windows)], replaces: None };

fn unless_windows(pod: &Pod<'_>) -> Option<Finding> {
    if pod.is_windows() { None } else { run(pod) }
}

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let bad = pod.names(|container| at(container, "securityContext.allowPrivilegeEscalation").as_bool() != Some(false));
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad));
    finding("allowPrivilegeEscalation != false", detail)
}
