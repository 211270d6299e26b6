//! The way of components inside this process to the API: no socket, no TLS, the same pipeline.

use std::pin::Pin;
use std::sync::Arc;

use auth::UserInfo;
use bytes::Bytes;
use client::{Body, Client, Transport};
use http_body_util::{BodyExt, Full};

/// Calls the server with a fixed identity.
struct InProcess {
    server: apiserver::Server,
    user: UserInfo,
}

/// A client of this process's own API server, as `user`.
pub fn client(server: &apiserver::Server, user: UserInfo) -> Client {
    Client::new(Arc::new(InProcess { server: server.clone(), user }))
}

impl Transport for InProcess {
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        let request = request.map(|body| Full::new(body).map_err(|never| match never {}).boxed());
        Box::pin(async move { Ok(self.server.handle(request, Some(self.user.clone())).await) })
    }

    fn as_account(&self, namespace: &str, name: &str) -> Option<Arc<dyn Transport>> {
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let user = UserInfo::authenticated(&auth::tokens::username(namespace, name), &groups.each_ref().map(String::as_str));
        Some(Arc::new(InProcess { server: self.server.clone(), user }))
    }
}
