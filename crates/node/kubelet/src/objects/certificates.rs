//! Certificates of pods (KEP-4317): a key that is made here and never leaves, a PodCertificateRequest, and the chain that comes back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::Client;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::lock;
use crate::podspec;

/// Upstream's default, and how soon after a failure the next request is made.
const SECONDS_DEFAULT: i32 = 86_400;
const RETRY: SignedDuration = SignedDuration::from_secs(60);
/// How long one look waits for a signer; the next look goes on waiting.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

/// A key and its certificate.
#[derive(Clone, Debug)]
pub struct Credential {
    key: String,
    chain: String,
    /// Until then it is shown, however renewing goes.
    expires: Timestamp,
    pub refresh_at: Timestamp,
}

impl Credential {
    /// The files that the source asks for, by path.
    pub fn files(&self, source: &PodCertificateProjection) -> Vec<(String, String)> {
        let wanted = |path: &Option<String>, text: String| path.clone().filter(|path| !path.is_empty()).map(|path| (path, text));
        let all = [
            wanted(&source.credential_bundle_path, format!("{}{}", self.key, self.chain)),
            wanted(&source.key_path, self.key.clone()),
            wanted(&source.certificate_chain_path, self.chain.clone()),
        ];
        all.into_iter().flatten().collect()
    }
}

/// Pod, volume, and place in the volume.
type Slot = (String, String, usize);

struct Pending {
    key: String,
    name: String,
}

pub struct Certificates {
    client: Client,
    node_name: String,
    issued: Mutex<BTreeMap<Slot, Credential>>,
    pending: Mutex<BTreeMap<Slot, Arc<Pending>>>,
}

impl Certificates {
    pub fn new(client: &Client, node_name: &str) -> Self {
        Self { client: client.clone(), node_name: node_name.to_owned(), issued: Mutex::default(), pending: Mutex::default() }
    }

    pub async fn get(
        &self,
        pod: &Pod,
        (volume, at): (&str, usize),
        source: &PodCertificateProjection,
        now: Timestamp,
    ) -> Result<Credential, String> {
        let slot = (podspec::uid(pod).to_owned(), volume.to_owned(), at);
        let known = lock(&self.issued).get(&slot).cloned();
        if let Some(known) = known.as_ref().filter(|known| now < known.refresh_at) {
            return Ok(known.clone());
        }
        match self.renew(&slot, pod, source, now).await {
            Ok(made) => {
                lock(&self.issued).insert(slot, made.clone());
                Ok(made)
            }
            // What is there serves while it lives; the next look tries again.
            Err(error) => match known.filter(|known| now < known.expires) {
                Some(known) => Ok(Credential { refresh_at: now + RETRY, ..known }),
                None => Err(error),
            },
        }
    }

    async fn renew(&self, slot: &Slot, pod: &Pod, source: &PodCertificateProjection, now: Timestamp) -> Result<Credential, String> {
        let waiting = lock(&self.pending).get(slot).cloned();
        let pending = match waiting {
            Some(pending) => pending,
            None => {
                let made = Arc::new(self.request(pod, source).await?);
                lock(&self.pending).insert(slot.clone(), made.clone());
                made
            }
        };
        let answer = tokio::time::timeout(PATIENCE, self.answer(podspec::namespace(pod), &pending.name)).await;
        let status = answer.map_err(|_| format!("certificate for pod is not issued yet by {}", source.signer_name))?;
        lock(&self.pending).remove(slot);
        outcome(&pending, status?, now)
    }

    async fn request(&self, pod: &Pod, source: &PodCertificateProjection) -> Result<Pending, String> {
        let failed = |step: &str, error: &dyn std::fmt::Display| format!("while creating PodCertificateRequest: {step}: {error}");
        let namespace = podspec::namespace(pod);
        let account_name =
            podspec::spec(pod).service_account_name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into());
        let account =
            self.client.get::<ServiceAccount>(Some(namespace), &account_name).await.map_err(|error| failed("service account", &error))?;
        let node = self.client.get::<Node>(None, &self.node_name).await.map_err(|error| failed("node", &error))?;
        let kind = source.key_type.clone();
        let stub = tokio::task::spawn_blocking(move || auth::csr::make_stub_of(&kind)).await.map_err(|error| failed("key", &error))?;
        let (key, stub) = stub.map_err(|error| failed("key", &error))?;
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: podspec::name(pod).into(),
            uid: podspec::uid(pod).into(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta {
            namespace: Some(namespace.into()),
            generate_name: Some("req-".into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        let spec = PodCertificateRequestSpec {
            signer_name: source.signer_name.clone(),
            pod_name: podspec::name(pod).into(),
            pod_uid: podspec::uid(pod).into(),
            service_account_name: account_name,
            service_account_uid: account.metadata.uid.unwrap_or_default(),
            node_name: self.node_name.clone(),
            node_uid: node.metadata.uid.unwrap_or_default(),
            max_expiration_seconds: Some(source.max_expiration_seconds.unwrap_or(SECONDS_DEFAULT)),
            stub_pkc_s10_request: ByteString(stub),
            unverified_user_annotations: source.user_annotations.clone(),
        };
        let made = self.client.create(&PodCertificateRequest { metadata, spec, status: None }).await;
        let name = made.map_err(|error| failed("request", &error))?.metadata.name.unwrap_or_default();
        Ok(Pending { key, name })
    }

    async fn answer(&self, namespace: &str, name: &str) -> Result<PodCertificateRequestStatus, String> {
        loop {
            match self.client.get::<PodCertificateRequest>(Some(namespace), name).await {
                Ok(request) => {
                    let status = request.status.unwrap_or_default();
                    if status.conditions.as_ref().is_some_and(|conditions| !conditions.is_empty()) {
                        return Ok(status);
                    }
                }
                Err(error) if error.is_not_found() => return Err(format!("PodCertificateRequest {namespace}/{name} is gone")),
                Err(error) => tracing::debug!(%error, name, "look for a pod's certificate; will retry"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub fn release(&self, uid: &str) {
        lock(&self.issued).retain(|slot, _| slot.0 != uid);
        lock(&self.pending).retain(|slot, _| slot.0 != uid);
    }
}

fn outcome(pending: &Pending, status: PodCertificateRequestStatus, now: Timestamp) -> Result<Credential, String> {
    let condition = status.conditions.iter().flatten().find(|condition| matches!(condition.type_.as_str(), "Issued" | "Denied" | "Failed"));
    match condition.map(|condition| (condition.type_.as_str(), condition)) {
        Some(("Issued", _)) => {
            let expires = status.not_after.map_or(now + RETRY, |time| time.0);
            let refresh_at = status.begin_refresh_at.map_or(expires, |time| time.0);
            Ok(Credential { key: pending.key.clone(), chain: status.certificate_chain.unwrap_or_default(), expires, refresh_at })
        }
        Some((kind, condition)) => {
            let what = if kind == "Denied" { "denied" } else { "failed" };
            Err(format!("podcertificaterequest {:?} was {what}: {}: {}", pending.name, condition.reason, condition.message))
        }
        None => Err(format!("podcertificaterequest {:?} has no answer", pending.name)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_answer_is_a_credential_or_says_who_refused() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let pending = Pending { key: "KEY\n".into(), name: "req-1".into() };
        let status = |kind: &str| -> PodCertificateRequestStatus {
            let condition =
                json!({"type": kind, "status": "True", "reason": "R", "message": "M", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            serde_json::from_value(json!({
                "conditions": [condition], "certificateChain": "CHAIN\n", "notBefore": "2026-01-01T00:00:00Z",
                "beginRefreshAt": "2026-01-01T16:00:00Z", "notAfter": "2026-01-02T00:00:00Z",
            }))
            .unwrap()
        };
        let made = outcome(&pending, status("Issued"), now).unwrap();
        assert_eq!(made.refresh_at.to_string(), "2026-01-01T16:00:00Z");
        let files = |source: Value| made.files(&serde_json::from_value(source).unwrap());
        let bundle = json!({"keyType": "ED25519", "signerName": "s/x", "credentialBundlePath": "both"});
        assert_eq!(files(bundle), [("both".to_owned(), "KEY\nCHAIN\n".to_owned())]);
        let apart = json!({"keyType": "ED25519", "signerName": "s/x", "keyPath": "k", "certificateChainPath": "c"});
        assert_eq!(files(apart), [("k".to_owned(), "KEY\n".to_owned()), ("c".to_owned(), "CHAIN\n".to_owned())]);
        assert_eq!(outcome(&pending, status("Denied"), now).unwrap_err(), "podcertificaterequest \"req-1\" was denied: R: M");
    }
}
