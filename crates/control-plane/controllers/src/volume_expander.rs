//! A claim that asks for more than its volume has: somebody outside has to enlarge it (a CSI driver's resizer, whose kubelet then
//! enlarges the file system), and the user is told who is waited for (upstream: `expand`, of which no more is left since every in-tree
//! driver became a CSI driver).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use reconcile::{EventKind, ObjectKey, Outcome, Queue, key_of, reference_to};

use crate::context::Context;
use crate::volume_binder::PROVISIONED_BY;

pub(crate) const NAME: &str = "persistentvolume-expander-controller";

pub(crate) async fn run(context: Context) {
    let (claims, volumes) = (context.caches.of::<PersistentVolumeClaim>(), context.caches.of::<PersistentVolume>());
    let recorder = context.recorder("volume_expand");
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    claims.on_change(move |old, new| {
        let grown = old.zip(new).filter(|(old, new)| has_grown(old, new));
        grown.into_iter().for_each(|(_, claim)| wake.add(key_of(&claim.metadata)));
    });
    tokio::join!(claims.synced(), volumes.synced());
    reconcile::run(NAME, queue, 2, context.drain, move |key| {
        let (claim, volumes, recorder) = (claims.get_key(&key), volumes.clone(), recorder.clone());
        async move {
            let Some(claim) = claim else { return Outcome::Done };
            let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
            if let Some((kind, message)) = plan(&claim, volumes.get("", &name)) {
                recorder.event(&reference_to(&*claim), kind, "ExternalExpanding", message);
            }
            Outcome::Done
        }
    })
    .await;
}

fn quantity(quantity: Option<&Quantity>) -> Option<meta::Quantity> {
    meta::Quantity::parse(&quantity?.0).ok()
}

fn asked(claim: &PersistentVolumeClaim) -> Option<meta::Quantity> {
    quantity(claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage"))
}

fn has_grown(old: &PersistentVolumeClaim, new: &PersistentVolumeClaim) -> bool {
    asked(new) > asked(old) && new.metadata.deletion_timestamp.is_none()
}

/// What the user is told; `None` where the volume is large enough or not the claim's.
fn plan(claim: &PersistentVolumeClaim, volume: Option<Arc<PersistentVolume>>) -> Option<(EventKind, &'static str)> {
    let volume = volume?;
    let spec = volume.spec.as_ref()?;
    let bound = spec.claim_ref.as_ref().is_some_and(|reference| reference.uid == claim.metadata.uid);
    let have = claim.status.as_ref().and_then(|status| quantity(status.capacity.as_ref()?.get("storage")));
    if !bound || asked(claim) <= have {
        return None;
    }
    // Of any other driver nobody is known who could.
    let provisioned = volume.metadata.annotations.as_ref().is_some_and(|known| known.contains_key(PROVISIONED_BY));
    let kind = if spec.csi.is_some() || provisioned { EventKind::Normal } else { EventKind::Warning };
    Some((kind, "waiting for an external controller to expand this PVC"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_claim_that_outgrew_its_volume_says_who_is_waited_for() {
        let claim = |asked: &str, have: &str| -> PersistentVolumeClaim {
            let spec = json!({"volumeName": "v", "resources": {"requests": {"storage": asked}}});
            serde_json::from_value(json!({"metadata": {"name": "c", "uid": "u"}, "spec": spec, "status": {"capacity": {"storage": have}}}))
                .unwrap()
        };
        let volume = |uid: &str, source: Value| {
            let mut spec = json!({"claimRef": {"uid": uid}});
            spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            Some(Arc::new(serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap()))
        };
        let csi = json!({"csi": {"driver": "d", "volumeHandle": "h"}});
        let kind = |claim: &PersistentVolumeClaim, volume| plan(claim, volume).map(|(kind, _)| kind);
        assert_eq!(kind(&claim("2Gi", "1Gi"), volume("u", csi.clone())), Some(EventKind::Normal));
        assert_eq!(kind(&claim("2Gi", "1Gi"), volume("u", json!({"hostPath": {"path": "/x"}}))), Some(EventKind::Warning));
        assert_eq!(kind(&claim("2Gi", "2048Mi"), volume("u", csi.clone())), None);
        assert_eq!(kind(&claim("2Gi", "1Gi"), volume("other", csi)), None);
        assert_eq!(kind(&claim("2Gi", "1Gi"), None), None);
        assert!(has_grown(&claim("1Gi", ""), &claim("2Gi", "")) && !has_grown(&claim("2Gi", ""), &claim("1Gi", "")));
    }
}
