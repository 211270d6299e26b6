//! HorizontalPodAutoscaler v1 and v2: v1 knows CPU utilisation only; the rest travels in four annotations, in the form that
//! `autoscaling/v1` has for metrics. Source: `pkg/apis/autoscaling/v1/conversion.go`.

use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

/// What v1 always meant where it says nothing.
const DEFAULT_CPU_PERCENT: i64 = 80;

pub fn to_v2(object: &mut Value) {
    let mut notes = take_notes(object);
    let mut metrics: Vec<Value> = list(notes.remove(METRICS)).iter().map(|metric| metric_to_v2(metric, SPEC)).collect();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(percent) = spec.remove("targetCPUUtilizationPercentage").filter(|percent| !percent.is_null()) {
            metrics.push(cpu_target(&percent));
        }
        if metrics.is_empty() {
            metrics.push(cpu_target(&DEFAULT_CPU_PERCENT.into()));
        }
        spec.insert("metrics".into(), metrics.into());
        if let Some(behavior) = notes.remove(BEHAVIOR) {
            spec.insert("behavior".into(), recase(behavior, char::to_ascii_lowercase));
        }
    }
    let mut current: Vec<Value> = list(notes.remove(CURRENT_METRICS)).iter().map(|metric| metric_to_v2(metric, STATUS)).collect();
    let conditions = notes.remove(CONDITIONS);
    if object.get("status").is_none_or(Value::is_null) && (!current.is_empty() || conditions.is_some()) {
        object["status"] = json!({});
    }
    let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) else { return };
    if let Some(percent) = status.remove("currentCPUUtilizationPercentage").filter(|_| current.is_empty()) {
        current.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}));
    }
    if !current.is_empty() {
        status.insert("currentMetrics".into(), current.into());
    }
    if let Some(conditions) = conditions {
        status.insert("conditions".into(), conditions);
    }
}

pub fn to_v1(object: &mut Value) {
    let mut notes: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let metrics = list(spec.remove("metrics"));
        let cpu = metrics.iter().find(|metric| is_cpu(metric)).map(|metric| &metric["resource"]["target"]["averageUtilization"]);
        if let Some(percent) = cpu.filter(|percent| percent.is_i64()) {
            spec.insert("targetCPUUtilizationPercentage".into(), percent.clone());
        }
        let said = |metric: &&Value| is_cpu(metric) && metric["resource"]["target"]["averageUtilization"].is_i64();
        let others: Vec<Value> = metrics.iter().filter(|metric| !said(metric)).map(|metric| metric_to_v1(metric, SPEC)).collect();
        if !others.is_empty() {
            notes.push((METRICS, others.into()));
        }
        notes.extend(spec.remove("behavior").map(|behavior| (BEHAVIOR, recase(behavior, char::to_ascii_uppercase))));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let current = list(status.remove("currentMetrics"));
        let cpu = current.iter().filter(|metric| is_cpu(metric)).map(|metric| &metric["resource"]["current"]["averageUtilization"]);
        if let Some(percent) = cpu.filter(|percent| percent.is_i64()).last() {
            status.insert("currentCPUUtilizationPercentage".into(), percent.clone());
        }
        if !current.is_empty() {
            notes.push((CURRENT_METRICS, current.iter().map(|metric| metric_to_v1(metric, STATUS)).collect()));
        }
        let conditions = status.remove("conditions").filter(|conditions| !list(Some(conditions.clone())).is_empty());
        notes.extend(conditions.map(|conditions| (CONDITIONS, conditions)));
    }
    for (name, value) in notes {
        if let Some(annotations) = annotations(object) {
            annotations.insert(name.into(), value.to_string().into());
        }
    }
}

/// The annotations, made where there are none; `None` where the metadata is no object.
fn annotations(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let metadata = object.as_object_mut()?.entry("metadata").or_insert_with(|| json!({})).as_object_mut()?;
    metadata.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
}

/// Takes the four annotations off; those that are no JSON are lost, as upstream.
fn take_notes(object: &mut Value) -> Map<String, Value> {
    let mut notes = Map::new();
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return notes };
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { return notes };
    for name in [METRICS, BEHAVIOR, CONDITIONS, CURRENT_METRICS] {
        let text = annotations.remove(name);
        notes.extend(text.and_then(|text| serde_json::from_str(text.as_str()?).ok()).map(|value| (name.to_owned(), value)));
    }
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    notes
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn cpu_target(percent: &Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

/// Upstream writes the behavior with Go's names, since the internal type has no JSON names.
fn recase(value: Value, first: fn(&char) -> char) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(|item| recase(item, first)).collect(),
        Value::Object(map) => {
            let rename = |name: String| name.chars().enumerate().map(|(at, c)| if at == 0 { first(&c) } else { c }).collect::<String>();
            map.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (rename(name), recase(value, first))).collect()
        }
        other => other,
    }
}

/// How the two halves of a metric are called.
#[derive(Clone, Copy)]
struct Words {
    /// `target` or `current`, the struct of v2.
    v2: &'static str,
    value: &'static str,
    average_value: &'static str,
    utilization: &'static str,
    with_type: bool,
}

const SPEC: Words = Words {
    v2: "target",
    value: "targetValue",
    average_value: "targetAverageValue",
    utilization: "targetAverageUtilization",
    with_type: true,
};
const STATUS: Words = Words {
    v2: "current",
    value: "currentValue",
    average_value: "currentAverageValue",
    utilization: "currentAverageUtilization",
    with_type: false,
};

/// The sources a metric may have: v2's and v1's name are the same.
const SOURCES: [&str; 5] = ["resource", "containerResource", "pods", "object", "external"];

fn metric_to_v1(metric: &Value, words: Words) -> Value {
    let mut out = json!({"type": metric["type"]});
    for source in SOURCES {
        let Some(given) = metric.get(source).and_then(Value::as_object) else { continue };
        let of = |name: &str| given.get(words.v2).and_then(|target| target.get(name)).cloned();
        let identity = |name: &str| given.get("metric").and_then(|metric| metric.get(name)).cloned();
        let average = if source == "object" { "averageValue" } else { words.average_value };
        let selector = if source == "external" { "metricSelector" } else { "selector" };
        let fields = [
            ("name", given.get("name").cloned()),
            ("container", given.get("container").cloned()),
            ("target", given.get("describedObject").cloned()),
            ("metricName", identity("name")),
            (selector, identity("selector")),
            (words.value, of("value")),
            (average, of("averageValue")),
            (words.utilization, of("averageUtilization")),
        ];
        out[source] = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    }
    out
}

fn metric_to_v2(metric: &Value, words: Words) -> Value {
    let mut out = json!({"type": metric["type"]});
    for source in SOURCES {
        let Some(given) = metric.get(source).and_then(Value::as_object) else { continue };
        let of = |name: &str| given.get(name).filter(|value| !value.is_null()).cloned();
        let average = of(if source == "object" { "averageValue" } else { words.average_value });
        let (value, utilization) = (of(words.value), of(words.utilization));
        let kind = match source {
            "resource" | "containerResource" if utilization.is_some() => "Utilization",
            "object" if average.is_none() => "Value",
            "external" if value.is_some() => "Value",
            _ => "AverageValue",
        };
        let kind = words.with_type.then(|| Value::from(kind));
        let target = [("type", kind), ("value", value), ("averageValue", average), ("averageUtilization", utilization)];
        let mut fields = some([("name", of("name")), ("container", of("container")), ("describedObject", of("target"))]);
        let selector = of(if source == "external" { "metricSelector" } else { "selector" });
        let identity = some([("name", of("metricName")), ("selector", selector)]);
        if !identity.is_empty() {
            fields.insert("metric".into(), identity.into());
        }
        fields.insert(words.v2.into(), some(target).into());
        out[source] = fields.into();
    }
    out
}

fn some<const N: usize>(fields: [(&str, Option<Value>); N]) -> Map<String, Value> {
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}
