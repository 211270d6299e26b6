//! The node's ports stay the node's.

use std::collections::BTreeSet;

use rules::value::{int, list, text};

use super::super::policy::Level;
use super::{Check, Finding, Pod, containers, finding, plural};

pub static CHECK: Check = Check { level: Level::Baseline, versions: &[(0, run)], replaces: None };

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let mut ports = BTreeSet::new();
    let mut bad = Vec::new();
    for container in pod.containers() {
        let used: Vec<i64> = list(container, "ports").iter().filter_map(|port| int(port, "hostPort").filter(|port| *port != 0)).collect();
        if !used.is_empty() {
            bad.push(text(container, "name").to_owned());
            ports.extend(used.iter().map(i64::to_string));
        }
    }
    if bad.is_empty() {
        return None;
    }
    let (use_, noun) = (plural(bad.len(), "uses", "use"), plural(ports.len(), "hostPort", "hostPorts"));
    let ports: Vec<String> = ports.into_iter().collect();
    finding("hostPort", format!("{} {use_} {noun} {}", containers(&bad), ports.join(", ")))
}
