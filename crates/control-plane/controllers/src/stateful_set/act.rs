//! The writes of a StatefulSet.

use std::sync::Arc;

use client::Error;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use reconcile::{EventKind, ObjectKey, Outcome, key_of, reference_to};

use super::plan::Plan;
use super::{Controller, World, claims, identity};
use crate::{act, history};

impl Controller {
    pub(super) async fn act(self: &Arc<Self>, world: &World, plan: Plan) -> Result<Outcome, Error> {
        let set = &*world.set;
        let key = key_of(&set.metadata);
        self.own.control.claim(set, &plan.adopt, &plan.release).await?;
        self.own_claims(world, &plan).await?;
        let mut failed = Ok(());
        for (ordinal, revision) in &plan.create {
            failed = self.create(world, &key, *ordinal, revision).await;
            if failed.is_err() {
                break;
            }
        }
        if failed.is_ok() {
            for pod in &plan.delete {
                self.delete(set, &key, pod).await?;
            }
        }
        if !set.status.as_ref().is_some_and(|current| act::same(current, &plan.status)) {
            act::write_status(&self.own.client, &StatefulSet { status: Some(plan.status.clone()), ..set.clone() }).await?;
        }
        failed?;
        let used = |name: &str| {
            let named = [&plan.status.current_revision, &plan.status.update_revision];
            named.into_iter().any(|live| live.as_deref() == Some(name)) || world.pods.iter().any(|pod| identity::revision(pod) == name)
        };
        self.own.prune(world, |revision| used(history::name(revision))).await?;
        Ok(plan.look_again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }

    /// The claims first: a pod without them could not start.
    async fn create(&self, world: &World, key: &ObjectKey, ordinal: i32, revision: &str) -> Result<(), Error> {
        let set = &*world.set;
        let about = reference_to(set);
        let name = identity::pod_name(set, ordinal);
        for claim in identity::claims(set, ordinal) {
            self.create_claim(set, &about, &name, claim).await?;
        }
        let kept = world.revisions.iter().find(|known| history::name(known) == revision).and_then(|known| history::template(known));
        let template = kept.unwrap_or_else(|| set.spec.template.clone());
        let pod = identity::pod(set, ordinal, template, revision);
        match self.own.control.create_silently(key, &pod).await {
            Ok(()) => {
                let message = format!("create Pod {name} in StatefulSet {} successful", key.name);
                self.own.control.recorder().event(&about, EventKind::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!("create Pod {name} in StatefulSet {} failed error: {error}", key.name);
                self.own.control.recorder().event(&about, EventKind::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn create_claim(
        &self,
        set: &StatefulSet,
        about: &ObjectReference,
        pod: &str,
        mut claim: PersistentVolumeClaim,
    ) -> Result<(), Error> {
        let key = key_of(&claim.metadata);
        let set_name = set.metadata.name.as_deref().unwrap_or_default();
        match self.claims.get_key(&key) {
            Some(known) if known.metadata.deletion_timestamp.is_some() => {
                let message = format!("pvc {} is being deleted", key.name);
                return Err(Error::Request(message));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        claim.metadata.owner_references = claims::owners(set, &claim, None, false);
        match self.own.client.create(&claim).await {
            Ok(_) => {
                let message = format!("create Claim {} Pod {pod} in StatefulSet {set_name} success", key.name);
                self.own.control.recorder().event(about, EventKind::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!("create Claim {} for Pod {pod} in StatefulSet {set_name} failed error: {error}", key.name);
                self.own.control.recorder().event(about, EventKind::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, key: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let (kind, reason, message, result) = match self.own.control.delete_silently(key, pod).await {
            Ok(false) => return Ok(()),
            Ok(true) => {
                (EventKind::Normal, "SuccessfulDelete", format!("delete Pod {name} in StatefulSet {} successful", key.name), Ok(()))
            }
            Err(error) => {
                let message = format!("delete Pod {name} in StatefulSet {} failed error: {error}", key.name);
                (EventKind::Warning, "FailedDelete", message, Err(error))
            }
        };
        self.own.control.recorder().event(&reference_to(set), kind, reason, message);
        result
    }

    /// Before a pod goes its claims must know whether they go with it.
    async fn own_claims(&self, world: &World, plan: &Plan) -> Result<(), Error> {
        let set = &*world.set;
        for pod in &world.pods {
            let Some(ordinal) = identity::ordinal(set, pod) else { continue };
            let condemned = plan.condemned.iter().any(|doomed| doomed.metadata.uid == pod.metadata.uid);
            for claim in identity::claims(set, ordinal) {
                let Some(claim) = self.claims.get_key(&key_of(&claim.metadata)) else { continue };
                if let Some(owners) = claims::owners(set, &claim, Some(pod), condemned) {
                    let mut next = PersistentVolumeClaim::clone(&claim);
                    next.metadata.owner_references = Some(owners);
                    client::ignore_not_found(self.own.client.replace(&next).await)?;
                }
            }
        }
        Ok(())
    }
}
