//! ClusterTrustBundles as pods mount them (KEP-3257).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use client::Client;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use meta::selector::LabelSelector;
use reconcile::{Cache, Scope};
use stdx::Drain;

use super::{SYNC_TIMEOUT, Wake, lock};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// All bundles, watched from the first pod on that mounts one. A change wakes the pods that do.
pub struct Trust {
    client: Client,
    wake: Wake,
    drain: Drain,
    bundles: OnceLock<Cache<ClusterTrustBundle>>,
    users: Arc<Mutex<BTreeSet<String>>>,
}

impl Trust {
    pub fn new(client: &Client, wake: Wake, drain: &Drain) -> Self {
        Self { client: client.clone(), wake, drain: drain.clone(), bundles: OnceLock::new(), users: Arc::default() }
    }

    /// The certificates that a source names, each once, as PEM.
    pub async fn anchors(&self, uid: &str, source: &ClusterTrustBundleProjection) -> Result<String, String> {
        lock(&self.users).insert(uid.to_owned());
        let bundles = self.bundles.get_or_init(|| self.watch());
        if tokio::time::timeout(SYNC_TIMEOUT.min(Duration::from_secs(10)), bundles.synced()).await.is_err() {
            return Err("ClusterTrustBundle informer has not yet synced".into());
        }
        pick(&bundles.list(), source)
    }

    fn watch(&self) -> Cache<ClusterTrustBundle> {
        let cache = Cache::start(&self.client, Scope::all(), self.drain.clone());
        let (users, wake) = (self.users.clone(), self.wake.clone());
        cache.on_change(move |_, _| lock(&users).iter().for_each(|uid| wake(uid)));
        cache
    }

    pub fn release(&self, uid: &str) {
        lock(&self.users).remove(uid);
    }
}

fn pick(bundles: &[Arc<ClusterTrustBundle>], source: &ClusterTrustBundleProjection) -> Result<String, String> {
    let optional = source.optional == Some(true);
    let chosen: Vec<&Arc<ClusterTrustBundle>> = match (&source.name, &source.signer_name) {
        (Some(name), _) => bundles.iter().filter(|bundle| bundle.metadata.name.as_ref() == Some(name)).collect(),
        (None, Some(signer)) => {
            // Without a selector nothing is meant, with an empty one everything.
            let selector = source.label_selector.as_ref().and_then(|selector| serde_json::to_value(selector).ok());
            let selector = selector.and_then(|selector| LabelSelector::from_object(&selector).ok());
            let matches = |bundle: &&Arc<ClusterTrustBundle>| {
                let labels = bundle.metadata.labels.clone().unwrap_or_default();
                bundle.spec.signer_name.as_ref() == Some(signer) && selector.as_ref().is_some_and(|selector| selector.matches_map(&labels))
            };
            bundles.iter().filter(matches).collect()
        }
        (None, None) => return Err("source names neither a ClusterTrustBundle nor a signer".into()),
    };
    let certificates: BTreeSet<String> = chosen.iter().flat_map(|bundle| certificates(&bundle.spec.trust_bundle)).collect();
    if !optional && chosen.is_empty() {
        return Err(match &source.name {
            Some(name) => format!("error getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found"),
            None => "combination of signerName and labelSelector matched zero ClusterTrustBundles".into(),
        });
    }
    Ok(certificates.into_iter().collect())
}

/// Each certificate of a bundle, without what stands around it.
fn certificates(bundle: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = bundle;
    while let Some((_, from)) = rest.split_once(BEGIN) {
        let Some((body, after)) = from.split_once(END) else { break };
        let lines: String =
            body.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains(':')).map(|line| format!("{line}\n")).collect();
        found.push(format!("{BEGIN}\n{lines}{END}\n"));
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn certificate(body: &str) -> String {
        format!("{BEGIN}\n{body}\n{END}\n")
    }

    #[test]
    fn bundles_are_chosen_by_name_or_by_signer_and_labels_and_their_certificates_come_once() {
        let bundle = |name: &str, signer: Value, labels: Value, certificates: &[&str]| {
            let text: String = certificates.iter().map(|body| format!("# a comment\n{}", certificate(body))).collect();
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name, "labels": labels}, "spec": {"signerName": signer, "trustBundle": text}}),
                )
                .unwrap(),
            )
        };
        let bundles = [
            bundle("plain", Value::Null, json!({}), &["AA"]),
            bundle("x:live", json!("example.com/x"), json!({"stage": "live"}), &["BB", "CC"]),
            bundle("x:next", json!("example.com/x"), json!({"stage": "next"}), &["CC", "DD"]),
        ];
        let of = |source: Value| pick(&bundles, &serde_json::from_value(source).unwrap());
        assert_eq!(of(json!({"path": "p", "name": "plain"})).unwrap(), certificate("AA"));
        let both = ["BB", "CC", "DD"].map(certificate).concat();
        assert_eq!(of(json!({"path": "p", "signerName": "example.com/x", "labelSelector": {}})).unwrap(), both);
        let live = ["BB", "CC"].map(certificate).concat();
        assert_eq!(
            of(json!({"path": "p", "signerName": "example.com/x", "labelSelector": {"matchLabels": {"stage": "live"}}})).unwrap(),
            live
        );
        assert!(of(json!({"path": "p", "signerName": "example.com/x"})).unwrap_err().contains("matched zero"));
        assert!(of(json!({"path": "p", "name": "none"})).unwrap_err().contains("\"none\" not found"));
        assert_eq!(of(json!({"path": "p", "name": "none", "optional": true})).unwrap(), "");
    }
}
