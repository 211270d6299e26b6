//! `sternpost node drain` and `remove`: a node's pods are evicted as `kubectl drain` does it, within their disruption budgets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use client::{Client, DeleteParams, Https, ListParams, Patch};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::config::Config;

/// How often it is looked whether pods are gone, and refused evictions are tried again.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const MIRROR: &str = "kubernetes.io/config.mirror";

#[derive(Args)]
pub struct Drain {
    pub name: String,
    /// How long the pods may take altogether, in seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// What each pod gets to end by itself, in seconds [default: what it asks for]
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<i64>,
    /// Do not wait for a node that does not answer, and pass over disruption budgets: its pods are forgotten.
    #[arg(long)]
    force: bool,
}

pub fn run(config: &Config, drain: &Drain) -> anyhow::Result<()> {
    with_client(config, |client| async move { evict_all(&client, drain).await })
}

/// Deletes the Node; what was bound to it goes with it.
pub fn forget(config: &Config, name: &str) -> anyhow::Result<()> {
    with_client(config, |client| async move {
        client.delete::<Node>(None, name, &DeleteParams::default()).await.with_context(|| format!("delete node {name}"))?;
        println!("node {name} is no longer in the cluster");
        Ok(())
    })
}

fn with_client<F: Future<Output = anyhow::Result<()>>>(config: &Config, work: impl FnOnce(Client) -> F) -> anyhow::Result<()> {
    let https = Https::from_kubeconfig(&config.kubeconfig(), None).context("no cluster here yet")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work(Client::new(Arc::new(https))))
}

async fn evict_all(client: &Client, drain: &Drain) -> anyhow::Result<()> {
    let name = &drain.name;
    let cordon = Patch::Merge(json!({ "spec": { "unschedulable": true } }));
    client.patch::<Node>(None, name, &cordon, "").await.with_context(|| format!("cordon node {name}"))?;
    println!("node {name} takes no new pods");
    let deadline = Instant::now() + Duration::from_secs(drain.timeout);
    let mut told = 0;
    loop {
        let pods = to_leave(client, name).await?;
        if pods.is_empty() {
            println!("node {name} is drained");
            return Ok(());
        }
        let mut refused = None;
        for pod in pods.iter().filter(|pod| drain.force || pod.metadata.deletion_timestamp.is_none()) {
            if let Err(error) = leave(client, pod, drain).await {
                refused = Some(error);
            }
        }
        if pods.len() != told {
            println!("{} pods are leaving", pods.len());
            told = pods.len();
        }
        if Instant::now() > deadline {
            let names: Vec<String> = pods.iter().map(|pod| key(pod).join("/")).collect();
            let why = refused.map(|error| format!(": {error:#}")).unwrap_or_default();
            anyhow::bail!("still on node {name} after {} s: {}{why}", drain.timeout, names.join(", "));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// All but a DaemonSet's, which would come again, a file's, which only the node itself may end, and those that have ended.
async fn to_leave(client: &Client, node: &str) -> anyhow::Result<Vec<Pod>> {
    let params = ListParams { field_selector: Some(format!("spec.nodeName={node}")), ..ListParams::default() };
    let mut pods = client.list::<Pod>(&params).await.context("list the node's pods")?.items;
    pods.retain(|pod| {
        let meta = &pod.metadata;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let daemon = meta.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true));
        let mirror = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR));
        !daemon && !mirror && !matches!(phase, Some("Succeeded" | "Failed"))
    });
    Ok(pods)
}

fn key(pod: &Pod) -> [String; 2] {
    [pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default()]
}

async fn leave(client: &Client, pod: &Pod, drain: &Drain) -> anyhow::Result<()> {
    let [namespace, name] = key(pod);
    if drain.force {
        let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        return match client.delete::<Pod>(Some(&namespace), &name, &params).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => Ok(other?),
        };
    }
    let mut eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": name, "namespace": namespace } });
    if let Some(seconds) = drain.grace_period {
        eviction["deleteOptions"] = json!({ "gracePeriodSeconds": seconds });
    }
    match client.create_subresource::<Pod, Value>(Some(&namespace), &name, "eviction", &eviction).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => Ok(drop(other.with_context(|| format!("evict {namespace}/{name}"))?)),
    }
}
