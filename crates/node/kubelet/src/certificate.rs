//! How a kubelet gets its certificates: it makes a key, asks the API for a certificate, and waits until it is approved and signed.
//!
//! The first client certificate is asked for with a bootstrap token, all later ones with the one before.
//! Source: `k8s.io/client-go/util/certificate`, `pkg/kubelet/certificate`.

use std::time::Duration;

use auth::csr::{self, KUBELET_CLIENT, KUBELET_SERVING};
use auth::pki::Pair;
use client::Client;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Between two looks at a request that waits.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_LAST: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("certificate of node {node}: make a request")]
    Make { node: String, source: csr::Error },
    #[error("certificate of node {node}: ask the API")]
    Api { node: String, source: client::Error },
    #[error("certificate of node {node}: request {request} was refused: {why}")]
    Refused { node: String, request: String, why: String },
}

/// A client certificate `system:node:<node>` in group `system:nodes`.
pub async fn client_certificate(client: &Client, node: &str) -> Result<Pair, Error> {
    obtain(client, node, KUBELET_CLIENT, "client auth", &[]).await
}

/// A serving certificate for these names and addresses, which must be the Node's.
pub async fn serving_certificate(client: &Client, node: &str, hosts: &[String]) -> Result<Pair, Error> {
    obtain(client, node, KUBELET_SERVING, "server auth", hosts).await
}

async fn obtain(client: &Client, node: &str, signer: &str, purpose: &str, hosts: &[String]) -> Result<Pair, Error> {
    let made = csr::make(&format!("system:node:{node}"), &["system:nodes"], hosts);
    let (pair, pem) = made.map_err(|source| Error::Make { node: node.into(), source })?;
    let api = |source| Error::Api { node: node.into(), source };
    let request = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), purpose.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    };
    let mut request = client.create(&request).await.map_err(api)?;
    let name = request.metadata.name.clone().unwrap_or_default();
    let mut backoff = stdx::Backoff::new(LOOK_FIRST, LOOK_LAST);
    loop {
        let status = request.status.unwrap_or_default();
        if let Some(certificate) = status.certificate.filter(|certificate| !certificate.0.is_empty()) {
            return Ok(Pair { certificate: String::from_utf8_lossy(&certificate.0).into_owned(), ..pair });
        }
        let conditions = status.conditions.unwrap_or_default();
        if let Some(refusal) = conditions.iter().find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed")) {
            let why = refusal.message.clone().unwrap_or_default();
            return Err(Error::Refused { node: node.into(), request: name, why });
        }
        tokio::time::sleep(backoff.next_wait()).await;
        request = client.get(None, &name).await.map_err(api)?;
    }
}
