//! What silence and conditions of a node mean for its conditions, its taints and its pods.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observe::World;
use crate::pods;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
/// Conditions that keep new pods away while True, and their taints (KEP-382).
const BY_CONDITION: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// What an agent reports; in its silence nobody knows.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

#[derive(Default)]
pub(super) struct Plan {
    /// All conditions of the node, where some became Unknown.
    pub conditions: Option<Vec<NodeCondition>>,
    /// All taints of the node, where ours are not as they should be.
    pub taints: Option<Vec<Taint>>,
    /// Pods that still count as ready on a node that is not.
    pub unready: Vec<Arc<Pod>>,
}

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub(super) fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|condition| condition.status == "True")
}

pub(super) fn plan(world: &World) -> Plan {
    let mut plan = Plan::default();
    let mut node = Cow::Borrowed(&*world.node);
    if world.silent_for > world.grace && plan_unknown(world, node.to_mut()) {
        plan.conditions = node.status.as_ref().and_then(|status| status.conditions.clone());
    }
    let taints = taints(world, &node);
    if !same(&taints, current_taints(&world.node)) {
        plan.taints = Some(taints);
    }
    if !is_ready(&node) && condition(&node, "Ready").is_some() {
        plan.unready = world.pods.iter().filter(|pod| pods::is_ready(pod) && !is_mirror(pod)).cloned().collect();
    }
    plan
}

/// Pods that the kubelet made from its own files: their status is its alone.
fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key("kubernetes.io/config.mirror"))
}

/// True where a condition became Unknown.
fn plan_unknown(world: &World, node: &mut Node) -> bool {
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    let mut changed = false;
    for kind in REPORTED {
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(known) if known.status != "Unknown" => {
                known.status = "Unknown".into();
                known.reason = Some("NodeStatusUnknown".into());
                known.message = Some("Kubelet stopped posting node status.".into());
                known.last_transition_time = Some(Time(world.now));
                changed = true;
            }
            Some(_) => {}
            None => {
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: world.node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(world.now)),
                });
                changed = true;
            }
        }
    }
    changed
}

fn current_taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Its pods are being evicted because of its health.
pub(super) fn is_emptied(node: &Node) -> bool {
    current_taints(node).iter().any(|taint| [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) && taint.effect == NO_EXECUTE)
}

/// Everybody else's taints as they are, ours as they should be; one that stays keeps the time it was added.
fn taints(world: &World, node: &Node) -> Vec<Taint> {
    let current = current_taints(&world.node);
    let mut taints: Vec<Taint> = current.iter().filter(|taint| !is_ours(taint)).cloned().collect();
    let mut add = |key: &str, effect: &str| {
        let known = current.iter().find(|taint| taint.key == key && taint.effect == effect);
        let added = (effect == NO_EXECUTE).then(|| Time(world.now));
        let fresh = || Taint { key: key.into(), effect: effect.into(), time_added: added, value: None };
        taints.push(known.cloned().unwrap_or_else(fresh));
    };
    let trouble = match condition(node, "Ready").map(|condition| condition.status.as_str()) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    };
    if let Some(key) = trouble {
        add(key, NO_SCHEDULE);
        // One that is being emptied already goes on, whatever its trouble is called now.
        if !world.full_disruption && (world.may_empty || is_emptied(&world.node)) {
            add(key, NO_EXECUTE);
        }
    }
    for (kind, key) in BY_CONDITION {
        if condition(node, kind).is_some_and(|condition| condition.status == "True") {
            add(key, NO_SCHEDULE);
        }
    }
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        add(UNSCHEDULABLE, NO_SCHEDULE);
    }
    taints
}

fn is_ours(taint: &Taint) -> bool {
    let by_condition = BY_CONDITION.iter().any(|(_, key)| *key == taint.key) || taint.key == UNSCHEDULABLE;
    let by_health = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
    (by_health && [NO_SCHEDULE, NO_EXECUTE].contains(&taint.effect.as_str())) || (by_condition && taint.effect == NO_SCHEDULE)
}

fn same(a: &[Taint], b: &[Taint]) -> bool {
    let keys = |taints: &[Taint]| {
        let mut keys: Vec<_> = taints.iter().map(|taint| (taint.key.clone(), taint.effect.clone(), taint.value.clone())).collect();
        keys.sort();
        keys
    };
    keys(a) == keys(b)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn world(ready: &str, silent: u64, full_disruption: bool, spec: Value) -> World {
        let node = json!({
            "metadata": {"name": "n"}, "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": ready}, {"type": "DiskPressure", "status": "True"}]},
        });
        let pod = json!({"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        World {
            node: Arc::new(serde_json::from_value(node).unwrap()),
            silent_for: Duration::from_secs(silent),
            grace: Duration::from_secs(50),
            full_disruption,
            may_empty: true,
            pods: vec![Arc::new(serde_json::from_value(pod).unwrap())],
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            look_again: Duration::ZERO,
        }
    }

    fn words(plan: &Plan) -> String {
        let taints = plan.taints.iter().flatten();
        let short = |taint: &Taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect);
        taints.map(short).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn silence_and_conditions_become_taints() {
        let cases = [
            ("True", 49, false, json!({}), "disk-pressure:NoSchedule", 0),
            ("True", 51, false, json!({}), "unreachable:NoSchedule unreachable:NoExecute", 1),
            ("False", 0, false, json!({}), "not-ready:NoSchedule not-ready:NoExecute disk-pressure:NoSchedule", 1),
            ("False", 0, true, json!({}), "not-ready:NoSchedule disk-pressure:NoSchedule", 1),
            ("True", 0, false, json!({"unschedulable": true}), "disk-pressure:NoSchedule unschedulable:NoSchedule", 0),
        ];
        for (ready, silent, full, spec, expected, unready) in cases {
            let plan = plan(&world(ready, silent, full, spec));
            assert_eq!((words(&plan).as_str(), plan.unready.len()), (expected, unready), "{ready} {silent}");
        }
    }

    #[test]
    fn a_node_whose_turn_has_not_come_is_kept_free_but_not_emptied() {
        let world = World { may_empty: false, ..world("False", 0, false, json!({})) };
        assert_eq!(words(&plan(&world)), "not-ready:NoSchedule disk-pressure:NoSchedule");
    }

    #[test]
    fn a_silent_node_is_unknown_in_all_that_it_reports_and_a_settled_one_writes_nothing() {
        let silent = plan(&world("True", 60, false, json!({})));
        let conditions = silent.conditions.unwrap();
        assert!(conditions.iter().all(|condition| condition.status == "Unknown") && conditions.len() == 4);
        let taints = json!({"taints": [{"key": "mine", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}]});
        let settled = plan(&world("True", 0, false, taints));
        assert!(settled.conditions.is_none() && settled.taints.is_none() && settled.unready.is_empty());
        let healed =
            json!({"taints": [{"key": "mine", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]});
        assert_eq!(words(&plan(&world("True", 0, false, healed))), "mine:NoSchedule disk-pressure:NoSchedule");
    }
}
