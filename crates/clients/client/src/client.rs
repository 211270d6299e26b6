//! The verbs.
//!
//! What a typed verb returns comes without `metadata.managedFields`: nobody reads them in a program, and they are a third of a pod. An update
//! without them keeps those of the server. [`Client::request_json`] and the verbs that take an [`ApiResource`] return everything.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::params::Query;
use crate::watch::WatchStream;
use crate::{ApiResource, Body, DeleteParams, Error, List, ListParams, Object, Patch, Transport, WatchParams, error};

/// An answer larger than this is refused: a list of 100,000 pods is about 600 MB.
const ANSWER_BYTES_MAX: usize = 2 << 30;
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// Speaks to one API server as one identity. Cloning is cheap and shares the transport.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    /// The `User-Agent`; the server takes the field manager's name from its first word.
    agent: Arc<str>,
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, agent: "sternpost".into() }
    }

    /// The same transport under another `User-Agent`, such as `kube-controller-manager`.
    pub fn named(&self, agent: &str) -> Self {
        Self { transport: self.transport.clone(), agent: agent.into() }
    }

    /// The same in the name of a service account, where the transport can take its part; else unchanged.
    pub fn as_account(&self, namespace: &str, name: &str) -> Self {
        let transport = self.transport.as_account(namespace, name).unwrap_or_else(|| self.transport.clone());
        Self { transport, agent: self.agent.clone() }
    }

    pub async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<K, Error> {
        self.request_object(Method::GET, &ApiResource::of::<K>().object(namespace, name, ""), None).await
    }

    pub async fn get_subresource<T: DeserializeOwned, K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        subresource: &str,
    ) -> Result<T, Error> {
        self.request_json(Method::GET, &ApiResource::of::<K>().object(namespace, name, subresource), None).await
    }

    /// One page; [`List::continue_`] says whether there are more.
    pub async fn list<K: Object>(&self, params: &ListParams) -> Result<List<K>, Error> {
        self.list_of(&ApiResource::of::<K>(), params, false).await
    }

    /// The list of any resource, `K` being what its items decode as; `metadata_only` asks for `PartialObjectMetadata`.
    pub async fn list_of<K: DeserializeOwned>(
        &self,
        resource: &ApiResource,
        params: &ListParams,
        metadata_only: bool,
    ) -> Result<List<K>, Error> {
        #[derive(serde::Deserialize)]
        #[serde(bound = "K: DeserializeOwned")]
        struct Answer<K> {
            #[serde(default)]
            metadata: ListMeta,
            items: Option<Vec<K>>,
        }
        let path = resource.collection(params.namespace.as_deref()) + &params.query();
        let accept = if metadata_only { METADATA_LIST } else { "application/json" };
        let bytes = self.bytes(self.request(Method::GET, &path, accept, None)?).await?;
        let answer: Answer<K> = decode("list", &path, &bytes)?;
        Ok(List {
            items: answer.items.unwrap_or_default(),
            resource_version: answer.metadata.resource_version.unwrap_or_default(),
            continue_: answer.metadata.continue_.unwrap_or_default(),
            remaining_item_count: answer.metadata.remaining_item_count,
        })
    }

    pub async fn watch<K: Object>(&self, params: &WatchParams) -> Result<WatchStream<K>, Error> {
        self.watch_of(&ApiResource::of::<K>(), params, false).await
    }

    /// The watch of any resource; see [`Client::list_of`].
    pub async fn watch_of<K>(&self, resource: &ApiResource, params: &WatchParams, metadata_only: bool) -> Result<WatchStream<K>, Error> {
        let path = resource.collection(params.namespace.as_deref()) + &params.query();
        let accept = if metadata_only { METADATA } else { "application/json" };
        let response = self.checked(self.request(Method::GET, &path, accept, None)?).await?;
        Ok(WatchStream::new(response.into_body()))
    }

    /// Creates `object` in its own namespace; returns what was stored.
    pub async fn create<K: Object>(&self, object: &K) -> Result<K, Error> {
        let path = ApiResource::of::<K>().collection(object.metadata().namespace.as_deref());
        self.request_object(Method::POST, &path, Some(encode(object)?)).await
    }

    /// Replaces the object of that namespace and name; a resourceVersion inside guards it.
    pub async fn replace<K: Object>(&self, object: &K) -> Result<K, Error> {
        self.replace_at(object, "").await
    }

    pub async fn replace_status<K: Object>(&self, object: &K) -> Result<K, Error> {
        self.replace_at(object, "status").await
    }

    async fn replace_at<K: Object>(&self, object: &K, subresource: &str) -> Result<K, Error> {
        let meta = object.metadata();
        let name = meta.name.as_deref().unwrap_or_default();
        let path = ApiResource::of::<K>().object(meta.namespace.as_deref(), name, subresource);
        self.request_object(Method::PUT, &path, Some(encode(object)?)).await
    }

    /// Patches the object, or its subresource (`"status"`, `"scale"`) where that is not empty.
    pub async fn patch<K: Object>(&self, namespace: Option<&str>, name: &str, patch: &Patch, subresource: &str) -> Result<K, Error> {
        let (path, bytes) = self.patched(&ApiResource::of::<K>(), namespace, name, patch, subresource).await?;
        crate::decode::unowned(&bytes).map_err(|source| Error::Decode { what: format!("patch {path}"), source })
    }

    pub async fn patch_of<T: DeserializeOwned>(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
        subresource: &str,
    ) -> Result<T, Error> {
        let (path, bytes) = self.patched(resource, namespace, name, patch, subresource).await?;
        decode("patch", &path, &bytes)
    }

    async fn patched(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
        subresource: &str,
    ) -> Result<(String, Bytes), Error> {
        let path = resource.object(namespace, name, subresource) + &patch.query();
        let mut request = self.request(Method::PATCH, &path, "application/json", Some(encode(patch.body())?))?;
        request.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(patch.content_type()));
        let bytes = self.bytes(request).await?;
        Ok((path, bytes))
    }

    /// What the server answers, a `Status` or the object where it lives on for a while, is not looked at.
    pub async fn delete<K: Object>(&self, namespace: Option<&str>, name: &str, params: &DeleteParams) -> Result<(), Error> {
        self.delete_of(&ApiResource::of::<K>(), namespace, name, params).await
    }

    pub async fn delete_of(&self, resource: &ApiResource, namespace: Option<&str>, name: &str, params: &DeleteParams) -> Result<(), Error> {
        let path = resource.object(namespace, name, "");
        self.bytes(self.request(Method::DELETE, &path, "application/json", Some(encode(&params.options())?))?).await.map(drop)
    }

    pub async fn delete_collection(&self, resource: &ApiResource, list: &ListParams, params: &DeleteParams) -> Result<Value, Error> {
        let path = resource.collection(list.namespace.as_deref()) + &list.query();
        self.request_json(Method::DELETE, &path, Some(encode(&params.options())?)).await
    }

    /// POSTs to `binding`, `token`, `eviction` and the like of a `K`.
    pub async fn create_subresource<K: Object, T: DeserializeOwned>(
        &self,
        namespace: Option<&str>,
        name: &str,
        subresource: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let path = ApiResource::of::<K>().object(namespace, name, subresource);
        self.request_json(Method::POST, &path, Some(encode(body)?)).await
    }

    /// The answer is an object: it is read without its managedFields, which an update need not send back.
    async fn request_object<K: Object>(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<K, Error> {
        let verb = method.to_string();
        let bytes = self.bytes(self.request(method, path, "application/json", body)?).await?;
        crate::decode::unowned(&bytes).map_err(|source| Error::Decode { what: format!("{verb} {path}"), source })
    }

    /// Any JSON request by its path and query.
    pub async fn request_json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<T, Error> {
        let verb = method.to_string();
        decode(&verb, path, &self.bytes(self.request(method, path, "application/json", body)?).await?)
    }

    /// Any request; the answer as it comes, failures of the server included.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        Ok(self.transport.send(request).await?)
    }

    fn request(&self, method: Method, path: &str, accept: &str, body: Option<Bytes>) -> Result<Request<Bytes>, Error> {
        let mut builder = Request::builder().method(method).uri(path);
        builder = builder.header(http::header::ACCEPT, accept).header(http::header::USER_AGENT, &*self.agent);
        if body.is_some() {
            builder = builder.header(http::header::CONTENT_TYPE, "application/json");
        }
        builder.body(body.unwrap_or_default()).map_err(|error| Error::Request(format!("{path}: {error}")))
    }

    async fn bytes(&self, request: Request<Bytes>) -> Result<Bytes, Error> {
        collect(self.checked(request).await?.into_body()).await
    }

    /// Sends, and turns the server's failures into errors.
    async fn checked(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let response = self.transport.send(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        Err(error::from_response(code, &collect(response.into_body()).await?))
    }
}

async fn collect(body: Body) -> Result<Bytes, Error> {
    let whole = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    Ok(whole.map_err(|error| std::io::Error::other(format!("read the answer: {error}")))?.to_bytes())
}

fn encode(body: &impl Serialize) -> Result<Bytes, Error> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| Error::Request(error.to_string()))
}

fn decode<T: DeserializeOwned>(verb: &str, path: &str, bytes: &[u8]) -> Result<T, Error> {
    crate::decode::object(bytes).map_err(|source| Error::Decode { what: format!("{verb} {path}"), source })
}

/// `path?name=value&…` for [`Client::request_json`] and [`Client::send`].
pub fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut query = Query::default();
    pairs.iter().for_each(|(name, value)| query.text(name, Some(value)));
    format!("{path}{}", query.0)
}
