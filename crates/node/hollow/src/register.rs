//! Nodes and their Leases.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, Error, Patch};
use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use reconcile::Cache;
use serde_json::{Value, json};
use tracing::warn;

use crate::{Config, LABEL, view};

const LEASES: &str = "kube-node-lease";
/// Leases are renewed in so many portions per heartbeat, so that they do not come all at once.
const PORTIONS: usize = 50;
/// Renewals under way at once.
const RENEWALS: usize = 32;

pub(crate) fn name(config: &Config, number: usize) -> String {
    format!("{}{number}", config.prefix)
}

/// Creates what is missing of the nodes; tries again until the server has taken each, or said that it never will.
pub(crate) async fn register(config: &Config, client: &Client) {
    let numbers = futures_util::stream::iter(0..config.nodes);
    numbers
        .for_each_concurrent(config.workers, |number| async move {
            let (node, mut backoff) = (node(config, number), stdx::Backoff::new(Duration::from_millis(20), Duration::from_secs(5)));
            loop {
                match client.create::<Node>(&node).await {
                    Err(error) if !error.is_already_exists() => {
                        warn!(node = %name(config, number), %error, "cannot register");
                        if error.is_invalid() || error.is_forbidden() {
                            return;
                        }
                    }
                    _ => return,
                }
                tokio::time::sleep(backoff.next_wait()).await;
            }
        })
        .await;
}

fn node(config: &Config, number: usize) -> Node {
    let name = name(config, number);
    let mut labels = config.labels.clone();
    labels.insert(LABEL.into(), "true".into());
    labels.insert("kubernetes.io/hostname".into(), name.clone());
    labels.insert("kubernetes.io/os".into(), "linux".into());
    labels.insert("kubernetes.io/arch".into(), "amd64".into());
    if config.zones > 0 {
        labels.insert("topology.kubernetes.io/zone".into(), format!("zone-{}", number % config.zones));
    }
    let amounts = json!({ "cpu": config.cpu, "memory": config.memory, "ephemeral-storage": "1Ti", "pods": config.pods_max.to_string() });
    let value = json!({
        "metadata": { "name": name, "labels": labels },
        "spec": {},
        "status": {
            "capacity": amounts, "allocatable": amounts, "conditions": conditions(),
            "addresses": [{ "type": "Hostname", "address": name }, { "type": "InternalIP", "address": address(number, 1) }],
            "nodeInfo": {
                "architecture": "amd64", "operatingSystem": "linux", "osImage": "hollow", "kernelVersion": "hollow", "bootID": name, "machineID": name,
                "systemUUID": name, "containerRuntimeVersion": "hollow://1", "kubeletVersion": "v1.37.0", "kubeProxyVersion": "",
            },
        },
    });
    serde_json::from_value(value).unwrap_or_default()
}

/// Of the range for benchmarks (RFC 2544) and above: nobody listens there.
pub(crate) fn address(number: usize, last: u8) -> String {
    format!("198.{}.{}.{last}", 18 + (number / 256) % 2, number % 256)
}

fn conditions() -> Value {
    let now = meta::time::now();
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        json!({
            "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    json!([
        condition("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        condition("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
    ])
}

/// Says again that the node is ready, after an outage.
pub(crate) async fn say_ready(client: &Client, name: &str) -> Result<(), Error> {
    let patch = Patch::Strategic(json!({ "status": { "conditions": conditions() } }));
    client.patch::<Node>(None, name, &patch, "status").await.map(drop)
}

/// Renews the Leases of the nodes that are alive, for ever.
pub(crate) async fn heartbeat(config: Arc<Config>, client: Client, nodes: Cache<view::Node>) {
    let mut ticks = tokio::time::interval(config.heartbeat / PORTIONS as u32);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for portion in (0..PORTIONS).cycle() {
        ticks.tick().await;
        let due = (portion..config.nodes).step_by(PORTIONS).map(|number| name(&config, number));
        let alive = due.filter(|name| nodes.get("", name).is_some_and(|node| !node.is_down()));
        let renew = |name| tokio::spawn(renew(client.clone(), name, config.heartbeat));
        futures_util::stream::iter(alive).map(renew).buffer_unordered(RENEWALS).for_each(|_| std::future::ready(())).await;
    }
}

async fn renew(client: Client, name: String, heartbeat: Duration) {
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(jiff::Timestamp::now());
    let patch = Patch::Merge(json!({ "spec": { "renewTime": now } }));
    let renewed = match client.patch::<Lease>(Some(LEASES), &name, &patch, "").await {
        Err(error) if error.is_not_found() => {
            let seconds = heartbeat.as_secs().max(1) * 4;
            let lease = json!({
                "metadata": { "namespace": LEASES, "name": name },
                "spec": { "holderIdentity": name, "leaseDurationSeconds": seconds, "renewTime": now },
            });
            match serde_json::from_value::<Lease>(lease) {
                Ok(lease) => client.create(&lease).await.map(drop),
                Err(_) => Ok(()),
            }
        }
        other => other.map(drop),
    };
    if let Err(error) = renewed
        && !error.is_already_exists()
    {
        warn!(node = name, %error, "no heartbeat");
    }
}
