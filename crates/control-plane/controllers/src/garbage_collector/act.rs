//! The writes of the garbage collector; each is guarded by the object's uid.

use std::sync::Arc;
use std::time::Duration;

use client::{ApiResource, DeleteParams, Error, Patch, Propagation};
use http::Method;
use reconcile::{Outcome, PartialObject};
use serde_json::{Value, json};
use tracing::debug;

use super::Controller;
use super::graph::{FOREGROUND, Node, ORPHAN};
use super::observe::World;
use super::plan::Plan;
use crate::act;

/// Until the cache shows that a circle is broken.
const CIRCLE_PAUSE: Duration = Duration::from_millis(50);

impl Controller {
    pub(super) async fn act(self: &Arc<Self>, world: &World, plan: Plan) -> Result<Outcome, Error> {
        let node = &world.node;
        match plan {
            Plan::Nothing => {}
            Plan::Delete(propagation) => self.delete(node, propagation).await?,
            Plan::BreakCircle => {
                self.unblock_owners(node).await?;
                // The event of that write brings it back, to be deleted as any other.
                return Ok(Outcome::RequeueAfter(CIRCLE_PAUSE));
            }
            Plan::Forget(uids) => self.forget_owners(node, uids).await?,
            Plan::WaitFor(uids) => uids.into_iter().for_each(|uid| self.queue.add(uid)),
            Plan::RemoveFinalizer(name) => self.remove_finalizer(node, name).await?,
            Plan::Orphan => {
                let uid = node.object.metadata.uid.clone();
                act::each(world.dependents.clone(), |dependent| {
                    let (this, uid) = (self.clone(), uid.clone());
                    async move { this.forget_owners(&dependent, vec![uid]).await }
                })
                .await?;
                self.remove_finalizer(node, ORPHAN).await?;
            }
        }
        Ok(Outcome::Done)
    }

    /// The watches of two resources may be at different revisions: an object that has just been orphaned may still look owned here when its
    /// owner's end is already known. So the deletion holds only for the revision that was decided on; where that is over, what the server
    /// has decides, and if that differs, its event is on its way and decides anew.
    async fn delete(&self, node: &Node, propagation: Propagation) -> Result<(), Error> {
        let meta = &node.object.metadata;
        debug!(kind = %node.resource.kind, namespace = %meta.namespace, name = %meta.name, ?propagation, "its owners are gone");
        match self.delete_at(node, propagation, &meta.resource_version).await {
            Err(error) if error.is_conflict() => {}
            other => return other,
        }
        let path = node.resource.object(Some(&meta.namespace), &meta.name, "");
        let live: PartialObject = match self.client.request_json(Method::GET, &path, None).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        if live.metadata.uid != meta.uid || live.metadata.owner_references != meta.owner_references {
            return Ok(());
        }
        // A conflict, too, is tried again: what changed in between may have been anything.
        self.delete_at(node, propagation, &live.metadata.resource_version).await
    }

    async fn delete_at(&self, node: &Node, propagation: Propagation, revision: &str) -> Result<(), Error> {
        let meta = &node.object.metadata;
        let params = DeleteParams {
            propagation: Some(propagation),
            uid: Some(meta.uid.clone()),
            resource_version: Some(revision.to_owned()),
            ..DeleteParams::default()
        };
        client::ignore_not_found(self.client.delete_of(&node.resource, Some(&meta.namespace), &meta.name, &params).await)
    }

    /// Takes these owners off, whatever kind of object it is: a merge patch of the whole list, guarded by the revision it was read at.
    async fn forget_owners(&self, node: &Node, uids: Vec<String>) -> Result<(), Error> {
        self.edit(&node.resource, node, |live| {
            let owners = live["metadata"]["ownerReferences"].as_array()?;
            let kept: Vec<&Value> = owners.iter().filter(|owner| !uids.iter().any(|uid| owner["uid"] == **uid)).collect();
            (kept.len() < owners.len()).then(|| json!({ "ownerReferences": kept }))
        })
        .await
    }

    async fn unblock_owners(&self, node: &Node) -> Result<(), Error> {
        self.edit(&node.resource, node, |live| {
            let mut owners = live["metadata"]["ownerReferences"].as_array()?.clone();
            let blocks = owners.iter().any(|owner| owner["blockOwnerDeletion"] == true);
            owners.iter_mut().for_each(|owner| owner["blockOwnerDeletion"] = json!(false));
            blocks.then(|| json!({ "ownerReferences": owners }))
        })
        .await
    }

    async fn remove_finalizer(&self, node: &Node, name: &str) -> Result<(), Error> {
        debug_assert!([FOREGROUND, ORPHAN].contains(&name));
        self.edit(&node.resource, node, |live| {
            let finalizers = live["metadata"]["finalizers"].as_array()?;
            let kept: Vec<&Value> = finalizers.iter().filter(|finalizer| **finalizer != name).collect();
            (kept.len() < finalizers.len()).then(|| json!({ "finalizers": kept }))
        })
        .await
    }

    /// Reads the object and patches its metadata with what `change` says; `None` changes nothing.
    async fn edit(&self, resource: &ApiResource, node: &Node, change: impl Fn(&Value) -> Option<Value>) -> Result<(), Error> {
        let meta = &node.object.metadata;
        let path = resource.object(Some(&meta.namespace), &meta.name, "");
        let live: Value = match self.client.request_json(Method::GET, &path, None).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        if live["metadata"]["uid"] != meta.uid {
            return Ok(());
        }
        let Some(mut patch) = change(&live) else { return Ok(()) };
        patch["uid"] = live["metadata"]["uid"].clone();
        patch["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
        let patch = Patch::Merge(json!({ "metadata": patch }));
        let patched = self.client.patch_of::<PartialObject>(resource, Some(&meta.namespace), &meta.name, &patch, "").await;
        client::ignore_not_found(patched)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::ConfigMap;
    use reconcile::Queue;
    use testkit::fake_api::FakeApi;

    use super::*;

    /// What stands in the graph, and what the server has.
    async fn is_deleted(owners_seen: Value, owners_now: Value) -> bool {
        let api = FakeApi::new();
        let object = |owners: &Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "a", "name": "x", "ownerReferences": owners}});
        let path = "/api/v1/namespaces/a/configmaps";
        let live: Value = api.client().request_json(Method::POST, path, Some(object(&owners_now).to_string().into())).await.unwrap();
        let controller = Controller {
            client: api.client(),
            graph: Mutex::default(),
            kinds: Mutex::default(),
            queue: Queue::new(),
            recorder: reconcile::EventRecorder::discard(),
        };
        if owners_seen != owners_now {
            // Whatever changed the owners moved the revision.
            api.edit("/api/v1/configmaps", "a", "x", |live| live["metadata"]["ownerReferences"] = owners_now.clone());
        }
        let mut seen = object(&owners_seen);
        seen["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
        seen["metadata"]["uid"] = live["metadata"]["uid"].clone();
        let node = Node { resource: Arc::new(ApiResource::of::<ConfigMap>()), object: Arc::new(serde_json::from_value(seen).unwrap()) };
        controller.delete(&node, Propagation::Background).await.unwrap();
        api.get("/api/v1/configmaps", "a", "x").is_none()
    }

    #[tokio::test]
    async fn an_object_that_was_orphaned_meanwhile_stays() {
        let owned = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "1"}]);
        assert!(!is_deleted(owned.clone(), json!([])).await);
        assert!(is_deleted(owned.clone(), owned.clone()).await);
        let mut more = owned.clone();
        more[0]["blockOwnerDeletion"] = json!(true);
        assert!(!is_deleted(owned, more).await, "what changed is decided on anew");
    }
}
