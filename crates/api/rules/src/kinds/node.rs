//! v1 Node.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::{names, quantity};
use serde_json::Value;

use crate::checks::{Errors, sentences, unique};
use crate::pod_spec::scheduling::EFFECTS;
use crate::printing::{self, AGE, NAME, shown, wide};
use crate::value::{at, entries, flag, keep, list, text};
use crate::{Column, Part, Rules, resources, value};

pub struct Node;

const COLUMNS: &[Column] = &[
    NAME,
    shown("Status", "string", "Whether the node is ready and takes pods."),
    shown("Roles", "string", "Roles of the node."),
    AGE,
    shown("Version", "string", "Version of the kubelet."),
    wide("Internal-IP", "string", "Address inside the cluster."),
    wide("External-IP", "string", "Address outside the cluster."),
    wide("OS-Image", "string", "Operating system."),
    wide("Kernel-Version", "string", "Version of the kernel."),
    wide("Container-Runtime", "string", "Container runtime and its version."),
];

impl Rules for Node {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        ("", "v1", "Node")
    }
    /// What a node offers to pods is all of it, unless it says otherwise.
    fn default(&self, object: &mut Value) {
        let capacity = at(object, "status.capacity").clone();
        if capacity.is_object() && !value::has(object, "status.allocatable") {
            value::set(object, "status.allocatable", capacity);
        }
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        keep(new, old, if part == Part::Status { "spec" } else { "status" });
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        // Upstream blames `metadata` for taints.
        let mut errors = taints(list(object, "spec.taints"), &Path::new("metadata").child("taints"));
        errors.extend(amounts(object));
        errors.extend(pod_ranges(object, &Path::new("spec").child("podCIDRs")));
        errors
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        let mut errors = addresses(new);
        if part == Part::Main {
            errors.extend(pod_range_unchanged(new, old));
        } else {
            errors.extend(amounts(new));
        }
        errors
    }
    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if value::has(object, "spec.configSource") {
            found.push("spec.configSource: the feature is no longer supported, this field will be ignored".to_owned());
        }
        if !text(object, "spec.externalID").is_empty() {
            found.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        found
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("spec.unschedulable", flag(object, "spec.unschedulable").to_string())]
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }
    fn keeps_status_at_creation(&self) -> bool {
        true
    }
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let info = |field: &str| value::text_or(at(object, "status.nodeInfo"), field, "<unknown>").into();
        vec![
            printing::name(object),
            status(object).into(),
            printing::none_if_empty(roles(object).into_iter().collect::<Vec<_>>().join(",")),
            printing::age(object, now),
            text(object, "status.nodeInfo.kubeletVersion").into(),
            address(object, "InternalIP"),
            address(object, "ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

fn taints(taints: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let here = path.index(index);
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        errors.extend(sentences(&here.child("key"), key, names::qualified_name(key)));
        let complaints = names::label_value(value);
        if !complaints.is_empty() {
            errors.push(Error::invalid(&here.child("value"), value, complaints.join(";")));
        }
        match effect {
            "" => errors.push(Error::required(&here.child("effect"), "")),
            effect if EFFECTS.contains(&effect) => {}
            other => errors.push(Error::not_supported(&here.child("effect"), other, &EFFECTS)),
        }
        if !seen.insert((key, effect)) {
            let detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(Error { detail, ..Error::duplicate(&here, taint.clone()) });
        }
    }
    errors
}

/// What a node has and offers.
fn amounts(object: &Value) -> Errors {
    let mut errors = Errors::new();
    for field in ["capacity", "allocatable"] {
        for (name, amount) in entries(at(object, "status"), field) {
            if let Some(amount) = quantity::from_json(amount) {
                errors.extend(resources::amount(name, amount, &Path::new("status").child(field).child(name)));
            }
        }
    }
    errors
}

fn addresses(object: &Value) -> Errors {
    let all = list(object, "status.addresses");
    let path = Path::new("status").child("addresses");
    let again = all.iter().enumerate().filter(|(index, address)| all.iter().take(*index).any(|before| before == *address));
    again.map(|(index, address)| Error::duplicate(&path.index(index), address.clone())).collect()
}

fn pod_ranges(object: &Value, path: &Path) -> Errors {
    let ranges: Vec<&str> = list(object, "spec.podCIDRs").iter().filter_map(Value::as_str).collect();
    let mut errors: Errors =
        ranges.iter().enumerate().flat_map(|(index, range)| sentences(&path.index(index), *range, names::cidr(range))).collect();
    if ranges.len() > 1 {
        let families: Vec<bool> =
            ranges.iter().filter_map(|range| names::parse_cidr(range)).map(|(address, _)| address.is_ipv6()).collect();
        if ranges.len() > 2 || !(families.contains(&true) && families.contains(&false)) {
            let sentence = "may specify no more than one CIDR for each IP family";
            errors.push(Error::invalid(path, at(object, "spec.podCIDRs").clone(), sentence));
        }
        errors.extend(unique(ranges, path));
    }
    errors
}

fn pod_range_unchanged(new: &Value, old: &Value) -> Errors {
    let path = Path::new("spec");
    let mut errors = Errors::new();
    let (before, after) = (at(old, "spec.podCIDRs"), at(new, "spec.podCIDRs"));
    if !list(old, "spec.podCIDRs").is_empty() && before != after {
        let sentence = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(Error::forbidden(&path.child("podCIDRs"), sentence));
    }
    let (before, after) = (text(old, "spec.providerID"), text(new, "spec.providerID"));
    if !before.is_empty() && before != after {
        let sentence = "node updates may not change providerID except from \"\" to valid";
        errors.push(Error::forbidden(&path.child("providerID"), sentence));
    }
    errors
}

fn status(object: &Value) -> String {
    let ready = list(object, "status.conditions").iter().find(|condition| text(condition, "type") == "Ready");
    let mut words = vec![match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if flag(object, "spec.unschedulable") {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(object: &Value) -> BTreeSet<String> {
    let role = |(key, value): (&String, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        None => None,
    };
    entries(object, "metadata.labels").filter_map(role).filter(|role| !role.is_empty()).collect()
}

fn address(object: &Value, kind: &str) -> Value {
    let found = list(object, "status.addresses").iter().find(|address| text(address, "type") == kind);
    found.map_or("<none>", |address| text(address, "address")).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_show_readiness_roles_and_addresses() {
        let object = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian"}}});
        let cells = Node.cells(&object, 0);
        let expected = [
            "n",
            "Ready,SchedulingDisabled",
            "control-plane,worker",
            "<unknown>",
            "v1.37.0",
            "10.0.0.1",
            "<none>",
            "Debian",
            "<unknown>",
            "<unknown>",
        ];
        assert_eq!(cells, expected.map(Value::from));
        assert_eq!(Node.cells(&json!({}), 0)[1..3], [json!("Unknown"), json!("<none>")]);
    }

    #[test]
    fn taints_need_a_known_effect_and_the_pod_range_stays() {
        let object = json!({"spec": {"taints": [{"key": "a", "effect": "Explode"}], "podCIDRs": ["10.0.0.0/24"]}});
        let found: Vec<String> = Node.validate(&object).iter().map(ToString::to_string).collect();
        let expected = "metadata.taints[0].effect: Unsupported value: \"Explode\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"";
        assert_eq!(found, [expected]);
        assert_eq!(Node.validate_update(&json!({"spec": {}}), &object, Part::Main).len(), 1);
    }

    #[test]
    fn what_a_node_has_it_offers() {
        let mut object = json!({"status": {"capacity": {"cpu": "4", "memory": "1Gi"}}});
        Node.default(&mut object);
        assert_eq!(object["status"]["allocatable"], json!({"cpu": "4", "memory": "1Gi"}));
    }
}
