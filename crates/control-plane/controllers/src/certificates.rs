//! Certificates on request: who is known is approved, what is approved is signed, what is old is removed.
//!
//! Three controllers, as upstream, each with what it must see: [`approve`] asks the API whether the requester may have a node's certificate,
//! [`sign`] holds the key, [`clean`] a clock. What pods ask for needs nobody's approval: [`pods`] signs it, [`pods_clean`] removes it.

pub(crate) mod approve;
pub(crate) mod clean;
pub(crate) mod pods;
pub(crate) mod pods_clean;
pub(crate) mod sign;

use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteParams, Error, Object};
use http::Method;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;

fn is(request: &CertificateSigningRequest, condition: &str) -> bool {
    conditions(request).any(|found| found.type_ == condition)
}

fn conditions(request: &CertificateSigningRequest) -> impl Iterator<Item = &CertificateSigningRequestCondition> {
    request.status.iter().flat_map(|status| status.conditions.iter().flatten())
}

fn certificate(request: &CertificateSigningRequest) -> Option<&[u8]> {
    let certificate = request.status.as_ref()?.certificate.as_ref()?;
    (!certificate.0.is_empty()).then_some(certificate.0.as_slice())
}

fn usages(request: &CertificateSigningRequest) -> Vec<&str> {
    request.spec.usages.iter().flatten().map(String::as_str).collect()
}

/// The request with one more condition.
fn with_condition(request: &CertificateSigningRequest, kind: &str, reason: &str, message: &str) -> CertificateSigningRequest {
    let mut request = request.clone();
    let now = Some(Time(Timestamp::now()));
    let condition = CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: now.clone(),
        last_transition_time: now,
    };
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
    request
}

/// Writes a subresource; that somebody else was faster is no failure, for their write wakes us again.
async fn replace(client: &Client, request: &CertificateSigningRequest, subresource: &str) -> Result<(), Error> {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    let path = format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}/{subresource}");
    let body = serde_json::to_vec(request).unwrap_or_default();
    match client.request_json::<serde_json::Value>(Method::PUT, &path, Some(body.into())).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

/// Deletes what is over: each object of the cache when it is `due`.
async fn clean<K: Object>(name: &'static str, requests: Cache<K>, due: fn(&K) -> Option<Timestamp>, context: Context) {
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    requests.on_change(move |_, new| new.into_iter().for_each(|request| wake.add(key_of(request.metadata()))));
    requests.synced().await;
    let shared = Arc::new((context.client.clone(), requests, queue.clone()));
    reconcile::run(name, queue, 1, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, requests, again) = &*shared;
            let Some(request) = requests.get_key(&key) else { return Outcome::Done };
            let now = Timestamp::now();
            match due(&request) {
                Some(at) if at <= now => {
                    let params = DeleteParams::of_uid(request.metadata().uid.as_deref().unwrap_or_default());
                    client::ignore_not_found(client.delete::<K>(key.namespace(), &key.name, &params).await).into()
                }
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
