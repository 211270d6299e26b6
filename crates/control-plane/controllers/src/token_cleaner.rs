//! Removes bootstrap tokens that have expired.
//!
//! Source: `pkg/controller/bootstrap/tokencleaner.go`.

use std::sync::Arc;
use std::time::Duration;

use client::DeleteParams;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Cache, ObjectKey, Outcome, Queue, Scope, key_of};

use crate::act;
use crate::context::Context;

pub(crate) const NAME: &str = "token-cleaner-controller";

pub(crate) async fn run(context: Context) {
    let scope = Scope {
        namespace: Some("kube-system".into()),
        field_selector: Some("type=bootstrap.kubernetes.io/token".into()),
        label_selector: None,
    };
    let secrets = Cache::<Secret>::start(&context.reader, scope, context.drain.clone());
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    secrets.on_change(move |_, new| new.into_iter().for_each(|secret| wake.add(key_of(&secret.metadata))));
    secrets.synced().await;
    let shared = Arc::new((context.client.clone(), secrets, queue.clone()));
    reconcile::run(NAME, queue, 1, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, secrets, again) = &*shared;
            let Some(secret) = secrets.get_key(&key) else { return Outcome::Done };
            let (Some(end), now) = (expiration(&secret), Timestamp::now()) else { return Outcome::Done };
            if end > now {
                again.add_after(key, Duration::try_from(end.duration_since(now)).unwrap_or_default());
                return Outcome::Done;
            }
            let params = DeleteParams::of_uid(secret.metadata.uid.as_deref().unwrap_or_default());
            act::ignore_not_found(client.delete::<Secret>(key.namespace(), &key.name, &params).await.map(drop)).into()
        }
    })
    .await;
}

/// When the token ends. One whose time cannot be read has no end here; nobody is let in with it either.
fn expiration(secret: &Secret) -> Option<Timestamp> {
    let bytes = &secret.data.as_ref()?.get("expiration")?.0;
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
