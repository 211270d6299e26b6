//! How many replicas a metric asks for (upstream: `replica_calculator.go`). Values are in thousandths.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::pods;

/// Metrics of a pod's first minutes are not typical of it (upstream: `--horizontal-pod-autoscaler-cpu-initialization-period`).
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// A pod that became unready so soon after its start has never been ready (`--horizontal-pod-autoscaler-initial-readiness-delay`).
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// One pod's value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub value: i64,
    pub at: Timestamp,
    pub window: SignedDuration,
}

/// Deviations from the target within which nothing is done, downwards and upwards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    pub down: f64,
    pub up: f64,
}

impl Tolerance {
    pub fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// The target of a metric per pod.
pub(super) enum Target<'a> {
    /// Percent of what the pods request, by pod.
    Utilization { percent: i64, requests: &'a BTreeMap<String, i64> },
    /// An average in thousandths.
    Average(i64),
}

/// What the pods do, and the size that follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub replicas: i32,
    /// Percent of the requests; 0 for averages.
    pub utilization: i64,
    /// The average in thousandths.
    pub average: i64,
}

struct Groups {
    ready: usize,
    unready: Vec<String>,
    missing: Vec<String>,
    ignored: Vec<String>,
}

/// A metric that each pod has; `is_cpu` treats pods that have just started apart.
pub(super) fn of_pods(
    all: &[&Pod],
    samples: &BTreeMap<String, Sample>,
    target: &Target,
    current: i32,
    tolerance: Tolerance,
    is_cpu: bool,
    now: Timestamp,
) -> Result<Answer, String> {
    let groups = group(all, samples, is_cpu, now);
    let mut values: BTreeMap<String, i64> = samples.iter().map(|(name, sample)| (name.clone(), sample.value)).collect();
    values.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if values.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let (ratio, utilization, average) = ratio(&values, target)?;
    let answer = |replicas| Ok(Answer { replicas, utilization, average });
    let fills_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !fills_unready && groups.missing.is_empty() {
        let replicas = if tolerance.covers(ratio) { current } else { ceil(ratio * groups.ready as f64) };
        return answer(replicas);
    }
    // What is not known is assumed to be what moves the size least.
    for name in &groups.missing {
        values.insert(name.clone(), if ratio < 1.0 { full(name, target) } else { 0 });
    }
    if fills_unready {
        values.extend(groups.unready.iter().map(|name| (name.clone(), 0)));
    }
    let (adjusted, _, _) = self::ratio(&values, target)?;
    let turned = (ratio < 1.0 && adjusted > 1.0) || (ratio > 1.0 && adjusted < 1.0);
    if tolerance.covers(adjusted) || turned {
        return answer(current);
    }
    let replicas = ceil(adjusted * values.len() as f64);
    let against = (adjusted < 1.0 && replicas > current) || (adjusted > 1.0 && replicas < current);
    answer(if against { current } else { replicas })
}

/// A metric of something else, as a whole.
pub(super) fn of_value(value: i64, target: i64, all: &[&Pod], current: i32, tolerance: Tolerance) -> i32 {
    let ratio = value as f64 / target.max(1) as f64;
    if current == 0 {
        return ceil(ratio);
    }
    let ready = all.iter().filter(|pod| pods::is_active(pod) && pods::is_ready(pod)).count();
    if tolerance.covers(ratio) { current } else { ceil(ratio * ready as f64) }
}

/// A metric of something else, per replica.
pub(super) fn of_average(value: i64, target: i64, current: i32, tolerance: Tolerance) -> i32 {
    let target = target.max(1) as f64;
    let ratio = value as f64 / (target * f64::from(current.max(1)));
    if current > 0 && tolerance.covers(ratio) { current } else { ceil(value as f64 / target) }
}

fn ceil(number: f64) -> i32 {
    // A hair above a whole number is that number: 3.0000000001 replicas are three.
    (number - 1e-9).ceil().clamp(0.0, f64::from(i32::MAX)) as i32
}

/// (usage over target, percent of requests, average)
fn ratio(values: &BTreeMap<String, i64>, target: &Target) -> Result<(f64, i64, i64), String> {
    let total: i64 = values.values().sum();
    let average = total / values.len().max(1) as i64;
    match target {
        Target::Average(target) => Ok((average as f64 / (*target).max(1) as f64, 0, average)),
        Target::Utilization { percent, requests } => {
            let requested: i64 = values.keys().filter_map(|name| requests.get(name)).sum();
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let utilization = total * 100 / requested;
            Ok((utilization as f64 / (*percent).max(1) as f64, utilization, average))
        }
    }
}

/// As much as a pod without a sample is taken to use when the others use little.
fn full(name: &str, target: &Target) -> i64 {
    match target {
        Target::Average(target) => *target,
        Target::Utilization { percent, requests } => requests.get(name).copied().unwrap_or(0) * (*percent).max(100) / 100,
    }
}

fn group(all: &[&Pod], samples: &BTreeMap<String, Sample>, is_cpu: bool, now: Timestamp) -> Groups {
    let mut groups = Groups { ready: 0, unready: vec![], missing: vec![], ignored: vec![] };
    for pod in all {
        let name = pod.metadata.name.clone().unwrap_or_default();
        match samples.get(&name) {
            _ if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" => groups.ignored.push(name),
            _ if pods::phase(pod) == "Pending" => groups.unready.push(name),
            None => groups.missing.push(name),
            Some(sample) if is_cpu && is_starting(pod, sample, now) => groups.unready.push(name),
            Some(_) => groups.ready += 1,
        }
    }
    groups
}

fn is_starting(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(condition), Some(start)) = (pods::ready_condition(pod), start) else { return true };
    let changed = condition.last_transition_time.as_ref().map_or(start.0, |time| time.0);
    let is_ready = condition.status == "True";
    if now.duration_since(start.0) < CPU_INITIALIZATION {
        return !is_ready || sample.at.duration_since(changed) < sample.window;
    }
    !is_ready && changed.duration_since(start.0) < INITIAL_READINESS
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn pod(name: &str, phase: &str, ready: bool, started: &str) -> Pod {
        let ready = if ready { "True" } else { "False" };
        let status = json!({"phase": phase, "startTime": started, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": started}]});
        serde_json::from_value(json!({"metadata": {"name": name}, "status": status})).unwrap()
    }

    /// Each pod with its CPU, if known; all request 1000.
    fn size(pods: &[(Pod, Option<i64>)], percent: i64, current: i32) -> Result<(i32, i64), String> {
        let sample = |value: i64| Sample { value, at: NOW.parse().unwrap(), window: SignedDuration::from_secs(60) };
        let name = |pod: &Pod| pod.metadata.name.clone().unwrap();
        let samples = pods.iter().filter_map(|(pod, value)| Some((name(pod), sample((*value)?)))).collect();
        let requests = pods.iter().map(|(pod, _)| (name(pod), 1000)).collect();
        let all: Vec<&Pod> = pods.iter().map(|(pod, _)| pod).collect();
        let (target, tolerance) = (Target::Utilization { percent, requests: &requests }, Tolerance { down: 0.1, up: 0.1 });
        of_pods(&all, &samples, &target, current, tolerance, true, NOW.parse().unwrap()).map(|answer| (answer.replicas, answer.utilization))
    }

    #[test]
    fn the_size_follows_the_ratio_of_usage_to_target() {
        let old = "2026-01-01T00:00:00Z";
        let running = |name: &str, value: i64| (pod(name, "Running", true, old), Some(value));
        assert_eq!(size(&[running("a", 900), running("b", 700)], 50, 2), Ok((4, 80)));
        assert_eq!(size(&[running("a", 540), running("b", 500)], 50, 2), Ok((2, 52)), "within the tolerance");
        assert_eq!(size(&[running("a", 100), running("b", 100), running("c", 100)], 50, 3), Ok((1, 10)));
        // One pod is missing: it is taken to use everything before anything shrinks, and nothing before anything grows.
        let missing = |name: &str| (pod(name, "Running", true, old), None);
        assert_eq!(size(&[running("a", 100), running("b", 100), missing("c")], 50, 3), Ok((3, 10)));
        assert_eq!(size(&[running("a", 900), running("b", 900), missing("c")], 50, 3), Ok((4, 90)));
        // Pods that start do not count, and hold growth back.
        let young = (pod("d", "Running", false, "2026-01-01T00:59:00Z"), Some(1000));
        assert_eq!(size(&[running("a", 900), young], 50, 2), Ok((2, 90)));
        assert!(size(&[(pod("p", "Pending", false, old), None)], 50, 1).is_err());
    }

    #[test]
    fn a_metric_of_something_else_is_a_value_or_an_average() {
        let tolerance = Tolerance { down: 0.1, up: 0.1 };
        let ready = pod("a", "Running", true, NOW);
        assert_eq!(of_value(3000, 1000, &[&ready, &ready], 2, tolerance), 6);
        assert_eq!(of_value(1050, 1000, &[&ready], 1, tolerance), 1);
        assert_eq!(of_average(10_000, 2000, 3, tolerance), 5);
        assert_eq!(of_average(6100, 2000, 3, tolerance), 3);
    }
}
