//! Replicas over ten nodes, one of which dies and comes back.
//!
//! `STERNPOST_REPLICAS=1000` with an optimised build (`cargo test --release`) is the mission's own number.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, ListParams, Patch};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use sim::{Embedded, Parts};

const DEAD: &str = "hollow-3";

fn replicas() -> usize {
    std::env::var("STERNPOST_REPLICAS").ok().and_then(|number| number.parse().ok()).unwrap_or(100)
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// Ready pods by whether they are on the node that dies, and all pods.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    ready_there: usize,
    ready_elsewhere: usize,
    pods: usize,
}

async fn look(api: &Client) -> Seen {
    let mut seen = Seen::default();
    // A list may be refused while the server's own view of so many changes lags; it is asked for again.
    let pods = match api.list::<Pod>(&ListParams::in_namespace("default")).await {
        Ok(pods) => pods,
        Err(error) => {
            eprintln!("{error}");
            return seen;
        }
    };
    for pod in pods.items {
        seen.pods += 1;
        let status = pod.status.unwrap_or_default();
        let ready = status.conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        if ready && pod.metadata.deletion_timestamp.is_none() {
            match pod.spec.and_then(|spec| spec.node_name).as_deref() == Some(DEAD) {
                true => seen.ready_there += 1,
                false => seen.ready_elsewhere += 1,
            }
        }
    }
    seen
}

/// The nodes of the Service's ready endpoints, and how many those are.
async fn endpoints(api: &Client) -> (BTreeSet<String>, usize) {
    let slices =
        api.list::<EndpointSlice>(&ListParams::in_namespace("default").labels("kubernetes.io/service-name=web")).await.unwrap().items;
    let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints.into_iter().flatten());
    let ready = endpoints.filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true));
    let nodes: Vec<String> = ready.filter_map(|endpoint| endpoint.node_name).collect();
    (nodes.iter().cloned().collect(), nodes.len())
}

async fn until<T: std::fmt::Debug, F: Future<Output = T>>(what: &str, mut look: impl FnMut() -> F, enough: impl Fn(&T) -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(120);
    loop {
        let seen = look().await;
        if enough(&seen) {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{what}: {seen:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn set_down(api: &Client, down: bool) {
    let annotation = json!({ "metadata": { "annotations": { (hollow::DOWN): down.to_string() } } });
    api.patch::<Node>(None, DEAD, &Patch::Merge(annotation), "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replicas_survive_the_death_of_a_node_and_its_return_doubles_nothing() {
    let replicas = replicas();
    let settings = controllers::Config {
        node_monitor_grace_period: Duration::from_secs(12),
        node_monitor_period: Duration::from_millis(500),
        ..controllers::Config::default()
    };
    let parts = Parts { controllers: Some(settings), ..Parts::default() };
    let cluster = Embedded::start(Arc::new(store::memory::Memory::new()), parts).await.unwrap();
    let api = cluster.admin();
    let nodes = hollow::Config { nodes: 10, pods_max: 200, heartbeat: Duration::from_secs(1), ..hollow::Config::default() };
    tokio::spawn(hollow::run(nodes, api.clone(), cluster.drain.clone()));

    let tolerate = |key: &str| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 });
    let pod = json!({
        "containers": [{ "name": "c", "image": "web" }], "automountServiceAccountToken": false,
        "tolerations": [tolerate("node.kubernetes.io/not-ready"), tolerate("node.kubernetes.io/unreachable")],
    });
    let selector = json!({ "app": "web" });
    let service =
        json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": { "selector": selector, "ports": [{ "port": 80 }] } });
    api.create::<Service>(&object(service)).await.unwrap();
    let deployment = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "replicas": replicas, "selector": { "matchLabels": selector }, "template": { "metadata": { "labels": selector }, "spec": pod } },
    });
    api.create::<Deployment>(&object(deployment)).await.unwrap();
    until("all run", || look(&api), |seen| seen.ready_there + seen.ready_elsewhere == replicas).await;
    until("the pods are spread", || look(&api), |seen| seen.ready_there > 0).await;
    until("the Service leads to all", || endpoints(&api), |(nodes, count)| *count == replicas && nodes.contains(DEAD)).await;

    set_down(&api, true).await;
    until("as many run elsewhere", || look(&api), |seen| seen.ready_elsewhere == replicas).await;
    until("the Service follows", || endpoints(&api), |(nodes, count)| *count == replicas && !nodes.contains(DEAD)).await;

    set_down(&api, false).await;
    let calm = Seen { ready_there: 0, ready_elsewhere: replicas, pods: replicas };
    until("what was left on the node goes", || look(&api), |seen| *seen == calm).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    until("nothing doubles", || look(&api), |seen| *seen == calm || seen.pods > replicas).await;
    assert!(look(&api).await.pods <= replicas, "nothing doubles");
    let ready = |node: &Node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).is_none_or(Vec::is_empty);
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        taints && conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    until("the node is as before", || async { api.get::<Node>(None, DEAD).await.unwrap() }, ready).await;
}
