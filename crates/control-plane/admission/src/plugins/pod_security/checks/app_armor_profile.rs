//! The default AppArmor profile may not be switched off, neither by field nor by the older annotation.

use super::super::policy::Level;
use super::{Check, Finding, Pod, finding, plural, quoted, word};

pub static CHECK: Check = Check { level: Level::Baseline, versions: &[(0, run)], replaces: None };

const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

fn run(pod: &Pod<'_>) -> Option<Finding> {
    let is_bad = |kind: &serde_json::Value| !matches!(kind.as_str(), Some("RuntimeDefault" | "Localhost"));
    let (mut setters, values) = pod.setters("appArmorProfile.type", is_bad, word);
    let annotations = pod.annotations.as_object().into_iter().flatten().filter_map(|(key, value)| Some((key, value.as_str()?)));
    let fine = |value: &str| matches!(value, "" | "runtime/default") || value.starts_with("localhost/");
    let bad = annotations.filter(|(key, value)| key.starts_with(ANNOTATION) && !fine(value));
    let mut annotations: Vec<String> = bad.map(|(key, value)| format!("{key}={value:?}")).collect();
    annotations.sort();
    if !annotations.is_empty() {
        setters.push(plural(annotations.len(), "annotation", "annotations").to_owned());
    }
    if setters.is_empty() {
        return None;
    }
    let values: Vec<String> = values.into_iter().chain(annotations).collect();
    let reason = plural(values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles");
    finding(reason, format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(&values)))
}
