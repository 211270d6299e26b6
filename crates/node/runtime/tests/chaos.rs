//! Pods that come, go and are killed by the hundred leave nothing: no process, mount, control group, file or descriptor; and what runs
//! inside does not get at the runtime's own program. Needs root and `/bin/busybox`.
//!
//! `STERNPOST_CYCLES` is the number of pods (300 without it).

#[path = "support/node.rs"]
mod node;

use std::sync::Arc;
use std::time::Duration;

use cri::contract::World;
use cri::{RuntimeService, v1};
use node::Node;

const CYCLES: usize = 300;
const AT_ONCE: usize = 8;

fn main() {
    if runtime::is_shim_invocation() {
        runtime::run_shim();
    }
    tokio::runtime::Runtime::new().expect("tokio").block_on(async {
        let node = Arc::new(Node::new().await);
        // The first pods open what stays open for good.
        churn(&node, 2 * AT_ONCE).await;
        let before = descriptors();
        let cycles = std::env::var("STERNPOST_CYCLES").ok().and_then(|count| count.parse().ok()).unwrap_or(CYCLES);
        churn(&node, cycles).await;
        let after = descriptors();
        assert!(after <= before + AT_ONCE, "{before} descriptors have become {after}");
        println!("test chaos::pods_that_come_and_go_leave_nothing ... ok ({cycles} pods)");
        its_own_program_is_out_of_reach(&node).await;
        println!("test chaos::its_own_program_is_out_of_reach ... ok");
        Arc::into_inner(node).expect("the node is nobody else's").assert_clean().await;
    });
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count()
}

async fn churn(node: &Arc<Node>, count: usize) {
    let turns = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut pods = tokio::task::JoinSet::new();
    for number in 0..count {
        let (node, turns) = (node.clone(), turns.clone());
        pods.spawn(async move {
            let _turn = turns.acquire().await.expect("a turn");
            live_and_die(&node, number).await;
        });
    }
    while let Some(ended) = pods.join_next().await {
        ended.expect("a pod's life");
    }
}

/// One pod; every third is killed with its shim, every fifth is removed while it starts.
async fn live_and_die(node: &Node, number: usize) {
    let world = World::new(node.subject(), "chaos");
    let mut config = world.sandbox_config();
    if let Some(metadata) = config.metadata.as_mut() {
        metadata.uid = format!("chaos-{number}-{:?}", std::time::Instant::now());
    }
    let sandbox = world.sandbox_with(config).await.expect("a sandbox");
    let script = if number % 2 == 0 { "exit 0" } else { "sleep 1000 & echo x > /file; wait" };
    if number % 5 == 0 {
        let (world, sandbox) = (world.clone(), sandbox.clone());
        let config = world.script("main", script);
        // It may fail: the pod goes meanwhile.
        tokio::spawn(async move { world.start(&sandbox, config).await });
        tokio::time::sleep(Duration::from_millis((number % 7) as u64)).await;
    } else {
        world.start(&sandbox, world.script("main", script)).await.expect("a container");
    }
    if number % 3 == 0 {
        rustix::process::kill_process(node.shim_of(&sandbox), rustix::process::Signal::KILL).expect("the shim's end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..3 {
        let removed = node.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await;
        if removed.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("sandbox {sandbox} cannot be removed");
}

/// A container tries to write to the program of every process that it sees, while others are started in it (CVE-2019-5736).
async fn its_own_program_is_out_of_reach(node: &Node) {
    let before = std::fs::read("/proc/self/exe").expect("our own program");
    let world = World::new(node.subject(), "escape");
    let sandbox = world.sandbox().await.expect("a sandbox");
    let script = "while :; do for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || (echo x >> $p/exe) 2>/dev/null && readlink $p/exe; done; done";
    let id = world.start(&sandbox, world.script("main", script)).await.expect("a container");
    for _ in 0..40 {
        world.exec_sync(&id, "true", 10).await.expect("an exec");
    }
    world.clean().await.expect("removal");
    assert!(std::fs::read("/proc/self/exe").expect("our own program") == before, "the runtime's program was changed from inside");
}
