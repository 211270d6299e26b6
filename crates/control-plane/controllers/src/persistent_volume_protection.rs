//! A volume in use is not deleted under its claim: a finalizer holds it until it is bound no more (upstream: `pv-protection`).

use client::Client;
use k8s_openapi::api::core::v1::PersistentVolume;
use reconcile::{ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::finalizer;

pub(crate) const NAME: &str = "persistentvolume-protection-controller";
const FINALIZER: &str = "kubernetes.io/pv-protection";

pub(crate) async fn run(context: Context) {
    let volumes = context.caches.of::<PersistentVolume>();
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    volumes.on_change(move |_, new| new.into_iter().for_each(|volume| wake.add(key_of(&volume.metadata))));
    volumes.synced().await;
    let client: Client = context.client.clone();
    reconcile::run(NAME, queue, 2, context.drain, move |key| {
        let (client, volume) = (client.clone(), volumes.get_key(&key));
        async move {
            let Some(volume) = volume else { return Outcome::Done };
            match plan(&volume) {
                Some(change) => finalizer::write(&client, &*volume, FINALIZER, change).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

fn plan(volume: &PersistentVolume) -> Option<finalizer::Change> {
    let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    finalizer::decide(&volume.metadata, FINALIZER, bound)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::finalizer::Change;

    #[test]
    fn a_bound_volume_is_held_and_a_free_one_let_go() {
        let volume = |finalizers: &[&str], leaving: bool, phase: &str| {
            let time = leaving.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({"metadata": {"finalizers": finalizers, "deletionTimestamp": time}, "status": {"phase": phase}}))
                .unwrap()
        };
        assert_eq!(plan(&volume(&[], false, "Available")), Some(Change::Add));
        assert_eq!(plan(&volume(&[FINALIZER], false, "Bound")), None);
        assert_eq!(plan(&volume(&[FINALIZER], true, "Bound")), None);
        assert_eq!(plan(&volume(&[FINALIZER], true, "Released")), Some(Change::Remove));
        assert_eq!(plan(&volume(&[], true, "Released")), None);
    }
}
