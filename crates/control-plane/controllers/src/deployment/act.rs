//! The writes of a Deployment.

use std::sync::Arc;

use client::{DeleteParams, Error, Patch};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use reconcile::object::controller_of;
use reconcile::{EventKind, ObjectKey, Outcome, key_of, reference_to};
use serde_json::json;

use super::observe::World;
use super::plan::Plan;
use super::scale::replicas;
use super::{Controller, annotations, status, template};
use crate::act;

impl Controller {
    pub(super) async fn act(&self, world: &World, plan: Plan) -> Result<Outcome, Error> {
        let deployment = &*world.deployment;
        let key = key_of(&deployment.metadata);
        if plan.selects_all {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&reference_to(deployment), EventKind::Warning, "SelectingAll", message);
        }
        self.claim(deployment, &key, &plan).await?;
        if let Some(set) = &plan.create {
            if let Some(failed) = self.create(world, &key, set).await? {
                self.write_status(deployment, failed).await?;
                return Ok(Outcome::Done);
            }
        }
        for (is, shall) in &plan.update {
            self.update(deployment, &key, is, shall).await?;
        }
        for set in &plan.delete {
            self.delete(&key, set).await?;
        }
        let revised = self.write_revision(deployment, plan.revision.as_deref()).await?;
        if let Some(status) = plan.status {
            self.write_status(revised.as_ref().unwrap_or(deployment), status).await?;
        }
        Ok(plan.look_again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }

    async fn claim(&self, deployment: &Deployment, key: &ObjectKey, plan: &Plan) -> Result<(), Error> {
        let owner = act::controller_ref(deployment);
        for set in &plan.release {
            match act::release::<ReplicaSet>(&self.client, &owner.uid, &set.metadata, None).await {
                Ok(revision) => self.expectations.wrote(key, Some(&revision)),
                Err(error) if error.is_not_found() || error.is_conflict() || error.is_invalid() => {}
                Err(error) => return Err(error),
            }
        }
        if plan.adopt.is_empty() || !act::may_adopt(&self.client, deployment).await? {
            return Ok(());
        }
        for set in &plan.adopt {
            let revision = act::adopt::<ReplicaSet>(&self.client, &owner, &set.metadata, None).await?;
            self.expectations.wrote(key, Some(&revision));
        }
        Ok(())
    }

    /// `Some`: it could not be made, and this status says why.
    async fn create(&self, world: &World, key: &ObjectKey, set: &ReplicaSet) -> Result<Option<DeploymentStatus>, Error> {
        let deployment = &*world.deployment;
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let error = match self.client.create(set).await {
            Ok(created) => {
                self.expectations.wrote(key, created.metadata.resource_version.as_deref());
                self.tell_scaled(deployment, name, 0, replicas(set));
                return Ok(None);
            }
            Err(error) if error.is_already_exists() => match self.resolve_collision(deployment, key, set).await? {
                None => return Ok(None),
                collided => return Ok(collided),
            },
            Err(error) if error.is_namespace_terminating() || error.is_not_found() => {
                return Ok(Some(deployment.status.clone().unwrap_or_default()));
            }
            Err(error) => error,
        };
        let message = format!("Failed to create new replica set {name:?}: {error}");
        self.recorder.event(&reference_to(deployment), EventKind::Warning, "ReplicaSetCreateError", &message);
        if status::deadline(deployment).is_some() {
            let mut failed = deployment.status.clone().unwrap_or_default();
            status::set_condition(
                &mut failed,
                status::new_condition(status::PROGRESSING, "False", "ReplicaSetCreateError", message, world.now),
            );
            self.write_status(deployment, failed).await?;
        }
        Err(error)
    }

    /// The name is taken: by the set that we want (made by us, not yet in the cache), or by another, which asks for another hash.
    async fn resolve_collision(
        &self,
        deployment: &Deployment,
        key: &ObjectKey,
        set: &ReplicaSet,
    ) -> Result<Option<DeploymentStatus>, Error> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let found: ReplicaSet = self.client.get(key.namespace(), name).await?;
        let ours = controller_of(&found.metadata).is_some_and(|owner| Some(&owner.uid) == deployment.metadata.uid.as_ref());
        let template = |set: &ReplicaSet| set.spec.template.clone().unwrap_or_default();
        if ours && template::same(&template(&found), &template(set)) {
            self.expectations.wrote(key, found.metadata.resource_version.as_deref());
            return Ok(None);
        }
        let status = deployment.status.clone().unwrap_or_default();
        let collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        Ok(Some(DeploymentStatus { collision_count, ..status }))
    }

    async fn update(&self, deployment: &Deployment, key: &ObjectKey, is: &Arc<ReplicaSet>, shall: &ReplicaSet) -> Result<(), Error> {
        let written = self.client.replace(shall).await?;
        self.expectations.wrote(key, written.metadata.resource_version.as_deref());
        let (from, to) = (replicas(is), replicas(shall));
        if from != to {
            self.tell_scaled(deployment, is.metadata.name.as_deref().unwrap_or_default(), from, to);
        }
        Ok(())
    }

    fn tell_scaled(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        if from != to {
            let direction = if to > from { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
            self.recorder.event(&reference_to(deployment), EventKind::Normal, "ScalingReplicaSet", message);
        }
    }

    async fn delete(&self, key: &ObjectKey, set: &ReplicaSet) -> Result<(), Error> {
        let set_key = key_of(&set.metadata);
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let deleted = self.client.delete::<ReplicaSet>(set_key.namespace(), &set_key.name, &DeleteParams::of_uid(uid)).await;
        client::ignore_not_found(deleted)?;
        self.expectations.deleted(key, set_key, uid);
        Ok(())
    }

    /// The Deployment as it is after its revision annotation was written; `None` where it was right.
    async fn write_revision(&self, deployment: &Deployment, revision: Option<&str>) -> Result<Option<Deployment>, Error> {
        let Some(revision) = revision.filter(|revision| annotations::revision_text(&deployment.metadata).as_deref() != Some(*revision))
        else {
            return Ok(None);
        };
        let meta = &deployment.metadata;
        let annotation = json!({annotations::REVISION: revision});
        let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "annotations": annotation}});
        let name = meta.name.as_deref().unwrap_or_default();
        self.client.patch(meta.namespace.as_deref(), name, &Patch::Merge(patch), "").await.map(Some)
    }

    async fn write_status(&self, deployment: &Deployment, next: DeploymentStatus) -> Result<(), Error> {
        if deployment.status.as_ref().is_some_and(|current| status::same(current, &next)) {
            return Ok(());
        }
        let next = Deployment { metadata: deployment.metadata.clone(), spec: deployment.spec.clone(), status: Some(next) };
        client::ignore_not_found(self.client.replace_status(&next).await)
    }
}
