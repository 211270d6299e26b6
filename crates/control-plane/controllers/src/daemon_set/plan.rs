//! What a DaemonSet does next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use reconcile::object::controller_of;

use super::fit;
use super::observe::World;
use crate::{history, pods};

#[derive(Default)]
pub(super) struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    /// Names of nodes.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    pub status: DaemonSetStatus,
    pub look_again: Option<Duration>,
}

pub(super) fn plan(world: &World) -> Plan {
    let mut by_node: HashMap<&str, Vec<&Arc<Pod>>> = HashMap::new();
    for pod in &world.pods {
        if let Some(node) = fit::node_of(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let mut plan =
        Plan { adopt: world.pods.iter().filter(|pod| controller_of(&pod.metadata).is_none()).cloned().collect(), ..Plan::default() };
    // The one pod per node that counts, where one is wanted.
    let mut serving: Vec<&Arc<Pod>> = Vec::new();
    let mut status = DaemonSetStatus { observed_generation: world.set.metadata.generation, ..DaemonSetStatus::default() };
    for node in &world.nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let (shall_run, may_stay) = fit::fits(&world.set, node);
        let here = by_node.remove(name).unwrap_or_default();
        match shall_run || (may_stay && !here.is_empty()) {
            true => {
                let kept = keep_one(name, &here, shall_run, &mut plan);
                status.desired_number_scheduled += i32::from(shall_run);
                if let Some(kept) = kept.filter(|_| shall_run) {
                    status.current_number_scheduled += 1;
                    serving.push(kept);
                }
                status.number_misscheduled += i32::from(!shall_run && kept.is_some());
            }
            false => {
                status.number_misscheduled += i32::from(!here.is_empty());
                plan.delete.extend(here.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(|pod| (*pod).clone()));
            }
        }
    }
    count(world, &serving, &mut status);
    roll(world, &serving, &status, &mut plan);
    plan.look_again = next_available(world, &serving);
    plan.status = status;
    plan
}

/// Of the pods on a node the oldest that runs is kept; an ended one makes room for its successor.
fn keep_one<'a>(node: &str, here: &[&'a Arc<Pod>], shall_run: bool, plan: &mut Plan) -> Option<&'a Arc<Pod>> {
    let ended = here.iter().filter(|pod| pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_none());
    plan.delete.extend(ended.map(|pod| (*pod).clone()));
    let mut alive: Vec<&'a Arc<Pod>> = here.iter().copied().filter(|pod| pods::is_active(pod)).collect();
    alive.sort_by_key(|pod| (!pods::is_ready(pod), pod.metadata.creation_timestamp.as_ref().map(|time| time.0)));
    let kept = alive.first().copied();
    plan.delete.extend(alive.iter().skip(1).map(|pod| (*pod).clone()));
    // A leaving pod still holds its place (ports, files): its successor comes when it is gone.
    if here.is_empty() && shall_run {
        plan.create.push(node.to_owned());
    }
    kept
}

fn is_available(world: &World, pod: &Pod) -> bool {
    pods::is_available(pod, world.set.spec.min_ready_seconds.unwrap_or(0), world.now)
}

fn is_current(world: &World, pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(history::HASH_LABEL)) == Some(&world.hash)
}

fn count(world: &World, serving: &[&Arc<Pod>], status: &mut DaemonSetStatus) {
    let of = |test: &dyn Fn(&Pod) -> bool| serving.iter().filter(|pod| test(pod)).count() as i32;
    let available = of(&|pod| is_available(world, pod));
    let old = world.set.status.clone().unwrap_or_default();
    status.number_ready = of(&pods::is_ready);
    status.number_available = Some(available);
    status.number_unavailable = Some(status.desired_number_scheduled - available);
    status.updated_number_scheduled = Some(of(&|pod| is_current(world, pod)));
    status.collision_count = old.collision_count;
    status.conditions = old.conditions;
}

/// Replaces pods of older revisions: those that serve nobody at once, others as far as unavailability allows.
fn roll(world: &World, serving: &[&Arc<Pod>], status: &DaemonSetStatus, plan: &mut Plan) {
    let Some(max_unavailable) = max_unavailable(&world.set, status.desired_number_scheduled) else { return };
    let old: Vec<&&Arc<Pod>> = serving.iter().filter(|pod| !is_current(world, pod)).collect();
    let (available, useless): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = old.into_iter().copied().partition(|pod| is_available(world, pod));
    plan.delete.extend(useless.iter().map(|pod| (*pod).clone()));
    let room = max_unavailable - status.number_unavailable.unwrap_or(0);
    plan.delete.extend(available.iter().take(usize::try_from(room).unwrap_or(0)).map(|pod| (*pod).clone()));
}

/// `None`: OnDelete. A percentage rounds up; at least one, or nothing could ever move.
fn max_unavailable(set: &DaemonSet, desired: i32) -> Option<i32> {
    let strategy = set.spec.update_strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    let value = strategy.and_then(|strategy| strategy.rolling_update.as_ref()).and_then(|rolling| rolling.max_unavailable.clone());
    Some(match value {
        None => 1,
        Some(IntOrString::Int(number)) => number.max(1),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).unwrap_or(0);
            let part = i64::from(desired).saturating_mul(percent).saturating_add(99) / 100;
            i32::try_from(part).unwrap_or(i32::MAX).max(1)
        }
    })
}

fn next_available(world: &World, serving: &[&Arc<Pod>]) -> Option<Duration> {
    let seconds = i64::from(world.set.spec.min_ready_seconds.unwrap_or(0));
    let waits = serving.iter().filter_map(|pod| {
        let left = pods::ready_since(pod)?.as_second() + seconds - world.now.as_second();
        u64::try_from(left).ok().filter(|left| *left > 0)
    });
    waits.min().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Nodes `n1` … with these taints; pods as (node, hash, ready).
    fn world(taints: &[&str], pods: &[(&str, &str, bool)], more: Value) -> World {
        let mut set = json!({"metadata": {"name": "agent", "namespace": "a", "uid": "d"}, "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {"spec": {"containers": []}}}});
        more.as_object().into_iter().flatten().for_each(|(key, value)| set["spec"][key] = value.clone());
        let node = |(index, taint): (usize, &&str)| {
            let taints = (!taint.is_empty()).then(|| json!([{"key": taint, "effect": "NoSchedule"}]));
            Arc::new(serde_json::from_value(json!({"metadata": {"name": format!("n{}", index + 1)}, "spec": {"taints": taints}})).unwrap())
        };
        let pod = |(node, hash, ready): &(&str, &str, bool)| {
            let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "d", "controller": true}]);
            let ready = if *ready { "True" } else { "False" };
            Arc::new(serde_json::from_value(json!({
                "metadata": {"name": format!("p-{node}"), "labels": {"app": "x", "controller-revision-hash": hash}, "ownerReferences": owner},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            })).unwrap())
        };
        World {
            set: Arc::new(serde_json::from_value(set).unwrap()),
            pods: pods.iter().map(pod).collect(),
            nodes: taints.iter().enumerate().map(node).collect(),
            revisions: vec![],
            hash: "new".into(),
            now: "2026-01-01T01:00:00Z".parse().unwrap(),
        }
    }

    fn words(world: &World) -> String {
        let plan = plan(world);
        let made = plan.create.iter().map(|node| format!("+{node}"));
        let gone = plan.delete.iter().filter_map(|pod| pod.metadata.name.as_deref()).map(|name| format!("-{name}"));
        made.chain(gone).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_node_that_fits_has_one_pod() {
        let nothing = json!({});
        assert_eq!(words(&world(&["", "mine", "node.kubernetes.io/unschedulable"], &[], nothing.clone())), "+n1 +n3");
        // A NoSchedule taint that came later does not drive out what runs.
        assert_eq!(words(&world(&["mine"], &[("n1", "new", true)], nothing.clone())), "");
        assert_eq!(words(&world(&["", ""], &[("n1", "new", true), ("n1", "new", false)], nothing.clone())), "+n2 -p-n1");
        let elsewhere = json!({"template": {"spec": {"containers": [], "nodeSelector": {"disk": "ssd"}}}});
        assert_eq!(words(&world(&[""], &[("n1", "new", true)], elsewhere)), "-p-n1");
    }

    #[test]
    fn a_rolling_update_takes_useless_pods_at_once_and_others_one_at_a_time() {
        let pods = [("n1", "old", true), ("n2", "old", true), ("n3", "new", true)];
        assert_eq!(words(&world(&["", "", ""], &pods, json!({}))), "-p-n1");
        assert_eq!(words(&world(&["", "", ""], &[("n1", "old", true), ("n2", "old", false), ("n3", "new", true)], json!({}))), "-p-n2");
        assert_eq!(words(&world(&["", "", ""], &pods, json!({"updateStrategy": {"type": "OnDelete"}}))), "");
    }

    #[test]
    fn a_daemon_asks_for_its_node_by_name() {
        let world = world(&[""], &[], json!({}));
        let pod = fit::pod(&world.set, "n1", "new");
        assert_eq!(fit::node_of(&pod), Some("n1"));
        assert!(pod.spec.unwrap().tolerations.unwrap().len() >= 6);
    }
}
