//! The scopes of quotas.

use serde_json::Value;

use crate::value::{at, entries, has, int, list, text};

/// One condition on the objects that a quota is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Scope {
    pub name: String,
    operator: String,
    values: Vec<String>,
}

impl std::fmt::Display for Scope {
    /// As Go prints the structure.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{{{} {} [{}]}}", self.name, self.operator, self.values.join(" "))
    }
}

pub fn of(quota: &Value) -> Vec<Scope> {
    let plain = list(quota, "spec.scopes").iter().filter_map(Value::as_str);
    let plain = plain.map(|name| Scope { name: name.to_owned(), operator: "Exists".into(), values: Vec::new() });
    plain.chain(list(quota, "spec.scopeSelector.matchExpressions").iter().map(Scope::read)).collect()
}

impl Scope {
    pub fn read(expression: &Value) -> Self {
        let values = list(expression, "values").iter().filter_map(|value| value.as_str().map(str::to_owned)).collect();
        Self { name: text(expression, "scopeName").to_owned(), operator: text(expression, "operator").to_owned(), values }
    }

    pub fn holds_of_pod(&self, pod: &Value) -> bool {
        let terminating = || int(pod, "spec.activeDeadlineSeconds").is_some_and(|seconds| seconds >= 0);
        match self.name.as_str() {
            "Terminating" => terminating(),
            "NotTerminating" => !terminating(),
            "BestEffort" => is_best_effort(pod),
            "NotBestEffort" => !is_best_effort(pod),
            "PriorityClass" => self.selects(text(pod, "spec.priorityClassName")),
            "CrossNamespacePodAffinity" => crosses_namespaces(pod),
            _ => false,
        }
    }

    pub fn holds_of_claim(&self, claim: &Value) -> bool {
        // The class that is wanted, the one that is, and the one on the way.
        const CLASSES: [&str; 3] = [
            "spec.volumeAttributesClassName",
            "status.currentVolumeAttributesClassName",
            "status.modifyVolumeStatus.targetVolumeAttributesClassName",
        ];
        self.name == "VolumeAttributesClass" && CLASSES.iter().any(|field| self.selects(text(claim, field)))
    }

    fn selects(&self, name: &str) -> bool {
        let listed = || self.values.iter().any(|value| value == name);
        match self.operator.as_str() {
            "Exists" => !name.is_empty(),
            "DoesNotExist" => name.is_empty(),
            "In" => !name.is_empty() && listed(),
            "NotIn" => name.is_empty() || !listed(),
            _ => false,
        }
    }
}

/// Upstream: the pod's quality of service.
fn is_best_effort(pod: &Value) -> bool {
    let containers = list(pod, "spec.containers").iter().chain(list(pod, "spec.initContainers")).chain(std::iter::once(at(pod, "spec")));
    let asks = |holder: &Value| {
        let parts = ["resources.requests", "resources.limits"].into_iter().flat_map(|part| entries(holder, part));
        let mut amounts = parts.filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"));
        amounts.any(|(_, amount)| meta::quantity::from_json(amount).is_some_and(|amount| !amount.is_zero()))
    };
    let mut containers = containers;
    !containers.any(asks)
}

fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let at = format!("spec.affinity.{kind}");
        let required = list(pod, &format!("{at}.requiredDuringSchedulingIgnoredDuringExecution")).iter();
        let preferred = list(pod, &format!("{at}.preferredDuringSchedulingIgnoredDuringExecution")).iter();
        let terms = required.chain(preferred.filter_map(|weighted| weighted.get("podAffinityTerm")));
        let mut terms = terms;
        terms.any(|term| !list(term, "namespaces").is_empty() || has(term, "namespaceSelector"))
    })
}
