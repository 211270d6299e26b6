//! No container is privileged.

use rules::value::flag;

use super::super::policy::Level;
use super::{Check, Finding, Pod, containers, finding};

pub static CHECK: Check = Check { level: Level::Baseline, versions: &[(0, run)], replaces: None };

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let bad = pod.names(|container| flag(container, "securityContext.privileged"));
    if bad.is_empty() {
        return None;
    }
    finding("privileged", format!("{} must not set securityContext.privileged=true", containers(&bad)))
}
