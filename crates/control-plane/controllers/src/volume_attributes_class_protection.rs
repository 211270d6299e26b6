//! A VolumeAttributesClass is not deleted while a volume has it or a claim asks for it (upstream:
//! `volumeattributesclass-protection-controller`, KEP-3751).

use std::collections::BTreeSet;

use client::Client;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use reconcile::{ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::finalizer;

pub(crate) const NAME: &str = "volumeattributesclass-protection-controller";
const FINALIZER: &str = "kubernetes.io/vac-protection";

pub(crate) async fn run(context: Context) {
    let classes = context.caches.of::<VolumeAttributesClass>();
    let (claims, volumes) = (context.caches.of::<PersistentVolumeClaim>(), context.caches.of::<PersistentVolume>());
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_class, by_claim, by_volume) = (queue.clone(), queue.clone(), queue.clone());
    classes.on_change(move |_, new| new.into_iter().for_each(|class| by_class.add(key_of(&class.metadata))));
    // Only what lets a class go can change what is to be done.
    claims.on_change(move |old, new| {
        let now = new.map(|claim| of_claim(claim)).unwrap_or_default();
        let before = old.map(|claim| of_claim(claim)).unwrap_or_default();
        before.difference(&now).for_each(|name| by_claim.add(ObjectKey::new("", name.clone())));
    });
    volumes.on_change(move |old, new| {
        let (before, now) = (old.and_then(|volume| of_volume(volume)), new.and_then(|volume| of_volume(volume)));
        before.filter(|before| Some(before) != now.as_ref()).into_iter().for_each(|name| by_volume.add(ObjectKey::new("", name)));
    });
    tokio::join!(classes.synced(), claims.synced(), volumes.synced());
    let client: Client = context.client.clone();
    reconcile::run(NAME, queue, 2, context.drain, move |key| {
        let (client, class) = (client.clone(), classes.get_key(&key));
        let leaving = class.as_ref().is_some_and(|class| class.metadata.deletion_timestamp.is_some());
        let in_use = leaving
            && (claims.list().iter().any(|claim| of_claim(claim).contains(&key.name))
                || volumes.list().iter().any(|volume| of_volume(volume).as_ref() == Some(&key.name)));
        async move {
            let Some(class) = class else { return Outcome::Done };
            match finalizer::decide(&class.metadata, FINALIZER, in_use) {
                Some(change) => finalizer::write(&client, &*class, FINALIZER, change).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

/// The classes that a claim has, wants, or is on its way to.
fn of_claim(claim: &PersistentVolumeClaim) -> BTreeSet<String> {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.clone());
    let target = status.and_then(|status| status.modify_volume_status.as_ref()?.target_volume_attributes_class_name.clone());
    [wanted, current, target].into_iter().flatten().collect()
}

fn of_volume(volume: &PersistentVolume) -> Option<String> {
    volume.spec.as_ref()?.volume_attributes_class_name.clone()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_holds_the_class_it_has_the_one_it_wants_and_the_one_it_is_given() {
        let status = json!({"currentVolumeAttributesClassName": "a", "modifyVolumeStatus": {"targetVolumeAttributesClassName": "b", "status": "InProgress"}});
        let claim = json!({"metadata": {"name": "c"}, "spec": {"volumeAttributesClassName": "c"}, "status": status});
        let held = of_claim(&serde_json::from_value(claim).unwrap());
        assert_eq!(held.into_iter().collect::<String>(), "abc");
    }
}
