//! No Windows pod runs as a process of the host.

use super::super::policy::Level;
use super::{Check, Finding, Pod, finding};

pub static CHECK: Check = Check { level: Level::Baseline, versions: &[(0, run)], replaces: None };

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let (setters, _) = pod.setters("windowsOptions.hostProcess", |value| value.as_bool() == Some(true), |_| String::new());
    if setters.is_empty() {
        return None;
    }
    finding("hostProcess", format!("{} must not set securityContext.windowsOptions.hostProcess=true", setters.join(" and ")))
}
