//! Worlds as tables: what is, and what shall be written.

use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-01-01T01:00:00Z";

fn deployment(replicas: i32, image: &str, more: Value) -> Deployment {
    let mut value = json!({
        "metadata": {"name": "web", "namespace": "a", "uid": "d", "generation": 2},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 1,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
            "template": template(image),
        },
    });
    for (key, part) in more.as_object().into_iter().flatten() {
        value["spec"][key] = part.clone();
    }
    serde_json::from_value(value).unwrap()
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// A ReplicaSet of `image`: its revision, size, and how many pods exist and are available.
fn set(image: &str, revision: i64, replicas: i32, exist: i32, available: i32, desired: i32) -> Arc<ReplicaSet> {
    let mut pods = template(image);
    pods["metadata"]["labels"]["pod-template-hash"] = json!(image);
    let annotations = json!({
        "deployment.kubernetes.io/revision": revision.to_string(),
        "deployment.kubernetes.io/desired-replicas": desired.to_string(),
        "deployment.kubernetes.io/max-replicas": (desired + 1).to_string(),
    });
    let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true});
    let value = json!({
        "metadata": {"name": format!("web-{image}"), "namespace": "a", "uid": image, "generation": 1, "annotations": annotations,
            "labels": {"app": "web"}, "ownerReferences": [owner], "creationTimestamp": format!("2026-01-01T00:00:0{revision}Z")},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web", "pod-template-hash": image}}, "template": pods},
        "status": {"replicas": exist, "availableReplicas": available, "readyReplicas": available, "observedGeneration": 1},
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

fn world(deployment: Deployment, sets: &[Arc<ReplicaSet>]) -> World {
    World { deployment: Arc::new(deployment), sets: sets.to_vec(), sets_with_running_pods: Vec::new(), now: NOW.parse().unwrap() }
}

/// `create=3 v1:3->1`, in the order of the writes.
fn sizes(plan: &Plan) -> String {
    let mut words: Vec<String> = plan.create.iter().map(|set| format!("create={}", replicas(set))).collect();
    let resized = plan.update.iter().filter(|(is, shall)| replicas(is) != replicas(shall));
    words.extend(
        resized.map(|(is, shall)| format!("{}:{}->{}", is.metadata.uid.as_deref().unwrap_or_default(), replicas(is), replicas(shall))),
    );
    words.join(" ")
}

fn progressing(plan: &Plan) -> (&str, &str) {
    let condition = plan.status.as_ref().and_then(|status| status::condition(status, status::PROGRESSING)).unwrap();
    (condition.status.as_deref().unwrap_or_default(), condition.reason.as_deref().unwrap_or_default())
}

#[test]
fn a_rolling_update_moves_step_by_step_within_surge_and_unavailability() {
    // 3 wanted, surge 1, unavailable 1: (sets as is) → writes.
    let cases: Vec<(Vec<Arc<ReplicaSet>>, &str)> = vec![
        (vec![], "create=3"),
        (vec![set("v1", 1, 3, 3, 3, 3)], "create=1 v1:3->2"),
        (vec![set("v1", 1, 2, 2, 2, 3), set("v2", 2, 1, 1, 0, 3)], "v2:1->2"),
        (vec![set("v1", 1, 2, 2, 2, 3), set("v2", 2, 2, 2, 1, 3)], "v1:2->1"),
        (vec![set("v1", 1, 1, 1, 1, 3), set("v2", 2, 3, 3, 2, 3)], "v1:1->0"),
        (vec![set("v1", 1, 0, 0, 0, 3), set("v2", 2, 3, 3, 3, 3)], ""),
        // The old set was made smaller a moment ago, and its status does not know it yet.
        (vec![set("v1", 1, 2, 3, 3, 3), set("v2", 2, 2, 2, 1, 3)], "v1:2->1"),
        // A broken new version never costs more than one pod of the old.
        (vec![set("v1", 1, 2, 2, 2, 3), set("v2", 2, 2, 2, 0, 3)], ""),
        // Old pods that serve nobody go at once (rollover).
        (vec![set("v0", 1, 1, 1, 0, 3), set("v1", 2, 2, 2, 2, 3), set("v2", 3, 1, 1, 0, 3)], "v0:1->0"),
    ];
    for (sets, expected) in cases {
        assert_eq!(sizes(&plan(&world(deployment(3, "v2", json!({})), &sets))), expected, "{expected}");
    }
}

#[test]
fn the_first_set_gets_hash_owner_and_revision_one() {
    let plan = plan(&world(deployment(3, "v1", json!({})), &[]));
    let set = plan.create.as_ref().unwrap();
    let labels = set.metadata.labels.as_ref().unwrap();
    assert_eq!(set.metadata.name.as_deref().unwrap(), format!("web-{}", labels["pod-template-hash"]));
    assert_eq!(set.spec.selector.match_labels.as_ref().unwrap(), labels);
    assert_eq!((plan.revision.as_deref(), annotations::max_replicas(set)), (Some("1"), Some(4)));
    assert_eq!(progressing(&plan), ("True", "NewReplicaSetCreated"));
}

#[test]
fn going_back_to_an_old_template_reuses_its_set_under_a_new_revision() {
    let plan = plan(&world(deployment(3, "v1", json!({})), &[set("v1", 1, 0, 0, 0, 3), set("v2", 2, 3, 3, 3, 3)]));
    assert!(plan.create.is_none());
    assert_eq!((sizes(&plan), plan.revision.as_deref()), ("v1:0->1".to_owned(), Some("3")));
    let history = &plan.update[0].1.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision-history"];
    assert_eq!(history, "1");
}

#[test]
fn recreate_ends_every_old_pod_before_the_first_new_one() {
    let recreate = json!({"strategy": {"type": "Recreate"}});
    let of = |sets: &[Arc<ReplicaSet>], running: &[&str]| {
        let mut world = world(deployment(3, "v2", recreate.clone()), sets);
        world.sets_with_running_pods = running.iter().map(|uid| (*uid).to_owned()).collect();
        sizes(&plan(&world))
    };
    assert_eq!(of(&[set("v1", 1, 3, 3, 3, 3)], &["v1"]), "v1:3->0");
    assert_eq!(of(&[set("v1", 1, 0, 1, 0, 3)], &["v1"]), "");
    assert_eq!(of(&[set("v1", 1, 0, 0, 0, 3)], &["v1"]), "", "a pod is still ending");
    assert_eq!(of(&[set("v1", 1, 0, 0, 0, 3)], &[]), "create=3");
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let paused = json!({"paused": true});
    let first = plan(&world(deployment(3, "v2", paused.clone()), &[set("v1", 1, 3, 3, 3, 3)]));
    assert_eq!((sizes(&first), progressing(&first)), (String::new(), ("Unknown", "DeploymentPaused")));
    assert_eq!(sizes(&plan(&world(deployment(5, "v2", paused), &[set("v1", 1, 3, 3, 3, 3)]))), "v1:3->5");
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_the_proportions() {
    let sets = [set("v1", 1, 8, 8, 8, 12), set("v2", 2, 5, 5, 5, 12)];
    assert_eq!(sizes(&plan(&world(deployment(20, "v2", json!({})), &sets))), "v2:5->8 v1:8->13");
}

#[test]
fn a_complete_rollout_says_so_and_drops_revisions_beyond_the_limit() {
    let sets = [set("v0", 1, 0, 0, 0, 3), set("v1", 2, 0, 0, 0, 3), set("v2", 3, 3, 3, 3, 3)];
    let done = plan(&world(deployment(3, "v2", json!({})), &sets));
    assert_eq!(progressing(&done), ("True", "NewReplicaSetAvailable"));
    let deleted: Vec<_> = done.delete.iter().filter_map(|set| set.metadata.uid.as_deref()).collect();
    assert_eq!((deleted, done.look_again), (vec!["v0"], None));
    let available = status::condition(done.status.as_ref().unwrap(), "Available").unwrap();
    assert_eq!(available.reason.as_deref(), Some("MinimumReplicasAvailable"));
}

#[test]
fn a_rollout_without_progress_times_out_after_its_deadline() {
    let stuck = |updated_at: &str| {
        let mut deployment = deployment(3, "v2", json!({}));
        let condition = json!({"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated", "lastUpdateTime": updated_at});
        let status = json!({"replicas": 4, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2, "conditions": [condition]});
        deployment.status = Some(serde_json::from_value(status).unwrap());
        plan(&world(deployment, &[set("v1", 1, 2, 2, 2, 3), set("v2", 2, 2, 2, 0, 3)]))
    };
    let waiting = stuck("2026-01-01T00:55:00Z");
    assert_eq!((progressing(&waiting), waiting.look_again), (("True", "ReplicaSetUpdated"), Some(Duration::from_secs(301))));
    assert_eq!(progressing(&stuck("2026-01-01T00:49:59Z")), ("False", "ProgressDeadlineExceeded"));
}

#[test]
fn a_settled_deployment_writes_nothing() {
    let sets = [set("v2", 1, 3, 3, 3, 3)];
    let mut settled = deployment(3, "v2", json!({}));
    settled.status = plan(&world(settled.clone(), &sets)).status;
    let next = plan(&world(settled.clone(), &sets));
    assert!(next.update.is_empty() && next.create.is_none() && next.delete.is_empty());
    assert!(status::same(settled.status.as_ref().unwrap(), next.status.as_ref().unwrap()));
}
