//! `sternpost status`: what runs, in a few lines.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, Https, ListParams};
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::config::Config;
use crate::daemon;

/// A server on this machine that lives answers long before.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Exit code 0 when the daemon runs and its node is ready, 3 when nothing runs (as init systems count), 1 otherwise.
pub fn run(config: &Config) -> anyhow::Result<i32> {
    let Some(pid) = daemon::running(config) else {
        println!("not running (data in {})", config.data_dir.display());
        return Ok(3);
    };
    println!("running as process {pid}, API https://127.0.0.1:{}, log {}", config.api_port, config.log_file().display());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(report(config))
}

/// Whether the API server says that it is ready.
pub fn answers(config: &Config) -> bool {
    let Ok(https) = Https::from_kubeconfig(&config.kubeconfig(), None) else { return false };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return false };
    let asked = async { tokio::time::timeout(ANSWER_WITHIN, Client::new(Arc::new(https)).list::<Node>(&ListParams::default())).await };
    matches!(runtime.block_on(asked), Ok(Ok(_)))
}

async fn report(config: &Config) -> anyhow::Result<i32> {
    let client = Client::new(Arc::new(Https::from_kubeconfig(&config.kubeconfig(), None)?));
    let nodes = client.list::<Node>(&ListParams::default()).await?.items;
    let pods = client.list::<Pod>(&ListParams::default()).await?.items;
    let running = pods.iter().filter(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")).count();
    let ready = nodes.iter().filter(|node| is_ready(node)).count();
    println!("nodes {ready}/{} ready, pods {running}/{} running", nodes.len(), pods.len());
    Ok(i32::from(ready == 0 || ready < nodes.len()))
}

/// Whether the node's Ready condition is True.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
