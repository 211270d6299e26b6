//! The writes of a Service's slices.

use client::{DeleteParams, Error};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{ObjectKey, Outcome, key_of};

use super::Controller;
use super::plan::Plan;
use crate::act;

impl Controller {
    /// New slices before old ones go: in between an endpoint may be in two, but never in none.
    pub(super) async fn act(&self, service: &ObjectKey, plan: Plan) -> Result<Outcome, Error> {
        for slice in &plan.create {
            match self.client.create(slice).await {
                Ok(created) => self.expectations.wrote(service, created.metadata.resource_version.as_deref()),
                Err(error) if error.is_namespace_terminating() || error.is_not_found() => return Ok(Outcome::Done),
                Err(error) => return Err(error),
            }
        }
        for slice in &plan.update {
            let updated = self.client.replace(slice).await?;
            self.expectations.wrote(service, updated.metadata.resource_version.as_deref());
        }
        for slice in &plan.delete {
            let key = key_of(&slice.metadata);
            let uid = slice.metadata.uid.as_deref().unwrap_or_default();
            let deleted = self.client.delete::<EndpointSlice>(key.namespace(), &key.name, &DeleteParams::of_uid(uid)).await;
            act::ignore_not_found(deleted.map(drop))?;
            self.expectations.deleted(service, key, uid);
        }
        Ok(Outcome::Done)
    }
}
