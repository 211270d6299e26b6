//! Taint eviction: a pod leaves a node with a NoExecute taint that it does not tolerate, or tolerates for a limited time.
//!
//! Woken by Nodes whose taints change and by pods of tainted nodes. The clock of a tolerated taint starts when the taint was added,
//! so that a restart of ours gives nobody a second grace.

use std::sync::Arc;
use std::time::Duration;

use client::{DeleteParams, Error, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};
use serde_json::json;

use crate::context::Context;
use crate::pods;

pub(crate) const NAME: &str = "taint-eviction-controller";
const WORKERS: usize = 16;

struct Controller {
    client: client::Client,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        nodes: context.caches.of(),
        pods: context.caches.of(),
        recorder: context.recorder(NAME),
    });
    pods::index(&controller.pods);
    let queue = Queue::new();
    let (by_node, all_pods) = (queue.clone(), controller.pods.clone());
    controller.nodes.on_change(move |old, new| {
        let Some(node) = new.filter(|node| old.is_none_or(|old| no_execute(old) != no_execute(node))) else { return };
        let name = node.metadata.name.as_deref().unwrap_or_default();
        all_pods.by_index(pods::BY_NODE, name).iter().for_each(|pod| by_node.add(key_of(&pod.metadata)));
    });
    let (by_pod, nodes) = (queue.clone(), controller.nodes.clone());
    controller.pods.on_change(move |_, new| {
        let tainted =
            |pod: &&Arc<Pod>| pods::node_name(pod).and_then(|name| nodes.get("", name)).is_some_and(|node| !no_execute(&node).is_empty());
        new.filter(tainted).into_iter().for_each(|pod| by_pod.add(key_of(&pod.metadata)));
    });
    tokio::join!(controller.nodes.synced(), controller.pods.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

fn no_execute(node: &Node) -> Vec<&Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect == "NoExecute").collect()
}

#[derive(Debug, PartialEq)]
enum Plan {
    Stay,
    /// Look again when the tolerated time is over.
    StayFor(Duration),
    Evict,
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(pod) = self.pods.get_key(&key).filter(|pod| pod.metadata.deletion_timestamp.is_none()) else { return Outcome::Done };
        let Some(node) = pods::node_name(&pod).and_then(|name| self.nodes.get("", name)) else { return Outcome::Done };
        match plan(&pod, &no_execute(&node), Timestamp::now()) {
            Plan::Stay => Outcome::Done,
            Plan::StayFor(wait) => Outcome::RequeueAfter(wait),
            Plan::Evict => self.evict(&pod).await.into(),
        }
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Error> {
        let key = key_of(&pod.metadata);
        self.recorder.event(&reference_to(pod), EventKind::Normal, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        let why = ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
        let conditions = pods::with_disruption(pod, why.0, why.1);
        let meta = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
        let patch = json!({"metadata": meta, "status": {"conditions": conditions}});
        let marked = self.client.patch::<Pod>(key.namespace(), &key.name, &Patch::Merge(patch), "status").await;
        client::ignore_not_found(marked)?;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let deleted = self.client.delete::<Pod>(key.namespace(), &key.name, &DeleteParams::of_uid(uid)).await;
        client::ignore_not_found(deleted)
    }
}

fn plan(pod: &Pod, taints: &[&Taint], now: Timestamp) -> Plan {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut soonest: Option<i64> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if matching.is_empty() {
            return Plan::Evict;
        }
        // Of several tolerations of a taint the shortest counts; none with a time is for ever.
        let Some(seconds) = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min() else { continue };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let ends = since.as_second().saturating_add(seconds.max(0));
        soonest = Some(soonest.map_or(ends, |soonest| soonest.min(ends)));
    }
    match soonest.map(|ends| ends - now.as_second()) {
        None => Plan::Stay,
        Some(left) if left > 0 => Plan::StayFor(Duration::from_secs(left.unsigned_abs())),
        Some(_) => Plan::Evict,
    }
}

pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let effect = filled(&toleration.effect).is_none_or(|effect| effect == taint.effect);
    let key = filled(&toleration.key).is_none_or(|key| key == taint.key);
    let exists = toleration.operator.as_deref() == Some("Exists");
    effect && key && (exists || (filled(&toleration.key).is_some() && filled(&toleration.value) == filled(&taint.value)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates_every_taint() {
        let taint: Taint = serde_json::from_value(json!({"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"})).unwrap();
        let now: Timestamp = "2026-01-01T00:01:40Z".parse().unwrap();
        let of = |tolerations: Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}})).unwrap();
            plan(&pod, &[&taint], now)
        };
        assert_eq!(of(json!([])), Plan::Evict);
        assert_eq!(of(json!([{"operator": "Exists"}])), Plan::Stay);
        assert_eq!(of(json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}])), Plan::Evict);
        assert_eq!(
            of(json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}])),
            Plan::StayFor(Duration::from_secs(200))
        );
        assert_eq!(of(json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 100}])), Plan::Evict);
        assert_eq!(of(json!([{"key": "k", "operator": "Equal", "value": "other"}])), Plan::Evict);
    }
}
