//! One way to talk to the API, over two transports: in-process (no socket, no TLS, bytes shared) and HTTPS.
//!
//! [`Client`] has the verbs; [`Transport`] carries one request. Components get a `Client` with their own identity and never
//! know which transport is behind it. Typed by `k8s-openapi` through [`Object`]; [`Client::send`] and [`Client::request_json`]
//! carry anything else, addressed by an [`ApiResource`] or a plain path.
//!
//! Read in this order: [`api`] (paths), [`params`] (what a verb takes), [`client`](mod@client) (the verbs), [`watch`] (frames to
//! events), [`error`], [`https`] and [`kubeconfig`] (the transport with a socket).
//!
//! The crate starts no task of its own; the HTTPS transport's connections are driven by tokio tasks that end with it.

use std::pin::Pin;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;

pub mod api;
pub mod client;
mod decode;
pub mod error;
pub mod https;
pub mod kubeconfig;
pub mod params;
pub mod watch;

pub use api::{ApiResource, Object};
pub use client::Client;
pub use error::{Error, found, ignore_already_exists, ignore_not_found};
pub use https::{Https, presented_chain, tls_config};
pub use params::{DeleteParams, List, ListParams, Patch, Propagation, WatchParams};
pub use watch::{WatchEvent, WatchStream};

/// A response body: whole or streamed (watches, logs).
pub type Body = BoxBody<Bytes, std::io::Error>;

/// Carries one request to an API server. Authentication is the transport's own business.
pub trait Transport: Send + Sync + 'static {
    /// `Err` is a failure to reach the server; everything that the server says, `Status` included, is `Ok`.
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>>;

    /// The same way to the server in the name of a service account; `None` where the transport has one identity only.
    fn as_account(&self, _namespace: &str, _name: &str) -> Option<std::sync::Arc<dyn Transport>> {
        None
    }
}
