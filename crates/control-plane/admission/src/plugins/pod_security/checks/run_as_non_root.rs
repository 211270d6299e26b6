//! Containers say that they do not run as root; those in a user namespace need not since 1.35.

use rules::value::at;

use super::super::policy::Level;
use super::{Check, Finding, Pod, containers, finding};

pub static CHECK: Check = Check { level: Level::Restricted, versions: &[(0, run), (35, unless_in_user_namespace)], replaces: None };

fn unless_in_user_namespace(pod: &Pod<'_>) -> Option<Finding> {
    if pod.has_user_namespace() { None } else { run(pod) }
}

fn run(pod: &Pod<'_>) -> Option<Finding> {
    const REASON: &str = "runAsNonRoot != true";
    let (setters, _) = pod.setters("runAsNonRoot", |value| value.as_bool() == Some(false), |_| String::new());
    if !setters.is_empty() {
        return finding(REASON, format!("{} must not set securityContext.runAsNonRoot=false", setters.join(" and ")));
    }
    if at(pod.spec, "securityContext.runAsNonRoot").as_bool() == Some(true) {
        return None;
    }
    let silent = pod.names(|container| at(container, "securityContext.runAsNonRoot").is_null());
    if silent.is_empty() {
        return None;
    }
    finding(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&silent)))
}
