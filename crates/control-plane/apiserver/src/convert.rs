//! Kinds that are served in another version than they are stored in: Events of `events.k8s.io` and `autoscaling/v1`.

use serde_json::{Map, Value, json};

use crate::registry::catalog::Kind;

/// Brings a served object into the stored version.
pub fn to_storage(kind: &Kind, mut object: Value) -> Value {
    match (kind.facts.group, kind.facts.version) {
        ("events.k8s.io", _) => rename(&mut object, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core))),
        ("autoscaling", "v1") => autoscaler_to_v2(&mut object),
        _ => {}
    }
    retype(object, kind.storage.group, kind.storage.version)
}

/// Brings a stored object into the served version.
pub fn from_storage(kind: &Kind, mut object: Value) -> Value {
    match (kind.facts.group, kind.facts.version) {
        ("events.k8s.io", _) => rename(&mut object, EVENT_FIELDS.iter().copied()),
        ("autoscaling", "v1") => autoscaler_to_v1(&mut object),
        _ => {}
    }
    retype(object, kind.facts.group, kind.facts.version)
}

fn retype(mut object: Value, group: &str, version: &str) -> Value {
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    if let Some(members) = object.as_object_mut() {
        members.insert("apiVersion".into(), api_version.into());
    }
    object
}

/// Core name, `events.k8s.io` name.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: &mut Value, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(members) = object.as_object_mut() else { return };
    for (from, to) in pairs {
        if let Some(value) = members.remove(from) {
            members.insert(to.into(), value);
        }
    }
}

/// What v1 cannot say is kept in these annotations, as upstream.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

fn cpu_target(percent: &Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

fn autoscaler_to_v2(object: &mut Value) {
    let mut taken = Map::new();
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        for name in [METRICS, BEHAVIOR, CONDITIONS, CURRENT_METRICS] {
            if let Some(value) = annotations.remove(name).and_then(|text| serde_json::from_str(text.as_str()?).ok()) {
                taken.insert(name.into(), value);
            }
        }
    }
    let mut metrics: Vec<Value> = taken.get(METRICS).and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(percent) = spec.remove("targetCPUUtilizationPercentage") {
            metrics.insert(0, cpu_target(&percent));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
        if let Some(behavior) = taken.remove(BEHAVIOR) {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let mut current: Vec<Value> = taken.get(CURRENT_METRICS).and_then(Value::as_array).cloned().unwrap_or_default();
        if let Some(percent) = status.remove("currentCPUUtilizationPercentage") {
            current.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}));
        }
        if !current.is_empty() {
            status.insert("currentMetrics".into(), current.into());
        }
        if let Some(conditions) = taken.remove(CONDITIONS) {
            status.insert("conditions".into(), conditions);
        }
    }
}

fn autoscaler_to_v1(object: &mut Value) {
    let mut notes: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut metrics: Vec<Value> = spec.remove("metrics").and_then(|list| list.as_array().cloned()).unwrap_or_default();
        if let Some(at) =
            metrics.iter().position(|metric| is_cpu_utilization(metric) && metric["resource"]["target"]["averageUtilization"].is_i64())
        {
            let cpu = metrics.remove(at);
            spec.insert("targetCPUUtilizationPercentage".into(), cpu["resource"]["target"]["averageUtilization"].clone());
        }
        if !metrics.is_empty() {
            notes.push((METRICS, metrics.into()));
        }
        notes.extend(spec.remove("behavior").map(|behavior| (BEHAVIOR, behavior)));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let mut current: Vec<Value> = status.remove("currentMetrics").and_then(|list| list.as_array().cloned()).unwrap_or_default();
        if let Some(at) =
            current.iter().position(|metric| is_cpu_utilization(metric) && metric["resource"]["current"]["averageUtilization"].is_i64())
        {
            let cpu = current.remove(at);
            status.insert("currentCPUUtilizationPercentage".into(), cpu["resource"]["current"]["averageUtilization"].clone());
        }
        if !current.is_empty() {
            notes.push((CURRENT_METRICS, current.into()));
        }
        notes.extend(status.remove("conditions").map(|conditions| (CONDITIONS, conditions)));
    }
    for (name, value) in notes {
        object["metadata"]["annotations"][name] = value.to_string().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::catalog;

    #[test]
    fn conversion_there_and_back_keeps_everything() {
        let cases = [
            (
                "events.k8s.io",
                "v1",
                "events",
                json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": "a"}, "note": "x", "regarding": {"kind": "Pod"}, "reportingController": "c"}),
            ),
            (
                "autoscaling",
                "v1",
                "horizontalpodautoscalers",
                json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}),
            ),
        ];
        for (group, version, plural, object) in cases {
            let kind = catalog::find(group, version, plural).unwrap();
            let stored = to_storage(kind, object.clone());
            assert_ne!(stored, object);
            assert_eq!(from_storage(kind, stored), object);
        }
    }
}
