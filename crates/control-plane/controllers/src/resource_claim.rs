//! ResourceClaims (DRA, KEP-4381): made of templates for pods, reserved only for pods that live, given back when nobody uses them.
//!
//! One queue holds both: `pod:<ns>/<name>` and `claim:<ns>/<name>`. Allocation is the scheduler's.

use std::fmt;
use std::sync::Arc;

use client::{Client, DeleteParams, Error, Patch};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim, PodResourceClaimStatus};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::object::controller_of;
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};
use serde_json::json;

use crate::context::Context;
use crate::{act, finalizer, pods};

pub(crate) const NAME: &str = "resourceclaim-controller";
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Set by the scheduler when it allocates.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Pod(ObjectKey),
    Claim(ObjectKey),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Pod(key) => write!(f, "pod:{key}"),
            Key::Claim(key) => write!(f, "claim:{key}"),
        }
    }
}

struct Controller {
    client: Client,
    reader: Client,
    pods: Cache<Pod>,
    claims: Cache<ResourceClaim>,
    templates: Cache<ResourceClaimTemplate>,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        reader: context.reader.clone(),
        pods: context.caches.of(),
        claims: context.caches.of(),
        templates: context.caches.of(),
        recorder: context.recorder("resource_claim"),
    });
    controller.claims.index(pods::BY_CONTROLLER, |claim| pods::controller_uid(&claim.metadata));
    let queue: Queue<Key> = Queue::new();
    controller.wake(&queue);
    tokio::join!(controller.pods.synced(), controller.claims.synced(), controller.templates.synced());
    reconcile::run(NAME, queue, 8, context.drain, move |key| controller.clone().reconcile(key)).await;
}

fn asked(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default()
}

fn made(pod: &Pod) -> &[PodResourceClaimStatus] {
    pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref()).unwrap_or_default()
}

/// The claims that a pod uses, by name.
fn names(pod: &Pod) -> impl Iterator<Item = &String> {
    let given = asked(pod).iter().filter_map(|claim| claim.resource_claim_name.as_ref());
    given.chain(made(pod).iter().filter_map(|claim| claim.resource_claim_name.as_ref()))
}

impl Controller {
    fn wake(&self, queue: &Queue<Key>) {
        let by_pod = queue.clone();
        self.pods.on_change(move |old, new| {
            let Some(pod) = new.or(old).filter(|pod| !asked(pod).is_empty()) else { return };
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            by_pod.add(Key::Pod(key_of(&pod.metadata)));
            if new.is_none_or(|pod| !pods::is_active(pod)) {
                names(pod).for_each(|name| by_pod.add(Key::Claim(ObjectKey::new(namespace.clone(), name.clone()))));
            }
        });
        let by_claim = queue.clone();
        self.claims.on_change(move |old, new| {
            new.into_iter().for_each(|claim| by_claim.add(Key::Claim(key_of(&claim.metadata))));
            let owner = new.or(old).and_then(|claim| Some((claim.metadata.namespace.clone()?, controller_of(&claim.metadata)?.clone())));
            let owner = owner.filter(|(_, owner)| owner.kind == "Pod");
            owner.into_iter().for_each(|(namespace, owner)| by_claim.add(Key::Pod(ObjectKey::new(namespace, owner.name))));
        });
        let (by_template, all) = (queue.clone(), self.pods.clone());
        self.templates.on_change(move |_, new| {
            let Some(template) = new else { return };
            let waits = |pod: &&Arc<Pod>| asked(pod).iter().any(|claim| claim.resource_claim_template_name == template.metadata.name);
            let here = all.by_namespace(template.metadata.namespace.as_deref().unwrap_or_default());
            here.iter().filter(waits).for_each(|pod| by_template.add(Key::Pod(key_of(&pod.metadata))));
        });
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Outcome {
        match key {
            Key::Pod(key) => match self.pods.get_key(&key).filter(|pod| pods::is_active(pod)) {
                Some(pod) => self.make_claims(&pod).await.into(),
                None => Outcome::Done,
            },
            Key::Claim(key) => match self.claims.get_key(&key) {
                Some(claim) => self.give_back(&claim).await.into(),
                None => Outcome::Done,
            },
        }
    }

    async fn make_claims(&self, pod: &Pod) -> Result<(), Error> {
        let mut statuses = made(pod).to_vec();
        let own = self.claims.by_index(pods::BY_CONTROLLER, pod.metadata.uid.as_deref().unwrap_or_default());
        for wanted in asked(pod).iter().filter(|wanted| wanted.resource_claim_template_name.is_some()) {
            if statuses.iter().any(|status| status.name == wanted.name) {
                continue;
            }
            let known =
                own.iter().find(|claim| claim.metadata.annotations.as_ref().and_then(|all| all.get(POD_CLAIM)) == Some(&wanted.name));
            let name = match known {
                Some(claim) => claim.metadata.name.clone(),
                None => self.make_claim(pod, wanted).await?,
            };
            statuses.push(PodResourceClaimStatus { name: wanted.name.clone(), resource_claim_name: name });
        }
        if statuses.len() == made(pod).len() {
            return Ok(());
        }
        let key = key_of(&pod.metadata);
        let meta = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": meta, "status": {"resourceClaimStatuses": statuses}}));
        client::ignore_not_found(self.client.patch::<Pod>(key.namespace(), &key.name, &patch, "status").await)
    }

    async fn make_claim(&self, pod: &Pod, wanted: &PodResourceClaim) -> Result<Option<String>, Error> {
        let template = wanted.resource_claim_template_name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let created = match self.template(namespace, template).await {
            Ok(template) => self.client.create(&claim(pod, &wanted.name, &template)).await.map_err(|error| (error.to_string(), error)),
            Err(error) if error.is_not_found() => {
                Err((format!("resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"), error))
            }
            Err(error) => Err((error.to_string(), error)),
        };
        match created {
            Ok(claim) => {
                // Whoever looks at the pod again has to find the claim, or it would get another one.
                self.claims.wait_for_own(&claim).await;
                Ok(claim.metadata.name)
            }
            Err((why, error)) => {
                let message = format!("PodResourceClaim {}: {why}", wanted.name);
                self.recorder.event(&reference_to(pod), EventKind::Warning, "FailedResourceClaimCreation", message);
                Err(error)
            }
        }
    }

    /// A template made just before its pod may not be in the cache yet: nobody is told that it is missing before the server says so.
    async fn template(&self, namespace: &str, name: &str) -> Result<Arc<ResourceClaimTemplate>, Error> {
        match self.templates.get(namespace, name) {
            Some(template) => Ok(template),
            None => self.reader.get::<ResourceClaimTemplate>(Some(namespace), name).await.map(Arc::new),
        }
    }

    async fn give_back(&self, claim: &ResourceClaim) -> Result<(), Error> {
        let key = key_of(&claim.metadata);
        let lives = |user: &ResourceClaimConsumerReference| {
            let pod = self.pods.get(&key.namespace, &user.name).filter(|pod| pod.metadata.uid.as_deref() == Some(user.uid.as_str()));
            pod.is_some_and(|pod| {
                !pods::is_terminal(&pod) && !(pods::node_name(&pod).is_none() && pod.metadata.deletion_timestamp.is_some())
            })
        };
        if let Some(next) = reserved(claim, lives) {
            let freed = next.status.as_ref().is_none_or(|status| status.allocation.is_none());
            let written = self.client.replace_status(&next).await?;
            if freed && written.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER) {
                finalizer::write(&self.client, &written, FINALIZER, finalizer::Change::Remove).await?;
            }
            return Ok(());
        }
        // Made for a pod that has ended: of no use to anybody.
        let owner = controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod");
        let pod = owner.and_then(|owner| {
            self.pods.get(&key.namespace, &owner.name).filter(|pod| pod.metadata.uid.as_deref() == Some(owner.uid.as_str()))
        });
        if claim.metadata.deletion_timestamp.is_none() && pod.is_some_and(|pod| pods::is_terminal(&pod)) {
            let params = DeleteParams::of_uid(claim.metadata.uid.as_deref().unwrap_or_default());
            return client::ignore_not_found(self.client.delete::<ResourceClaim>(key.namespace(), &key.name, &params).await);
        }
        Ok(())
    }
}

fn claim(pod: &Pod, name: &str, template: &ResourceClaimTemplate) -> ResourceClaim {
    let template = template.spec.clone().unwrap_or_default();
    let given = template.metadata.unwrap_or_default();
    let mut annotations = given.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.into(), name.to_owned());
    let metadata = ObjectMeta {
        namespace: pod.metadata.namespace.clone(),
        generate_name: Some(format!("{}-{name}-", pod.metadata.name.as_deref().unwrap_or_default())),
        labels: given.labels,
        annotations: Some(annotations),
        owner_references: Some(vec![act::controller_ref(pod)]),
        ..ObjectMeta::default()
    };
    ResourceClaim { metadata, spec: template.spec, status: None }
}

/// The claim without users that are gone, and without its allocation when none is left; `None` where all users live.
fn reserved(claim: &ResourceClaim, lives: impl Fn(&ResourceClaimConsumerReference) -> bool) -> Option<ResourceClaim> {
    let status = claim.status.as_ref()?;
    let users = status.reserved_for.as_deref().unwrap_or_default();
    let is_pod =
        |user: &ResourceClaimConsumerReference| user.resource == "pods" && user.api_group.as_deref().unwrap_or_default().is_empty();
    let kept: Vec<_> = users.iter().filter(|user| !is_pod(user) || lives(user)).cloned().collect();
    if kept.len() == users.len() {
        return None;
    }
    let mut next = claim.clone();
    let status = next.status.get_or_insert_default();
    if kept.is_empty() {
        status.allocation = None;
        status.devices = None;
    }
    status.reserved_for = (!kept.is_empty()).then_some(kept);
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_keeps_its_devices_as_long_as_a_user_lives() {
        let user = |name: &str, group: &str| json!({"name": name, "resource": "pods", "uid": name, "apiGroup": group});
        let claim = |users: &[serde_json::Value]| -> ResourceClaim {
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {}, "status": {"allocation": {}, "reservedFor": users}}))
                .unwrap()
        };
        let lives = |user: &ResourceClaimConsumerReference| user.name == "alive";
        assert!(reserved(&claim(&[user("alive", ""), user("x", "other.io")]), lives).is_none());
        let one = reserved(&claim(&[user("alive", ""), user("gone", "")]), lives).unwrap().status.unwrap();
        assert_eq!((one.reserved_for.unwrap().len(), one.allocation.is_some()), (1, true));
        let none = reserved(&claim(&[user("gone", "")]), lives).unwrap().status.unwrap();
        assert_eq!((none.reserved_for, none.allocation), (None, None));
    }
}
