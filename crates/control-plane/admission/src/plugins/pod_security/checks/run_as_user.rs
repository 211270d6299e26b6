//! Nobody asks for user 0; those in a user namespace may since 1.35.

use super::super::policy::Level;
use super::{Check, Finding, Pod, finding};

pub static CHECK: Check = Check { level: Level::Restricted, versions: &[(23, run), (35, unless_in_user_namespace)], replaces: None };

fn unless_in_user_namespace(pod: &Pod<'_>) -> Option<Finding> {
    if pod.has_user_namespace() { None } else { run(pod) }
}

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let (setters, _) = pod.setters("runAsUser", |value| value.as_i64() == Some(0), |_| String::new());
    if setters.is_empty() {
        return None;
    }
    finding("runAsUser=0", format!("{} must not set runAsUser=0", setters.join(" and ")))
}
