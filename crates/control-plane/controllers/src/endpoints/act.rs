//! The write of one Endpoints object; a stale one is refused by its revision and planned again.

use client::{DeleteParams, Error};
use k8s_openapi::api::core::v1::Endpoints;
use reconcile::{Outcome, key_of};

use super::Controller;
use super::plan::Write;

impl Controller {
    pub(super) async fn act(&self, write: Write) -> Result<Outcome, Error> {
        let written = match write {
            Write::Nothing => Ok(()),
            Write::Create(endpoints) => match self.client.create(&endpoints).await {
                // The cache has not seen our last write yet; its event wakes us.
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
                other => other.map(drop),
            },
            Write::Replace(endpoints) => self.client.replace(&endpoints).await.map(drop),
            Write::Delete(endpoints) => {
                let key = key_of(&endpoints.metadata);
                let uid = endpoints.metadata.uid.as_deref().unwrap_or_default();
                self.client.delete::<Endpoints>(key.namespace(), &key.name, &DeleteParams::of_uid(uid)).await.map(drop)
            }
        };
        client::ignore_not_found(written).map(|()| Outcome::Done)
    }
}
