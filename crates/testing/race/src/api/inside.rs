//! What components inside the process wait for: pods made, bound and deleted without a socket, durable in a log.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, DeleteParams};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use serde_json::{Value, json};
use sim::{Embedded, Parts};

use super::Table;
use super::requests::{self, NAMESPACE};
use crate::Options;
use crate::measure::Spread;
use crate::processes::{TICKS_PER_SECOND, ticks};

/// How many are under way, and how many pods that is measured with.
const LEGS: [(usize, usize); 2] = [(1, 2_000), (64, 12_000)];

#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Bind,
    Delete,
}

impl Step {
    const ALL: [Self; 3] = [Self::Create, Self::Bind, Self::Delete];

    fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE of a pod, in process",
            Self::Bind => "bind, in process",
            Self::Delete => "DELETE of a pod, in process",
        }
    }

    async fn run(self, admin: Client, number: usize) -> anyhow::Result<()> {
        let name = format!("p-{number:06}");
        match self {
            Self::Create => {
                admin.create(&pod(&name)?).await?;
            }
            Self::Bind => {
                let target = json!({"kind": "Node", "name": format!("node-{}", number % 100)});
                let binding = json!({"metadata": {"name": name}, "target": target});
                admin.create_subresource::<Pod, Value>(Some(NAMESPACE), &name, "binding", &binding).await?;
            }
            Self::Delete => {
                let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() };
                admin.delete::<Pod>(Some(NAMESPACE), &name, &now).await?;
            }
        }
        Ok(())
    }
}

/// What a step gave: requests a second, and this process's microseconds of processor time for one.
#[derive(Default)]
struct Found {
    per_second: Vec<f64>,
    micros: Vec<f64>,
    /// By how much this process grew for a pod, over the pod's size on the wire.
    memory: Vec<f64>,
}

pub async fn race(options: &Options, dir: &Path, table: &mut Table) -> anyhow::Result<()> {
    for (clients, pods) in LEGS {
        let mut found = Step::ALL.map(|step| (step, Found::default()));
        for round in 0..options.rounds {
            let folder = dir.join(format!("inside-{clients}-{round}"));
            leg(&folder, clients, pods, &mut found).await?;
            std::fs::remove_dir_all(&folder).ok();
        }
        // Of many pods, and of the round that grew most: a later one finds room that an earlier one has left.
        if let (true, Some((_, made))) = (pods > 10_000, found.first()) {
            table.alone("memory of a pod, API server and store alone / its size on the wire", "–", Spread::of(&made.memory).max);
        }
        for (step, found) in found {
            table.alone_spread(step.word(), clients, &Spread::of(&found.per_second), &Spread::of(&found.micros));
        }
    }
    Ok(())
}

async fn leg(dir: &Path, clients: usize, pods: usize, found: &mut [(Step, Found)]) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let store = Arc::new(store::log::Log::open(dir, store::log::Options::default())?);
    let cluster = Embedded::start(store.clone(), Parts { controllers: None, scheduler: None, taints: false }).await?;
    let admin = cluster.admin();
    admin.create::<Namespace>(&serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?).await?;
    admin.create::<ServiceAccount>(&serde_json::from_value(json!({"metadata": {"name": "default", "namespace": NAMESPACE}}))?).await?;
    for (step, found) in found {
        let (start, before, small) = (Instant::now(), cpu_seconds(), anonymous_bytes());
        let mut running =
            futures_util::stream::iter(0..pods).map(|number| tokio::spawn(step.run(admin.clone(), number))).buffer_unordered(clients);
        while let Some(result) = running.next().await {
            result??;
        }
        found.per_second.push(pods as f64 / start.elapsed().as_secs_f64());
        found.micros.push((cpu_seconds() - before) / pods as f64 * 1e6);
        if let Step::Create = step {
            let request = http::Request::get(format!("/api/v1/namespaces/{NAMESPACE}/pods/p-000000")).body(bytes::Bytes::new())?;
            let wire = admin.send(request).await?.into_body().collect().await?.to_bytes().len();
            found.memory.push((anonymous_bytes() - small) / (pods * wire) as f64);
        }
    }
    cluster.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    store::Store::close(&*store).await.ok();
    Ok(())
}

fn anonymous_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) * 1024.0
}

fn cpu_seconds() -> f64 {
    ticks("/proc/self/stat", 2) / TICKS_PER_SECOND
}

/// As a ReplicaSet's controller makes them.
fn pod(name: &str) -> anyhow::Result<Pod> {
    let mut pod = requests::pod(name, "inside");
    pod["metadata"]["namespace"] = NAMESPACE.into();
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "inside", "uid": "3c6d8e8a-9d3f-4b53-8a43-0d2a0c9b8f11", "controller": true}]);
    Ok(serde_json::from_value(pod)?)
}
