//! What a pod failure policy says of a failed pod (KEP-3329, KEP-3850).

use k8s_openapi::api::batch::v1::{PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::World;

/// What becomes of the Job because of one failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The whole Job fails, with this message.
    FailJob(String),
    /// The pod's index fails, whatever its back-off limit.
    FailIndex,
    /// The failure is not counted.
    Ignore,
    /// It counts as any other.
    Count,
}

/// The first rule that matches decides; without one the failure counts.
pub(super) fn judge(world: &World, pod: &Pod) -> Action {
    let policy = world.job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    let rules = policy.map(|policy| policy.rules.as_slice()).unwrap_or_default();
    let verdicts = rules.iter().enumerate().map(|(index, rule)| apply(rule, index, pod));
    verdicts.flatten().next().unwrap_or(Action::Count)
}

fn apply(rule: &PodFailurePolicyRule, index: usize, pod: &Pod) -> Option<Action> {
    let status = pod.status.as_ref()?;
    let (namespace, name) = (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default());
    let action = rule.action.as_str();
    let message = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
        (Some(wanted), _) => {
            let (container, code) = by_exit_code(wanted, status)?;
            format!("Container {container} for pod {namespace}/{name} failed with exit code {code} matching {action} rule at index {index}")
        }
        (None, Some(patterns)) => {
            let condition = by_condition(patterns, status)?;
            format!("Pod {namespace}/{name} has condition {condition} matching {action} rule at index {index}")
        }
        (None, None) => return None,
    };
    Some(match action {
        "FailJob" => Action::FailJob(message),
        "FailIndex" => Action::FailIndex,
        "Ignore" => Action::Ignore,
        _ => Action::Count,
    })
}

/// The first container that ended with a code other than zero which the rule speaks of.
fn by_exit_code<'a>(wanted: &PodFailurePolicyOnExitCodesRequirement, status: &'a PodStatus) -> Option<(&'a str, i32)> {
    let all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let named = all.filter(|container| wanted.container_name.as_ref().is_none_or(|name| *name == container.name));
    let code = |container: &'a ContainerStatus| Some((container.name.as_str(), container.state.as_ref()?.terminated.as_ref()?.exit_code));
    let matches = |code: i32| match wanted.operator.as_str() {
        "In" => wanted.values.contains(&code),
        "NotIn" => !wanted.values.contains(&code),
        _ => false,
    };
    named.filter_map(code).find(|(_, code)| *code != 0 && matches(*code))
}

fn by_condition<'a>(patterns: &[PodFailurePolicyOnPodConditionsPattern], status: &'a PodStatus) -> Option<&'a str> {
    let matches = |kind: &str, value: &str| {
        patterns.iter().any(|pattern| pattern.type_ == kind && pattern.status.as_deref().unwrap_or("True") == value)
    };
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| matches(&condition.type_, &condition.status)).map(|condition| condition.type_.as_str())
}
