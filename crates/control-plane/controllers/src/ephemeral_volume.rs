//! Generic ephemeral volumes: a claim per volume of a pod, owned by the pod and gone with it (KEP-1698).

use std::sync::Arc;

use client::{Client, Error};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::object::controller_of;
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};

use crate::context::Context;
use crate::{act, pods};

pub(crate) const NAME: &str = "ephemeral-volume-controller";

struct Controller {
    client: Client,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        pods: context.caches.of(),
        claims: context.caches.of(),
        recorder: context.recorder("ephemeral_volume"),
    });
    let queue: Queue<ObjectKey> = Queue::new();
    let (by_pod, by_claim) = (queue.clone(), queue.clone());
    controller.pods.on_change(move |_, new| {
        let concerned = new.filter(|pod| has_ephemeral_volume(pod));
        concerned.into_iter().for_each(|pod| by_pod.add(key_of(&pod.metadata)));
    });
    controller.claims.on_change(move |old, new| {
        // A claim that was deleted under its pod is made again.
        let gone = old.filter(|_| new.is_none());
        let owner = gone.and_then(|claim| Some((claim.metadata.namespace.clone()?, controller_of(&claim.metadata)?.clone())));
        let owner = owner.filter(|(_, owner)| owner.kind == "Pod");
        owner.into_iter().for_each(|(namespace, owner)| by_claim.add(ObjectKey::new(namespace, owner.name)));
    });
    tokio::join!(controller.pods.synced(), controller.claims.synced());
    reconcile::run(NAME, queue, 4, context.drain, move |key| controller.clone().reconcile(key)).await;
}

fn has_ephemeral_volume(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().any(|volume| volume.ephemeral.is_some())
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(pod) = self.pods.get_key(&key).filter(|pod| pods::is_active(pod)) else { return Outcome::Done };
        for claim in plan(&pod) {
            let known = self.claims.get_key(&key_of(&claim.metadata));
            if let Err(error) = self.act(&pod, claim, known.as_deref()).await {
                return Outcome::Err(error.into());
            }
        }
        Outcome::Done
    }

    async fn act(&self, pod: &Pod, claim: PersistentVolumeClaim, known: Option<&PersistentVolumeClaim>) -> Result<(), Error> {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        if let Some(known) = known {
            if controller_of(&known.metadata).map(|owner| Some(&owner.uid)) != Some(pod.metadata.uid.as_ref()) {
                let message =
                    format!("PVC {} was not created for pod {} (pod is not owner)", key_of(&known.metadata), key_of(&pod.metadata));
                self.recorder.event(&reference_to(pod), EventKind::Warning, "EphemeralVolumeConflict", message);
            }
            return Ok(());
        }
        match self.client.create(&claim).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!("ephemeral volume claim {name}: {error}");
                self.recorder.event(&reference_to(pod), EventKind::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }
}

/// The claims that the pod's ephemeral volumes are.
fn plan(pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let templates = volumes.iter().filter_map(|volume| Some((&volume.name, volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?)));
    let claim = |(volume, template): (&String, &k8s_openapi::api::core::v1::PersistentVolumeClaimTemplate)| {
        let meta = template.metadata.clone().unwrap_or_default();
        let metadata = ObjectMeta {
            namespace: pod.metadata.namespace.clone(),
            name: Some(format!("{pod_name}-{volume}")),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![act::controller_ref(pod)]),
            ..ObjectMeta::default()
        };
        PersistentVolumeClaim { metadata, spec: Some(template.spec.clone()), status: None }
    };
    templates.map(claim).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_ephemeral_volume_is_a_claim_that_belongs_to_the_pod() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"storageClassName": "fast"}});
        let volumes = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}, {"name": "tmp", "emptyDir": {}}]);
        let pod = json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {"containers": [], "volumes": volumes}});
        let claims = plan(&serde_json::from_value(pod).unwrap());
        let [claim] = &claims[..] else { panic!("{claims:?}") };
        assert_eq!(claim.metadata.name.as_deref(), Some("p-scratch"));
        assert_eq!(controller_of(&claim.metadata).map(|owner| owner.uid.as_str()), Some("u"));
        assert_eq!(claim.spec.as_ref().unwrap().storage_class_name.as_deref(), Some("fast"));
    }
}
