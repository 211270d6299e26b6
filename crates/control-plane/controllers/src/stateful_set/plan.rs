//! What a StatefulSet does next: at most one change at a time where pods are ordered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::World;
use super::identity::{ordinal, revision};
use crate::{history, intstr, pods};

#[derive(Default)]
pub(super) struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    /// Numbers to make, each with the name of its revision.
    pub create: Vec<(i32, String)>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods beyond the wanted numbers, whether their turn to go has come or not.
    pub condemned: Vec<Arc<Pod>>,
    pub status: StatefulSetStatus,
    pub look_again: Option<Duration>,
}

type Numbered<'a> = BTreeMap<i32, &'a Arc<Pod>>;

pub(super) fn plan(world: &World) -> Plan {
    let set = &*world.set;
    let adopt: Vec<Arc<Pod>> = world.orphans.iter().filter(|pod| ordinal(set, pod).is_some()).cloned().collect();
    let numbered: Numbered = world.pods.iter().chain(&adopt).filter_map(|pod| Some((ordinal(set, pod)?, pod))).collect();
    let range = range(set);
    let condemned = numbered.iter().filter(|(ordinal, _)| !range.contains(ordinal)).map(|(_, pod)| (*pod).clone()).collect();
    let mut plan = Plan { release: world.strays.clone(), condemned, status: status(world, &numbered), ..Plan::default() };
    // What is adopted now is looked at as one's own the next time.
    if adopt.is_empty() && !fill(world, &numbered, &mut plan) && !shrink(world, &numbered, &mut plan) {
        roll(world, &numbered, &mut plan);
    }
    plan.look_again = next_available(world, &numbered);
    plan.adopt = adopt;
    plan
}

fn start(set: &StatefulSet) -> i32 {
    set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
}

fn range(set: &StatefulSet) -> std::ops::Range<i32> {
    start(set)..start(set).saturating_add(set.spec.replicas.unwrap_or(1))
}

fn is_ordered(set: &StatefulSet) -> bool {
    set.spec.pod_management_policy.as_deref() != Some("Parallel")
}

fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_healthy(world: &World, pod: &Pod) -> bool {
    let seconds = world.set.spec.min_ready_seconds.unwrap_or(0);
    pods::phase(pod) == "Running" && !is_leaving(pod) && pods::is_available(pod, seconds, world.now)
}

fn is_rolling(set: &StatefulSet) -> bool {
    set.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

/// The number from which on pods are moved to the update; `None`: OnDelete, where only the user's deletions move pods on. A partition
/// counts pods, so that it starts at the first number.
fn partition(set: &StatefulSet) -> Option<i32> {
    let rolling = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    is_rolling(set).then(|| start(set) + rolling.and_then(|rolling| rolling.partition).unwrap_or(0))
}

/// Below the partition the old revision is kept.
fn revision_for(world: &World, ordinal: i32) -> String {
    let current = world.set.status.as_ref().and_then(|status| status.current_revision.clone());
    let kept = current.filter(|name| world.revisions.iter().any(|revision| history::name(revision) == name));
    let below = partition(&world.set).is_some_and(|partition| ordinal < partition);
    kept.filter(|_| below).unwrap_or_else(|| history::name(&world.update).to_owned())
}

/// Makes what is missing, in order. True where nothing else may happen now.
fn fill(world: &World, numbered: &Numbered, plan: &mut Plan) -> bool {
    let ordered = is_ordered(&world.set);
    for ordinal in range(&world.set) {
        match numbered.get(&ordinal) {
            None => plan.create.push((ordinal, revision_for(world, ordinal))),
            // An ended pod makes room for itself.
            Some(pod) if pods::is_terminal(pod) && !is_leaving(pod) => plan.delete.push((*pod).clone()),
            Some(pod) if ordered && !is_healthy(world, pod) => return true,
            Some(_) => continue,
        }
        if ordered {
            return true;
        }
    }
    !plan.create.is_empty() || !plan.delete.is_empty()
}

/// Deletes what is beyond the range, the highest number first.
fn shrink(world: &World, numbered: &Numbered, plan: &mut Plan) -> bool {
    let range = range(&world.set);
    let beyond: Vec<&Arc<Pod>> = numbered.iter().rev().filter(|(ordinal, _)| !range.contains(ordinal)).map(|(_, pod)| *pod).collect();
    if !is_ordered(&world.set) {
        plan.delete.extend(beyond.iter().filter(|pod| !is_leaving(pod)).map(|pod| (*pod).clone()));
        return !plan.delete.is_empty();
    }
    if beyond.iter().any(|pod| is_leaving(pod)) {
        return true;
    }
    // An unhealthy one waits for those below it: it may be the only one that has what they need to come up again.
    let first_unhealthy = numbered.values().find(|pod| !is_healthy(world, pod));
    let may_go = |pod: &&&Arc<Pod>| is_healthy(world, pod) || first_unhealthy.is_some_and(|first| Arc::ptr_eq(first, pod));
    plan.delete.extend(beyond.first().filter(may_go).map(|pod| (*pod).clone()));
    !beyond.is_empty()
}

/// Replaces pods of an old revision, the highest number first, as long as no more than `maxUnavailable` are not serving. An old pod that
/// serves nobody may go at once, but not past an updated one that does not come up.
fn roll(world: &World, numbered: &Numbered, plan: &mut Plan) {
    let Some(partition) = partition(&world.set) else { return };
    let (update, most, range) = (history::name(&world.update), max_unavailable(&world.set), range(&world.set));
    let all = || numbered.iter().rev().filter(|(ordinal, _)| range.contains(ordinal));
    let mut room = most - all().filter(|(_, pod)| !is_healthy(world, pod)).count() as i32;
    let mut broken = 0;
    for (_, pod) in all().take_while(|(ordinal, _)| **ordinal >= partition) {
        match (revision(pod) == update, is_healthy(world, pod)) {
            (true, true) => {}
            (true, false) => broken += 1,
            (false, _) if is_leaving(pod) => broken += 1,
            (false, false) => plan.delete.push((*pod).clone()),
            (false, true) if room > 0 => {
                room -= 1;
                plan.delete.push((*pod).clone());
            }
            (false, true) => return,
        }
        if broken >= most || plan.delete.len() as i32 >= most {
            return;
        }
    }
}

/// A percentage rounds down; at least one, or nothing could ever move.
fn max_unavailable(set: &StatefulSet) -> i32 {
    let rolling = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let value = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    value.map_or(1, |value| intstr::scaled(value, set.spec.replicas.unwrap_or(1), intstr::Round::Down)).max(1)
}

fn status(world: &World, numbered: &Numbered) -> StatefulSetStatus {
    let set = &*world.set;
    let old = set.status.clone().unwrap_or_default();
    let update = history::name(&world.update).to_owned();
    let current = old.current_revision.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| update.clone());
    let all: Vec<&Arc<Pod>> = numbered.values().copied().collect();
    let count = |test: &dyn Fn(&Pod) -> bool| all.iter().filter(|pod| test(pod)).count() as i32;
    let seconds = set.spec.min_ready_seconds.unwrap_or(0);
    let is_running_and_ready = |pod: &Pod| pods::phase(pod) == "Running" && pods::is_ready(pod);
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: all.len() as i32,
        ready_replicas: Some(count(&is_running_and_ready)),
        available_replicas: Some(count(&|pod| is_running_and_ready(pod) && pods::is_available(pod, seconds, world.now))),
        current_replicas: Some(count(&|pod| !is_leaving(pod) && revision(pod) == current)),
        updated_replicas: Some(count(&|pod| !is_leaving(pod) && revision(pod) == update)),
        current_revision: Some(current),
        update_revision: Some(update.clone()),
        collision_count: old.collision_count.or(Some(0)),
        conditions: old.conditions,
    };
    // The rollout is over: the update has become the current revision.
    let wanted = set.spec.replicas.unwrap_or(1);
    if is_rolling(set) && status.updated_replicas == Some(wanted) && status.replicas == wanted && status.ready_replicas == Some(wanted) {
        status.current_revision = Some(update);
        status.current_replicas = status.updated_replicas;
    }
    status
}

fn next_available(world: &World, numbered: &Numbered) -> Option<Duration> {
    let seconds = i64::from(world.set.spec.min_ready_seconds.unwrap_or(0));
    let waits = numbered.values().filter_map(|pod| {
        let left = pods::ready_since(pod)?.as_second() + seconds - world.now.as_second();
        u64::try_from(left).ok().filter(|left| *left > 0)
    });
    waits.min().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn world(replicas: i32, more: Value, pods: &[(i32, &str, bool)]) -> World {
        let mut spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": "db"}}, "template": {}, "serviceName": "db"});
        more.as_object().into_iter().flatten().for_each(|(key, value)| spec[key] = value.clone());
        let set = json!({"metadata": {"name": "db", "namespace": "a", "uid": "s"}, "spec": spec, "status": {"replicas": 0, "currentRevision": "db-1"}});
        let pod = |(number, revision, ready): &(i32, &str, bool)| {
            let owner = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s", "controller": true}]);
            let ready = if *ready { "True" } else { "False" };
            let labels = json!({"app": "db", "controller-revision-hash": revision});
            let value = json!({
                "metadata": {"name": format!("db-{number}"), "labels": labels, "ownerReferences": owner},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            });
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let revision = |name: &str| serde_json::from_value(json!({"metadata": {"name": name}, "data": {}, "revision": 1})).unwrap();
        World {
            set: Arc::new(serde_json::from_value(set).unwrap()),
            pods: pods.iter().map(pod).collect(),
            orphans: vec![],
            strays: vec![],
            revisions: vec![Arc::new(revision("db-1"))],
            update: revision("db-2"),
            now: "2026-01-01T01:00:00Z".parse().unwrap(),
        }
    }

    /// `+1@db-2 -0`.
    fn words(world: &World) -> String {
        let plan = plan(world);
        let made = plan.create.iter().map(|(ordinal, revision)| format!("+{ordinal}@{revision}"));
        let gone = plan.delete.iter().map(|pod| format!("-{}", ordinal(&world.set, pod).unwrap()));
        made.chain(gone).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ordered_pods_come_one_by_one_and_parallel_ones_together() {
        let parallel = json!({"podManagementPolicy": "Parallel"});
        let cases: [(Value, &[(i32, &str, bool)], &str); 7] = [
            (json!({}), &[], "+0@db-2"),
            (json!({}), &[(0, "db-2", false)], ""),
            (json!({}), &[(0, "db-2", true)], "+1@db-2"),
            (json!({}), &[(0, "db-2", true), (2, "db-2", true)], "+1@db-2"),
            (parallel.clone(), &[(0, "db-2", false)], "+1@db-2 +2@db-2"),
            (json!({"ordinals": {"start": 5}}), &[], "+5@db-2"),
            (json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}), &[], "+0@db-1"),
        ];
        for (more, pods, expected) in cases {
            assert_eq!(words(&world(3, more, pods)), expected);
        }
    }

    #[test]
    fn scaling_down_and_rolling_go_from_the_highest_number_one_at_a_time() {
        let rolling = |fields: Value| json!({"podManagementPolicy": "Parallel", "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": fields}});
        let old = [(0, "db-1", true), (1, "db-1", true), (2, "db-1", true), (3, "db-1", true)];
        let cases: [(i32, Value, &[(i32, &str, bool)], &str); 11] = [
            (1, json!({}), &[(0, "db-2", true), (1, "db-2", true), (2, "db-2", true)], "-2"),
            (2, json!({}), &[(0, "db-1", true), (1, "db-1", true)], "-1"),
            (2, json!({}), &[(0, "db-1", true), (1, "db-2", false)], ""),
            (2, json!({}), &[(0, "db-1", true), (1, "db-2", true)], "-0"),
            (2, json!({"updateStrategy": {"type": "OnDelete"}}), &[(0, "db-1", true), (1, "db-1", true)], ""),
            (
                2,
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}),
                &[(0, "db-1", true), (1, "db-2", true)],
                "",
            ),
            (4, rolling(json!({"maxUnavailable": 2})), &old, "-3 -2"),
            (4, rolling(json!({"maxUnavailable": "60%"})), &old, "-3 -2"),
            (
                4,
                rolling(json!({"maxUnavailable": 2})),
                &[(0, "db-1", true), (1, "db-1", true), (2, "db-1", true), (3, "db-2", false)],
                "-2",
            ),
            (2, rolling(json!({})), &[(0, "db-1", true), (1, "db-1", false)], "-1"),
            (2, rolling(json!({})), &[(0, "db-1", false), (1, "db-2", false)], ""),
        ];
        for (replicas, more, pods, expected) in cases {
            assert_eq!(words(&world(replicas, more, pods)), expected, "{pods:?}");
        }
    }

    #[test]
    fn an_ordered_scale_down_halts_at_an_unhealthy_pod_until_those_below_are_healthy() {
        let told = |ready: [bool; 3]| {
            let pods: Vec<(i32, &str, bool)> = ready.iter().zip(0..).map(|(ready, number)| (number, "db-2", *ready)).collect();
            words(&world(0, json!({}), &pods))
        };
        assert_eq!(told([true, true, true]), "-2");
        assert_eq!(told([false, true, true]), "-2");
        assert_eq!(told([false, true, false]), "", "the last one waits for the first");
        assert_eq!(told([true, true, false]), "-2", "it is the only unhealthy one");
    }

    #[test]
    fn a_finished_rollout_makes_the_update_the_current_revision() {
        let done = plan(&world(2, json!({}), &[(0, "db-2", true), (1, "db-2", true)])).status;
        assert_eq!((done.current_revision.as_deref(), done.current_replicas, done.updated_replicas), (Some("db-2"), Some(2), Some(2)));
    }
}
