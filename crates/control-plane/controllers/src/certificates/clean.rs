//! Removes requests that are over: decided ones after an hour, forgotten ones after a day, and those whose certificate has ended.
//!
//! Source: `pkg/controller/certificates/cleaner`.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use reconcile::Cache;

use super::{certificate, conditions};
use crate::context::Context;

pub(crate) const NAME: &str = "certificatesigningrequest-cleaner-controller";
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

pub(crate) async fn run(context: Context) {
    let requests: Cache<CertificateSigningRequest> = context.caches.of();
    super::clean(NAME, requests, due, context).await;
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
