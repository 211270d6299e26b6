//! Namespace deletion: everything inside goes first, then the finalizer, then the Namespace.
//!
//! Woken by Namespaces. One reconcile stays with its namespace until it is empty or patience ends, looking only at the resources
//! that still had objects; conditions say what it waits for.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;

mod act;
mod observe;
mod plan;

pub(crate) const NAME: &str = "namespace-controller";
const WORKERS: usize = 10;

pub(crate) struct Controller {
    client: client::Client,
    namespaces: Cache<Namespace>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller { client: context.client.clone(), namespaces: context.caches.of() });
    let queue = Queue::new();
    let wake = queue.clone();
    controller.namespaces.on_change(move |_, new| {
        let leaving = new.filter(|namespace| namespace.metadata.deletion_timestamp.is_some());
        leaving.into_iter().for_each(|namespace| wake.add(key_of(&namespace.metadata)));
    });
    controller.namespaces.synced().await;
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        match self.namespaces.get_key(&key) {
            Some(namespace) if plan::is_ours(&namespace) => self.empty(&namespace).await.into(),
            _ => Outcome::Done,
        }
    }
}
