//! Pods on the embedded network: needs root and `/bin/busybox`.

#[path = "support/node.rs"]
mod node;

use std::sync::Arc;

use cri::contract::World;
use cri::v1;
use node::Node;

fn main() {
    if runtime::is_shim_invocation() {
        runtime::run_shim();
    }
    // A network namespace of its own: what the node does to routes, rules and sysctls goes with this process.
    oci::sys::unshare(libc::CLONE_NEWNET).expect("needs root");
    tokio::runtime::Runtime::new().expect("tokio").block_on(async {
        pods_have_addresses_and_reach_each_other().await;
        println!("test pods_have_addresses_and_reach_each_other ... ok");
    });
}

async fn pods_have_addresses_and_reach_each_other() {
    let state = tempfile::tempdir().unwrap();
    let config = cni::Config::new(("10.253.77.0".parse().unwrap(), 24), state.path().to_owned());
    let network = Arc::new(cni::Routed::open(config).unwrap());
    let node = Node::with_network(network).await;
    let world = World::new(node.subject(), "network");
    let (server, client) = (world.sandbox().await.unwrap(), world.sandbox().await.unwrap());
    let address = address_of(&world, &server).await;
    assert!(address.starts_with("10.253.77.") && address != address_of(&world, &client).await, "{address}");
    world.start(&server, world.script("server", "echo hello > /index.html; exec httpd -f -p 8099 -h /")).await.unwrap();
    let script = format!("for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://{address}:8099/index.html && exit; sleep 0.1; done; exit 1");
    let id = world.start(&client, world.script("client", &script)).await.unwrap();
    assert_eq!(world.ended(&id).await.unwrap().exit_code, 0);
    assert_eq!(world.log("client").unwrap().last().unwrap(), "stdout F hello");
    world.clean().await.unwrap();
    node.assert_clean().await;
    let links = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!links.contains(" sp"), "a link is left: {links}");
}

async fn address_of(world: &World, sandbox: &str) -> String {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: false };
    let status = world.subject.runtime.pod_sandbox_status(request).await.unwrap().status.unwrap();
    status.network.unwrap().ip
}
