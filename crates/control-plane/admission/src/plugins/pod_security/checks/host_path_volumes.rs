//! The node's files stay the node's.

use rules::value::{has, list, text};

use super::super::policy::Level;
use super::{Check, Finding, Pod, finding, plural, quoted};

pub static CHECK: Check = Check { level: Level::Baseline, versions: &[(0, run)], replaces: None };

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let volumes = list(pod.spec, "volumes").iter().filter(|volume| has(volume, "hostPath"));
    let names: Vec<&str> = volumes.map(|volume| text(volume, "name")).collect();
    if names.is_empty() {
        return None;
    }
    finding("hostPath volumes", format!("{} {}", plural(names.len(), "volume", "volumes"), quoted(&names)))
}
