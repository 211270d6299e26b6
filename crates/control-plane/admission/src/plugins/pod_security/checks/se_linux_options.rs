//! SELinux: only the types made for containers, no user and no role.

use rules::value::text;
use serde_json::Value;

use super::super::policy::Level;
use super::{Check, Finding, Pod, finding, plural, quoted};

pub static CHECK: Check = Check { level: Level::Baseline, versions: &[(0, first), (31, with_engine)], replaces: None };

const TYPES: [&str; 4] = ["", "container_t", "container_init_t", "container_kvm_t"];

fn first(pod: &Pod<'_>) -> Option<Finding> {
    run(pod, |kind| TYPES.contains(&kind))
}

fn with_engine(pod: &Pod<'_>) -> Option<Finding> {
    run(pod, |kind| TYPES.contains(&kind) || kind == "container_engine_t")
}

fn run(pod: &Pod<'_>, allowed: fn(&str) -> bool) -> Option<Finding> {
    let is_bad =
        |options: &Value| !allowed(text(options, "type")) || !text(options, "user").is_empty() || !text(options, "role").is_empty();
    let (setters, shown) = pod.setters("seLinuxOptions", is_bad, Value::to_string);
    if setters.is_empty() {
        return None;
    }
    let options: Vec<Value> = shown.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
    let kinds: std::collections::BTreeSet<&str> =
        options.iter().map(|options| text(options, "type")).filter(|kind| !allowed(kind)).collect();
    let mut details = Vec::new();
    if !kinds.is_empty() {
        details.push(format!("{} {}", plural(kinds.len(), "type", "types"), quoted(&kinds)));
    }
    for field in ["user", "role"] {
        if options.iter().any(|options| !text(options, field).is_empty()) {
            details.push(format!("{field} may not be set"));
        }
    }
    let detail = format!("{} set forbidden securityContext.seLinuxOptions: {}", setters.join(" and "), details.join("; "));
    finding("seLinuxOptions", detail)
}
