//! Rates and windows: how fast a recommendation may become the size (KEP-853).

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler};

/// Without a behavior of its own an autoscaler shrinks to the highest recommendation of the last five minutes.
const DOWN_WINDOW_DEFAULT: i32 = 300;
/// And grows by a factor of two at a time, or to four.
const UP_FACTOR: i32 = 2;
const UP_MINIMUM: i32 = 4;
/// Longer windows do not exist (validation).
const REMEMBERED: SignedDuration = SignedDuration::from_secs(3600);
const EVENTS_MAX: usize = 1000;

/// What was recommended, and by how much the size changed, lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    recommendations: Vec<(Timestamp, i32)>,
    /// Positive for growth.
    changes: Vec<(Timestamp, i32)>,
}

impl Memory {
    pub fn recommended(&mut self, replicas: i32, now: Timestamp) {
        Self::push(&mut self.recommendations, replicas, now);
    }
    pub fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        Self::push(&mut self.changes, to - from, now);
    }
    pub fn is_empty(&self) -> bool {
        self.recommendations.is_empty()
    }
    fn push(list: &mut Vec<(Timestamp, i32)>, value: i32, now: Timestamp) {
        // What lies in the future was noted before the clock was put back, and says nothing any more.
        list.retain(|(at, _)| *at <= now && now.duration_since(*at) <= REMEMBERED);
        if list.len() >= EVENTS_MAX {
            list.remove(0);
        }
        list.push((now, value));
    }
    fn within(&self, seconds: i32, now: Timestamp) -> impl Iterator<Item = i32> + '_ {
        let window = SignedDuration::from_secs(i64::from(seconds));
        self.recommendations.iter().filter(move |(at, _)| now.duration_since(*at) < window).map(|(_, value)| *value)
    }
    /// The size at the beginning of a period.
    fn size_before(&self, seconds: i32, current: i32, now: Timestamp) -> i32 {
        let period = SignedDuration::from_secs(i64::from(seconds));
        current - self.changes.iter().filter(|(at, _)| now.duration_since(*at) < period).map(|(_, change)| change).sum::<i32>()
    }
}

/// A size with the reasons why it is not what the metrics ask for: of the conditions AbleToScale and ScalingLimited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub replicas: i32,
    pub able: (&'static str, &'static str),
    /// True where the size is limited.
    pub limited: (bool, &'static str, &'static str),
}

/// `desired` within windows, rates and bounds.
pub(super) fn hold(autoscaler: &HorizontalPodAutoscaler, memory: &Memory, current: i32, desired: i32, now: Timestamp) -> Held {
    let (stable, able) = stabilize(autoscaler, memory, current, desired, now);
    let (replicas, limited) = limit(autoscaler, memory, current, stable, now);
    Held { replicas, able, limited }
}

fn rules(autoscaler: &HorizontalPodAutoscaler, up: bool) -> Option<&HPAScalingRules> {
    let behavior = autoscaler.spec.behavior.as_ref()?;
    if up { behavior.scale_up.as_ref() } else { behavior.scale_down.as_ref() }
}

fn window(autoscaler: &HorizontalPodAutoscaler, up: bool) -> i32 {
    let default = if up { 0 } else { DOWN_WINDOW_DEFAULT };
    rules(autoscaler, up).and_then(|rules| rules.stabilization_window_seconds).unwrap_or(default)
}

fn stabilize(
    autoscaler: &HorizontalPodAutoscaler,
    memory: &Memory,
    current: i32,
    desired: i32,
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    let least = memory.within(window(autoscaler, true), now).chain([desired]).min().unwrap_or(desired);
    let most = memory.within(window(autoscaler, false), now).chain([desired]).max().unwrap_or(desired);
    let stable = current.max(least).min(most.max(least));
    let able = match stable.cmp(&desired) {
        std::cmp::Ordering::Greater => {
            ("ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation")
        }
        std::cmp::Ordering::Less => {
            ("ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation")
        }
        std::cmp::Ordering::Equal => ("ReadyForNewScale", "recommended size matches current size"),
    };
    (stable, able)
}

fn limit(
    autoscaler: &HorizontalPodAutoscaler,
    memory: &Memory,
    current: i32,
    desired: i32,
    now: Timestamp,
) -> (i32, (bool, &'static str, &'static str)) {
    let (least, most) = (autoscaler.spec.min_replicas.unwrap_or(1), autoscaler.spec.max_replicas);
    if desired > current {
        let rate = highest(autoscaler, memory, current, now).max(current);
        if desired > most.min(rate) {
            let why = match most > rate {
                true => (true, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"),
                false => (true, "TooManyReplicas", "the desired replica count is more than the maximum replica count"),
            };
            return (most.min(rate), why);
        }
    } else {
        let rate = lowest(autoscaler, memory, current, now).min(current);
        if desired < least.max(rate) {
            let why = match least < rate {
                true => (true, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"),
                false => (true, "TooFewReplicas", "the desired replica count is less than the minimum replica count"),
            };
            return (least.max(rate), why);
        }
    }
    (desired, (false, "DesiredWithinRange", "the desired count is within the acceptable range"))
}

/// The largest size that the rates of growth allow.
fn highest(autoscaler: &HorizontalPodAutoscaler, memory: &Memory, current: i32, now: Timestamp) -> i32 {
    let proposed = |policy: &HPAScalingPolicy| {
        let before = memory.size_before(policy.period_seconds, current, now);
        match policy.type_.as_str() {
            "Pods" => before.saturating_add(policy.value),
            _ => (f64::from(before) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
        }
    };
    match rules(autoscaler, true).map(|rules| (rules.select_policy.as_deref(), rules.policies.as_deref().unwrap_or_default())) {
        Some((Some("Disabled"), _)) => current,
        Some((Some("Min"), policies)) if !policies.is_empty() => policies.iter().map(proposed).min().unwrap_or(current),
        Some((_, policies)) if !policies.is_empty() => policies.iter().map(proposed).max().unwrap_or(current),
        Some(_) => [by_pods(4), by_percent(100)].iter().map(proposed).max().unwrap_or(current),
        None => current.saturating_mul(UP_FACTOR).max(UP_MINIMUM),
    }
}

/// The smallest size that the rates of shrinking allow.
fn lowest(autoscaler: &HorizontalPodAutoscaler, memory: &Memory, current: i32, now: Timestamp) -> i32 {
    let proposed = |policy: &HPAScalingPolicy| {
        let before = memory.size_before(policy.period_seconds, current, now);
        match policy.type_.as_str() {
            "Pods" => before.saturating_sub(policy.value),
            _ => (f64::from(before) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
        }
    };
    match rules(autoscaler, false).map(|rules| (rules.select_policy.as_deref(), rules.policies.as_deref().unwrap_or_default())) {
        Some((Some("Disabled"), _)) => current,
        Some((Some("Min"), policies)) if !policies.is_empty() => policies.iter().map(proposed).max().unwrap_or(current),
        Some((_, policies)) if !policies.is_empty() => policies.iter().map(proposed).min().unwrap_or(current),
        _ => 0,
    }
}

fn by_pods(value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: "Pods".into(), value, period_seconds: 15 }
}

fn by_percent(value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: "Percent".into(), value, period_seconds: 15 }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Recommendations and changes as (seconds ago, value).
    fn held(
        behavior: Value,
        recommended: &[(i64, i32)],
        changed: &[(i64, i32)],
        current: i32,
        desired: i32,
    ) -> (i32, &'static str, &'static str) {
        let spec =
            json!({"scaleTargetRef": {"kind": "Deployment", "name": "x"}, "minReplicas": 2, "maxReplicas": 20, "behavior": behavior});
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let ago = |list: &[(i64, i32)]| list.iter().map(|(seconds, value)| (now - SignedDuration::from_secs(*seconds), *value)).collect();
        let memory = Memory { recommendations: ago(recommended), changes: ago(changed) };
        let held = hold(&serde_json::from_value(json!({ "spec": spec })).unwrap(), &memory, current, desired, now);
        (held.replicas, held.able.0, held.limited.1)
    }

    #[test]
    fn a_clock_that_is_put_back_does_not_hold_an_old_recommendation_for_ever() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let mut memory = Memory::default();
        memory.recommended(20, now + SignedDuration::from_hours(9000));
        memory.recommended(3, now);
        assert_eq!(memory.within(300, now).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn growth_is_at_once_but_not_too_fast_and_shrinking_waits() {
        let none = Value::Null;
        let up = |policies: Value, select: &str| json!({"scaleUp": {"policies": policies, "selectPolicy": select}});
        let both = json!([{"type": "Pods", "value": 1, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]);
        let cases = [
            (none.clone(), &[][..], &[][..], 3, 5, (5, "ReadyForNewScale", "DesiredWithinRange")),
            (none.clone(), &[], &[], 3, 9, (6, "ReadyForNewScale", "ScaleUpLimit")),
            (none.clone(), &[], &[], 15, 30, (20, "ReadyForNewScale", "TooManyReplicas")),
            (none.clone(), &[(200, 8)], &[], 10, 3, (8, "ScaleDownStabilized", "DesiredWithinRange")),
            (none.clone(), &[(400, 8)], &[], 10, 1, (2, "ReadyForNewScale", "TooFewReplicas")),
            (up(both.clone(), "Max"), &[], &[], 10, 20, (15, "ReadyForNewScale", "ScaleUpLimit")),
            (up(both.clone(), "Min"), &[], &[], 10, 20, (11, "ReadyForNewScale", "ScaleUpLimit")),
            (up(both.clone(), "Disabled"), &[], &[], 10, 20, (10, "ReadyForNewScale", "ScaleUpLimit")),
            (up(both, "Max"), &[], &[(30, 5)], 15, 20, (15, "ReadyForNewScale", "ScaleUpLimit")),
            (json!({"scaleUp": {"stabilizationWindowSeconds": 60}}), &[(30, 4)], &[], 4, 8, (4, "ScaleUpStabilized", "DesiredWithinRange")),
            (
                json!({"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}}),
                &[(10, 10)],
                &[],
                10,
                3,
                (8, "ReadyForNewScale", "ScaleDownLimit"),
            ),
        ];
        for (behavior, recommended, changed, current, desired, expected) in cases {
            assert_eq!(held(behavior.clone(), recommended, changed, current, desired), expected, "{behavior} {current} {desired}");
        }
    }
}
