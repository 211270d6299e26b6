//! At join, and whenever a node appears: does the tunnel carry what it is given? Some network cards spoil the checksums of tunnelled packets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// The other end makes its tunnel when it hears of us: silence is believed after this many tries.
const TRIES: usize = 6;
const BETWEEN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(2);

/// A node behind the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct End {
    /// The node's own address.
    pub node: IpAddr,
    /// Where its tunnel ends.
    pub tunnel: IpAddr,
}

/// Tries the tunnel to one node, mends what can be mended, and says what cannot. `port` is one that nodes listen on.
pub async fn check(link: String, end: End, port: u16) {
    for _ in 0..TRIES {
        sleep(BETWEEN).await;
        if carries(end.tunnel, port).await {
            return;
        }
    }
    if !carries(end.node, port).await {
        // The node itself is silent: nothing is known of the tunnel.
        return;
    }
    if let Err(error) = cni::offload::leave_checksums(&link, false) {
        tracing::warn!(%link, %error, "switch the offload of checksums off");
    }
    if carries(end.tunnel, port).await {
        tracing::warn!(%link, node = %end.node, "the network card spoils checksums of tunnelled packets: the processor computes them from now on");
        return;
    }
    let _ = cni::offload::leave_checksums(&link, true);
    tracing::error!(%link, node = %end.node, "the tunnel to this node carries nothing although the node answers: is UDP port 8472 let through?");
}

/// Any answer of the other end counts, a refusal too: its checksums were right.
async fn carries(address: IpAddr, port: u16) -> bool {
    match timeout(PATIENCE, TcpStream::connect(SocketAddr::new(address, port))).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}
