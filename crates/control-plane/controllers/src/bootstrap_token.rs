//! Bootstrap tokens: deleted when they expire, and used to sign the public ConfigMap `cluster-info`, so that a joining node can trust it.
//!
//! The signature is a detached JWS with HMAC-SHA256 under the token's secret, as `kubeadm join` verifies it
//! (upstream: `bootstrapsigner` and `tokencleaner`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteParams, Error};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use reconcile::{Cache, ObjectKey, Outcome, Queue, Scope};
use sha2::{Digest, Sha256};

use crate::context::Context;

pub(crate) const NAME: &str = "bootstrap-token-controller";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const TOKENS: &str = "kube-system";
const PUBLIC: &str = "kube-public";
const CLUSTER_INFO: &str = "cluster-info";
const SIGNATURE: &str = "jws-kubeconfig-";
const BLOCK: usize = 64;

struct Controller {
    /// Two controllers upstream, each with a role of its own.
    signer: Client,
    cleaner: Client,
    secrets: Cache<Secret>,
    maps: Cache<ConfigMap>,
}

pub(crate) async fn run(context: Context) {
    let tokens = Scope { namespace: Some(TOKENS.into()), ..Scope::fields(format!("type={TYPE}")) };
    let info = Scope { namespace: Some(PUBLIC.into()), ..Scope::fields(format!("metadata.name={CLUSTER_INFO}")) };
    let controller = Arc::new(Controller {
        signer: context.reader.as_account("kube-system", "bootstrap-signer"),
        cleaner: context.reader.as_account("kube-system", "token-cleaner"),
        secrets: context.cache(tokens),
        maps: context.cache(info),
    });
    // One key: there is one ConfigMap, and few tokens.
    let queue: Queue<ObjectKey> = Queue::new();
    let key = || ObjectKey::new(PUBLIC, CLUSTER_INFO);
    let (by_secret, by_map) = (queue.clone(), queue.clone());
    controller.secrets.on_change(move |_, _| by_secret.add(key()));
    controller.maps.on_change(move |_, _| by_map.add(key()));
    tokio::join!(controller.secrets.synced(), controller.maps.synced());
    reconcile::run(NAME, queue, 1, context.drain, move |_| controller.clone().reconcile()).await;
}

#[derive(Default)]
struct Plan {
    expired: Vec<Arc<Secret>>,
    /// The ConfigMap with the signatures that it shall have.
    signed: Option<ConfigMap>,
    look_again: Option<Duration>,
}

impl Controller {
    async fn reconcile(self: Arc<Self>) -> Outcome {
        let plan = plan(&self.secrets.list(), self.maps.get(PUBLIC, CLUSTER_INFO).as_deref(), Timestamp::now());
        self.act(plan).await.into()
    }

    async fn act(&self, plan: Plan) -> Result<Outcome, Error> {
        for secret in &plan.expired {
            let name = secret.metadata.name.as_deref().unwrap_or_default();
            let params = DeleteParams::of_uid(secret.metadata.uid.as_deref().unwrap_or_default());
            client::ignore_not_found(self.cleaner.delete::<Secret>(Some(TOKENS), name, &params).await)?;
        }
        if let Some(map) = &plan.signed {
            client::ignore_not_found(self.signer.replace(map).await)?;
        }
        Ok(plan.look_again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

fn text<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    std::str::from_utf8(&secret.data.as_ref()?.get(name)?.0).ok()
}

fn plan(secrets: &[Arc<Secret>], map: Option<&ConfigMap>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut signers: BTreeMap<String, String> = BTreeMap::new();
    for secret in secrets {
        let left = text(secret, "expiration").and_then(|text| text.parse::<Timestamp>().ok()).map(|end| end.as_second() - now.as_second());
        match left {
            Some(left) if left <= 0 => {
                plan.expired.push(secret.clone());
                continue;
            }
            Some(left) => {
                let wait = Duration::from_secs(left.unsigned_abs());
                plan.look_again = Some(plan.look_again.map_or(wait, |other| other.min(wait)));
            }
            None => {}
        }
        let signs = text(secret, "usage-bootstrap-signing") == Some("true");
        if let (true, Some(id), Some(key)) = (signs, text(secret, "token-id"), text(secret, "token-secret")) {
            signers.insert(id.to_owned(), key.to_owned());
        }
    }
    plan.signed = map.and_then(|map| signed(map, &signers));
    plan
}

/// The ConfigMap with a signature per token, and none of tokens that are gone; `None` where nothing differs.
fn signed(map: &ConfigMap, signers: &BTreeMap<String, String>) -> Option<ConfigMap> {
    let data = map.data.clone().unwrap_or_default();
    let kubeconfig = data.get("kubeconfig")?;
    let mut next = data.clone();
    next.retain(|name, _| !name.starts_with(SIGNATURE));
    for (id, key) in signers {
        next.insert(format!("{SIGNATURE}{id}"), detached_jws(kubeconfig, id, key));
    }
    (next != data).then(|| ConfigMap { data: Some(next), ..map.clone() })
}

/// `header..signature` (RFC 7515, appendix F).
fn detached_jws(payload: &str, key_id: &str, key: &str) -> String {
    let header = base64url(format!(r#"{{"alg":"HS256","kid":"{key_id}"}}"#).as_bytes());
    let signature = hmac_sha256(key.as_bytes(), format!("{header}.{}", base64url(payload.as_bytes())).as_bytes());
    format!("{header}..{}", base64url(&signature))
}

/// RFC 2104.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; BLOCK];
    let digest = Sha256::digest(key);
    let key: &[u8] = if key.len() > BLOCK { &digest } else { key };
    block.iter_mut().zip(key).for_each(|(place, byte)| *place = *byte);
    let pad = |mask: u8| block.map(|byte| byte ^ mask);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..=chunk.len() {
            out.push(char::from(ALPHABET[(group >> (18 - 6 * index) & 63) as usize]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    #[test]
    fn signatures_are_those_of_the_standards() {
        // RFC 4231, test case 2.
        let hex: String = hmac_sha256(b"Jefe", b"what do ya want for nothing?").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert_eq!([base64url(b"f"), base64url(b"fo"), base64url(b"foo"), base64url(&[251, 255])], ["Zg", "Zm8", "Zm9v", "-_8"]);
    }

    #[test]
    fn living_tokens_sign_and_expired_ones_go() {
        let token = |id: &str, end: &str| {
            let data = [("token-id", id), ("token-secret", "s"), ("expiration", end), ("usage-bootstrap-signing", "true")];
            let data = data.into_iter().map(|(name, value)| (name.to_owned(), ByteString(value.into()))).collect();
            Arc::new(Secret { data: Some(data), ..Secret::default() })
        };
        let map: ConfigMap = serde_json::from_value(json!({"data": {"kubeconfig": "k", "jws-kubeconfig-old": "x"}})).unwrap();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let plan = plan(&[token("aaa", "2026-01-01T00:01:00Z"), token("old", "2025-01-01T00:00:00Z")], Some(&map), now);
        assert_eq!((plan.expired.len(), plan.look_again), (1, Some(Duration::from_secs(60))));
        let map = plan.signed.unwrap();
        assert_eq!(map.data.as_ref().unwrap().keys().collect::<Vec<_>>(), ["jws-kubeconfig-aaa", "kubeconfig"]);
        assert!(signed(&map, &BTreeMap::from([("aaa".to_owned(), "s".to_owned())])).is_none());
    }
}
