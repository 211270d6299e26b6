//! A claim that a pod uses is not deleted under it: a finalizer holds it until no scheduled pod names it (upstream: `pvc-protection`).

use std::sync::Arc;

use client::Client;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::{finalizer, pods};

pub(crate) const NAME: &str = "persistentvolumeclaim-protection-controller";
const FINALIZER: &str = "kubernetes.io/pvc-protection";

pub(crate) async fn run(context: Context) {
    let (claims, all): (Cache<PersistentVolumeClaim>, Cache<Pod>) = (context.caches.of(), context.caches.of());
    pods::index_claims(&all);
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_claim, by_pod) = (queue.clone(), queue.clone());
    claims.on_change(move |_, new| new.into_iter().for_each(|claim| by_claim.add(key_of(&claim.metadata))));
    all.on_change(move |old, new| {
        if let (Some(gone), None) = (old, new) {
            pods::claims(gone).for_each(|key| by_pod.add(key));
        }
    });
    tokio::join!(claims.synced(), all.synced());
    let client: Client = context.client.clone();
    reconcile::run(NAME, queue, 2, context.drain, move |key| {
        let (client, claim, users) = (client.clone(), claims.get_key(&key), all.by_index(pods::BY_CLAIM, &key.to_string()));
        async move {
            let Some(claim) = claim else { return Outcome::Done };
            match plan(&claim, &users) {
                Some(change) => finalizer::write(&client, &*claim, FINALIZER, change).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

/// A pod without a node does not count: the kubelet starts none whose claim is leaving.
fn plan(claim: &PersistentVolumeClaim, users: &[Arc<Pod>]) -> Option<finalizer::Change> {
    let in_use = users.iter().any(|pod| pods::node_name(pod).is_some());
    finalizer::decide(&claim.metadata, FINALIZER, in_use)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::finalizer::Change;

    #[test]
    fn a_leaving_claim_stays_as_long_as_a_scheduled_pod_uses_it() {
        let meta = json!({"name": "p-data", "namespace": "a", "finalizers": [FINALIZER], "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({ "metadata": meta })).unwrap();
        let pod = |node: &str| -> Arc<Pod> {
            let volumes = json!([{"name": "data", "ephemeral": {}}, {"name": "x", "persistentVolumeClaim": {"claimName": "y"}}]);
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [], "nodeName": node, "volumes": volumes}}),
                )
                .unwrap(),
            )
        };
        assert_eq!(pods::claims(&pod("")).map(|key| key.to_string()).collect::<Vec<_>>(), ["a/p-data", "a/y"]);
        assert_eq!(plan(&claim, &[pod("n")]), None);
        assert_eq!(plan(&claim, &[pod("")]), Some(Change::Remove));
        assert_eq!(plan(&claim, &[]), Some(Change::Remove));
    }
}
