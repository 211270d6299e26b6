//! The writes of a StatefulSet.

use std::sync::Arc;

use client::{DeleteParams, Error};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use reconcile::{EventKind, ObjectKey, Outcome, key_of, reference_to};

use super::observe::World;
use super::plan::Plan;
use super::{Controller, identity};
use crate::{act, history};

impl Controller {
    pub(super) async fn act(self: &Arc<Self>, world: &World, plan: Plan) -> Result<Outcome, Error> {
        let set = &world.set;
        let key = key_of(&set.metadata);
        if !plan.adopt.is_empty() && act::may_adopt(&self.client, &**set).await? {
            for pod in &plan.adopt {
                let revision = act::adopt::<Pod>(&self.client, &act::controller_ref(&**set), &pod.metadata).await?;
                self.expectations.wrote(&key, Some(&revision));
            }
        }
        for (ordinal, revision) in &plan.create {
            self.create(world, &key, *ordinal, revision).await?;
        }
        for pod in &plan.delete {
            self.delete(set, &key, pod).await?;
        }
        self.write_status(set, &plan.status).await?;
        let used = |name: &str| {
            let named = [&plan.status.current_revision, &plan.status.update_revision];
            named.into_iter().any(|live| live.as_deref() == Some(name)) || world.pods.iter().any(|pod| identity::revision(pod) == name)
        };
        let limit = set.spec.revision_history_limit.unwrap_or(10);
        history::prune(&self.client, &world.revisions, limit, |revision| used(history::name(revision))).await?;
        Ok(plan.look_again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }

    /// The claims first: a pod without them could not start.
    async fn create(&self, world: &World, key: &ObjectKey, ordinal: i32, revision: &str) -> Result<(), Error> {
        let set = &*world.set;
        let about = reference_to(set);
        for claim in identity::claims(set, ordinal) {
            let name = claim.metadata.name.clone().unwrap_or_default();
            if self.claims.get(&key.namespace, &name).is_some() {
                continue;
            }
            match self.client.create(&claim).await {
                Ok(_) => {
                    let message =
                        format!("create Claim {name} Pod {} in StatefulSet {} success", identity::pod_name(set, ordinal), key.name);
                    self.recorder.event(&about, EventKind::Normal, "SuccessfulCreate", message);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error),
            }
        }
        let kept = world.revisions.iter().find(|known| history::name(known) == revision).and_then(|known| history::template(known));
        let template = kept.unwrap_or_else(|| set.spec.template.clone());
        let pod = identity::pod(set, ordinal, template, revision);
        let name = pod.metadata.name.clone().unwrap_or_default();
        match self.client.create(&pod).await {
            Ok(created) => {
                self.expectations.wrote(key, created.metadata.resource_version.as_deref());
                let message = format!("create Pod {name} in StatefulSet {} successful", key.name);
                self.recorder.event(&about, EventKind::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!("create Pod {name} in StatefulSet {} failed error: {error}", key.name);
                self.recorder.event(&about, EventKind::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, key: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let pod_key = key_of(&pod.metadata);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let deleted = self.client.delete::<Pod>(pod_key.namespace(), &pod_key.name, &DeleteParams::of_uid(uid)).await;
        act::ignore_not_found(deleted.map(drop))?;
        let message = format!("delete Pod {} in StatefulSet {} successful", pod_key.name, key.name);
        self.recorder.event(&reference_to(set), EventKind::Normal, "SuccessfulDelete", message);
        self.expectations.deleted(key, pod_key, uid);
        Ok(())
    }

    async fn write_status(&self, set: &StatefulSet, next: &StatefulSetStatus) -> Result<(), Error> {
        if set.status.as_ref().is_some_and(|current| same(current, next)) {
            return Ok(());
        }
        let next = StatefulSet { status: Some(next.clone()), ..set.clone() };
        act::ignore_not_found(self.client.replace_status(&next).await.map(drop))
    }
}

/// Equal for a reader: absent counts are zero.
fn same(a: &StatefulSetStatus, b: &StatefulSetStatus) -> bool {
    let normal = |status: &StatefulSetStatus| {
        let mut status = status.clone();
        let counts = [
            &mut status.ready_replicas,
            &mut status.available_replicas,
            &mut status.current_replicas,
            &mut status.updated_replicas,
            &mut status.collision_count,
        ];
        counts.into_iter().for_each(|count| *count = Some(count.unwrap_or(0)));
        status
    };
    normal(a) == normal(b)
}
