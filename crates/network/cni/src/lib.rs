//! The pod network of one node: addresses, links, routes.
//!
//! [`PodNetwork::attach`] connects a sandbox's network namespace: a point-to-point veth with /32 (and /128) routes, `lo` up.
//! [`PodNetwork::detach`] undoes it. State is on disk, one file per sandbox, so that every start is the recovery path:
//! [`PodNetwork::retain`] removes what belongs to no living sandbox. Third-party CNI plugins stand behind the same
//! calls ([`Plugins`]). Knows no kinds.
//!
//! The embedded network is [`Routed`], or [`Assigned`] where the cluster gives the node its range. In the pod: `eth0` with the pod's address, a default route through [`GATEWAY`], which exists
//! nowhere: permanent neighbour entries on both ends name the other end's MAC address, so that no ARP is ever sent and the
//! neighbour table's limit of 1,024 learned entries does not count. On the node: a link-scope route per pod. A bridge would stop at
//! 1,024 ports and would hide same-node traffic from the IP hooks. Pod traffic that leaves the cluster is masqueraded and a packet
//! whose source is not the pod's own address is dropped, both in our own nftables table.
//!
//! Other nodes' pods are reached by [`Peers`]: a route straight to the node where both are on one link, a VXLAN tunnel where not.
//!
//! No tasks: calls block and may run on many threads at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

mod addresses;
mod assigned;
mod bandwidth;
mod firewall;
mod links;
pub mod offload;
mod peers;
mod plugins;
mod routed;
pub mod segment;
mod state;

pub use assigned::Assigned;
pub use bandwidth::Bandwidth;
pub use peers::{Peer, Peers};
pub use plugins::{Folders, Plugins};
pub use routed::Routed;

/// The next hop of every pod's default route; answers to nothing.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A network: address and prefix length.
pub type Cidr = (IpAddr, u8);

/// Reads `10.244.8.0/21`; `None` for anything else.
pub fn parse_cidr(text: &str) -> Option<Cidr> {
    assigned::parse(text)
}

/// Where a node's pod network lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's pod range, such as 10.244.0.0/24.
    pub pod_cidr: Cidr,
    /// A range of the other IP family, for dual stack.
    pub pod_cidr_secondary: Option<Cidr>,
    /// Pods and Services of the whole cluster: what pods send there keeps its source address.
    pub cluster_cidrs: Vec<Cidr>,
    /// Networks of this host besides the pods' whose way out of the cluster is hidden behind the host's address as well.
    pub hidden_cidrs: Vec<Cidr>,
    /// One file per attached sandbox. Losing it at a reboot is right: the namespaces are gone as well.
    pub state_dir: PathBuf,
    /// Prefix of every host-side interface name (at most 4 bytes), such as `sp`.
    pub link_prefix: String,
    /// The nftables table, shared with the service proxy.
    pub table: String,
    /// Bytes; `None` takes that of the default route's interface.
    pub mtu: Option<u32>,
}

impl Config {
    /// Everything but the two as the contract with the host says: links `sp…`, table `sternpost`, nothing known of the cluster's ranges
    /// but the node's own.
    pub fn new(pod_cidr: Cidr, state_dir: PathBuf) -> Self {
        Self {
            pod_cidr,
            pod_cidr_secondary: None,
            cluster_cidrs: Vec::new(),
            hidden_cidrs: Vec::new(),
            state_dir,
            link_prefix: "sp".to_owned(),
            table: "sternpost".to_owned(),
            mtu: None,
        }
    }
}

/// A sandbox's place in the network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// The node's part, which is made once.
    #[error("{step} for the node's pod network")]
    Node { step: &'static str, source: std::io::Error },
    #[error("network plugin is not ready: the node has no pod range (spec.podCIDR) yet")]
    NoRange,
    #[error("CNI plugin {plugin}: {command} sandbox {sandbox_id}: {why}")]
    Plugin { plugin: String, command: String, sandbox_id: String, why: String },
    #[error("firewall of the node's pod network")]
    Firewall(#[from] nft::Error),
}

/// What the runtime needs of a network; the embedded one is [`Routed`].
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the network namespace behind `netns`. Idempotent per sandbox id; calls for the same sandbox one after the other.
    /// Blocking: call from a blocking thread.
    fn attach(&self, sandbox_id: &str, netns: BorrowedFd<'_>) -> Result<Attachment, Error>;
    /// The same with an rtnetlink socket of the namespace, which spares the way into it.
    fn attach_through(&self, sandbox_id: &str, netns: BorrowedFd<'_>, _inside: OwnedFd) -> Result<Attachment, Error> {
        self.attach(sandbox_id, netns)
    }
    /// Limits an attached sandbox. Idempotent.
    fn limit(&self, sandbox_id: &str, _netns: BorrowedFd<'_>, bandwidth: Bandwidth) -> Result<(), Error> {
        if bandwidth.is_unlimited() {
            return Ok(());
        }
        let source = std::io::Error::new(std::io::ErrorKind::Unsupported, "not by this pod network");
        Err(Error::Kernel { step: "limit the bandwidth", sandbox_id: sandbox_id.to_owned(), source })
    }
    /// Removes link, routes and address. A sandbox that is not attached is fine.
    fn detach(&self, sandbox_id: &str) -> Result<(), Error>;
    /// Detaches every sandbox that is not in `living` (after a crash).
    fn retain(&self, living: &[String]) -> Result<(), Error>;
    /// The node's ranges, as soon as the cluster has given it some, and whenever they change; at most one of each family.
    fn set_ranges(&self, _ranges: &[Cidr]) -> Result<(), Error> {
        Ok(())
    }
    /// `Err` says why no pod can be attached yet.
    fn readiness(&self) -> Result<(), String> {
        Ok(())
    }
}
