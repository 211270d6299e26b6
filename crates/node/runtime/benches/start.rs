//! How long a pod takes: sandbox and container start one by one, a hundred at once, and what a shim costs in memory.
//!
//! Needs root and `/bin/busybox`. Prints milliseconds; asserts nothing about time.

#[path = "../tests/support/node.rs"]
mod node;

use std::time::Instant;

use cri::contract::World;
use cri::v1;
use node::Node;

const ROUNDS: usize = 40;
const PODS: usize = 100;

fn main() {
    if runtime::is_shim_invocation() {
        runtime::run_shim();
    }
    tokio::runtime::Runtime::new().expect("tokio").block_on(async {
        let node = Node::new().await;
        one_by_one(&node).await;
        all_at_once(&node).await;
        node.assert_clean().await;
    });
}

fn report(what: &str, mut milliseconds: Vec<f64>) {
    milliseconds.sort_by(f64::total_cmp);
    let at = |part: f64| milliseconds[((milliseconds.len() - 1) as f64 * part) as usize];
    println!("{what:<28} min {:7.2}  p50 {:7.2}  p99 {:7.2} ms", at(0.0), at(0.5), at(0.99));
}

async fn one_by_one(node: &Node) {
    let world = World::new(node.subject(), "start");
    let (mut sandboxes, mut starts, mut ends, mut removals) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut config = world.sandbox_config();
        if let Some(metadata) = config.metadata.as_mut() {
            metadata.uid = format!("{round}");
        }
        let begin = Instant::now();
        let sandbox = world.sandbox_with(config).await.expect("a sandbox");
        sandboxes.push(begin.elapsed().as_secs_f64() * 1e3);
        let begin = Instant::now();
        let mut config = world.script("main", "");
        config.command = vec!["/bin/true".into()];
        let id = world.start(&sandbox, config).await.expect("a container");
        starts.push(begin.elapsed().as_secs_f64() * 1e3);
        world.ended(&id).await.expect("an end");
        ends.push(begin.elapsed().as_secs_f64() * 1e3);
        let begin = Instant::now();
        world.clean().await.expect("removal");
        removals.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    report("run sandbox", sandboxes);
    report("create and start container", starts);
    report("create to exit", ends);
    report("stop and remove all", removals);
}

async fn all_at_once(node: &Node) {
    let begin = Instant::now();
    let pods: Vec<_> = (0..PODS).map(|number| tokio::spawn(pod(node.subject(), number))).collect();
    let mut worlds = Vec::new();
    let mut times = Vec::new();
    for pod in pods {
        let (world, sandbox, milliseconds) = pod.await.expect("a pod");
        times.push(milliseconds);
        worlds.push((world, sandbox));
    }
    println!("{PODS} pods running after {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
    report("each of them", times);
    memory(node, &worlds[0].1);
    let begin = Instant::now();
    let removals: Vec<_> = worlds.into_iter().map(|(world, _)| tokio::spawn(async move { world.clean().await })).collect();
    for removal in removals {
        removal.await.expect("no panic").expect("removal");
    }
    println!("all removed after {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
}

async fn pod(subject: cri::contract::Subject, number: usize) -> (std::sync::Arc<World>, String, f64) {
    let world = World::new(subject, "parallel");
    let begin = Instant::now();
    let mut config = world.sandbox_config();
    config.metadata = Some(v1::PodSandboxMetadata { name: format!("pod-{number}"), ..Default::default() });
    let sandbox = world.sandbox_with(config).await.expect("a sandbox");
    let mut config = world.script(&format!("pod-{number}"), "");
    config.command = vec!["/bin/sleep".into(), "1000".into()];
    world.start(&sandbox, config).await.expect("a container");
    (world, sandbox, begin.elapsed().as_secs_f64() * 1e3)
}

fn memory(node: &Node, sandbox: &str) {
    let pid = node.shim_of(sandbox).as_raw_pid();
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let line =
        |key: &str| text.lines().find(|l| l.starts_with(key)).unwrap_or_default().split_whitespace().nth(1).unwrap_or("?").to_owned();
    println!("a shim: Rss {} kB, Pss {} kB, Private_Dirty {} kB", line("Rss:"), line("Pss:"), line("Private_Dirty:"));
}
