//! The pod network of one node: addresses, links, routes.
//!
//! [`PodNetwork::attach`] connects a sandbox's network namespace: a point-to-point veth with /32 (and /128) routes, `lo` up, host ports
//! noted. [`PodNetwork::detach`] undoes it. State is on disk, one file per sandbox, so that every start is the recovery path:
//! [`PodNetwork::retain`] removes what belongs to no living sandbox. Third-party CNI plugins will stand behind the same
//! calls. Knows no kinds.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// Where a node's pod network lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's pod range, such as 10.244.0.0/24.
    pub pod_cidr: (IpAddr, u8),
    /// One file per attached sandbox.
    pub state_dir: PathBuf,
    /// Prefix of every host-side interface name (at most 4 bytes), such as `sp`.
    pub link_prefix: String,
}

/// A sandbox's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub sandbox_id: String,
    /// First the primary address.
    pub addresses: Vec<IpAddr>,
    pub host_link: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no free address in {0}")]
    Exhausted(String),
    #[error("{step} for sandbox {sandbox_id}")]
    Kernel { step: &'static str, sandbox_id: String, source: std::io::Error },
    #[error("state of sandbox {sandbox_id}")]
    State { sandbox_id: String, source: std::io::Error },
}

/// What the runtime needs of a network; the embedded one is `Routed`.
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the network namespace behind `netns`. Idempotent per sandbox id. Blocking: call from a blocking thread.
    fn attach(&self, sandbox_id: &str, netns: BorrowedFd<'_>) -> Result<Attachment, Error>;
    /// Removes link, routes and address. A sandbox that is not attached is fine.
    fn detach(&self, sandbox_id: &str) -> Result<(), Error>;
    /// Detaches every sandbox that is not in `living` (after a crash).
    fn retain(&self, living: &[String]) -> Result<(), Error>;
}
