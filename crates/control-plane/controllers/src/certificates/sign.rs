//! Signs approved requests of the signers that are ours.
//!
//! Source: `pkg/controller/certificates/signer`.

use std::sync::Arc;
use std::time::Duration;

use auth::csr::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, Request, Signer};
use client::{Client, Error};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use super::{certificate, is, replace, usages, with_condition};
use crate::context::Context;

pub(crate) const NAME: &str = "certificatesigningrequest-signing-controller";
const SIGNERS: [&str; 4] = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY];
const SECONDS_MIN: i64 = 600;

pub(crate) async fn run(context: Context) {
    let Some(signer) = context.config.signer.clone() else {
        return context.drain.stopping().await;
    };
    let requests: Cache<CertificateSigningRequest> = context.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    requests.on_change(move |_, new| new.into_iter().for_each(|request| wake.add(key_of(&request.metadata))));
    requests.synced().await;
    let longest = context.config.signing_duration;
    let shared = Arc::new((context.client.clone(), requests, signer));
    reconcile::run(NAME, queue, 2, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, requests, signer) = &*shared;
            match requests.get_key(&key).and_then(|request| plan(&request, signer, longest)) {
                Some(signed) => act(client, &signed).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

/// The request with its certificate, or with why there is none; `None` where there is nothing to sign.
fn plan(request: &CertificateSigningRequest, signer: &Signer, longest: Duration) -> Option<CertificateSigningRequest> {
    let ours = SIGNERS.contains(&request.spec.signer_name.as_str());
    let waits = is(request, "Approved") && !is(request, "Denied") && !is(request, "Failed") && certificate(request).is_none();
    (ours && waits).then(|| match sign(request, signer, longest) {
        Ok(pem) => {
            let mut signed = request.clone();
            signed.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
            signed
        }
        Err(why) => with_condition(request, "Failed", "SignerValidationFailure", &why),
    })
}

fn sign(request: &CertificateSigningRequest, signer: &Signer, longest: Duration) -> Result<String, String> {
    let wanted = Request::parse(&request.spec.request.0).map_err(|error| error.to_string())?;
    let usages = usages(request);
    wanted.check(&request.spec.signer_name, &usages)?;
    let longest = i64::try_from(longest.as_secs()).unwrap_or(i64::MAX);
    let seconds = request.spec.expiration_seconds.map_or(longest, |seconds| i64::from(seconds).max(SECONDS_MIN).min(longest));
    signer.sign(&wanted, &usages, seconds).map_err(|error| error.to_string())
}

async fn act(client: &Client, signed: &CertificateSigningRequest) -> Result<(), Error> {
    replace(client, signed, "status").await
}
