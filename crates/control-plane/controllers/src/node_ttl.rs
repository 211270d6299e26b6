//! The annotation that tells kubelets for how long they may keep Secrets and ConfigMaps: the longer, the more nodes there are.

use client::{Client, Error, Patch};
use k8s_openapi::api::core::v1::Node;
use reconcile::{ObjectKey, Outcome, Queue, key_of};
use serde_json::json;

use crate::context::Context;

pub(crate) const NAME: &str = "ttl-controller";
const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";
/// From this many nodes on, and down to that many, so many seconds.
const STEPS: [(usize, usize, u32); 5] = [(0, 0, 0), (101, 90, 15), (501, 450, 30), (1001, 900, 60), (2001, 1800, 300)];

pub(crate) async fn run(context: Context) {
    let nodes = context.caches.of::<Node>();
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    nodes.on_change(move |_, new| new.into_iter().for_each(|node| wake.add(key_of(&node.metadata))));
    nodes.synced().await;
    let client: Client = context.client.clone();
    reconcile::run(NAME, queue, 2, context.drain, move |key| {
        let (client, node, count) = (client.clone(), nodes.get_key(&key), nodes.len());
        async move {
            match node.and_then(|node| plan(&node, count).map(|seconds| (node, seconds))) {
                Some((node, seconds)) => act(&client, &node, seconds).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

/// The seconds to write; `None` where they stand. Between two steps a node keeps what it has.
fn plan(node: &Node, count: usize) -> Option<u32> {
    let known = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION)).and_then(|text| text.parse().ok());
    let highest = STEPS.iter().rev().find(|(from, _, _)| count >= *from).map_or(0, |(_, _, seconds)| *seconds);
    let kept = STEPS.iter().find(|(_, _, seconds)| Some(*seconds) == known).filter(|(_, down_to, _)| count >= *down_to);
    let wanted = kept.map_or(highest, |(_, _, seconds)| highest.max(*seconds));
    (known != Some(wanted)).then_some(wanted)
}

async fn act(client: &Client, node: &Node, seconds: u32) -> Result<(), Error> {
    let patch = json!({"metadata": {"uid": node.metadata.uid, "annotations": {ANNOTATION: seconds.to_string()}}});
    let name = node.metadata.name.as_deref().unwrap_or_default();
    client::ignore_not_found(client.patch::<Node>(None, name, &Patch::Merge(patch), "").await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_grows_with_the_cluster_and_shrinks_late() {
        let cases =
            [(None, 1, Some(0)), (Some("0"), 100, None), (Some("0"), 101, Some(15)), (Some("15"), 95, None), (Some("15"), 80, Some(0))];
        for (known, count, expected) in cases {
            let annotations = known.map(|known| serde_json::json!({ANNOTATION: known}));
            let node = serde_json::from_value(serde_json::json!({"metadata": {"annotations": annotations}})).unwrap();
            assert_eq!(plan(&node, count), expected, "{known:?} {count}");
        }
    }
}
