//! What is left in a namespace.

use client::{ApiResource, DeleteParams, Error, ListParams, Propagation};
use http::Method;
use reconcile::PartialObject;

use super::Controller;
use crate::discovery::{self, Discovered};

/// One resource with objects left.
pub(super) struct Left {
    pub resource: Discovered,
    /// The finalizers of the objects left, one list per object.
    pub finalizers: Vec<Vec<String>>,
}

/// All that a decision needs.
#[derive(Default)]
pub(super) struct World {
    pub left: Vec<Left>,
    pub discovery_errors: Vec<String>,
    pub deletion_errors: Vec<String>,
}

impl Controller {
    /// Everything in a namespace that can be listed and deleted.
    pub(super) async fn resources(&self, world: &mut World) -> Vec<Discovered> {
        match discovery::discover(&self.client).await {
            Ok(discovery) => {
                world.discovery_errors.extend(discovery.failed.iter().map(|(version, error)| format!("{version}: {error}")));
                let wanted = |found: &Discovered| {
                    found.resource.namespaced
                        && found.preferred
                        && found.can("list")
                        && (found.can("delete") || found.can("deletecollection"))
                };
                discovery.resources.into_iter().filter(wanted).collect()
            }
            Err(error) => {
                world.discovery_errors.push(error.to_string());
                Vec::new()
            }
        }
    }

    /// Deletes what is there and says what remains.
    pub(super) async fn sweep(&self, namespace: &str, resources: Vec<Discovered>) -> World {
        let mut world = World::default();
        for found in resources {
            match self.sweep_one(namespace, &found).await {
                Ok(finalizers) if finalizers.is_empty() => {}
                Ok(finalizers) => world.left.push(Left { resource: found, finalizers }),
                // The resource itself was removed.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    world.deletion_errors.push(format!("{}: {error}", found.resource.plural));
                    world.left.push(Left { resource: found, finalizers: Vec::new() });
                }
            }
        }
        world
    }

    async fn sweep_one(&self, namespace: &str, found: &Discovered) -> Result<Vec<Vec<String>>, Error> {
        let objects = self.list(namespace, &found.resource).await?;
        if objects.iter().all(|object| object.metadata.deletion_timestamp.is_some()) {
            return Ok(objects.into_iter().map(|object| object.metadata.finalizers).collect());
        }
        let params = DeleteParams { propagation: Some(Propagation::Background), ..DeleteParams::default() };
        if found.can("deletecollection") {
            self.client.delete_collection(&found.resource, &ListParams::in_namespace(namespace), &params).await?;
        } else {
            for object in objects {
                let deleted = self.client.delete_of(&found.resource, Some(namespace), &object.metadata.name, &params).await;
                client::ignore_not_found(deleted)?;
            }
        }
        let left = self.list(namespace, &found.resource).await?;
        Ok(left.into_iter().map(|object| object.metadata.finalizers).collect())
    }

    async fn list(&self, namespace: &str, resource: &ApiResource) -> Result<Vec<PartialObject>, Error> {
        let listed = self.client.list_of::<PartialObject>(resource, &ListParams::in_namespace(namespace), true).await?;
        Ok(listed.items)
    }

    /// The namespace as it is on the server; `None` where it is gone.
    pub(super) async fn fresh(&self, name: &str) -> Result<Option<k8s_openapi::api::core::v1::Namespace>, Error> {
        match self.client.request_json(Method::GET, &format!("/api/v1/namespaces/{name}"), None).await {
            Ok(namespace) => Ok(Some(namespace)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
