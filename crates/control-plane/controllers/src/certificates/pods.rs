//! Signs what pods ask for through their kubelets: client certificates in the name of the pod's service account (KEP-4317,
//! `kubernetes.io/kube-apiserver-client-pod`). Upstream names this signer and leaves it to be written; who asks for a pod was checked at
//! admission (NodeRestriction).

use std::sync::Arc;

use auth::csr::{POD_CLIENT, Request, Signer};
use client::{Client, Error};
use http::Method;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use reconcile::{ObjectKey, Outcome, Queue, Scope, key_of};

use crate::context::Context;
use crate::discovery;

pub(crate) const NAME: &str = "podcertificaterequest-signing-controller";
/// Signers of `kubernetes.io` never go beyond a day.
const SECONDS_MAX: i64 = 86_400;
const SECONDS_DEFAULT: i64 = 86_400;

pub(crate) async fn run(context: Context) {
    let served = discovery::is_served(&context, "certificates.k8s.io/v1", "podcertificaterequests").await;
    let (Some(signer), true) = (context.config.signer.clone(), served) else {
        return context.drain.stopping().await;
    };
    let scope = Scope::fields(format!("spec.signerName={POD_CLIENT}"));
    let requests = context.cache::<PodCertificateRequest>(scope);
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    requests.on_change(move |_, new| new.into_iter().for_each(|request| wake.add(key_of(&request.metadata))));
    requests.synced().await;
    let shared = Arc::new((context.client.clone(), requests, signer));
    reconcile::run(NAME, queue, 2, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, requests, signer) = &*shared;
            match requests.get_key(&key).and_then(|request| plan(&request, signer)) {
                Some(answered) => act(client, &answered).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

/// The request with its answer; `None` where it has one.
fn plan(request: &PodCertificateRequest, signer: &Signer) -> Option<PodCertificateRequest> {
    if request.status.as_ref().is_some_and(|status| status.conditions.as_ref().is_some_and(|conditions| !conditions.is_empty())) {
        return None;
    }
    let mut answered = request.clone();
    answered.status = Some(match sign(request, signer) {
        Ok(issued) => issued,
        Err((kind, reason, message)) => with_condition(PodCertificateRequestStatus::default(), kind, reason, &message),
    });
    Some(answered)
}

/// Condition, reason and message.
type Refusal = (&'static str, &'static str, String);

fn sign(request: &PodCertificateRequest, signer: &Signer) -> Result<PodCertificateRequestStatus, Refusal> {
    let spec = &request.spec;
    if let Some(key) = spec.unverified_user_annotations.iter().flatten().map(|(key, _)| key).next() {
        return Err(("Denied", "InvalidUnverifiedUserAnnotations", format!("this signer knows no annotations, {key:?} neither")));
    }
    let wanted = Request::parse_der(&spec.stub_pkc_s10_request.0);
    let wanted = wanted.map_err(|error| ("Failed", "InvalidRequest", error.to_string()))?;
    let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
    let (accounts, own) = ("system:serviceaccounts", format!("system:serviceaccounts:{namespace}"));
    let wanted = wanted.for_subject(&auth::tokens::username(namespace, &spec.service_account_name), &[accounts, &own]);
    let seconds = spec.max_expiration_seconds.map_or(SECONDS_DEFAULT, i64::from).min(SECONDS_MAX);
    let chain = signer.sign(&wanted, &["digital signature", "client auth"], seconds);
    let chain = chain.map_err(|error| ("Failed", "SigningError", error.to_string()))?;
    let (begin, end) = auth::csr::validity(&chain).ok_or(("Failed", "SigningError", "the certificate cannot be read".to_owned()))?;
    let at = |second: i64| Timestamp::from_second(second).ok().map(Time);
    let status = PodCertificateRequestStatus {
        certificate_chain: Some(chain),
        not_before: at(begin),
        not_after: at(end),
        // Two thirds of the way.
        begin_refresh_at: at(begin + (end - begin) / 3 * 2),
        ..PodCertificateRequestStatus::default()
    };
    Ok(with_condition(status, "Issued", "Signed", "Signed by the cluster's authority."))
}

fn with_condition(status: PodCertificateRequestStatus, kind: &str, reason: &str, message: &str) -> PodCertificateRequestStatus {
    let condition = Condition {
        type_: kind.into(),
        status: "True".into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    };
    PodCertificateRequestStatus { conditions: Some(vec![condition]), ..status }
}

/// That somebody else was faster is no failure: their write wakes us again.
async fn act(client: &Client, answered: &PodCertificateRequest) -> Result<(), Error> {
    let key = key_of(&answered.metadata);
    let path = format!("/apis/certificates.k8s.io/v1/namespaces/{}/podcertificaterequests/{}/status", key.namespace, key.name);
    let body = serde_json::to_vec(answered).unwrap_or_default();
    match client.request_json::<serde_json::Value>(Method::PUT, &path, Some(body.into())).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn a_pod_gets_a_certificate_of_its_service_account_for_a_day_at_most() {
        let directory = tempfile::tempdir().unwrap();
        let names = auth::pki::Names {
            api_hosts: Vec::new(),
            api_addresses: Vec::new(),
            cluster_domain: String::new(),
            node_name: "n".into(),
            node_addresses: Vec::new(),
        };
        let pki = auth::pki::Pki::open(directory.path(), &names).unwrap();
        let signer = Signer::new(&pki.issuing, &pki.ca_key).unwrap();
        let (_, stub) = auth::csr::make_stub().unwrap();
        let mut request = PodCertificateRequest::default();
        request.metadata.namespace = Some("a".into());
        request.spec.service_account_name = "bot".into();
        request.spec.max_expiration_seconds = Some(7 * 86_400);
        request.spec.stub_pkc_s10_request = ByteString(stub);
        let status = plan(&request, &signer).unwrap().status.unwrap();
        let condition = &status.conditions.as_ref().unwrap()[0];
        assert_eq!((condition.type_.as_str(), condition.status.as_str()), ("Issued", "True"));
        let chain = status.certificate_chain.clone().unwrap();
        let server = auth::tls::Server::new(&pki.api_server, &pki.ca).unwrap();
        let leaf = auth::pki::der(chain.as_bytes()).unwrap();
        let Some(auth::tls::Peer::User(user)) = server.peer(&[leaf.into()]) else { panic!("nobody's certificate") };
        assert_eq!(user.username, "system:serviceaccount:a:bot");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
        let (begin, end) = auth::csr::validity(&chain).unwrap();
        assert!(end - begin <= SECONDS_MAX + 300);
        request.status = Some(status);
        assert!(plan(&request, &signer).is_none());
        request.status = None;
        request.spec.unverified_user_annotations = Some([("a.b/c".to_owned(), "d".to_owned())].into());
        let denied = plan(&request, &signer).unwrap().status.unwrap().conditions.unwrap();
        assert_eq!((denied[0].type_.as_str(), denied[0].reason.as_str()), ("Denied", "InvalidUnverifiedUserAnnotations"));
    }
}
