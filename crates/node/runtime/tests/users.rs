//! Pods with a user namespace of their own (KEP-127): root inside, nobody outside. Needs root and `/bin/busybox`.

#[path = "support/node.rs"]
mod node;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use cri::contract::World;
use cri::v1;
use node::Node;

const FIRST: u32 = 655_360;
const LENGTH: u32 = 65_536;

fn main() {
    if runtime::is_shim_invocation() {
        runtime::run_shim();
    }
    tokio::runtime::Runtime::new().expect("tokio").block_on(async {
        let mut node = Node::new().await;
        root_inside_is_nobody_outside(&node).await;
        println!("test users::root_inside_is_nobody_outside ... ok");
        volumes_keep_their_owners(&node).await;
        println!("test users::volumes_keep_their_owners ... ok");
        a_pid_namespace_is_shared_by_nobodies(&node).await;
        println!("test users::a_pid_namespace_is_shared_by_nobodies ... ok");
        a_range_that_begins_with_root_is_refused(&node).await;
        println!("test users::a_range_that_begins_with_root_is_refused ... ok");
        node = a_daemon_that_comes_back_knows_the_namespace(node).await;
        println!("test users::a_daemon_that_comes_back_knows_the_namespace ... ok");
        node.assert_clean().await;
    });
}

fn users(first: u32) -> v1::UserNamespace {
    let ids = vec![v1::IdMapping { host_id: first, container_id: 0, length: LENGTH }];
    v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids }
}

fn namespaces(config: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

fn sandbox_config(world: &World) -> v1::PodSandboxConfig {
    let mut config = world.sandbox_config();
    namespaces(&mut config).userns_options = Some(users(FIRST));
    config
}

/// A script's output in a pod of its own, by lines.
async fn said(world: &Arc<World>, config: v1::ContainerConfig) -> Vec<String> {
    let sandbox = world.sandbox_with(sandbox_config(world)).await.expect("a sandbox");
    let id = world.start(&sandbox, config).await.expect("a container");
    world.ended(&id).await.expect("an end");
    world.log("main").expect("a log")
}

async fn root_inside_is_nobody_outside(node: &Node) {
    let world = World::new(node.subject(), "users");
    let script = "cat /proc/self/uid_map; id -u; stat -c '%u:%g' / /bin/busybox /proc/1 /dev/shm; touch /made && stat -c '%u %a' /made; \
        echo x > /dev/null && echo null; ls /sys/class/net; mount -t tmpfs none /tmp 2>&1; cat /proc/sys/kernel/hostname; \
        echo 1 > /proc/sys/kernel/panic; echo out > /dev/stdout; mkdir -p /p; chown 7:8 /made; stat -c %u:%g /made; \
        head -c 1 /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max >/dev/null 2>&1; ls /sys/fs/cgroup | head -1 >/dev/null && echo groups";
    let said = said(&world, world.script("main", script)).await;
    let squeezed: Vec<String> = said.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for wanted in [
        "stdout F 0 655360 65536",
        "stdout F 0:0",
        "stdout F 0 644",
        "stdout F null",
        "stdout F lo",
        "stdout F out",
        "stdout F 7:8",
        "stdout F groups",
    ] {
        assert!(squeezed.iter().any(|line| line == wanted), "{wanted:?} is not in {squeezed:#?}");
    }
    assert!(!squeezed.iter().any(|line| line.contains("65534")), "something is nobody's: {squeezed:#?}");
    assert!(squeezed.iter().any(|line| line.contains("kernel/panic")), "the host's kernel obeys: {squeezed:#?}");
    let layers = std::fs::read_dir(node.path().join("data/containers")).expect("layers").flatten();
    let made: Vec<u32> = layers.map(|layer| layer.path().join("upper/made").metadata().expect("the file").uid()).collect();
    assert_eq!(made, [FIRST + 7]);
    world.clean().await.expect("removal");
}

async fn volumes_keep_their_owners(node: &Node) {
    let world = World::new(node.subject(), "volumes");
    let volume = node.path().join("volume");
    std::fs::create_dir_all(&volume).expect("a volume");
    std::fs::write(volume.join("given"), "x").expect("a file");
    std::os::unix::fs::chown(volume.join("given"), Some(1000), Some(2000)).expect("an owner");
    let script = "stat -c '%u:%g' /v/given; echo more >> /v/given && echo written; touch /v/made; stat -c '%u:%g' /v/made";
    let mut config = world.script("main", script);
    config.mounts.push(v1::Mount { container_path: "/v".into(), host_path: volume.display().to_string(), ..Default::default() });
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.run_as_user = Some(v1::Int64Value { value: 1000 });
    security.run_as_group = Some(v1::Int64Value { value: 2000 });
    std::os::unix::fs::chown(&volume, Some(1000), None).expect("an owner");
    assert_eq!(said(&world, config).await, ["stdout F 1000:2000", "stdout F written", "stdout F 1000:2000"]);
    let made = volume.join("made").metadata().expect("the file");
    assert_eq!((made.uid(), made.gid()), (1000, 2000));
    let mut config = world.script("main", "true");
    config.mounts.push(v1::Mount { container_path: "/v".into(), host_path: "/proc/fs".into(), ..Default::default() });
    let sandbox = world.sandbox_with(sandbox_config(&world)).await.expect("a sandbox");
    let refused = world.start(&sandbox, config).await.expect_err("a file system without idmapped mounts");
    assert!(refused.contains("idmapped mounts") && refused.contains("/proc/fs"), "{refused}");
    world.clean().await.expect("removal");
}

async fn a_pid_namespace_is_shared_by_nobodies(node: &Node) {
    let world = World::new(node.subject(), "shared");
    let mut config = sandbox_config(&world);
    namespaces(&mut config).pid = v1::NamespaceMode::Pod as i32;
    let sandbox = world.sandbox_with(config).await.expect("a sandbox");
    let mut container = world.script("main", "sleep 1000");
    let security = container.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = Some(v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..Default::default() });
    let id = world.start(&sandbox, container).await.expect("a container");
    let ran = world
        .exec_sync(&id, "cat /proc/self/uid_map; cat /proc/1/comm; id -u; touch /x && stat -c %u /x; kill -0 1 && echo mine", 10)
        .await
        .expect("an exec");
    let out = String::from_utf8_lossy(&ran.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!((ran.exit_code, out.as_str()), (0, "0 655360 65536 sternpost-init 0 0 mine"), "{}", String::from_utf8_lossy(&ran.stderr));
    world.clean().await.expect("removal");
}

async fn a_range_that_begins_with_root_is_refused(node: &Node) {
    let world = World::new(node.subject(), "refused");
    let mut config = world.sandbox_config();
    namespaces(&mut config).userns_options = Some(users(0));
    let why = world.sandbox_with(config).await.expect_err("root is nobody's to give");
    assert!(why.contains("not with 0 outside"), "{why}");
}

async fn a_daemon_that_comes_back_knows_the_namespace(node: Node) -> Node {
    let world = World::new(node.subject(), "back");
    let sandbox = world.sandbox_with(sandbox_config(&world)).await.expect("a sandbox");
    // Nothing of the daemon that was may speak with the shim any more.
    drop(world);
    let node = node.restart().await;
    let again = World::new(node.subject(), "back");
    let id = again.start(&sandbox, again.script("main", "cat /proc/self/uid_map; stat -c %u /bin/busybox")).await.expect("a container");
    again.ended(&id).await.expect("an end");
    let log = again.log("main").expect("a log");
    assert!(log[0].contains("655360") && log[1] == "stdout F 0", "{log:?}");
    node.runtime.remove_all().await.expect("removal");
    node
}
