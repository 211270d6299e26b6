//! The node's network, processes and IPC stay the node's.

use rules::value::flag;

use super::super::policy::Level;
use super::{Check, Finding, Pod, finding};

pub static CHECK: Check = Check { level: Level::Baseline, versions: &[(0, run)], replaces: None };

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| flag(pod.spec, field));
    let shared: Vec<String> = shared.map(|field| format!("{field}=true")).collect();
    if shared.is_empty() { None } else { finding("host namespaces", shared.join(", ")) }
}
