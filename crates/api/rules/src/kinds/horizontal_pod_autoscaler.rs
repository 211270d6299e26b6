//! autoscaling/v2 HorizontalPodAutoscaler (v1 is converted to it).

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::nonnegative;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, has, int, list, set, set_default, text};
use crate::{Column, Part, Rules};

mod checks;

pub struct HorizontalPodAutoscaler;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Reference", "string", "What is scaled."),
    shown("Targets", "string", "Each metric as it is and as it should be."),
    shown("MinPods", "string", "The fewest pods."),
    shown("MaxPods", "string", "The most pods."),
    shown("Replicas", "string", "Pods by now."),
    AGE,
];

impl Rules for HorizontalPodAutoscaler {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("autoscaling", "v2", "HorizontalPodAutoscaler")
    }
    fn default(&self, object: &mut Value) {
        set_default(object, "spec.minReplicas", 1);
        if list(object, "spec.metrics").is_empty() {
            let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
            set(object, "spec.metrics", json!([cpu]));
        }
        if has(object, "spec.behavior") {
            checks::default_behavior(object);
        }
    }
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"desiredReplicas": 0, "currentMetrics": null}));
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        checks::validate(at(object, "spec"), &Path::new("spec"))
    }
    fn validate_update(&self, new: &Value, _old: &Value, part: Part) -> Vec<Error> {
        let (status, path) = (at(new, "status"), Path::new("status"));
        if part != Part::Status {
            return Vec::new();
        }
        ["currentReplicas", "desiredReplicas"].into_iter().flat_map(|field| nonnegative(status, &path, field)).collect()
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let reference = at(object, "spec.scaleTargetRef");
        let min = int(object, "spec.minReplicas").map_or_else(|| "<unset>".to_owned(), |min| min.to_string());
        vec![
            printing::name(object),
            format!("{}/{}", text(reference, "kind"), text(reference, "name")).into(),
            targets(object).into(),
            min.into(),
            int(object, "spec.maxReplicas").unwrap_or(0).to_string().into(),
            printing::number(object, "status.currentReplicas"),
            printing::age(object, now),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

/// `cpu: 12%/80%`, two of them and how many more there are.
fn targets(object: &Value) -> String {
    let current = list(object, "status.currentMetrics");
    let all: Vec<String> =
        list(object, "spec.metrics").iter().enumerate().map(|(index, metric)| target(metric, current.get(index))).collect();
    match all.len() {
        0 => "<none>".into(),
        more @ 3.. => format!("{} + {} more...", all[..2].join(", "), more - 2),
        _ => all.join(", "),
    }
}

fn target(metric: &Value, current: Option<&Value>) -> String {
    let (source, prefix) = match text(metric, "type") {
        "Resource" => ("resource", format!("{}: ", text(metric, "resource.name"))),
        "ContainerResource" => ("containerResource", format!("{}: ", text(metric, "containerResource.name"))),
        "Pods" => ("pods", String::new()),
        "Object" => ("object", String::new()),
        "External" => ("external", String::new()),
        _ => return "<unknown type>".into(),
    };
    let wanted = at(metric, source);
    let now = current.map(|current| at(at(current, source), "current"));
    let (field, suffix, average) = match () {
        () if has(wanted, "target.averageUtilization") => ("averageUtilization", "%", ""),
        () if has(wanted, "target.averageValue") => ("averageValue", "", if prefix.is_empty() && source != "pods" { " (avg)" } else { "" }),
        () => ("value", "", ""),
    };
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let now = now.filter(|now| has(now, field)).map_or_else(|| "<unknown>".to_owned(), |now| format!("{}{suffix}", word(at(now, field))));
    format!("{prefix}{now}/{}{suffix}{average}", word(at(at(wanted, "target"), field)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_the_target_and_each_metric() {
        let mut object =
            json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 4, "scaleTargetRef": {"kind": "Deployment", "name": "web"}}});
        HorizontalPodAutoscaler.default(&mut object);
        assert_eq!(HorizontalPodAutoscaler.validate(&object), []);
        let cells = HorizontalPodAutoscaler.cells(&object, 0);
        assert_eq!(cells[1..6], [json!("Deployment/web"), json!("cpu: <unknown>/80%"), json!("1"), json!("4"), json!(0)]);
        object["status"] =
            json!({"currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12}}}]});
        assert_eq!(HorizontalPodAutoscaler.cells(&object, 0)[2], "cpu: 12%/80%");
    }

    #[test]
    fn bounds_that_contradict_each_other_are_explained() {
        let object = json!({"spec": {"minReplicas": 3, "maxReplicas": 0, "scaleTargetRef": {"kind": "Deployment"}}});
        let found: Vec<String> = HorizontalPodAutoscaler.validate(&object).iter().map(ToString::to_string).collect();
        let expected = [
            "spec.maxReplicas: Invalid value: 0: must be greater than 0",
            "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
            "spec.scaleTargetRef.name: Required value",
        ];
        assert_eq!(found, expected);
    }
}
