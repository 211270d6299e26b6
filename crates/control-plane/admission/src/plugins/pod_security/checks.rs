//! The controls of the levels, a file each; [`evaluate`] runs those of a level in a version.
//!
//! Source: pod-security-admission `policy/`; <https://kubernetes.io/docs/concepts/security/pod-security-standards/>.

mod allow_privilege_escalation;
mod app_armor_profile;
mod capabilities;
mod host_namespaces;
mod host_path_volumes;
mod host_ports;
mod host_probes;
mod privileged;
mod proc_mount;
mod restricted_volumes;
mod run_as_non_root;
mod run_as_user;
mod se_linux_options;
mod seccomp_profile;
mod sysctls;
mod windows_host_process;

use std::collections::BTreeSet;

use rules::value::{at, list, text};
use serde_json::Value;

use super::policy::{Level, Standard, Version};

/// A pod or a pod template.
#[derive(Clone, Copy)]
pub struct Pod<'a> {
    pub annotations: &'a Value,
    pub spec: &'a Value,
}

/// Why a control refuses a pod: in short, and which part of it is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub reason: String,
    pub detail: String,
}

pub(super) type Run = fn(&Pod<'_>) -> Option<Finding>;

/// One control.
pub(super) struct Check {
    pub level: Level,
    /// From which minor on which form of the control applies.
    pub versions: &'static [(u32, Run)],
    /// The control of the baseline that this one replaces.
    pub replaces: Option<&'static Check>,
}

/// In the order in which findings are told: the baseline's by upstream's ids, then the restricted level's.
static ALL: [&Check; 19] = [
    &app_armor_profile::CHECK,
    &capabilities::BASELINE,
    &host_namespaces::CHECK,
    &host_path_volumes::CHECK,
    &host_ports::CHECK,
    &host_probes::CHECK,
    &privileged::CHECK,
    &proc_mount::BASELINE,
    &se_linux_options::CHECK,
    &seccomp_profile::BASELINE,
    &sysctls::CHECK,
    &windows_host_process::CHECK,
    &allow_privilege_escalation::CHECK,
    &capabilities::RESTRICTED,
    &proc_mount::RESTRICTED,
    &restricted_volumes::CHECK,
    &run_as_non_root::CHECK,
    &run_as_user::CHECK,
    &seccomp_profile::RESTRICTED,
];

impl Check {
    fn run(&self, version: Version) -> Option<Run> {
        let applies = |(since, _): &&(u32, Run)| match version {
            Version::Latest => true,
            Version::Minor(minor) => *since <= minor,
        };
        self.versions.iter().rev().find(applies).map(|(_, run)| *run)
    }
}

/// What the standard has against the pod.
pub fn evaluate(standard: Standard, pod: &Pod<'_>) -> Vec<Finding> {
    let applying = ALL.iter().filter(|check| check.level <= standard.level && standard.level != Level::Privileged);
    let replaced: Vec<&Check> =
        applying.clone().filter(|check| check.run(standard.version).is_some()).filter_map(|check| check.replaces).collect();
    let kept = applying.filter(|check| !replaced.iter().any(|other| std::ptr::eq(*other, **check)));
    kept.filter_map(|check| check.run(standard.version)?(pod)).collect()
}

/// All findings in one sentence, with their details.
pub fn details(findings: &[Finding]) -> String {
    let words = findings.iter().map(|Finding { reason, detail }| match detail.as_str() {
        "" => reason.clone(),
        detail => format!("{reason} ({detail})"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Only the reasons.
pub fn reasons(findings: &[Finding]) -> String {
    findings.iter().map(|finding| finding.reason.as_str()).collect::<Vec<_>>().join(", ")
}

fn finding(reason: impl Into<String>, detail: impl Into<String>) -> Option<Finding> {
    Some(Finding { reason: reason.into(), detail: detail.into() })
}

impl<'a> Pod<'a> {
    /// All containers, those of the start first.
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |kind| list(spec, kind))
    }
    /// The names of the containers of which `is_bad` is true.
    fn names(&self, is_bad: impl Fn(&Value) -> bool) -> Vec<String> {
        self.containers().filter(|container| is_bad(container)).map(|container| text(container, "name").to_owned()).collect()
    }
    fn is_windows(&self) -> bool {
        text(self.spec, "os.name") == "windows"
    }
    /// In a user namespace, root in the pod is nobody on the node (KEP-127).
    fn has_user_namespace(&self) -> bool {
        at(self.spec, "hostUsers").as_bool() == Some(false)
    }
    /// Who sets a field of the security context badly: `pod`, `container "a"`, `pod and containers "a", "b"`; and the bad values.
    fn setters(&self, path: &str, is_bad: impl Fn(&Value) -> bool, shown: impl Fn(&Value) -> String) -> (Vec<String>, BTreeSet<String>) {
        let path = format!("securityContext.{path}");
        let mut values = BTreeSet::new();
        let mut judge = |holder: &Value| {
            let value = at(holder, &path);
            let bad = !value.is_null() && is_bad(value);
            if bad {
                values.insert(shown(value));
            }
            bad
        };
        let mut setters = Vec::new();
        if judge(self.spec) {
            setters.push("pod".to_owned());
        }
        let names: Vec<String> =
            self.containers().filter(|container| judge(container)).map(|container| text(container, "name").to_owned()).collect();
        if !names.is_empty() {
            setters.push(containers(&names));
        }
        (setters, values)
    }
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// `container "a"`, `containers "a", "b"`.
fn containers(names: &[String]) -> String {
    format!("{} {}", plural(names.len(), "container", "containers"), quoted(names))
}

fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect::<Vec<_>>().join(", ")
}

fn plural<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

#[cfg(test)]
mod tests;
