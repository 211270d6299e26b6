//! The controllers alone: API server, store on disk and controllers in this process, without scheduler and nodes.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use auth::UserInfo;
use bytes::Bytes;
use client::{ApiResource, Body, Client, DeleteParams, Patch, Transport};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{Cache, PartialObject, Scope};
use serde_json::json;
use stdx::Drain;
use tokio::task::JoinSet;

use crate::Options;
use crate::measure::Spread;
use crate::report::{self, Outcome, spread};

const METHOD: &str = "\
API server, store (a log on this disk, fsync before every acknowledgement) and all controllers in one process, requests without sockets; no \
scheduler and no nodes. Each figure is from sending the request that causes it until a watch has shown the last object.";
const SIZES: [usize; 2] = [1_000, 10_000];
const ENDPOINTS: usize = 1_000;
/// Nothing here takes so long unless it never ends.
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let mut found: Vec<(String, Vec<f64>)> = Vec::new();
    let start = Instant::now();
    for round in 0..options.rounds {
        if round > 0 && options.is_over(start) {
            break;
        }
        let rows = self::round(&dir.join(format!("controllers-{round}"))).await?;
        for (name, value) in rows {
            match found.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.push(value),
                None => found.push((name, vec![value])),
            }
        }
        report::keep("controllers", &outcome(&found))?;
    }
    Ok(outcome(&found))
}

fn outcome(found: &[(String, Vec<f64>)]) -> Outcome {
    let rows = found.iter().map(|(name, values)| vec![name.clone(), spread(&Spread::of(values))]).collect();
    let figures = found.iter().map(|(name, values)| (name.clone(), json!({"milliseconds": values, "spread": Spread::of(values)})));
    Outcome {
        method: METHOD.into(),
        head: vec!["what, ms", "median (least–most)"],
        rows,
        figures: figures.collect::<serde_json::Map<_, _>>().into(),
    }
}

struct InProcess(apiserver::Server, UserInfo);

impl Transport for InProcess {
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        let request = request.map(|body| Full::new(body).map_err(|never| match never {}).boxed());
        Box::pin(async move { Ok(self.0.handle(request, Some(self.1.clone())).await) })
    }
}

struct Bench {
    client: Client,
    drain: Drain,
    pods: Cache<PartialObject>,
    slices: Cache<EndpointSlice>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

async fn round(dir: &Path) -> anyhow::Result<Vec<(String, f64)>> {
    let bench = Bench::start(dir).await?;
    let mut rows = Vec::new();
    for size in SIZES {
        let name = format!("web-{size}");
        let start = Instant::now();
        bench.client.create(&deployment(&name, size)).await?;
        bench.until_pods(size).await?;
        rows.push((format!("Deployment, 0 → {size} pod objects"), millis(start)));
        if size == ENDPOINTS {
            rows.push((format!("{size} endpoints ready in slices, after the last pod was"), bench.flip(&name).await?));
        }
        let start = Instant::now();
        bench.client.delete::<Deployment>(Some("race"), &name, &DeleteParams::background()).await?;
        bench.until_pods(0).await?;
        rows.push((format!("its deletion, {size} → 0"), millis(start)));
    }
    Ok(rows)
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn deployment(name: &str, replicas: usize) -> Deployment {
    let template = json!({"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "example.org/web:1"}]}});
    let spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template});
    serde_json::from_value(json!({"metadata": {"namespace": "race", "name": name}, "spec": spec})).unwrap_or_default()
}

impl Bench {
    async fn start(dir: &Path) -> anyhow::Result<Self> {
        let store = store::log::Log::open(dir, store::log::Options::default())?;
        let server = apiserver::Server::new(apiserver::Config::default(), Arc::new(store)).context("the API server")?;
        server.bootstrap().await.context("bootstrap")?;
        let client = Client::new(Arc::new(InProcess(server, UserInfo::authenticated("race", &["system:masters"]))));
        let drain = stdx::drain();
        tokio::spawn(controllers::run(client.clone(), controllers::Config::default(), drain.clone()));
        let pods = Cache::start_of(&client, ApiResource::of::<Pod>(), Scope::all(), true, drain.clone());
        let slices = Cache::start(&client, Scope::all(), drain.clone());
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "race"}}))?;
        client.create(&namespace).await?;
        let bench = Self { client, drain, pods, slices };
        bench.until("the default account", async || bench.client.get::<ServiceAccount>(Some("race"), "default").await.is_ok()).await?;
        Ok(bench)
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while !holds().await {
            anyhow::ensure!(start.elapsed() < PATIENCE, "never: {what}");
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        Ok(())
    }

    async fn until_pods(&self, count: usize) -> anyhow::Result<()> {
        self.until("as many pods", async || self.pods.len() == count).await
    }

    /// Makes all pods ready and returns how long after the last of them the slices say so.
    async fn flip(&self, app: &str) -> anyhow::Result<f64> {
        let service = json!({"metadata": {"namespace": "race", "name": app}, "spec": {"selector": {"app": app}, "ports": [{"port": 80}]}});
        self.client.create(&serde_json::from_value::<Service>(service)?).await?;
        let mut writes = JoinSet::new();
        for (number, pod) in self.pods.list().into_iter().enumerate() {
            let client = self.client.clone();
            writes.spawn(async move {
                let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
                let ip = format!("10.1.{}.{}", number / 250, number % 250 + 1);
                let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": ready});
                client.patch::<Pod>(Some("race"), &pod.metadata.name, &Patch::Merge(json!({ "status": status })), "status").await.map(drop)
            });
        }
        while let Some(written) = writes.join_next().await {
            written??;
        }
        let start = Instant::now();
        self.until("ready endpoints", async || self.ready() == ENDPOINTS).await?;
        Ok(millis(start))
    }

    fn ready(&self) -> usize {
        let all = self.slices.list();
        let endpoints = all.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        endpoints.filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true))).count()
    }
}
