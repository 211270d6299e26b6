//! Removes what pods asked for once the kubelet has had time to take it: a quarter of an hour after it was made.
//!
//! Source: `pkg/controller/certificates/cleaner/pcrcleaner.go`.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteParams, Error};
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use reconcile::{Cache, ObjectKey, Outcome, Queue, Scope, key_of};

use crate::context::Context;
use crate::{act, discovery};

pub(crate) const NAME: &str = "podcertificaterequest-cleaner-controller";
const KEPT: SignedDuration = SignedDuration::from_mins(15);

pub(crate) async fn run(context: Context) {
    if !discovery::is_served(&context, "certificates.k8s.io/v1", "podcertificaterequests").await {
        return context.drain.stopping().await;
    }
    let requests = Cache::<PodCertificateRequest>::start(&context.reader, Scope::all(), context.drain.clone());
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    requests.on_change(move |_, new| new.into_iter().for_each(|request| wake.add(key_of(&request.metadata))));
    requests.synced().await;
    let shared = Arc::new((context.client.clone(), requests, queue.clone()));
    reconcile::run(NAME, queue, 1, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, requests, again) = &*shared;
            let Some(request) = requests.get_key(&key) else { return Outcome::Done };
            let now = Timestamp::now();
            match due(&request) {
                Some(at) if at <= now => remove(client, &key, &request).await.into(),
                Some(at) => {
                    let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                    again.add_after(key, wait + Duration::from_secs(1));
                    Outcome::Done
                }
                None => Outcome::Done,
            }
        }
    })
    .await;
}

fn due(request: &PodCertificateRequest) -> Option<Timestamp> {
    request.metadata.creation_timestamp.as_ref()?.0.checked_add(KEPT).ok()
}

async fn remove(client: &Client, key: &ObjectKey, request: &PodCertificateRequest) -> Result<(), Error> {
    let params = DeleteParams::of_uid(request.metadata.uid.as_deref().unwrap_or_default());
    act::ignore_not_found(client.delete::<PodCertificateRequest>(key.namespace(), &key.name, &params).await.map(drop))
}
