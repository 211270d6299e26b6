//! A daemon that is killed loses no pod: needs root and `/bin/busybox`.

#[path = "support/node.rs"]
mod node;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use cri::contract::World;
use cri::v1;
use node::Node;

const DAEMON: &str = "daemon";

fn main() {
    if runtime::is_shim_invocation() {
        runtime::run_shim();
    }
    let tokio = tokio::runtime::Runtime::new().expect("tokio");
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(DAEMON) {
        let (directory, cgroup_root) = (args.next().expect("a directory"), args.next().expect("a cgroup root"));
        tokio.block_on(daemon(Path::new(&directory), &cgroup_root));
        return;
    }
    tokio.block_on(async {
        let node = Node::new().await;
        let node = pods_survive_the_daemon(node).await;
        println!("test pods_survive_the_daemon ... ok");
        a_pod_outlives_the_loss_of_its_connection(&node).await;
        println!("test a_pod_outlives_the_loss_of_its_connection ... ok");
        a_pod_whose_shim_dies_ends_and_can_be_removed(&node).await;
        println!("test a_pod_whose_shim_dies_ends_and_can_be_removed ... ok");
        let node = what_was_half_made_is_cleaned(node).await;
        println!("test what_was_half_made_is_cleaned ... ok");
        node.assert_clean().await;
    });
}

/// The part of a daemon that is killed: it starts three containers, says so, and waits for its end.
async fn daemon(directory: &Path, cgroup_root: &str) {
    let node = Node::at(directory, cgroup_root).await;
    let world = World::new(node.subject(), "recovery");
    let sandbox = world.sandbox().await.unwrap();
    let lives = world
        .start(&sandbox, world.script("lives", "trap 'exit 6' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"))
        .await
        .unwrap();
    let ends = world.start(&sandbox, world.script("ends", "sleep 0.3; exit 17")).await.unwrap();
    let created = world.create(&sandbox, world.script("created", "exit 5")).await.unwrap();
    println!("{sandbox} {lives} {ends} {created}");
    std::future::pending::<()>().await;
}

async fn pods_survive_the_daemon(node: Node) -> Node {
    let (directory, cgroup_root) = node.give_up();
    let mut daemon = Command::new("/proc/self/exe")
        .args([DAEMON, directory.path().to_str().unwrap(), &cgroup_root])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let ids: Vec<&str> = line.split_whitespace().collect();
    let [sandbox, lives, ends, created] = ids[..] else { panic!("the daemon said {line:?}") };
    // One ends while nobody looks.
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;

    let node = Node::adopt(directory, cgroup_root).await;
    let world = World::new(node.subject(), "recovery");
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: false };
    let status = world.subject.runtime.pod_sandbox_status(request).await.unwrap().status.unwrap();
    assert_eq!(status.state, v1::PodSandboxState::SandboxReady as i32);
    assert_eq!(world.status(lives).await.unwrap().state, v1::ContainerState::ContainerRunning as i32);
    let ended = world.status(ends).await.unwrap();
    assert_eq!((ended.state, ended.exit_code), (v1::ContainerState::ContainerExited as i32, 17));
    assert_eq!(world.exec_sync(lives, "echo alive", 10).await.unwrap().stdout.as_ref(), b"alive\n");
    let before = world.log("lives").unwrap().len();
    let numbers: Vec<String> = (1..=before).map(|n| format!("stdout F {n}")).collect();
    assert_eq!(world.log("lives").unwrap()[..before], numbers, "lines were lost");
    world.log_has("lives", &format!("stdout F {}", before + 5)).await.unwrap();
    world.subject.runtime.start_container(v1::StartContainerRequest { container_id: created.into() }).await.unwrap();
    assert_eq!(world.ended(created).await.unwrap().exit_code, 5);
    world.subject.runtime.stop_container(v1::StopContainerRequest { container_id: lives.into(), timeout: 10 }).await.unwrap();
    assert_eq!(world.status(lives).await.unwrap().exit_code, 6);
    remove(&world, sandbox).await;
    node
}

/// A shim serves whoever connects last; the daemon that lost it this way connects again instead of giving the pod up.
async fn a_pod_outlives_the_loss_of_its_connection(node: &Node) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let world = World::new(node.subject(), "interrupted");
    let sandbox = world.sandbox().await.unwrap();
    let container = world.start(&sandbox, world.script("main", "sleep 4123")).await.unwrap();
    let shim = node.path().join("run/sandboxes").join(&sandbox).join("shim.sock");
    let directory = std::fs::File::open(shim.parent().unwrap()).unwrap();
    let other = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    use std::os::fd::AsRawFd;
    connect(&other, &SocketAddrUnix::new(format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd())).unwrap()).unwrap();
    // The other one hears the end of its connection once the daemon is back.
    let taken = tokio::task::spawn_blocking(move || rustix::io::read(&other, &mut [0_u8; 1])).await.unwrap();
    assert!(matches!(taken, Ok(0) | Err(rustix::io::Errno::CONNRESET)), "{taken:?}");
    assert_eq!(world.status(&container).await.unwrap().state, v1::ContainerState::ContainerRunning as i32);
    let answer = async {
        loop {
            if let Ok(answer) = world.exec_sync(&container, "echo back", 10).await {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert_eq!(tokio::time::timeout(std::time::Duration::from_secs(10), answer).await.unwrap().stdout.as_ref(), b"back\n");
    remove(&world, &sandbox).await;
}

async fn a_pod_whose_shim_dies_ends_and_can_be_removed(node: &Node) {
    let world = World::new(node.subject(), "shimless");
    let sandbox = world.sandbox().await.unwrap();
    let container = world.start(&sandbox, world.script("main", "sleep 5123")).await.unwrap();
    let shim = node.shim_of(&sandbox);
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    let status = world.ended(&container).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
    let state = world.subject.runtime.pod_sandbox_status(request).await.unwrap().status.unwrap().state;
    assert_eq!(state, v1::PodSandboxState::SandboxNotready as i32);
    assert!(!node::processes().iter().any(|command| command.contains("5123")), "the container lives on");
    remove(&world, &sandbox).await;
}

async fn what_was_half_made_is_cleaned(node: Node) -> Node {
    let world = World::new(node.subject(), "half");
    let sandbox = world.sandbox().await.unwrap();
    world.start(&sandbox, world.script("main", "sleep 6123")).await.unwrap();
    drop(world);
    // As if the daemon had died before it could write the record.
    std::fs::remove_file(node.path().join("run/sandboxes").join(&sandbox).join("record")).unwrap();
    let node = node.restart().await;
    let world: Arc<World> = World::new(node.subject(), "half");
    let all = world.subject.runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter: None }).await.unwrap().items;
    assert!(all.is_empty());
    assert!(!node::processes().iter().any(|command| command.contains("6123")), "the container lives on");
    assert!(!node.path().join("run/sandboxes").join(&sandbox).exists());
    node
}

async fn remove(world: &World, sandbox: &str) {
    world.subject.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() }).await.unwrap();
}
