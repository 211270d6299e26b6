//! v1 Pod.

mod status;

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::Errors;
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
    "status.podIPs",
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
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        match part {
            Part::Main => keep(new, old, "status"),
            Part::Status => {
                keep(new, old, "spec");
                keep(new, old, "metadata.deletionTimestamp");
                // The class follows from the spec; a kubelet that leaves it out does not erase it.
                keep(new, old, "status.qosClass");
            }
            Part::Subresource("ephemeralcontainers") => {
                let added = at(new, "spec.ephemeralContainers").clone();
                keep(new, old, "spec");
                keep(new, old, "status");
                set(new, "spec.ephemeralContainers", added);
            }
            Part::Subresource(_) => {}
        }
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        pod_spec::warnings(at(object, "spec"), &Path::new("spec"))
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        let path = Path::new("spec");
        let mut errors = pod_spec::validate(at(object, "spec"), &path);
        if flag(object, "spec.hostNetwork") {
            errors.extend(host_network_ports(object, &path));
        }
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        match part {
            Part::Main => pod_spec::update::validate(new, old),
            Part::Status => no_way_back(new, old),
            Part::Subresource("ephemeralcontainers") => ephemeral_only_added(new, old),
            Part::Subresource(_) => Vec::new(),
        }
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let word = |path: &str| text(object, path).to_owned();
        let ips: Vec<&str> = list(object, "status.podIPs").iter().map(|ip| text(ip, "ip")).collect();
        FIELDS
            .iter()
            .map(|field| {
                let value = match *field {
                    "spec.hostNetwork" => flag(object, field).to_string(),
                    "status.podIPs" => ips.join(","),
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
    /// A pod that no kubelet runs (unscheduled or finished) goes at once.
    fn default_grace_seconds(&self, object: &Value) -> Option<i64> {
        let finished = matches!(text(object, "status.phase"), "Succeeded" | "Failed");
        if finished || text(object, "spec.nodeName").is_empty() {
            return Some(0);
        }
        Some(int(object, "spec.terminationGracePeriodSeconds").unwrap_or(30))
    }
}

fn host_network_ports(object: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, container) in list(object, "spec.containers").iter().enumerate() {
        for (position, port) in list(container, "ports").iter().enumerate() {
            let (inner, outer) = (int(port, "containerPort"), int(port, "hostPort").filter(|port| *port != 0));
            if inner != outer {
                let here = path.child("containers").index(index).child("ports").index(position).child("hostPort");
                errors.push(Error::invalid(&here, outer.unwrap_or(0), "must match `containerPort` when `hostNetwork` is true"));
            }
        }
    }
    errors
}

/// A container that ended for good does not run again.
fn no_way_back(new: &Value, old: &Value) -> Errors {
    let policy = text(old, "spec.restartPolicy");
    if policy == "Always" {
        return Errors::new();
    }
    let path = Path::new("status").child("containerStatuses");
    let mut errors = Errors::new();
    for (index, before) in list(old, "status.containerStatuses").iter().enumerate() {
        let Some(code) = int(before, "state.terminated.exitCode") else { continue };
        let name = text(before, "name");
        // A container may have a restart policy of its own.
        let own = list(old, "spec.containers").iter().any(|c| text(c, "name") == name && value::has(c, "restartPolicy"));
        let runs = |after: &Value| text(after, "name") == name && !value::has(after, "state.terminated");
        if (policy != "OnFailure" || code == 0) && !own && list(new, "status.containerStatuses").iter().any(runs) {
            errors.push(Error::forbidden(&path.index(index).child("state"), "may not be transitioned to non-terminated state"));
        }
    }
    errors
}

fn ephemeral_only_added(new: &Value, old: &Value) -> Errors {
    let path = Path::new("spec").child("ephemeralContainers");
    let after = list(new, "spec.ephemeralContainers");
    let changed = list(old, "spec.ephemeralContainers").iter().find_map(|before| {
        let name = text(before, "name");
        match after.iter().find(|container| text(container, "name") == name) {
            None => Some(format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(found) if !value::same(found, before) => Some(format!("existing ephemeral containers {name:?} may not be changed\n")),
            Some(_) => None,
        }
    });
    changed.map(|sentence| Error::forbidden(&path, sentence)).into_iter().collect()
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
