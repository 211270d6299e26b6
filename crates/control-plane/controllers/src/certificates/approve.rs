//! Approves what nodes ask for themselves: client certificates where the API grants the requester `certificatesigningrequests/nodeclient` or
//! `/selfnodeclient`, serving certificates for names and addresses that the requester's own Node has.
//!
//! Source: `pkg/controller/certificates/approver/sarapprove.go`. The serving rule is ours: upstream leaves it to the cluster's maker.

use std::sync::Arc;

use auth::csr::{KUBELET_CLIENT, KUBELET_SERVING, Request};
use client::{Client, Error};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use super::{certificate, is, replace, usages, with_condition};
use crate::context::Context;

pub(crate) const NAME: &str = "certificatesigningrequest-approving-controller";

pub(crate) async fn run(context: Context) {
    let requests: Cache<CertificateSigningRequest> = context.caches.of();
    let nodes: Cache<Node> = context.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    requests.on_change(move |_, new| new.into_iter().for_each(|request| wake.add(key_of(&request.metadata))));
    tokio::join!(requests.synced(), nodes.synced());
    let shared = Arc::new((context.client.clone(), requests, nodes));
    reconcile::run(NAME, queue, 2, context.drain, move |key| {
        let shared = shared.clone();
        async move {
            let (client, requests, nodes) = &*shared;
            let Some(request) = requests.get_key(&key) else { return Outcome::Done };
            let node = request.spec.username.as_deref().and_then(|user| user.strip_prefix("system:node:"));
            let node = node.and_then(|name| nodes.get("", name));
            act(client, &request, &plan(&request, node.as_deref())).await.into()
        }
    })
    .await;
}

/// What the approval depends on.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Not for us, decided already, or not of the form that its signer takes.
    Leave,
    Approve(&'static str),
    /// Approve if the requester may create one of these subresources, in this order.
    Ask(Vec<(&'static str, &'static str)>),
}

const SELF: (&str, &str) = ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.");
const ANY: (&str, &str) = ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");

fn plan(request: &CertificateSigningRequest, node: Option<&Node>) -> Plan {
    let spec = &request.spec;
    let decided = is(request, "Approved") || is(request, "Denied") || certificate(request).is_some();
    let ours = [KUBELET_CLIENT, KUBELET_SERVING].contains(&spec.signer_name.as_str());
    if decided || !ours {
        return Plan::Leave;
    }
    let Ok(wanted) = Request::parse(&spec.request.0) else { return Plan::Leave };
    if wanted.check(&spec.signer_name, &usages(request)).is_err() {
        return Plan::Leave;
    }
    let own = spec.username.as_deref() == Some(wanted.common_name.as_str());
    match spec.signer_name.as_str() {
        KUBELET_CLIENT if own => Plan::Ask(vec![SELF, ANY]),
        KUBELET_CLIENT => Plan::Ask(vec![ANY]),
        _ if own && node.is_some_and(|node| names_only(&wanted, node)) => {
            Plan::Approve("Auto approving kubelet serving certificate: every name and address is the Node's own.")
        }
        _ => Plan::Leave,
    }
}

fn names_only(wanted: &Request, node: &Node) -> bool {
    let addresses: Vec<&str> =
        node.status.iter().flat_map(|status| status.addresses.iter().flatten()).map(|address| address.address.as_str()).collect();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let known = |host: &str| host == name || addresses.contains(&host);
    wanted.dns_names.iter().all(|host| known(host)) && wanted.addresses.iter().all(|address| known(&address.to_string()))
}

async fn act(client: &Client, request: &CertificateSigningRequest, plan: &Plan) -> Result<(), Error> {
    match plan {
        Plan::Leave => Ok(()),
        Plan::Approve(message) => approve(client, request, message).await,
        Plan::Ask(subresources) => {
            for (subresource, message) in subresources {
                if may(client, request, subresource).await? {
                    return approve(client, request, message).await;
                }
            }
            Ok(())
        }
    }
}

async fn may(client: &Client, request: &CertificateSigningRequest, subresource: &str) -> Result<bool, Error> {
    let spec = &request.spec;
    let attributes = ResourceAttributes {
        group: Some("certificates.k8s.io".into()),
        resource: Some("certificatesigningrequests".into()),
        subresource: Some(subresource.into()),
        verb: Some("create".into()),
        version: Some("*".into()),
        ..ResourceAttributes::default()
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    Ok(client.create(&review).await?.status.is_some_and(|status| status.allowed))
}

async fn approve(client: &Client, request: &CertificateSigningRequest, message: &str) -> Result<(), Error> {
    replace(client, &with_condition(request, "Approved", "AutoApproved", message), "approval").await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_get_what_is_theirs() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}))
        .unwrap();
        let ask = |user: &str, signer: &str, name: &str, hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            let (_, pem) = auth::csr::make(name, &["system:nodes"], &hosts).unwrap();
            let mut request = CertificateSigningRequest::default();
            request.spec.request = ByteString(pem.into_bytes());
            request.spec.signer_name = signer.into();
            request.spec.username = Some(user.into());
            let purpose = if signer == KUBELET_SERVING { "server auth" } else { "client auth" };
            request.spec.usages = Some(vec!["digital signature".into(), purpose.into()]);
            plan(&request, (user == "system:node:n1").then_some(&node))
        };
        let (n1, joining) = ("system:node:n1", "system:bootstrap:abcdef");
        assert_eq!(ask(joining, KUBELET_CLIENT, n1, &[]), Plan::Ask(vec![ANY]));
        assert_eq!(ask(n1, KUBELET_CLIENT, n1, &[]), Plan::Ask(vec![SELF, ANY]));
        assert_eq!(ask(n1, KUBELET_CLIENT, "system:node:n2", &[]), Plan::Ask(vec![ANY]));
        assert!(matches!(ask(n1, KUBELET_SERVING, n1, &["n1", "192.0.2.1"]), Plan::Approve(_)));
        assert_eq!(ask(n1, KUBELET_SERVING, n1, &["n1", "192.0.2.9"]), Plan::Leave);
        assert_eq!(ask(n1, KUBELET_SERVING, n1, &["kubernetes.default"]), Plan::Leave);
        assert_eq!(ask(n1, KUBELET_SERVING, "system:node:n2", &["n1"]), Plan::Leave);
        assert_eq!(ask(n1, "example.com/x", n1, &[]), Plan::Leave);
    }
}
