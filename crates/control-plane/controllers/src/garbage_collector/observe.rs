//! The world of one object: itself, the truth about its owners, its dependents.

use std::sync::PoisonError;

use client::{ApiResource, Error};
use http::Method;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use reconcile::{EventKind, PartialObject};

use super::Controller;
use super::graph::Node;

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It is there.
    Solid,
    /// It is there, and its deletion waits for its dependents.
    Waiting,
    /// It is gone, or its name now belongs to another.
    Absent,
}

pub(super) struct World {
    pub node: Node,
    /// In the order of the object's owner references.
    pub owners: Vec<Owner>,
    pub dependents: Vec<Node>,
}

impl Controller {
    /// `None`: the object is gone, or has nothing to decide.
    pub(super) async fn observe(&self, uid: &str) -> Result<Option<World>, Error> {
        let Some((node, dependents)) = self.graph().with(uid) else { return Ok(None) };
        let mut owners = Vec::new();
        for owner in node.owners() {
            match self.owner(&node, owner).await? {
                Some(known) => owners.push(known),
                // A reference that nobody can follow keeps its object.
                None => return Ok(None),
            }
        }
        Ok(Some(World { node, owners, dependents }))
    }

    async fn owner(&self, node: &Node, owner: &OwnerReference) -> Result<Option<Owner>, Error> {
        {
            let graph = self.graph();
            let namespace = &node.object.metadata.namespace;
            match graph.get(&owner.uid) {
                // Not found where the reference says: the server's answer counts, and the user is told why.
                Some(found) if !found.is_meant_by(owner, namespace) => {
                    if found.resource.namespaced && node.resource.namespaced && found.object.metadata.namespace != *namespace {
                        self.tell_foreign_owner(node, owner);
                    }
                }
                Some(found) if found.waits_for_dependents() => return Ok(Some(Owner::Waiting)),
                Some(_) => return Ok(Some(Owner::Solid)),
                None if graph.is_known_absent(&owner.uid) => return Ok(Some(Owner::Absent)),
                None => {}
            }
        }
        let key = (owner.api_version.clone(), owner.kind.clone());
        let resource = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let Some(resource) = resource else {
            tracing::debug!(api_version = %owner.api_version, kind = %owner.kind, "an owner of an unknown kind");
            return Ok(None);
        };
        if resource.namespaced && !node.resource.namespaced {
            tracing::debug!(name = %node.object.metadata.name, "a cluster-scoped object with an owner in a namespace");
            return Ok(None);
        }
        let there = self.is_there(&resource, &node.object.metadata.namespace, owner).await?;
        if !there {
            self.graph().note_absent(&owner.uid);
        }
        Ok(Some(if there { Owner::Solid } else { Owner::Absent }))
    }

    /// An owner has to be in the namespace of what it owns.
    fn tell_foreign_owner(&self, node: &Node, owner: &OwnerReference) {
        let meta = &node.object.metadata;
        let about = ObjectReference {
            api_version: Some(node.resource.api_version()),
            kind: Some(node.resource.kind.to_string()),
            namespace: Some(meta.namespace.clone()),
            name: Some(meta.name.clone()),
            uid: Some(meta.uid.clone()),
            ..ObjectReference::default()
        };
        let named =
            format!("[{}/{}, namespace: {}, name: {}, uid: {}]", owner.api_version, owner.kind, meta.namespace, owner.name, owner.uid);
        let message = format!("ownerRef {named} does not exist in namespace {:?}", meta.namespace);
        self.recorder.event(&about, EventKind::Warning, "OwnerRefInvalidNamespace", message);
    }

    async fn is_there(&self, resource: &ApiResource, namespace: &str, owner: &OwnerReference) -> Result<bool, Error> {
        let path = resource.object(Some(namespace), &owner.name, "");
        match self.client.request_json::<PartialObject>(Method::GET, &path, None).await {
            Ok(found) => Ok(found.metadata.uid == owner.uid),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl super::Graph {
    fn with(&self, uid: &str) -> Option<(Node, Vec<Node>)> {
        Some((self.get(uid)?.clone(), self.dependents(uid)))
    }
}
