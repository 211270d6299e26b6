//! Cases: nodes, a pod, and where it goes or why it goes nowhere.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::ObjectKey;
use scheduler::class::Class;
use scheduler::plan::{FitError, Planner, Request};
use scheduler::profile::Profile;
use scheduler::snapshot::{Resident, Slot, Snapshot};
use serde_json::{Value, json};

fn node(name: &str, more: Value) -> Arc<Node> {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": { "allocatable": { "cpu": "2", "memory": "4Gi", "pods": "3", "ephemeral-storage": "10Gi" } },
    });
    merge(&mut node, more);
    Arc::new(serde_json::from_value(node).unwrap())
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

fn pod(spec: Value) -> Arc<Class> {
    let mut pod = json!({ "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    merge(&mut pod, json!({ "spec": spec }));
    Arc::new(Class::of(&serde_json::from_value::<Pod>(pod).unwrap()))
}

/// The node for one pod, planned anew.
fn plan(snapshot: &mut Snapshot, class: &Arc<Class>) -> Result<Slot, Arc<FitError>> {
    snapshot.register(class);
    Planner::default().place(snapshot, &Arc::new(Profile::default()), class, &Request::default())
}

/// A pod of the class that runs under a name.
fn resident(name: &str, class: &Arc<Class>) -> Resident {
    Resident { key: Arc::new(ObjectKey::new("default", name)), uid: name.into(), class: class.clone(), started: 0 }
}

fn cpu(amount: &str) -> Value {
    json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": amount } } }] })
}

/// The chosen node's name, or the sentence.
fn place(nodes: Vec<Arc<Node>>, running: &[(&str, Value)], spec: Value) -> String {
    let mut snapshot = Snapshot::default();
    for node in &nodes {
        snapshot.set_node(node);
    }
    for (number, (node, spec)) in running.iter().enumerate() {
        snapshot.add_pod(node, resident(&number.to_string(), &pod(spec.clone())));
    }
    match plan(&mut snapshot, &pod(spec)) {
        Ok(slot) => snapshot.details[slot].name.clone(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_pod_goes_where_it_fits() {
    let a = || node("a", json!({}));
    let big = || node("big", json!({ "metadata": { "labels": { "size": "big" } }, "status": { "allocatable": { "cpu": "8" } } }));
    let affinity = |operator: &str, values: Value| {
        json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "size", "operator": operator, "values": values }] }] } } } })
    };
    let preferred = json!({ "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [
        { "weight": 50, "preference": { "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": ["a"] }] } }] } } });
    let cases = [
        ("only the big node has five CPUs", place(vec![a(), big()], &[], cpu("5")), "big"),
        ("the emptier node is better", place(vec![a(), node("b", json!({}))], &[("a", cpu("1"))], cpu("100m")), "b"),
        ("a selector decides", place(vec![a(), big()], &[], json!({ "nodeSelector": { "size": "big" } })), "big"),
        ("In", place(vec![a(), big()], &[], affinity("In", json!(["big", "huge"]))), "big"),
        ("NotIn holds for an absent label", place(vec![a(), big()], &[], affinity("NotIn", json!(["big"]))), "a"),
        ("a preference outweighs emptiness", place(vec![a(), big()], &[], preferred), "a"),
    ];
    for (why, got, expected) in cases {
        assert_eq!(got, expected, "{why}");
    }
}

#[test]
fn a_pod_that_fits_nowhere_is_told_every_reason_with_its_count() {
    let tainted = |name: &str| node(name, json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] } }));
    let cordoned = || node("cordoned", json!({ "spec": { "unschedulable": true } }));
    let port = json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80, "protocol": "TCP" }] }] });
    let gpu = json!({ "containers": [{ "name": "c", "resources": { "requests": { "example.com/gpu": "1" } } }] });
    let plain = || node("a", json!({}));
    let cases = [
        (place(vec![], &[], cpu("1")), "no nodes available to schedule pods"),
        (place(vec![plain()], &[], cpu("3")), "0/1 nodes are available: 1 Insufficient cpu."),
        (
            place(vec![plain(), tainted("t1"), tainted("t2"), cordoned()], &[], cpu("3")),
            "0/4 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable, 2 node(s) had untolerated taint(s).",
        ),
        (place(vec![plain()], &[], gpu), "0/1 nodes are available: 1 Insufficient example.com/gpu."),
        (
            place(vec![plain()], &[("a", port.clone())], port),
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
        ),
        (
            place(vec![plain()], &[("a", json!({})), ("a", json!({})), ("a", json!({}))], json!({})),
            "0/1 nodes are available: 1 Too many pods.",
        ),
        (
            place(vec![plain()], &[], json!({ "nodeSelector": { "disk": "ssd" } })),
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        ),
    ];
    for (got, expected) in cases {
        assert_eq!(got, expected);
    }
}

#[test]
fn a_toleration_lets_a_pod_onto_a_tainted_node() {
    let tainted = || vec![node("t", json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": "NoExecute" }] } }))];
    let tolerate = |toleration: Value| place(tainted(), &[], json!({ "tolerations": [toleration] }));
    assert_eq!(tolerate(json!({ "key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute" })), "t");
    assert_eq!(tolerate(json!({ "operator": "Exists" })), "t");
    assert_ne!(tolerate(json!({ "key": "k", "operator": "Equal", "value": "other" })), "t");
    assert_ne!(tolerate(json!({ "key": "k", "operator": "Exists", "effect": "NoSchedule" })), "t");
}

#[test]
fn a_pod_seen_before_its_node_counts_once_the_node_is_seen() {
    let mut snapshot = Snapshot::default();
    snapshot.add_pod("late", resident("p", &pod(cpu("2"))));
    snapshot.set_node(&node("late", json!({})));
    assert!(plan(&mut snapshot, &pod(cpu("1"))).is_err());
    snapshot.remove_pod("late", &ObjectKey::new("default", "p"));
    assert!(plan(&mut snapshot, &pod(cpu("1"))).is_ok());
}

#[test]
fn a_node_that_leaves_takes_no_pods_and_its_slot_is_used_again() {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(&node("a", json!({})));
    snapshot.remove_node("a");
    assert!(plan(&mut snapshot, &pod(cpu("1"))).is_err());
    snapshot.set_node(&node("b", json!({})));
    assert_eq!(plan(&mut snapshot, &pod(cpu("1"))), Ok(0));
    assert_eq!(snapshot.rows.len(), 1);
}

#[test]
fn the_pods_of_a_node_that_left_count_again_when_it_returns() {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(&node("a", json!({})));
    snapshot.add_pod("a", resident("p", &pod(cpu("2"))));
    snapshot.remove_node("a");
    snapshot.set_node(&node("a", json!({})));
    assert!(plan(&mut snapshot, &pod(cpu("1"))).is_err());
    snapshot.remove_pod("a", &ObjectKey::new("default", "p"));
    assert!(plan(&mut snapshot, &pod(cpu("1"))).is_ok());
}

fn labelled(app: &str, spec: Value) -> Arc<Class> {
    let mut pod = json!({ "metadata": { "namespace": "default", "labels": { "app": app } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    merge(&mut pod, json!({ "spec": spec }));
    Arc::new(Class::of(&serde_json::from_value::<Pod>(pod).unwrap()))
}

fn zoned(name: &str, zone: &str) -> Arc<Node> {
    node(name, json!({ "metadata": { "labels": { "zone": zone } } }))
}

fn place_among(running: &[(&str, Arc<Class>)], pod: &Arc<Class>) -> String {
    let mut snapshot = Snapshot::default();
    for node in [zoned("a1", "a"), zoned("a2", "a"), zoned("b1", "b")] {
        snapshot.set_node(&node);
    }
    for (number, (node, class)) in running.iter().enumerate() {
        snapshot.add_pod(node, resident(&number.to_string(), class));
    }
    match plan(&mut snapshot, pod) {
        Ok(slot) => snapshot.details[slot].name.clone(),
        Err(error) => error.to_string(),
    }
}

fn towards(kind: &str, app: &str, key: &str) -> Value {
    let term = json!({ "topologyKey": key, "labelSelector": { "matchLabels": { "app": app } } });
    json!({ "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": [term] } } })
}

#[test]
fn pods_attract_and_repel_each_other_by_topology() {
    let db = || labelled("db", json!({}));
    let web = |spec| labelled("web", spec);
    let host = "kubernetes.io/hostname";
    assert_eq!(place_among(&[("b1", db())], &web(towards("podAffinity", "db", "zone"))), "b1");
    assert_eq!(place_among(&[("a1", db())], &web(towards("podAntiAffinity", "db", "zone"))), "b1");
    assert_eq!(
        place_among(&[], &web(towards("podAffinity", "db", "zone"))),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    // The first of a group that wants its own kind may go anywhere.
    assert!(!place_among(&[], &web(towards("podAffinity", "web", host))).starts_with("0/"));
    // What is placed already may refuse a newcomer that has no wish of its own.
    let hermit = || labelled("hermit", towards("podAntiAffinity", "web", "zone"));
    assert_eq!(place_among(&[("a1", hermit())], &web(json!({}))), "b1");
    assert_eq!(
        place_among(&[("a1", hermit()), ("b1", hermit())], &web(json!({}))),
        "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules."
    );
}

#[test]
fn a_spread_constraint_keeps_domains_within_its_skew() {
    let constraint = |skew: i64| {
        json!({ "topologySpreadConstraints": [{ "maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": "web" } } }] })
    };
    let web = |skew| labelled("web", constraint(skew));
    assert_eq!(place_among(&[("a1", web(1))], &web(1)), "b1");
    assert_eq!(place_among(&[("a1", web(1)), ("a2", web(1))], &web(2)), "b1", "a third in zone a would be three ahead");
    let full = labelled("other", json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "2" } } }] }));
    let mut wish = constraint(1);
    merge(&mut wish, json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] }));
    assert_eq!(
        place_among(&[("b1", full), ("a1", web(1))], &labelled("web", wish)),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match pod topology spread constraints."
    );
}
