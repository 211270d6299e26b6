//! The writes of a Job.

use std::sync::Arc;

use client::{DeleteParams, Error, Patch};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use reconcile::{EventKind, ObjectKey, Outcome, key_of, reference_to};
use serde_json::json;

use super::observe::World;
use super::plan::{NewPod, Plan};
use super::{Controller, INDEX, TRACKING, ends, per_index};
use crate::act;

/// A pod's name may have 63 letters, of which the server adds five.
const NAME_PREFIX_MAX: usize = 58;

impl Controller {
    pub(super) async fn act(self: &Arc<Self>, world: &World, plan: Plan) -> Result<Outcome, Error> {
        let job = &*world.job;
        let key = key_of(&job.metadata);
        if plan.remove_job {
            let params = DeleteParams { uid: job.metadata.uid.clone(), ..DeleteParams::background() };
            let deleted = self.client.delete::<Job>(key.namespace(), &key.name, &params).await;
            return client::ignore_not_found(deleted).map(|()| Outcome::Done);
        }
        self.control.claim(job, &plan.adopt, &plan.release).await?;
        // Notes reach the server before finalizers go: the other order could lose an end.
        if let Some(status) = plan.status {
            act::write_status(&self.client, &Job { status: Some(status), ..job.clone() }).await?;
        }
        if let Some((kind, reason, message)) = plan.event {
            let kind = if kind == "Warning" { EventKind::Warning } else { EventKind::Normal };
            self.control.recorder().event(&reference_to(job), kind, &reason, message);
        }
        act::each(plan.untrack, |pod| {
            let (this, key) = (self.clone(), key.clone());
            async move { this.untrack(&key, &pod).await }
        })
        .await?;
        self.control.delete(job, plan.delete).await?;
        act::each(plan.dismiss.clone(), |pod| {
            let (this, key) = (self.clone(), key.clone());
            async move { this.untrack(&key, &pod).await }
        })
        .await?;
        self.control.delete(job, plan.dismiss).await?;
        match self.control.create(job, plan.create.iter().map(|new| pod(job, new))).await {
            Err(error) if error.is_namespace_terminating() => return Ok(Outcome::Done),
            made => made?,
        }
        Ok(plan.look_again.map_or(Outcome::Done, Outcome::RequeueAfter))
    }

    /// The Job is gone: nobody will count its pods any more, so their finalizer must not hold them.
    pub(super) async fn free(self: &Arc<Self>, key: &ObjectKey) -> Result<(), Error> {
        let left = self.pods.by_namespace(&key.namespace).into_iter();
        let left = left.filter(|pod| ends::is_tracked(pod) && super::owner(pod).as_ref() == Some(key));
        let freed = act::each(left, |pod| {
            let (this, key) = (self.clone(), key.clone());
            async move { this.untrack(&key, &pod).await }
        });
        freed.await?;
        self.control.forget(key);
        Ok(())
    }

    async fn untrack(&self, job: &ObjectKey, pod: &Pod) -> Result<(), Error> {
        let key = key_of(&pod.metadata);
        let kept: Vec<&String> = pod.metadata.finalizers.iter().flatten().filter(|name| *name != TRACKING).collect();
        let meta = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "finalizers": kept});
        match self.client.patch::<Pod>(key.namespace(), &key.name, &Patch::Merge(json!({ "metadata": meta })), "").await {
            Ok(patched) => {
                self.control.wrote(job, patched.metadata.resource_version.as_deref());
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn pod(job: &Job, new: &NewPod) -> Pod {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = act::pod_from(template, job.metadata.namespace.clone(), name, act::controller_ref(job));
    pod.metadata.finalizers.get_or_insert_default().push(TRACKING.into());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    if let Some((counted, ignored)) = new.failures {
        annotations.insert(per_index::FAILURES.into(), counted.to_string());
        if ignored > 0 {
            annotations.insert(per_index::IGNORED_FAILURES.into(), ignored.to_string());
        }
    }
    let Some(index) = new.index else { return pod };
    annotations.insert(INDEX.into(), index.to_string());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    pod.metadata.generate_name = Some(indexed_prefix(name, index));
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{name}-{index}"));
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let env = container.env.get_or_insert_default();
            if env.iter().all(|variable| variable.name != "JOB_COMPLETION_INDEX") {
                env.push(EnvVar { name: "JOB_COMPLETION_INDEX".into(), value: Some(index.to_string()), value_from: None });
            }
        }
    }
    pod
}

/// `<job>-<index>-`: a long name of the Job is cut, never the index.
fn indexed_prefix(job: &str, index: i32) -> String {
    let suffix = format!("-{index}-");
    let kept: String = job.chars().take(NAME_PREFIX_MAX.saturating_sub(suffix.len())).collect();
    kept + &suffix
}
