//! The ClusterTrustBundle of the authority that signs the API server's certificate (KEP-3257), where that resource is served.

use std::sync::Arc;

use client::{Client, Error};
use k8s_openapi::api::certificates::v1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{ObjectKey, Outcome, Queue, Scope};
use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::discovery;

pub(crate) const NAME: &str = "kube-apiserver-serving-clustertrustbundle-publisher-controller";
const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";

pub(crate) async fn run(context: Context) {
    let served = discovery::is_served(&context, "certificates.k8s.io/v1", "clustertrustbundles").await;
    if context.config.root_ca.get().is_empty() || !served {
        return;
    }
    let scope = Scope::fields(format!("spec.signerName={SIGNER}"));
    let bundles = context.cache::<ClusterTrustBundle>(scope);
    let queue: Queue<ObjectKey> = Queue::new();
    let (wake, key) = (queue.clone(), ObjectKey::new("", SIGNER));
    let again = key.clone();
    bundles.on_change(move |_, _| wake.add(again.clone()));
    let (changed, of_ours) = (queue.clone(), key.clone());
    context.config.root_ca.on_change(move || changed.add(of_ours.clone()));
    bundles.synced().await;
    queue.add(key);
    let shared = Arc::new((context.client.clone(), bundles, context.config.clone()));
    reconcile::run(NAME, queue, 1, context.drain, move |_| {
        let shared = shared.clone();
        async move {
            let (client, bundles, config) = &*shared;
            act(client, plan(&config.root_ca.get(), &bundles.list())).await.map(|()| Outcome::Done)
        }
    })
    .await;
}

#[derive(Default)]
struct Plan {
    create: Option<ClusterTrustBundle>,
    delete: Vec<String>,
}

/// The name holds a hash of the content: a bundle is never changed, only replaced by another.
fn plan(root_ca: &str, known: &[Arc<ClusterTrustBundle>]) -> Plan {
    let hash: String = Sha256::digest(root_ca.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("{}:{hash}", SIGNER.replace('/', ":"));
    let names: Vec<String> = known.iter().filter_map(|bundle| bundle.metadata.name.clone()).collect();
    let ours = format!("{}:", SIGNER.replace('/', ":"));
    let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
    let spec = ClusterTrustBundleSpec { signer_name: Some(SIGNER.into()), trust_bundle: root_ca.to_owned() };
    Plan {
        create: (!names.contains(&name)).then_some(ClusterTrustBundle { metadata, spec }),
        delete: names.into_iter().filter(|known| *known != name && known.starts_with(&ours)).collect(),
    }
}

async fn act(client: &Client, plan: Plan) -> Result<(), Error> {
    if let Some(bundle) = &plan.create {
        client::ignore_already_exists(client.create(bundle).await)?;
    }
    for name in &plan.delete {
        client::ignore_not_found(client.delete::<ClusterTrustBundle>(None, name, &Default::default()).await)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_authority_replaces_the_bundle_of_the_old_one() {
        let first = plan("old", &[]).create.unwrap();
        assert!(first.metadata.name.as_ref().unwrap().starts_with("kubernetes.io:kube-apiserver-serving:"));
        let known = [Arc::new(first.clone())];
        assert!(plan("old", &known).create.is_none() && plan("old", &known).delete.is_empty());
        let next = plan("new", &known);
        assert_eq!((next.create.is_some(), next.delete), (true, vec![first.metadata.name.unwrap()]));
    }
}
