//! CRI over a socket, both ways: [`Remote`] drives another runtime (containerd, CRI-O) as the kubelet's own, and [`Server`] lets other
//! clients (`crictl`) use the runtime of this process.
//!
//! [`grpc`] is as much of gRPC as CRI needs, over `hyper`'s HTTP/2: unary calls and streams of answers; [`serve`] is the
//! other side, for services of our own (device plugins register with one). What CRI leaves to a streaming
//! URL (exec, attach, port-forward) is [`dial`] on the client's side, which speaks SPDY, and [`streams`] on the server's.
//!
//! Tasks: one per connection, each way; one per stream under way. Channels: a bounded one per server stream of events. The crate knows no
//! Kubernetes kinds.

mod client;
mod dial;
pub mod grpc;
pub mod serve;
mod server;
mod streams;

pub use client::Remote;
pub use server::Server;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the endpoint {0:?} is no Unix socket: unix:///path is")]
    Endpoint(String),
    #[error("listen on {path}: {source}")]
    Listen { path: String, source: std::io::Error },
    #[error("listen for streams: {0}")]
    Streams(std::io::Error),
}

/// The path behind `unix:///run/containerd/containerd.sock`, or a plain path.
pub fn socket_path(endpoint: &str) -> Result<std::path::PathBuf, Error> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') { Ok(path.into()) } else { Err(Error::Endpoint(endpoint.into())) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn endpoints_are_sockets_with_and_without_a_scheme() {
        assert_eq!(super::socket_path("unix:///run/a.sock").unwrap().to_str(), Some("/run/a.sock"));
        assert_eq!(super::socket_path("/run/a.sock").unwrap().to_str(), Some("/run/a.sock"));
        assert!(super::socket_path("tcp://localhost:1").is_err());
    }
}
