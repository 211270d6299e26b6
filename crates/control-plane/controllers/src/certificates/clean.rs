//! Removes requests that are over: decided ones after an hour, forgotten ones after a day, and those whose certificate has ended.
//!
//! Source: `pkg/controller/certificates/cleaner`.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteParams, Error};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use super::{certificate, conditions};
use crate::act;
use crate::context::Context;

pub(crate) const NAME: &str = "certificatesigningrequest-cleaner-controller";
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

pub(crate) async fn run(context: Context) {
    let requests: Cache<CertificateSigningRequest> = context.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    requests.on_change(move |_, new| new.into_iter().for_each(|request| wake.add(key_of(&request.metadata))));
    requests.synced().await;
    let (client, again) = (context.client.clone(), queue.clone());
    let shared = Arc::new((client, requests, again));
    reconcile::run(NAME, queue, 1, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, requests, again) = &*shared;
            let Some(request) = requests.get_key(&key) else { return Outcome::Done };
            let now = Timestamp::now();
            match due(&request) {
                Some(at) if at <= now => remove(client, &request).await.into(),
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

/// When the request is over.
fn due(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let decided = conditions(request).map(|condition| condition.last_update_time.as_ref().map_or(created, |time| time.0)).max();
    let at = match decided {
        Some(at) => at.checked_add(DECIDED),
        None => created.checked_add(PENDING),
    };
    let ended = certificate(request).and_then(|pem| auth::csr::validity(std::str::from_utf8(pem).ok()?));
    let ended = ended.and_then(|(_, end)| Timestamp::from_second(end).ok());
    [at.ok(), ended].into_iter().flatten().min()
}

async fn remove(client: &Client, request: &CertificateSigningRequest) -> Result<(), Error> {
    let meta = &request.metadata;
    let params = DeleteParams::of_uid(meta.uid.as_deref().unwrap_or_default());
    let name = meta.name.as_deref().unwrap_or_default();
    act::ignore_not_found(client.delete::<CertificateSigningRequest>(None, name, &params).await.map(drop))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn decided_requests_go_after_an_hour_and_forgotten_ones_after_a_day() {
        let request = |conditions: serde_json::Value| -> CertificateSigningRequest {
            serde_json::from_value(json!({
                "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "x"}, "status": {"conditions": conditions},
            }))
            .unwrap()
        };
        let at = |request: &CertificateSigningRequest| due(request).unwrap().to_string();
        assert_eq!(at(&request(json!([]))), "2026-01-02T00:00:00Z");
        let denied = json!([{"type": "Denied", "status": "True", "lastUpdateTime": "2026-01-01T03:00:00Z"}]);
        assert_eq!(at(&request(denied)), "2026-01-01T04:00:00Z");
    }
}
