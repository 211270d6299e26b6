//! The writes of a Job.

use std::sync::Arc;

use client::{DeleteParams, Error, Patch};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use reconcile::{EventKind, ObjectKey, Outcome, key_of, reference_to};
use serde_json::json;

use super::observe::World;
use super::plan::Plan;
use super::{Controller, INDEX, TRACKING, plan};
use crate::act;

impl Controller {
    pub(super) async fn act(self: &Arc<Self>, world: &World, plan: Plan) -> Result<Outcome, Error> {
        let job = &world.job;
        let key = key_of(&job.metadata);
        if plan.remove_job {
            let params = DeleteParams { uid: job.metadata.uid.clone(), ..DeleteParams::background() };
            let deleted = self.client.delete::<Job>(key.namespace(), &key.name, &params).await;
            return act::ignore_not_found(deleted.map(drop)).map(|()| Outcome::Done);
        }
        // Notes reach the server before finalizers go: the other order could lose an end.
        let stale = plan.status.is_some();
        if let Some(status) = plan.status {
            let next = Job { status: Some(status), ..Job::clone(job) };
            act::ignore_not_found(self.client.replace_status(&next).await.map(drop))?;
        }
        if let Some((kind, reason, message)) = plan.event {
            let kind = if kind == "Warning" { EventKind::Warning } else { EventKind::Normal };
            self.recorder.event(&reference_to(&**job), kind, &reason, message);
        }
        act::each(plan.untrack, |pod| {
            let (this, key) = (self.clone(), key.clone());
            async move { this.untrack(&key, &pod).await }
        })
        .await?;
        act::each(plan.delete, |pod| {
            let (this, job, key) = (self.clone(), job.clone(), key.clone());
            async move { this.delete(&job, &key, &pod).await }
        })
        .await?;
        act::each(plan.create, |index| {
            let (this, job, key) = (self.clone(), job.clone(), key.clone());
            async move { this.create(&job, &key, index).await }
        })
        .await?;
        Ok(plan.look_again.filter(|_| !stale).map_or(Outcome::Done, Outcome::RequeueAfter))
    }

    /// The Job is gone: nobody will count its pods any more, so their finalizer must not hold them.
    pub(super) async fn free(self: &Arc<Self>, key: &ObjectKey) -> Result<(), Error> {
        let left = self.pods.by_namespace(&key.namespace).into_iter();
        let left = left.filter(|pod| plan::is_tracked(pod) && super::owner(pod).as_ref() == Some(key));
        let freed = act::each(left, |pod| {
            let (this, key) = (self.clone(), key.clone());
            async move { this.untrack(&key, &pod).await }
        });
        freed.await?;
        self.expectations.forget(key);
        Ok(())
    }

    async fn untrack(&self, job: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let key = key_of(&pod.metadata);
        let kept: Vec<&String> = pod.metadata.finalizers.iter().flatten().filter(|name| *name != TRACKING).collect();
        let meta = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "finalizers": kept});
        match self.client.patch::<Pod>(key.namespace(), &key.name, &Patch::Merge(json!({ "metadata": meta })), "").await {
            Ok(patched) => {
                self.expectations.wrote(job, patched.metadata.resource_version.as_deref());
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, job: &Job, job_key: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let key = key_of(&pod.metadata);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let deleted = self.client.delete::<Pod>(key.namespace(), &key.name, &DeleteParams::of_uid(uid)).await;
        act::ignore_not_found(deleted.map(drop))?;
        self.recorder.event(&reference_to(job), EventKind::Normal, "SuccessfulDelete", format!("Deleted pod: {}", key.name));
        self.expectations.deleted(job_key, key, uid);
        Ok(())
    }

    async fn create(&self, job: &Job, key: &ObjectKey, index: Option<i32>) -> Result<(), Error> {
        let about = reference_to(job);
        match self.client.create(&pod(job, index)).await {
            Ok(created) => {
                self.expectations.wrote(key, created.metadata.resource_version.as_deref());
                let name = created.metadata.name.unwrap_or_default();
                self.recorder.event(&about, EventKind::Normal, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                self.recorder.event(&about, EventKind::Warning, "FailedCreate", format!("Error creating: {error}"));
                Err(error)
            }
        }
    }
}

fn pod(job: &Job, index: Option<i32>) -> Pod {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = act::pod_from(template, job.metadata.namespace.clone(), name, act::controller_ref(job));
    pod.metadata.finalizers.get_or_insert_default().push(TRACKING.into());
    let Some(index) = index else { return pod };
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.into(), index.to_string());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname.get_or_insert_with(|| format!("{name}-{index}"));
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let env = container.env.get_or_insert_default();
            env.push(EnvVar { name: "JOB_COMPLETION_INDEX".into(), value: Some(index.to_string()), value_from: None });
        }
    }
    pod
}
