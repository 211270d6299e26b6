//! Where the kinds that users name live: of owners, of targets of scaling.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use client::{ApiResource, Client, Error};
use http::Method;
use k8s_openapi::api::autoscaling::v1::Scale;

use crate::discovery;

/// Resources by `apiVersion` and kind; asked for anew when one is missing.
pub(crate) struct Kinds {
    client: Client,
    known: Mutex<HashMap<(String, String), ApiResource>>,
}

impl Kinds {
    pub fn new(client: &Client) -> Self {
        Self { client: client.clone(), known: Mutex::default() }
    }

    pub async fn find(&self, api_version: &str, kind: &str) -> Result<ApiResource, Error> {
        let key = (api_version.to_owned(), kind.to_owned());
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(found) = known() {
            return Ok(found);
        }
        let found = discovery::discover(&self.client).await?.resources.into_iter();
        let by_kind = found.map(|found| ((found.resource.api_version(), found.resource.kind.to_string()), found.resource));
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = by_kind.collect();
        known().ok_or_else(|| Error::Request(format!("no matches for kind {kind:?} in version {api_version:?}")))
    }

    /// The path of an object's scale, and what it says.
    pub async fn scale(&self, namespace: Option<&str>, api_version: &str, kind: &str, name: &str) -> Result<(String, Scale), Error> {
        let path = self.find(api_version, kind).await?.object(namespace, name, "scale");
        let scale = self.client.request_json(Method::GET, &path, None).await?;
        Ok((path, scale))
    }
}
