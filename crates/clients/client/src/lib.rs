//! One way to talk to the API, over two transports: in-process (no socket, no TLS, bytes shared) and HTTPS.
//!
//! [`Client`] has the verbs; [`Transport`] carries one request. Components get a `Client` with their own identity and never
//! know which transport is behind it. Typed by `k8s-openapi`; [`Client::send`] carries anything else.

use std::pin::Pin;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;

/// A response body: whole or streamed (watches, logs).
pub type Body = BoxBody<Bytes, std::io::Error>;

/// Carries one request to an API server. Authentication is the transport's own business.
pub trait Transport: Send + Sync + 'static {
    /// `Err` is a failure to reach the server; everything that the server says, `Status` included, is `Ok`.
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>>;
}
