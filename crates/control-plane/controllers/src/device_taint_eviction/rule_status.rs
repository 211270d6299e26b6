//! What a DeviceTaintRule's status says: the condition `EvictionInProgress`.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::resource::v1::DeviceTaintRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::plan::NO_EXECUTE;

const EVICTION_IN_PROGRESS: &str = "EvictionInProgress";

/// What the rule means for the cluster, or would if its effect was `NoExecute`.
#[derive(Default)]
pub(super) struct Concerned {
    pub pods: usize,
    pub namespaces: BTreeSet<String>,
    pub published: usize,
    pub allocated: usize,
}

fn current(rule: &DeviceTaintRule) -> Option<&Condition> {
    let conditions = rule.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == EVICTION_IN_PROGRESS)
}

/// How long to wait before the condition may be written again. Its transition time is moved by every write, also of the message.
pub(super) fn too_early(rule: &DeviceTaintRule, now: Timestamp, period: Duration) -> Option<Duration> {
    let known = current(rule).filter(|known| known.observed_generation == rule.metadata.generation)?;
    let passed = now.as_second().saturating_sub(known.last_transition_time.0.as_second());
    period.checked_sub(Duration::from_secs(u64::try_from(passed).unwrap_or(0))).filter(|left| !left.is_zero())
}

/// The condition as it shall be; `None` where it is so.
pub(super) fn plan(rule: &DeviceTaintRule, concerned: &Concerned, evicted: usize, now: Timestamp) -> Option<Condition> {
    let known = current(rule);
    let effect = rule.spec.taint.effect.as_str();
    // A rule without effect is answered once for each specification.
    if effect == "None" && known.is_some_and(|known| known.observed_generation == rule.metadata.generation) {
        return None;
    }
    let pods = |end: &str| count(concerned.pods, &format!("pod {end}"), &format!("pods {end}"));
    let namespaces = || count(concerned.namespaces.len(), "namespace", "different namespaces");
    let (status, reason, mut message) = match effect {
        NO_EXECUTE if concerned.pods > 0 => {
            let verb = if concerned.pods == 1 { "needs" } else { "need" };
            ("True", "PodsPendingEviction", format!("{} in {}.", pods(&format!("{verb} to be evicted")), namespaces()))
        }
        NO_EXECUTE if evicted > 0 => ("False", "Completed", String::new()),
        NO_EXECUTE => ("False", "NotStarted", String::new()),
        "None" => ("False", "NoEffect", without_effect(concerned, &pods("would be evicted"), &namespaces())),
        _ => ("False", "OtherEffect", "Eviction only happens for the NoExecute effect.".to_owned()),
    };
    if evicted > 0 {
        let gap = if message.is_empty() { "" } else { " " };
        message = format!("{message}{gap}{} evicted since starting the controller.", count(evicted, "pod", "pods"));
    }
    let same = known.is_some_and(|known| {
        (known.status.as_str(), known.reason.as_str(), &known.message) == (status, reason, &message)
            && known.observed_generation == rule.metadata.generation
    });
    (!same).then(|| Condition {
        type_: EVICTION_IN_PROGRESS.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        observed_generation: rule.metadata.generation,
        last_transition_time: Time(now),
    })
}

fn without_effect(concerned: &Concerned, pods: &str, namespaces: &str) -> String {
    let devices = |number, state: &str| count(number, &format!("{state} device selected"), &format!("{state} devices selected"));
    format!(
        "{}. {}. {pods} in {namespaces} if the effect was NoExecute. This information will not be updated again. \
         Recreate the DeviceTaintRule to trigger an update.",
        devices(concerned.published, "published"),
        devices(concerned.allocated, "allocated"),
    )
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(effect: &str, condition: Option<&Condition>) -> DeviceTaintRule {
        let conditions: Vec<_> = condition.into_iter().collect();
        let spec = json!({"deviceSelector": {}, "taint": {"key": "k", "effect": effect}});
        serde_json::from_value(json!({"metadata": {"name": "r", "generation": 2}, "spec": spec, "status": {"conditions": conditions}}))
            .unwrap()
    }

    #[test]
    fn the_status_says_how_many_pods_go_or_would_go_and_is_not_written_twice() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let two = Concerned { pods: 2, namespaces: ["a".into(), "b".into()].into(), published: 1, allocated: 3 };
        let one = Concerned { pods: 1, namespaces: ["a".into()].into(), ..Concerned::default() };
        let cases = [
            ("NoExecute", &two, 0, "True PodsPendingEviction 2 pods need to be evicted in 2 different namespaces."),
            (
                "NoExecute",
                &one,
                1,
                "True PodsPendingEviction 1 pod needs to be evicted in 1 namespace. 1 pod evicted since starting the controller.",
            ),
            ("NoExecute", &Concerned::default(), 3, "False Completed 3 pods evicted since starting the controller."),
            ("NoExecute", &Concerned::default(), 0, "False NotStarted "),
            ("NoSchedule", &one, 0, "False OtherEffect Eviction only happens for the NoExecute effect."),
            (
                "None",
                &two,
                0,
                "False NoEffect 1 published device selected. 3 allocated devices selected. 2 pods would be evicted in 2 different namespaces \
                 if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.",
            ),
        ];
        for (effect, concerned, evicted, expected) in cases {
            let found = plan(&rule(effect, None), concerned, evicted, now).unwrap();
            assert_eq!(format!("{} {} {}", found.status, found.reason, found.message), expected);
            let known = rule(effect, Some(&found));
            assert_eq!(plan(&known, concerned, evicted, now), None, "{effect}");
            let soon = now + jiff::SignedDuration::from_secs(4);
            assert_eq!(too_early(&known, soon, Duration::from_secs(10)), Some(Duration::from_secs(6)));
            assert_eq!(too_early(&known, now + jiff::SignedDuration::from_secs(10), Duration::from_secs(10)), None);
        }
    }
}
