//! The CRI contract on the embedded runtime: needs root and `/bin/busybox` (Debian's busybox-static).

#[path = "support/node.rs"]
mod node;

fn main() {
    if runtime::is_shim_invocation() {
        runtime::run_shim();
    }
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let failed = tokio::runtime::Runtime::new().expect("tokio").block_on(async {
        let node = node::Node::new().await;
        let failed = cri::contract::run(&node.subject(), &filter).await;
        node.assert_clean().await;
        failed
    });
    assert_eq!(failed, 0, "{failed} cases failed");
}
