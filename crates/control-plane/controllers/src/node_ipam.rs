//! A pod range for every node, cut from the cluster's (upstream: node-ipam-controller with the RangeAllocator).
//!
//! Nobody else writes `spec.podCIDRs`, so what the Nodes say is the whole state: a start reads it from them.

use std::sync::{Arc, Mutex, PoisonError};

use client::{Client, Error, Patch};
use k8s_openapi::api::core::v1::Node;
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, reference_to};
use serde_json::json;

use crate::context::Context;

mod plan;

pub use plan::ClusterRange;
use plan::{Ranges, cidrs_of};

pub(crate) const NAME: &str = "node-ipam-controller";

struct Controller {
    client: Client,
    nodes: Cache<Node>,
    recorder: EventRecorder,
    /// One allocation after the other.
    ranges: Mutex<Vec<Ranges>>,
}

pub(crate) async fn run(context: Context) {
    if context.config.cluster_ranges.is_empty() {
        return;
    }
    let nodes: Cache<Node> = context.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let recorder = context.recorder("cidrAllocator");
    let ranges = Mutex::new(context.config.cluster_ranges.iter().copied().map(Ranges::new).collect());
    let controller = Arc::new(Controller { client: context.client.clone(), nodes: nodes.clone(), recorder, ranges });
    let (changed, taken) = (queue.clone(), controller.clone());
    nodes.on_change(move |old, new| {
        match (old, new) {
            (_, Some(node)) => taken.occupy(node),
            (Some(node), None) => taken.release(node),
            (None, None) => {}
        }
        if let Some(node) = new.filter(|node| cidrs_of(node).is_empty()) {
            changed.add(ObjectKey::new("", node.metadata.name.clone().unwrap_or_default()));
        }
    });
    nodes.synced().await;
    reconcile::run(NAME, queue, 1, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(node) = self.nodes.get_key(&key).filter(|node| cidrs_of(node).is_empty() && node.metadata.deletion_timestamp.is_none())
        else {
            return Outcome::Done;
        };
        let Some(cidrs) = self.allocate() else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.event(&reference_to(&*node), EventKind::Normal, "CIDRNotAvailable", message);
            return Outcome::Err("no free range for the node's pods".into());
        };
        match self.assign(&key.name, &cidrs).await {
            Ok(()) => Outcome::Done,
            Err(error) => {
                self.give_back(&cidrs);
                if error.is_not_found() { Outcome::Done } else { Outcome::Err(error.into()) }
            }
        }
    }

    async fn assign(&self, name: &str, cidrs: &[String]) -> Result<(), Error> {
        let patch = Patch::Merge(json!({ "spec": { "podCIDR": cidrs.first(), "podCIDRs": cidrs } }));
        // Known here at once: the next look must not give the node another.
        self.client.patch::<Node>(None, name, &patch, "").await.map(|node| self.nodes.apply(node))
    }

    fn allocate(&self) -> Option<Vec<String>> {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        for range in ranges.iter_mut() {
            taken.push(range.take());
        }
        if taken.iter().all(Option::is_some) {
            return Some(taken.into_iter().flatten().collect());
        }
        taken.iter().flatten().for_each(|cidr| ranges.iter_mut().for_each(|range| range.release(cidr)));
        None
    }

    fn give_back(&self, cidrs: &[String]) {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        cidrs.iter().for_each(|cidr| ranges.iter_mut().for_each(|range| range.release(cidr)));
    }

    fn occupy(&self, node: &Node) {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        cidrs_of(node).iter().for_each(|cidr| ranges.iter_mut().for_each(|range| range.claim(cidr)));
    }

    fn release(&self, node: &Node) {
        self.give_back(cidrs_of(node));
    }
}
