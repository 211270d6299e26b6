//! Two Deployments that are created, scaled, rolled and robbed of pods beside a StatefulSet, a DaemonSet and a Service, while requests get lost and
//! the components are restarted at any moment. Then the sky clears, and the cluster must come to the state that the objects ask for: the same for
//! each seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteParams, ListParams, Patch};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use reconcile::{Caches, EventRecorder};
use serde_json::{Value, json};
use stdx::Drain;

use crate::chaos::{Chaotic, Sky, Weather};
use crate::{Embedded, Parts, Random};

const NODES: usize = 5;
const NODE_CPU: i64 = 8;
/// How long the storm lasts, and how long the cluster may take after it on a machine that does much else.
const STORM: Duration = Duration::from_millis(2500);
const CALM_MAX: Duration = Duration::from_secs(240);

/// What differs from run to run.
#[derive(Clone)]
pub struct Plan {
    pub seed: u64,
    pub scheduler: scheduler::Config,
}

/// The end of a run, without names and times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Running and ready pods by app and image.
    pub pods: BTreeMap<(String, String), usize>,
    /// Ready endpoints of the Service.
    pub endpoints: usize,
    /// What must never be.
    pub faults: BTreeSet<String>,
}

/// What every run must come to.
pub fn expected() -> Outcome {
    let pods = [("a", "a:1", 12), ("b", "b:2", 10), ("d", "d:1", NODES), ("s", "s:1", 3)];
    let pods = pods.into_iter().map(|(app, image, count)| ((app.to_owned(), image.to_owned()), count)).collect();
    Outcome { pods, endpoints: 12, faults: BTreeSet::new() }
}

/// Runs it to the end, or until the cluster had its time.
pub async fn run(plan: &Plan) -> anyhow::Result<Outcome> {
    let store = Arc::new(store::memory::Memory::new());
    let parts = Parts { controllers: None, scheduler: None, taints: true };
    let cluster = Embedded::start(store, parts).await?;
    let sky = Sky::new(plan.seed, Weather::stormy());
    let mut random = Random::new(plan.seed ^ 0xC1A0);
    let components = Components { cluster: &cluster, sky: &sky, plan };
    let mut running = [components.controllers(), components.scheduler(), components.hollow()];
    let restarts = async {
        loop {
            tokio::time::sleep(random.up_to(STORM / 5)).await;
            let which = random.below(3) as usize;
            running[which].stop();
            running[which] = [Components::controllers, Components::scheduler, Components::hollow][which](&components);
        }
    };
    let admin = cluster.admin();
    tokio::select! {
        () = restarts => {}
        done = script(&admin, plan.seed) => done?,
    }
    sky.clear_up();
    let end = tokio::time::Instant::now() + CALM_MAX;
    let mut outcome = look(&admin).await?;
    while outcome != expected() && outcome.faults.is_empty() && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        outcome = look(&admin).await?;
    }
    if outcome != expected() {
        describe(&admin, plan.seed).await?;
    }
    running.iter().for_each(Drain::stop);
    Ok(outcome)
}

/// What is left, for whoever looks into a seed that failed.
async fn describe(admin: &Client, seed: u64) -> anyhow::Result<()> {
    for node in admin.list::<Node>(&ListParams::default()).await?.items {
        let taints = json!(node.spec.and_then(|spec| spec.taints));
        let ready = node.status.into_iter().flat_map(|status| status.conditions.into_iter().flatten()).find(|one| one.type_ == "Ready");
        eprintln!("seed {seed}: node {} {} {taints}", node.metadata.name.unwrap_or_default(), json!(ready));
    }
    for pod in pods(admin).await? {
        let ready =
            pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(|one| one.type_ == "Ready" && one.status == "True");
        let (phase, conditions) = pod.status.map(|status| (status.phase, status.conditions)).unwrap_or_default();
        let (node, going) = (pod.spec.and_then(|spec| spec.node_name), pod.metadata.deletion_timestamp);
        let conditions = if ready { json!("ready") } else { json!(conditions) };
        eprintln!("seed {seed}: pod {} on {node:?}, {phase:?}, going {going:?}: {conditions}", pod.metadata.name.unwrap_or_default());
    }
    Ok(())
}

struct Components<'a> {
    cluster: &'a Embedded,
    sky: &'a Sky,
    plan: &'a Plan,
}

impl Components<'_> {
    fn client(&self, name: &str) -> Client {
        let inner = self.cluster.transport(name, &["system:masters"]);
        Client::new(Arc::new(Chaotic { inner, sky: self.sky.clone() })).named(name)
    }

    fn controllers(&self) -> Drain {
        let drain = stdx::drain();
        let client = self.client("system:kube-controller-manager");
        tokio::spawn(controllers::run(client, controllers::Config::default(), drain.clone()));
        drain
    }

    fn scheduler(&self) -> Drain {
        let drain = stdx::drain();
        let client = self.client("system:kube-scheduler");
        let recorder = EventRecorder::start(&client, "default-scheduler", None, drain.clone());
        let caches = Caches::new(&client, drain.clone());
        tokio::spawn(scheduler::run(self.plan.scheduler.clone(), client, caches, recorder, drain.clone()));
        drain
    }

    fn hollow(&self) -> Drain {
        let drain = stdx::drain();
        let config =
            hollow::Config { nodes: NODES, cpu: NODE_CPU.to_string(), heartbeat: Duration::from_secs(5), ..hollow::Config::default() };
        tokio::spawn(hollow::run(config, self.client("system:hollow"), drain.clone()));
        drain
    }
}

/// What the users do; their own requests arrive.
async fn script(admin: &Client, seed: u64) -> anyhow::Result<()> {
    let mut random = Random::new(seed ^ 0x5C21);
    let pause = STORM / 5;
    let (created, mut left) = (deployment("a", 20)?, vec![0, 1, 2, 3]);
    admin.create(&created).await?;
    admin.create(&deployment("b", 10)?).await?;
    let service =
        json!({ "metadata": { "name": "a", "namespace": "default" }, "spec": { "selector": { "app": "a" }, "ports": [{ "port": 80 }] } });
    admin.create::<Service>(&serde_json::from_value(service)?).await?;
    admin.create::<StatefulSet>(&serde_json::from_value(set("s", json!({ "replicas": 3, "serviceName": "s" })))?).await?;
    admin.create::<DaemonSet>(&serde_json::from_value(set("d", json!({})))?).await?;
    while !left.is_empty() {
        tokio::time::sleep(random.up_to(pause)).await;
        match left.swap_remove(random.below(left.len() as u64) as usize) {
            0 => patch(admin, "a", json!({ "spec": { "replicas": 12 } })).await?,
            1 => {
                patch(admin, "b", json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "b:2" }] } } } }))
                    .await?
            }
            _ => rob(admin, &mut random).await?,
        }
    }
    tokio::time::sleep(pause).await;
    Ok(())
}

fn deployment(name: &str, replicas: usize) -> anyhow::Result<Deployment> {
    let container = json!({ "name": "c", "image": format!("{name}:1"), "resources": { "requests": { "cpu": "1500m" } } });
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [container], "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false },
            },
        },
    }))?)
}

/// A set of small pods.
fn set(name: &str, more: Value) -> Value {
    let pod = json!({
        "containers": [{ "name": "c", "image": format!("{name}:1") }], "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
    });
    let mut spec = json!({
        "selector": { "matchLabels": { "app": name } }, "template": { "metadata": { "labels": { "app": name } }, "spec": pod },
    });
    more.as_object().into_iter().flatten().for_each(|(field, value)| spec[field] = value.clone());
    json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec })
}

async fn patch(admin: &Client, name: &str, patch: Value) -> anyhow::Result<()> {
    Ok(admin.patch::<Deployment>(Some("default"), name, &Patch::Strategic(patch), "").await.map(drop)?)
}

/// Three pods go.
async fn rob(admin: &Client, random: &mut Random) -> anyhow::Result<()> {
    let pods = asked(|| pods(admin)).await?;
    for _ in 0..3.min(pods.len()) {
        let name = random.of(&pods).metadata.name.clone().unwrap_or_default();
        match admin.delete::<Pod>(Some("default"), &name, &DeleteParams::default()).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

async fn pods(admin: &Client) -> anyhow::Result<Vec<Pod>> {
    Ok(admin.list(&ListParams::in_namespace("default")).await?.items)
}

/// The server may say that it is behind for a moment; it is asked again.
async fn asked<T, F: Future<Output = anyhow::Result<T>>>(ask: impl Fn() -> F) -> anyhow::Result<T> {
    let behind = |error: &anyhow::Error| error.downcast_ref::<client::Error>().is_some_and(|error| error.code() == 504);
    loop {
        match ask().await {
            Err(error) if behind(&error) => tokio::time::sleep(Duration::from_millis(100)).await,
            done => return done,
        }
    }
}

async fn look(admin: &Client) -> anyhow::Result<Outcome> {
    asked(|| look_once(admin)).await
}

async fn look_once(admin: &Client) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let nodes = admin.list::<Node>(&ListParams::default()).await?.items;
    let names: BTreeSet<String> = nodes.into_iter().filter_map(|node| node.metadata.name).collect();
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    for pod in pods(admin).await? {
        let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
        let app = pod.metadata.labels.unwrap_or_default().remove("app").unwrap_or_default();
        let image = spec.containers.first().and_then(|container| container.image.clone()).unwrap_or_default();
        if let Some(node) = spec.node_name.filter(|node| !node.is_empty()) {
            if !names.contains(&node) {
                outcome.faults.insert(format!("a pod is on {node}, which does not exist"));
            }
            let asks =
                spec.containers.iter().any(|container| container.resources.as_ref().is_some_and(|resources| resources.requests.is_some()));
            *used.entry(node).or_default() += if asks { 1500 } else { 0 };
        }
        let ready = status.conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let key = if ready { (app, image) } else { (app, format!("{image}, not ready")) };
        *outcome.pods.entry(key).or_default() += 1;
    }
    let slices = admin.list::<EndpointSlice>(&ListParams::in_namespace("default").labels("kubernetes.io/service-name=a")).await?.items;
    let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints.into_iter().flatten());
    let ready = |endpoint: &Endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true);
    outcome.endpoints = endpoints.filter(ready).count();
    for (node, used) in used.into_iter().filter(|(_, used)| *used > 1000 * NODE_CPU) {
        outcome.faults.insert(format!("{node} has {NODE_CPU} CPU and gives {used}m"));
    }
    Ok(outcome)
}
