//! What a DaemonSet does next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::Pod;

use super::fit;
use super::observe::World;
use crate::{history, intstr, pods};

#[derive(Default)]
pub(super) struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    /// Names of nodes.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Ended pods, which make room for their successors when their node has waited long enough.
    pub ended: Vec<Arc<Pod>>,
    pub status: DaemonSetStatus,
    pub look_again: Option<Duration>,
}

/// The daemons that count on a node where one is wanted: with a surge there may be two.
#[derive(Default)]
struct Serving<'a> {
    node: String,
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

impl<'a> Serving<'a> {
    /// The elder of the two, which the status speaks of.
    fn first(&self) -> Option<&'a Arc<Pod>> {
        self.old.or(self.new)
    }
}

pub(super) fn plan(world: &World) -> Plan {
    let mut by_node: HashMap<&str, Vec<&Arc<Pod>>> = HashMap::new();
    for pod in world.own.pods.iter().chain(&world.own.orphans) {
        if let Some(node) = fit::node_of(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let mut plan = Plan { adopt: world.own.orphans.clone(), release: world.own.strays.clone(), ..Plan::default() };
    let mut serving: Vec<Serving> = Vec::new();
    let mut status = DaemonSetStatus { observed_generation: world.own.set.metadata.generation, ..DaemonSetStatus::default() };
    for node in &world.nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let (shall_run, may_stay) = fit::fits(&world.own.set, node);
        let here = by_node.remove(name).unwrap_or_default();
        if !shall_run && !(may_stay && !here.is_empty()) {
            status.number_misscheduled += i32::from(!here.is_empty());
            plan.delete.extend(here.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(|pod| (*pod).clone()));
            continue;
        }
        let kept = settle(world, name, &here, shall_run, &mut plan);
        status.desired_number_scheduled += i32::from(shall_run);
        status.current_number_scheduled += i32::from(shall_run && !here.is_empty());
        status.number_misscheduled += i32::from(!shall_run && !here.is_empty());
        if shall_run {
            serving.push(kept);
        }
    }
    // Pods that wait for a node that is gone would wait for ever.
    let lost = by_node.into_values().flatten().filter(|pod| pods::node_name(pod).is_none() && pod.metadata.deletion_timestamp.is_none());
    plan.delete.extend(lost.cloned());
    count(world, &serving, &mut status);
    roll(world, &serving, &status, &mut plan);
    plan.look_again = next_available(world, &serving);
    plan.status = status;
    plan
}

/// Of the pods on a node the eldest that runs is kept, or with a surge the eldest of each revision; an ended one makes room.
fn settle<'a>(world: &World, node: &str, here: &[&'a Arc<Pod>], shall_run: bool, plan: &mut Plan) -> Serving<'a> {
    let ended = here.iter().filter(|pod| pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_none());
    plan.ended.extend(ended.map(|pod| (*pod).clone()));
    let mut alive: Vec<&'a Arc<Pod>> = here.iter().copied().filter(|pod| pods::is_active(pod)).collect();
    alive.sort_by_key(|pod| (pods::node_name(pod).is_none(), pod.metadata.creation_timestamp.as_ref().map(|time| time.0)));
    let mut kept = Serving { node: node.to_owned(), ..Serving::default() };
    let surges = max_surge(&world.own.set, 1) > 0;
    for pod in alive {
        let full = if surges { false } else { kept.first().is_some() };
        let place = if is_current(world, pod) { &mut kept.new } else { &mut kept.old };
        match place {
            None if !full => *place = Some(pod),
            _ => plan.delete.push(pod.clone()),
        }
    }
    // A surge has done its work once the new pod serves; an old one that does not serve is in nobody's way.
    if let (Some(new), Some(old)) = (kept.new, kept.old)
        && (!pods::is_ready(old) || is_available(world, new))
    {
        plan.delete.push(old.clone());
        kept.old = None;
    }
    // A leaving pod still holds its place (ports, files): its successor comes when it is gone.
    if here.is_empty() && shall_run {
        plan.create.push(node.to_owned());
    }
    kept
}

fn is_available(world: &World, pod: &Pod) -> bool {
    pods::is_available(pod, world.own.set.spec.min_ready_seconds.unwrap_or(0), world.own.now)
}

fn is_current(world: &World, pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(history::HASH_LABEL)) == Some(&world.hash)
}

fn count(world: &World, serving: &[Serving], status: &mut DaemonSetStatus) {
    let of = |test: &dyn Fn(&Pod) -> bool| serving.iter().filter_map(Serving::first).filter(|pod| test(pod)).count() as i32;
    let available = of(&|pod| is_available(world, pod));
    let old = world.own.set.status.clone().unwrap_or_default();
    status.number_ready = of(&pods::is_ready);
    status.number_available = Some(available);
    status.number_unavailable = Some(status.desired_number_scheduled - available);
    status.updated_number_scheduled = Some(of(&|pod| is_current(world, pod)));
    status.collision_count = old.collision_count;
    status.conditions = old.conditions;
}

/// Replaces pods of older revisions: those that serve nobody at once, others as far as the strategy allows.
fn roll(world: &World, serving: &[Serving], status: &DaemonSetStatus, plan: &mut Plan) {
    let strategy = world.own.set.spec.update_strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return;
    }
    let outdated = serving.iter().filter(|node| node.new.is_none()).filter_map(|node| Some((node, node.old?)));
    let (available, useless): (Vec<_>, Vec<_>) = outdated.partition(|(_, pod)| is_available(world, pod));
    let surge = max_surge(&world.own.set, status.desired_number_scheduled);
    if surge > 0 {
        let rising = serving.iter().filter(|node| node.old.is_some() && node.new.is_some()).count();
        let room = usize::try_from(surge).unwrap_or(0).saturating_sub(rising);
        plan.create.extend(useless.into_iter().chain(available.into_iter().take(room)).map(|(node, _)| node.node.clone()));
        return;
    }
    plan.delete.extend(useless.iter().map(|(_, pod)| (*pod).clone()));
    let room = max_unavailable(&world.own.set, status.desired_number_scheduled) - status.number_unavailable.unwrap_or(0);
    plan.delete.extend(available.into_iter().take(usize::try_from(room).unwrap_or(0)).map(|(_, pod)| pod.clone()));
}

fn rolling(set: &DaemonSet) -> Option<&RollingUpdateDaemonSet> {
    set.spec.update_strategy.as_ref()?.rolling_update.as_ref()
}

/// Percentages round up, for both; without a surge at least one may be unavailable, or nothing could ever move.
fn max_unavailable(set: &DaemonSet, desired: i32) -> i32 {
    let value = rolling(set).and_then(|rolling| rolling.max_unavailable.as_ref());
    value.map_or(1, |value| intstr::scaled(value, desired, intstr::Round::Up)).max(1)
}

fn max_surge(set: &DaemonSet, desired: i32) -> i32 {
    rolling(set).and_then(|rolling| rolling.max_surge.as_ref()).map_or(0, |value| intstr::scaled(value, desired, intstr::Round::Up))
}

fn next_available(world: &World, serving: &[Serving]) -> Option<Duration> {
    let seconds = i64::from(world.own.set.spec.min_ready_seconds.unwrap_or(0));
    let waits = serving.iter().flat_map(|node| [node.new, node.old]).flatten().filter_map(|pod| {
        let left = pods::ready_since(pod)?.as_second() + seconds - world.own.now.as_second();
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
        let own = crate::revisioned::World {
            set: Arc::new(serde_json::from_value(set).unwrap()),
            pods: pods.iter().map(pod).collect(),
            orphans: vec![],
            strays: vec![],
            revisions: vec![],
            update: serde_json::from_value(json!({"metadata": {"name": "agent-new"}, "data": {}, "revision": 1})).unwrap(),
            now: "2026-01-01T01:00:00Z".parse().unwrap(),
        };
        World { own, nodes: taints.iter().enumerate().map(node).collect(), hash: "new".into() }
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
    fn with_a_surge_the_new_pod_comes_first_and_the_old_one_goes_when_it_serves() {
        let surge = || json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}});
        assert_eq!(words(&world(&["", ""], &[("n1", "old", true), ("n2", "old", true)], surge())), "+n1");
        assert_eq!(words(&world(&["", ""], &[("n1", "old", true), ("n1", "new", false), ("n2", "old", true)], surge())), "");
        assert_eq!(words(&world(&["", ""], &[("n1", "old", true), ("n1", "new", true), ("n2", "old", true)], surge())), "+n2 -p-n1");
        assert_eq!(words(&world(&[""], &[("n1", "old", false)], surge())), "+n1");
    }

    #[test]
    fn a_daemon_asks_for_its_node_by_name() {
        let world = world(&[""], &[], json!({}));
        let pod = fit::pod(&world.own.set, "n1", "new");
        assert_eq!(fit::node_of(&pod), Some("n1"));
        assert!(pod.spec.unwrap().tolerations.unwrap().len() >= 6);
    }
}
