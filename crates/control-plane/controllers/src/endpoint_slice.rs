//! EndpointSlice: who serves a Service, in pieces of at most a hundred endpoints, so that one pod's change moves few bytes.
//!
//! Woken by Services, the pods that they select, and the slices themselves. Slices of a deleted Service are the garbage collector's.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cache, Expectations, ObjectKey, Outcome, Queue};

use crate::context::Context;
use crate::service;
use crate::slices::{self, MANAGED_BY, SERVICE_NAME};

mod observe;
mod plan;

pub(crate) const NAME: &str = "endpointslice-controller";
const WORKERS: usize = 8;
const US: &str = "endpointslice-controller.k8s.io";
const BY_SERVICE: &str = "slices-by-service";

pub(crate) struct Controller {
    client: client::Client,
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    slices: Cache<EndpointSlice>,
    expectations: Arc<Expectations<ObjectKey>>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        services: context.caches.of(),
        pods: context.caches.of(),
        nodes: context.caches.of(),
        slices: context.caches.of(),
        expectations: Arc::default(),
    });
    controller.slices.index(BY_SERVICE, |slice| service_of(&slice.metadata).map(|key| key.to_string()).into_iter().collect());
    let queue = Queue::new();
    service::wake(&controller.services, &controller.pods, &queue);
    let by_slice = queue.clone();
    controller.slices.on_change(move |old, new| {
        new.or(old).and_then(|slice| service_of(&slice.metadata)).into_iter().for_each(|key| by_slice.add(key));
    });
    tokio::join!(controller.services.synced(), controller.pods.synced(), controller.nodes.synced(), controller.slices.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

/// The Service whose slice this is, where it is one of ours.
fn service_of(meta: &ObjectMeta) -> Option<ObjectKey> {
    let labels: &BTreeMap<String, String> = meta.labels.as_ref()?;
    labels.get(MANAGED_BY).filter(|by| *by == US)?;
    Some(ObjectKey::new(meta.namespace.clone()?, labels.get(SERVICE_NAME)?))
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(world) = self.observe(&key) else { return Outcome::Done };
        let plan = plan::plan(&world);
        slices::write(&self.client, &self.expectations, &key, plan).await.into()
    }
}
