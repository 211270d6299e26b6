//! Probes and life-cycle handlers speak to their own pod only (since 1.34).

use std::collections::BTreeSet;

use rules::value::text;

use super::super::policy::Level;
use super::{Check, Finding, Pod, containers, finding, plural, quoted};

pub static CHECK: Check = Check { level: Level::Baseline, versions: &[(34, run)], replaces: None };

const HANDLERS: [&str; 5] = ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let (mut hosts, mut bad) = (BTreeSet::new(), BTreeSet::new());
    for container in pod.containers() {
        for handler in HANDLERS.iter().flat_map(|handler| [format!("{handler}.httpGet.host"), format!("{handler}.tcpSocket.host")]) {
            let host = text(container, &handler);
            if !host.is_empty() {
                hosts.insert(host.to_owned());
                bad.insert(text(container, "name").to_owned());
            }
        }
    }
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<String> = bad.into_iter().collect();
    let noun = plural(hosts.len(), "probe or lifecycle host", "probe or lifecycle hosts");
    let detail = format!("{} {} {noun} {}", containers(&bad), plural(bad.len(), "uses", "use"), quoted(&hosts));
    finding("probe or lifecycle host", detail)
}
