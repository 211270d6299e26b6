//! Endpoints: the older form of who serves a Service, one object of at most a thousand addresses.
//!
//! Woken by Services and the pods that they select. Unlike slices it has no owner reference; it goes with its Service by name.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::{pods, service};

mod act;
mod plan;

pub(crate) const NAME: &str = "endpoints-controller";
const WORKERS: usize = 8;

pub(crate) struct Controller {
    client: client::Client,
    services: Cache<Service>,
    pods: Cache<Pod>,
    endpoints: Cache<Endpoints>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        services: context.caches.of(),
        pods: context.caches.of(),
        endpoints: context.caches.of(),
    });
    let queue = Queue::new();
    service::wake(&controller.services, &controller.pods, &queue);
    let by_endpoints = queue.clone();
    controller.endpoints.on_change(move |old, new| new.or(old).into_iter().for_each(|object| by_endpoints.add(key_of(&object.metadata))));
    tokio::join!(controller.services.synced(), controller.pods.synced(), controller.endpoints.synced());
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let found = self.services.get_key(&key);
        let serves = |pod: &Arc<Pod>| found.as_ref().is_some_and(|found| service::selects(found, pod)) && !pods::is_terminal(pod);
        let pods: Vec<Arc<Pod>> = match &found {
            Some(service) if service::is_selecting(service) => self.pods.by_namespace(&key.namespace).into_iter().filter(serves).collect(),
            _ => Vec::new(),
        };
        let write = plan::plan(found.as_deref(), &pods, self.endpoints.get_key(&key).as_deref());
        self.act(write).await.into()
    }
}
