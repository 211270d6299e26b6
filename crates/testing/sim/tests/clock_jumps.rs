//! The wall clock of controllers and scheduler jumps, forth and back, by an hour and by more than a year, under a running cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{Client, Patch};
use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use reconcile::{Caches, EventRecorder};
use serde_json::{Value, json};
use sim::skew::{Clock, Skewed};
use sim::{Embedded, Parts};
use store::Store;
use store::memory::Memory;

const HOUR: i64 = 3_600;
const LONG: i64 = 400 * 24 * HOUR;
const JUMPS: [i64; 5] = [HOUR, -HOUR, LONG, -LONG, 0];
const NODES: usize = 3;
/// More writes of one object in the whole test are a hot loop. Leases and Events have rhythms of their own.
const WRITES_MAX: usize = 30;

struct World {
    store: Arc<Memory>,
    cluster: Embedded,
    api: Client,
    clock: Clock,
}

impl World {
    async fn start() -> Self {
        let store = Arc::new(Memory::new());
        let parts = Parts { controllers: None, scheduler: None, taints: true };
        let cluster = Embedded::start(store.clone(), parts).await.unwrap();
        let clock = Clock::default();
        let skewed = |name: &str| {
            Client::new(Arc::new(Skewed { inner: cluster.transport(name, &["system:masters"]), clock: clock.clone() })).named(name)
        };
        let (manager, scheduler) = (skewed("system:kube-controller-manager"), skewed("system:kube-scheduler"));
        let caches = Caches::new(&manager, cluster.drain.clone());
        let recorder = EventRecorder::start(&scheduler, "default-scheduler", None, cluster.drain.clone());
        tokio::spawn(controllers::run_on(manager, caches.clone(), controllers::Config::default(), cluster.drain.clone()));
        tokio::spawn(scheduler::run(scheduler::Config::default(), scheduler, caches, recorder, cluster.drain.clone()));
        let api = cluster.admin();
        // What nodes say of the time is true.
        let nodes = hollow::Config { nodes: NODES, heartbeat: Duration::from_secs(2), ..hollow::Config::default() };
        tokio::spawn(hollow::run(nodes, api.clone(), cluster.drain.clone()));
        Self { store, cluster, api, clock }
    }

    async fn post(&self, path: &str, object: Value) {
        self.api.request_json::<Value>(Method::POST, path, Some(Bytes::from(object.to_string()))).await.unwrap();
    }

    async fn items(&self, path: &str) -> Vec<Value> {
        loop {
            // A list may be refused while the server's own view lags.
            match self.api.request_json::<Value>(Method::GET, path, None).await {
                Ok(list) => return list["items"].as_array().cloned().unwrap_or_default(),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        for _ in 0..1_200 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never: {what}; pods: {:#?}", self.items("/api/v1/namespaces/default/pods").await);
    }

    /// The running pods of that app.
    async fn running(&self, app: &str) -> BTreeSet<String> {
        let pods = self.items(&format!("/api/v1/namespaces/default/pods?labelSelector=app={app}")).await;
        let running = pods.into_iter().filter(|pod| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null());
        running.map(|pod| pod["metadata"]["uid"].to_string()).collect()
    }

    /// The Job that is kept for a while after its end is there, and how many the schedule has begun.
    async fn jobs(&self) -> (bool, usize) {
        let jobs = self.items("/apis/batch/v1/namespaces/default/jobs").await;
        let once = jobs.iter().filter(|job| job["metadata"]["name"] == "once").count();
        (once > 0, jobs.len() - once)
    }

    /// Everything is looked at again, as after any change.
    async fn touch(&self, turn: usize) {
        let patch = || Patch::Merge(json!({ "metadata": { "labels": { "turn": turn.to_string() } } }));
        self.api.patch::<Deployment>(Some("default"), "web", &patch(), "").await.unwrap();
        for number in 0..NODES {
            self.api.patch::<Node>(None, &format!("hollow-{number}"), &patch(), "").await.unwrap();
        }
        let paths = ["/apis/batch/v1/namespaces/default/jobs/once", "/apis/batch/v1/namespaces/default/cronjobs/hourly"];
        for path in paths {
            let patch = json!({ "metadata": { "labels": { "turn": turn.to_string() } } }).to_string();
            let request = http::Request::builder().method(Method::PATCH).uri(path).header("content-type", "application/merge-patch+json");
            let _ = self.api.send(request.body(patch.into()).unwrap()).await;
        }
    }

    /// A second long nothing is written but Leases and Events.
    async fn comes_to_rest(&self) {
        let mut written = BTreeMap::new();
        for _ in 0..60 {
            let revision = self.store.revision();
            tokio::time::sleep(Duration::from_secs(1)).await;
            written = self.writes(revision);
            if written.is_empty() {
                return;
            }
        }
        panic!("still written: {written:?}");
    }

    fn writes(&self, after: u64) -> BTreeMap<String, usize> {
        let mut writes = BTreeMap::new();
        for event in self.store.history(b"/registry/", after).unwrap() {
            let key = String::from_utf8_lossy(event.key()).into_owned();
            if !key.contains("/leases/") && !key.contains("/events/") {
                *writes.entry(key).or_insert(0) += 1;
            }
        }
        writes
    }
}

fn template(app: &str, restart: &str) -> Value {
    let spec = json!({ "automountServiceAccountToken": false, "restartPolicy": restart, "containers": [{ "name": "c", "image": "x" }] });
    json!({ "metadata": { "labels": { "app": app } }, "spec": spec })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_costs_no_pod_and_no_node_and_nothing_runs_hot() {
    let world = World::start().await;
    let spec = json!({ "replicas": 6, "selector": { "matchLabels": { "app": "web" } }, "template": template("web", "Always") });
    let jobs = "/apis/batch/v1/namespaces/default";
    world.post("/apis/apps/v1/namespaces/default/deployments", json!({ "metadata": { "name": "web" }, "spec": spec })).await;
    let job = json!({ "template": template("once", "Never"), "ttlSecondsAfterFinished": 100 * 24 * HOUR });
    world.post(&format!("{jobs}/jobs"), json!({ "metadata": { "name": "once" }, "spec": job })).await;
    let hourly = json!({ "schedule": "0 * * * *", "jobTemplate": { "spec": { "template": template("hourly", "Never") } } });
    world.post(&format!("{jobs}/cronjobs"), json!({ "metadata": { "name": "hourly" }, "spec": hourly })).await;
    world.until("six run", async || world.running("web").await.len() == 6).await;
    let done = |job: &Value| job["metadata"]["name"] == "once" && job["status"]["succeeded"] == 1;
    world.until("the Job is done", async || world.items(&format!("{jobs}/jobs")).await.iter().any(done)).await;
    let pods = world.running("web").await;

    for (turn, ahead) in JUMPS.into_iter().enumerate() {
        world.clock.set(ahead);
        world.touch(turn).await;
        if ahead == LONG {
            world.until("what is over by that clock is removed", async || !world.jobs().await.0).await;
        }
        world.comes_to_rest().await;
        assert_eq!(world.running("web").await, pods, "the clock is {ahead} s ahead");
        let nodes = world.items("/api/v1/nodes").await;
        assert!(nodes.iter().all(|node| node["spec"]["taints"].is_null()), "the clock is {ahead} s ahead: {nodes:#?}");
        assert_eq!(world.jobs().await.0, turn < 2, "the clock is {ahead} s ahead");
    }
    // One run for all that were missed, after each of the two jumps ahead; and one if an hour of the true clock ended meanwhile.
    let runs = world.jobs().await.1;
    assert!((1..=3).contains(&runs), "{runs} runs");

    // And work goes on.
    world.clock.set(-HOUR);
    let scale = Patch::Merge(json!({ "spec": { "replicas": 9 } }));
    world.api.patch::<Deployment>(Some("default"), "web", &scale, "").await.unwrap();
    world.until("nine run", async || world.running("web").await.len() == 9).await;
    assert!(world.running("web").await.is_superset(&pods));
    let hot: BTreeMap<_, _> = world.writes(0).into_iter().filter(|(_, count)| *count > WRITES_MAX).collect();
    assert!(hot.is_empty(), "a hot loop: {hot:?}");
    world.cluster.stop();
}
