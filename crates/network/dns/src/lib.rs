//! Cluster DNS: what CoreDNS does for a cluster, inside the binary.
//!
//! Way in: [`Server::bind`], then [`Server::run`]; or [`run`], which is both. The [`zone`] is kept by callbacks of the shared caches of
//! Services, EndpointSlices and Namespaces: a change replaces the records of one Service. Each listening address has a few UDP sockets
//! (SO_REUSEPORT, a task each, many [`datagrams`] a call) and a TCP listener. A question about the zone is answered where it was received, without a task or an
//! allocation for waiting; any other goes, in a task of its own, through a small [`cache`] to the host's resolvers ([`forward`]), of
//! which a bounded number is under way at a time.
//!
//! The same datagram is answered with the same bytes as long as nothing has changed ([`fast`]). Forwarders for zones and fixed hosts come in the words
//! of a [`corefile`].
//!
//! Pods reach it through an ordinary Service made by [`ensure_service`]: `kube-dns` in `kube-system`, with an EndpointSlice that
//! leads to this node's listening address, so that the service proxy's path serves DNS too.
//!
//! Names, TTLs and negative answers follow the DNS specification for Kubernetes 1.1 and CoreDNS' plugin as kubeadm configures it
//! (TTL 30, pods "insecure", reverse zones falling through).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::Cache;
use stdx::Drain;

mod answer;
mod cache;
pub mod corefile;
mod datagrams;
mod fast;
mod forward;
mod metrics;
mod server;
mod service;
mod sockets;
mod watch;
pub mod zone;

pub use server::Server;
pub use service::{Endpoint, ensure_service};
pub use sockets::Sockets;

#[derive(Clone, Debug)]
pub struct Config {
    /// UDP and TCP; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Such as cluster.local.
    pub domain: String,
    /// Where names outside the cluster are asked: the `nameserver` lines of this file, read again when it changes.
    pub resolv_conf: PathBuf,
    /// Never forwarded to, because they lead back here, such as 10.96.0.10:53; what we listen on counts anyway.
    pub own_addresses: Vec<SocketAddr>,
    /// UDP sockets, and so tasks, per address.
    pub sockets: usize,
    /// Who is answered. Others get nothing: an answer to a forged source is an attack on its owner.
    pub clients: Clients,
    /// In which namespace a client lives: its search path is gone through here instead of by questions.
    pub homes: Homes,
    /// How long questions wait at the start for the caches; after it, what is not known yet is SERVFAIL.
    pub patience: Duration,
}

/// A question about an address.
#[derive(Clone)]
pub struct Clients(pub Arc<dyn Fn(IpAddr) -> bool + Send + Sync>);

impl Default for Clients {
    fn default() -> Self {
        Self(Arc::new(|_| true))
    }
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

/// The namespace of the pod with an address.
#[derive(Clone)]
pub struct Homes(pub Arc<dyn Fn(IpAddr) -> Option<String> + Send + Sync>);

impl Default for Homes {
    fn default() -> Self {
        Self(Arc::new(|_| None))
    }
}

impl std::fmt::Debug for Homes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Homes")
    }
}

impl Config {
    pub fn new(listen: Vec<SocketAddr>, domain: &str) -> Self {
        let sockets = std::thread::available_parallelism().map_or(2, |cores| cores.get().min(4));
        Self {
            listen,
            domain: domain.to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            own_addresses: Vec::new(),
            sockets,
            clients: Clients::default(),
            homes: Homes::default(),
            patience: Duration::ZERO,
        }
    }
}

/// What the zone is made of; all shared with others in the process.
#[derive(Clone)]
pub struct Caches {
    pub services: Cache<Service>,
    pub slices: Cache<EndpointSlice>,
    pub namespaces: Cache<Namespace>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the cluster domain {0:?} is not a domain name")]
    Domain(String),
    #[error("listen for DNS on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("take the sockets for DNS")]
    Sockets(#[source] std::io::Error),
}

/// Serves until `drain`.
pub async fn run(config: Config, caches: Caches, drain: Drain) -> Result<(), Error> {
    Arc::new(Server::bind(config)?).run(caches, drain).await;
    Ok(())
}
