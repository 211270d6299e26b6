//! Whether a node that fell silent is there at all: its kernel answers for its kubelet's port however busy its programs are.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Node;
use tokio::net::TcpStream;

use super::internal_address;

/// The kernel would repeat a lost packet after a second only.
const AGAIN_AFTER: Duration = Duration::from_millis(70);
const CALLS: u32 = 5;

/// True once the kubelet's port takes a connection, false once it is refused or nobody answers any of some calls.
pub async fn answers(node: Arc<Node>) -> bool {
    let port =
        node.status.as_ref().and_then(|status| status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref().map(|kubelet| kubelet.port));
    let (Some(address), Some(port)) = (internal_address(&node), port.and_then(|port| u16::try_from(port).ok())) else { return false };
    let call = |number: u32| async move {
        tokio::time::sleep(AGAIN_AFTER * number).await;
        TcpStream::connect(SocketAddr::new(address, port)).await
    };
    let mut calls: FuturesUnordered<_> = (0..CALLS).map(call).collect();
    while let Some(outcome) = calls.next().await {
        match outcome {
            Ok(_) => return true,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return false,
            Err(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(port: u16) -> Arc<Node> {
        let status = serde_json::json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
        Arc::new(serde_json::from_value(status).unwrap())
    }

    #[tokio::test]
    async fn a_port_that_listens_is_a_sign_of_life_even_where_nobody_takes_the_call() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(answers(node(port)).await);
        drop(listener);
        assert!(!answers(node(port)).await, "refused");
        assert!(!answers(Arc::default()).await, "no address");
    }
}
