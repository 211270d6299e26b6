//! v1 Pod.

mod status;
mod status_rules;

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::printing::{self, AGE, NAME, shown, wide};
use crate::value::{self, at, flag, int, keep, list, set, sub, text};
use crate::{Column, Part, Rules, pod_spec};

pub use status::qos_class;

pub struct Pod;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Ready", "string", "Ready containers of all containers."),
    shown("Status", "string", "State of the pod and its containers."),
    shown("Restarts", "string", "How often containers were restarted, and when last."),
    AGE,
    wide("IP", "string", "Address of the pod."),
    wide("Node", "string", "Node that runs the pod."),
    wide("Nominated Node", "string", "Node on which room is being made for the pod."),
    wide("Readiness Gates", "string", "Readiness gates that are true, of all."),
];

const FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];

impl Rules for Pod {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "Pod")
    }
    fn default(&self, object: &mut Value) {
        if let Some(spec) = sub(object, "spec") {
            pod_spec::defaults::spec(spec);
            pod_spec::defaults::pod(spec);
        }
    }
    fn prepare_create(&self, object: &mut Value) {
        let gated = !list(object, "spec.schedulingGates").is_empty();
        let mut status = json!({"phase": "Pending", "qosClass": qos_class(object)});
        if gated {
            status["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
        }
        set(object, "status", status);
        pod_spec::scheduling::apply_label_keys(object);
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        match part {
            Part::Main => keep(new, old, "status"),
            Part::Status => prepare_status(new, old),
            Part::Subresource("ephemeralcontainers") => {
                let added = at(new, "spec.ephemeralContainers").clone();
                keep(new, old, "spec");
                keep(new, old, "status");
                set(new, "spec.ephemeralContainers", added);
            }
            Part::Subresource("resize") => pod_spec::resize::prepare(new, old),
            Part::Subresource(_) => {}
        }
    }
    /// People seldom write pods again, and controllers do it often: upstream warns at creation only.
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() {
            return Vec::new();
        }
        let complaints = names::dns1123_label(value::name(object));
        let mut found = Vec::new();
        if !complaints.is_empty() {
            let sentence = "this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended";
            found.push(format!("metadata.name: {sentence}: [{}]", complaints.join(" ")));
        }
        found.extend(pod_spec::warnings::of(object, &Path::root()));
        found
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        pod_spec::validate_pod(object)
    }
    fn validate_create(&self, object: &Value) -> Vec<Error> {
        pod_spec::validate_new_pod(object)
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        match part {
            Part::Main => pod_spec::update::validate(new, old),
            Part::Status => status_rules::validate(new, old),
            Part::Subresource("ephemeralcontainers") => pod_spec::update::ephemeral_only_added(new, old),
            Part::Subresource("resize") => pod_spec::resize::validate(new, old),
            Part::Subresource(_) => Vec::new(),
        }
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let word = |path: &str| text(object, path).to_owned();
        FIELDS
            .iter()
            .map(|field| {
                let value = match *field {
                    "spec.hostNetwork" => flag(object, field).to_string(),
                    path => word(path),
                };
                (*field, value)
            })
            .collect()
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        FIELDS
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let shown = status::summary(object, now);
        vec![
            printing::name(object),
            format!("{}/{}", shown.ready, shown.total).into(),
            shown.status.into(),
            shown.restarts.into(),
            printing::age(object, now),
            printing::or_none(object, "status.podIP"),
            printing::or_none(object, "spec.nodeName"),
            printing::or_none(object, "status.nominatedNodeName"),
            readiness_gates(object),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
    /// A pod that no kubelet runs (unscheduled or finished) goes at once, whatever was asked for.
    fn default_grace_seconds(&self, object: &Value) -> Option<i64> {
        let finished = matches!(text(object, "status.phase"), "Succeeded" | "Failed");
        if finished || text(object, "spec.nodeName").is_empty() {
            return None;
        }
        Some(int(object, "spec.terminationGracePeriodSeconds").unwrap_or(30))
    }
}

/// A kubelet that leaves out what the server knows does not erase it.
fn prepare_status(new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    keep(new, old, "metadata.deletionTimestamp");
    keep(new, old, "metadata.ownerReferences");
    if text(new, "status.qosClass").is_empty() {
        keep(new, old, "status.qosClass");
    }
    if int(new, "status.observedGeneration").unwrap_or(0) == 0 {
        keep(new, old, "status.observedGeneration");
    }
    for condition in value::items_mut(new, "status.conditions") {
        let same = |before: &&Value| text(before, "type") == text(condition, "type");
        let before = list(old, "status.conditions").iter().find(same);
        if let Some(before) = before.filter(|_| int(condition, "observedGeneration").unwrap_or(0) == 0) {
            keep(condition, before, "observedGeneration");
        }
    }
}

fn readiness_gates(object: &Value) -> Value {
    let gates = list(object, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let conditions = list(object, "status.conditions");
    let holds = |gate: &&Value| {
        let found = conditions.iter().find(|condition| text(condition, "type") == text(gate, "conditionType"));
        found.is_some_and(|condition| text(condition, "status") == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len()).into()
}

#[cfg(test)]
mod tests;
