//! Removes what pods asked for once the kubelet has had time to take it: a quarter of an hour after it was made.
//!
//! Source: `pkg/controller/certificates/cleaner/pcrcleaner.go`.

use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use reconcile::Scope;

use crate::context::Context;
use crate::discovery;

pub(crate) const NAME: &str = "podcertificaterequest-cleaner-controller";
const KEPT: SignedDuration = SignedDuration::from_mins(15);

pub(crate) async fn run(context: Context) {
    if !discovery::is_served(&context, "certificates.k8s.io/v1", "podcertificaterequests").await {
        return context.drain.stopping().await;
    }
    let requests = context.cache::<PodCertificateRequest>(Scope::all());
    super::clean(NAME, requests, due, context).await;
}

fn due(request: &PodCertificateRequest) -> Option<Timestamp> {
    request.metadata.creation_timestamp.as_ref()?.0.checked_add(KEPT).ok()
}
