//! What a ReplicaSet does next.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSetStatus;
use k8s_openapi::api::core::v1::Pod;

use super::kind::Replicated;
use super::observe::World;
use super::rank;
use crate::pods;
use crate::selector::{self, Claim};

#[derive(Default)]
pub(super) struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
    /// The status as of the observed pods, without the outcome of the writes above.
    pub status: ReplicaSetStatus,
    /// When a ready pod becomes available by the clock alone.
    pub look_again: Option<Duration>,
}

pub(super) fn plan<K: Replicated>(world: &World<K>) -> Plan {
    let set = &*world.set;
    let wanted_labels = set.selector();
    let mut plan = Plan::default();
    let (mut ours, mut terminating) = (Vec::new(), 0);
    for pod in &world.pods {
        let claim = selector::claim(set.metadata(), &wanted_labels, &pod.metadata);
        match claim {
            Claim::Keep if pods::is_active(pod) => ours.push(pod.clone()),
            Claim::Keep if !pods::is_terminal(pod) => terminating += 1,
            Claim::Adopt if pods::is_active(pod) => {
                plan.adopt.push(pod.clone());
                ours.push(pod.clone());
            }
            Claim::Release if pods::is_active(pod) => plan.release.push(pod.clone()),
            _ => {}
        }
    }
    plan.status = status(world, &ours, terminating);
    plan.look_again = next_available(world, &ours);
    if set.metadata().deletion_timestamp.is_none() {
        resize(world, ours, &mut plan);
    }
    plan
}

fn resize<K: Replicated>(world: &World<K>, mut ours: Vec<Arc<Pod>>, plan: &mut Plan) {
    let wanted = usize::try_from(world.set.replicas()).unwrap_or(0);
    match ours.len().checked_sub(wanted) {
        None => plan.create = wanted - ours.len(),
        Some(0) => {}
        Some(surplus) => {
            rank::sort(&mut ours, &world.related_by_node, world.now);
            ours.truncate(surplus);
            plan.delete = ours;
        }
    }
}

fn status<K: Replicated>(world: &World<K>, ours: &[Arc<Pod>], terminating: i32) -> ReplicaSetStatus {
    let set = &*world.set;
    let template = set.template().and_then(|template| template.metadata.as_ref());
    let wanted = template.and_then(|meta| meta.labels.as_ref());
    let fully_labeled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        wanted.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value)))
    };
    let seconds = set.min_ready_seconds();
    let count = |test: &dyn Fn(&Pod) -> bool| Some(ours.iter().filter(|pod| test(pod)).count() as i32);
    ReplicaSetStatus {
        replicas: ours.len() as i32,
        fully_labeled_replicas: count(&fully_labeled),
        ready_replicas: count(&pods::is_ready),
        available_replicas: count(&|pod| pods::is_available(pod, seconds, world.now)),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata().generation,
        conditions: set.status().and_then(|status| status.conditions),
    }
}

fn next_available<K: Replicated>(world: &World<K>, ours: &[Arc<Pod>]) -> Option<Duration> {
    let seconds = world.set.min_ready_seconds();
    let waits = |pod: &Arc<Pod>| {
        let since = pods::ready_since(pod).filter(|_| !pods::is_available(pod, seconds, world.now))?;
        let left = since.as_second() + i64::from(seconds) - world.now.as_second();
        u64::try_from(left).ok()
    };
    ours.iter().filter_map(waits).min().map(|left| Duration::from_secs(left.max(1)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::*;

    fn world(replicas: i32, leaving: bool, pods: &[Value]) -> World<k8s_openapi::api::apps::v1::ReplicaSet> {
        let set = json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "rs", "generation": 3,
                "deletionTimestamp": leaving.then_some("2026-01-01T00:00:00Z")},
            "spec": {"replicas": replicas, "minReadySeconds": 10, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "v": "1"}}}},
        });
        World {
            set: Arc::new(serde_json::from_value(set).unwrap()),
            pods: pods.iter().map(|pod| Arc::new(serde_json::from_value(pod.clone()).unwrap())).collect(),
            related_by_node: HashMap::new(),
            now: "2026-01-01T00:01:00Z".parse().unwrap(),
        }
    }

    fn pod(name: &str, owned: bool, app: &str, phase: &str, ready_at: Option<&str>) -> Value {
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}]);
        json!({
            "metadata": {"name": name, "uid": name, "labels": {"app": app}, "ownerReferences": owned.then_some(owner)},
            "status": {"phase": phase, "conditions": ready_at.map(|at| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]))},
        })
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect()
    }

    #[test]
    fn missing_pods_are_created_and_ended_ones_replaced() {
        let plan = plan(&world(3, false, &[pod("a", true, "web", "Running", None), pod("b", true, "web", "Failed", None)]));
        assert_eq!((plan.create, plan.delete.len(), plan.status.replicas), (2, 0, 1));
        assert_eq!(plan.status.observed_generation, Some(3));
    }

    #[test]
    fn surplus_pods_are_deleted_least_ready_first() {
        let ready = Some("2026-01-01T00:00:00Z");
        let pods =
            [pod("a", true, "web", "Running", ready), pod("b", true, "web", "Pending", None), pod("c", true, "web", "Running", ready)];
        assert_eq!(names(&plan(&world(2, false, &pods)).delete), ["b"]);
    }

    #[test]
    fn orphans_that_match_are_adopted_and_count_and_own_pods_that_do_not_match_are_released() {
        let plan = plan(&world(2, false, &[pod("orphan", false, "web", "Running", None), pod("strayed", true, "other", "Running", None)]));
        assert_eq!((names(&plan.adopt), names(&plan.release), plan.create), (vec!["orphan"], vec!["strayed"], 1));
    }

    #[test]
    fn a_set_on_its_way_out_makes_and_adopts_nothing() {
        let plan = plan(&world(5, true, &[pod("orphan", false, "web", "Running", None)]));
        assert_eq!((plan.create, plan.adopt.len()), (0, 0));
    }

    #[test]
    fn a_pod_ready_too_short_is_not_available_and_is_looked_at_again_in_time() {
        let pods = [
            pod("old", true, "web", "Running", Some("2026-01-01T00:00:00Z")),
            pod("new", true, "web", "Running", Some("2026-01-01T00:00:56Z")),
        ];
        let plan = plan(&world(2, false, &pods));
        assert_eq!((plan.status.ready_replicas, plan.status.available_replicas), (Some(2), Some(1)));
        assert_eq!(plan.status.fully_labeled_replicas, Some(0), "the template also wants v=1");
        assert_eq!(plan.look_again, Some(Duration::from_secs(6)));
    }
}
