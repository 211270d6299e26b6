//! Pod garbage: pods of nodes that are gone, pods that wait to end on nodes that are out of service, pods that were to be deleted before
//! they had a node, and ended pods above a number.
//!
//! Looked for every twenty seconds, as upstream. A node counts as gone once it was missing for two looks, and the server says so too.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use client::{DeleteParams, Error, Patch};
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Cache, key_of};
use serde_json::json;
use tracing::{debug, info};

use crate::context::Context;
use crate::{act, pods};

pub(crate) const NAME: &str = "pod-garbage-collector-controller";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const PERIOD: Duration = Duration::from_secs(20);

pub(crate) async fn run(context: Context) {
    let (all, nodes): (Cache<Pod>, Cache<Node>) = (context.caches.of(), context.caches.of());
    tokio::join!(all.synced(), nodes.synced());
    let mut missing_before = HashSet::new();
    loop {
        let world = World {
            pods: all.list(),
            nodes: nodes.list().iter().filter_map(|node| node.metadata.name.clone()).collect(),
            out_of_service: nodes
                .list()
                .iter()
                .filter(|node| is_out_of_service(node))
                .filter_map(|node| node.metadata.name.clone())
                .collect(),
            missing_before: std::mem::take(&mut missing_before),
            terminated_max: context.config.terminated_pods_max,
        };
        let plan = plan(&world);
        missing_before = plan.missing.clone();
        if let Err(error) = carry_out(&context.client, plan).await {
            debug!(%error, "pod garbage collection will try again");
        }
        if context.drain.run(tokio::time::sleep(PERIOD)).await.is_none() {
            return;
        }
    }
}

/// Somebody has said that the node is down and that nothing runs there any more (KEP-2268).
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_ready = conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    !is_ready && taints.into_iter().flatten().any(|taint| taint.key == OUT_OF_SERVICE)
}

struct World {
    pods: Vec<Arc<Pod>>,
    nodes: HashSet<String>,
    /// Of these nodes those that will not end their pods.
    out_of_service: HashSet<String>,
    /// Names of nodes that were already missing at the last look.
    missing_before: HashSet<String>,
    terminated_max: usize,
}

#[derive(Default)]
struct Plan {
    /// To be deleted at once.
    surplus: Vec<Arc<Pod>>,
    /// To be deleted at once if the server has no such node either.
    orphans: Vec<Arc<Pod>>,
    /// Nodes that pods name and nobody has.
    missing: HashSet<String>,
}

fn plan(world: &World) -> Plan {
    let mut plan = Plan::default();
    let mut ended = Vec::new();
    for pod in &world.pods {
        match pods::node_name(pod) {
            Some(node) if !world.nodes.contains(node) => {
                plan.missing.insert(node.to_owned());
                if world.missing_before.contains(node) {
                    plan.orphans.push(pod.clone());
                }
            }
            Some(node) if pod.metadata.deletion_timestamp.is_some() && world.out_of_service.contains(node) => {
                plan.surplus.push(pod.clone())
            }
            None if pod.metadata.deletion_timestamp.is_some() => plan.surplus.push(pod.clone()),
            _ if pods::is_terminal(pod) => ended.push(pod),
            _ => {}
        }
    }
    if world.terminated_max > 0 && ended.len() > world.terminated_max {
        ended.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        plan.surplus.extend(ended.iter().take(ended.len() - world.terminated_max).map(|pod| Pod::clone(pod)).map(Arc::new));
    }
    plan
}

async fn carry_out(client: &client::Client, plan: Plan) -> Result<(), Error> {
    let mut gone = HashSet::new();
    for node in plan.orphans.iter().filter_map(|pod| pods::node_name(pod)) {
        match client.get::<Node>(None, node).await {
            Err(error) if error.is_not_found() => drop(gone.insert(node.to_owned())),
            other => drop(other?),
        }
    }
    let lost = |pod: &Arc<Pod>| pods::node_name(pod).is_some_and(|node| gone.contains(node));
    let orphans = plan.orphans.into_iter().filter(lost).map(|pod| (pod, true));
    let doomed: Vec<(Arc<Pod>, bool)> = orphans.chain(plan.surplus.into_iter().map(|pod| (pod, false))).collect();
    if !doomed.is_empty() {
        info!(count = doomed.len(), "deleting pods that nobody will end");
    }
    act::each(doomed, |(pod, lost)| remove(client.clone(), pod, lost)).await
}

/// `lost`: with its node; whoever judges the pod's failure is told that it was not its own.
async fn remove(client: client::Client, pod: Arc<Pod>, lost: bool) -> Result<(), Error> {
    let key = key_of(&pod.metadata);
    if !pods::is_terminal(&pod) {
        // Whoever waits for the pod's end sees how it ended.
        let mut meta = json!({"uid": pod.metadata.uid});
        let mut status = json!({"phase": "Failed"});
        if lost {
            meta["resourceVersion"] = json!(pod.metadata.resource_version);
            status["conditions"] = json!(pods::with_disruption(&pod, "DeletionByPodGC", "PodGC: node no longer exists"));
        }
        let patch = Patch::Merge(json!({"metadata": meta, "status": status}));
        client::ignore_not_found(client.patch::<Pod>(key.namespace(), &key.name, &patch, "status").await)?;
    }
    let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::of_uid(pod.metadata.uid.as_deref().unwrap_or_default()) };
    client::ignore_not_found(client.delete::<Pod>(key.namespace(), &key.name, &params).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, leaving: bool) -> Arc<Pod> {
        let metadata = json!({"name": name, "deletionTimestamp": leaving.then_some("2026-01-01T00:00:00Z"), "creationTimestamp": format!("2026-01-01T00:00:0{name}Z")});
        Arc::new(
            serde_json::from_value(json!({"metadata": metadata, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}}))
                .unwrap(),
        )
    }

    #[test]
    fn garbage_is_what_no_node_will_end_and_the_oldest_ended_above_the_limit() {
        let pods = vec![
            pod("1", "here", "Running", true),
            pod("2", "gone", "Running", false),
            pod("3", "new-gone", "Running", false),
            pod("4", "", "Pending", true),
            pod("5", "", "Pending", false),
            pod("6", "here", "Succeeded", false),
            pod("7", "here", "Failed", false),
            pod("8", "down", "Running", true),
            pod("9", "down", "Running", false),
        ];
        let world = World {
            pods,
            nodes: HashSet::from(["here".into(), "down".into()]),
            out_of_service: HashSet::from(["down".into()]),
            missing_before: HashSet::from(["gone".into()]),
            terminated_max: 1,
        };
        let plan = plan(&world);
        let names = |pods: &[Arc<Pod>]| pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<String>();
        assert_eq!((names(&plan.orphans).as_str(), names(&plan.surplus).as_str(), plan.missing.len()), ("2", "486", 2));
    }
}
