//! What a container may try, and what comes of it: contained, with a clear error, and the node goes on. Needs root and `/bin/busybox`.

#[path = "support/node.rs"]
mod node;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use cri::contract::World;
use cri::{RuntimeService, v1};
use node::Node;

fn main() {
    if runtime::is_shim_invocation() {
        runtime::run_shim();
    }
    tokio::runtime::Runtime::new().expect("tokio").block_on(async {
        let node = Node::new().await;
        macro_rules! cases {
            ($($name:ident),* $(,)?) => { $(
                let world = World::new(node.subject(), stringify!($name));
                $name(&node, &world).await;
                world.clean().await.expect("removal");
                println!("test escape::{} ... ok", stringify!($name));
            )* };
        }
        cases![
            a_fork_bomb_meets_its_limit_and_the_pod_goes_all_the_same,
            an_exec_has_no_more_capabilities_than_its_container,
            a_setuid_program_gives_nothing_where_privileges_may_not_grow,
            a_device_node_of_a_volume_opens_no_disk,
            its_control_group_is_the_whole_tree_and_cannot_be_left,
            a_flood_of_output_ends_in_the_log_and_nowhere_else,
            an_environment_that_the_kernel_refuses_is_an_error_that_says_so,
            labels_and_environment_of_megabytes_come_back_as_they_were,
            a_link_in_the_image_does_not_lead_a_mount_out_of_the_root,
            the_kernels_own_files_are_read_only_or_hidden,
            a_process_of_the_host_is_not_seen_nor_signalled,
            a_link_for_a_log_is_not_followed_by_the_container,
        ];
        node.assert_clean().await;
    });
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// What a script said, and its exit code.
async fn ran(world: &Arc<World>, config: v1::ContainerConfig) -> (i32, String) {
    let (code, lines) = world.output(config).await.expect("a container that runs");
    (code, lines.join("\n"))
}

fn volume(config: &mut v1::ContainerConfig, host: &std::path::Path, inside: &str) {
    config.mounts.push(v1::Mount { container_path: inside.into(), host_path: host.display().to_string(), ..Default::default() });
}

async fn a_fork_bomb_meets_its_limit_and_the_pod_goes_all_the_same(node: &Node, world: &Arc<World>) {
    let mut config = world.sandbox_config();
    let linux = config.linux.get_or_insert_default();
    linux.cgroup_parent = "pods/bomb".into();
    linux.resources =
        Some(v1::LinuxContainerResources { unified: [("pids.max".to_owned(), "50".to_owned())].into(), ..Default::default() });
    let sandbox = world.sandbox_with(config).await.expect("a sandbox");
    let bomb = world.start(&sandbox, world.script("bomb", "b() { b | b & }; while :; do b; done")).await.expect("a container");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    // Others on the node start as before.
    let other = World::new(node.subject(), "beside");
    assert_eq!(ran(&other, other.script("main", "echo fine")).await, (0, "stdout F fine".into()));
    other.clean().await.expect("removal");
    let log = std::fs::read_to_string(world.directory().join("logs/bomb.log")).expect("a log");
    assert!(log.contains("can't fork: Resource temporarily unavailable"), "{}", log.chars().take(300).collect::<String>());
    let status = world.status(&bomb).await.expect("a status");
    assert!([v1::ContainerState::ContainerRunning as i32, v1::ContainerState::ContainerExited as i32].contains(&status.state));
}

async fn an_exec_has_no_more_capabilities_than_its_container(_: &Node, world: &Arc<World>) {
    let mut config = world.script("main", "sleep 1000");
    security(&mut config).capabilities = Some(v1::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    security(&mut config).no_new_privs = true;
    let sandbox = world.sandbox().await.expect("a sandbox");
    let id = world.start(&sandbox, config).await.expect("a container");
    let exec = world.exec_sync(&id, "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status; chown 1 /tmp; mknod /tmp/d b 8 0; chroot /; mount -t tmpfs x /tmp", 10);
    let said = exec.await.expect("an exec");
    let out = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(out.matches("0000000000000000").count(), 5, "{out}");
    assert!(out.contains("NoNewPrivs:\t1"), "{out}");
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(errors.matches("Operation not permitted").count() + errors.matches("ermission denied").count(), 4, "{errors}");
}

async fn a_setuid_program_gives_nothing_where_privileges_may_not_grow(node: &Node, world: &Arc<World>) {
    let folder = node.path().join("setuid");
    std::fs::create_dir_all(&folder).expect("a volume");
    std::fs::copy("/bin/busybox", folder.join("busybox")).expect("busybox");
    std::fs::set_permissions(folder.join("busybox"), std::fs::Permissions::from_mode(0o4755)).expect("setuid");
    for locked in [true, false] {
        let world = World::new(node.subject(), if locked { "setuid_locked" } else { "setuid_free" });
        // busybox lays privileges down for most of its applets; this one says when it has none.
        let mut config = world.script("main", "/v/busybox su nobody -c true 2>&1 </dev/null");
        volume(&mut config, &folder, "/v");
        security(&mut config).run_as_user = Some(v1::Int64Value { value: 1000 });
        security(&mut config).no_new_privs = locked;
        let (_, said) = ran(&world, config).await;
        assert_eq!(said.contains("must be suid to work properly"), locked, "no_new_privs {locked}: {said}");
        world.clean().await.expect("removal");
    }
    let _ = world;
}

async fn a_device_node_of_a_volume_opens_no_disk(node: &Node, world: &Arc<World>) {
    let folder = node.path().join("devices");
    std::fs::create_dir_all(&folder).expect("a volume");
    // Loop devices have major 7 everywhere; a real disk is the same to the kernel's rules.
    let made = std::process::Command::new("mknod").args([folder.join("disk").to_str().expect("a path"), "b", "7", "0"]).status();
    assert!(made.expect("mknod").success());
    let mut config = world.script("main", "head -c 1 /v/disk; mknod /own b 7 0 && head -c 1 /own; mknod /mem c 1 1 && head -c 1 /mem");
    volume(&mut config, &folder, "/v");
    let (_, said) = ran(world, config).await;
    assert_eq!(said.matches("Operation not permitted").count(), 3, "{said}");
}

async fn its_control_group_is_the_whole_tree_and_cannot_be_left(_: &Node, world: &Arc<World>) {
    let script = "cut -d: -f3 /proc/self/cgroup | sort -u; for f in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do [ -e $f ] && { echo $$ > $f; } 2>&1; done; \
        for f in /sys/fs/cgroup/*/release_agent; do [ -e $f ] && echo /bad > $f; done 2>&1; mkdir /sys/fs/cgroup/memory/x 2>&1 || mkdir /sys/fs/cgroup/x; \
        mount -t cgroup -o memory none /tmp 2>&1; echo end";
    let (_, said) = ran(world, world.script("main", script)).await;
    let lines: Vec<&str> = said.lines().collect();
    // Some v1 hierarchies hold no group of ours; nobody sees a path of the host's.
    assert!(lines.iter().filter(|line| line.contains("sternpost")).count() == 0, "a path of the host's: {said}");
    assert!(lines.iter().any(|line| line.ends_with("Read-only file system")), "{said}");
    assert!(
        !lines
            .iter()
            .any(|line| line.contains("/bad") && !line.contains("annot") && !line.contains("can't") && !line.contains("Read-only")),
        "{said}"
    );
    assert!(lines.iter().any(|line| line.contains("permission denied") || line.contains("Operation not permitted")), "{said}");
    assert_eq!(lines.last(), Some(&"stdout F end"));
}

async fn a_flood_of_output_ends_in_the_log_and_nowhere_else(node: &Node, world: &Arc<World>) {
    let sandbox = world.sandbox().await.expect("a sandbox");
    let shim = node.shim_of(&sandbox);
    let memory = || {
        let text = std::fs::read_to_string(format!("/proc/{}/status", shim.as_raw_pid())).expect("the shim lives");
        text.lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .expect("VmRSS")
    };
    let before = memory();
    let id = world
        .start(
            &sandbox,
            world.script("main", &format!("yes {} | head -c 10000000; head -c 5000000 /dev/zero | tr '\\0' x", "flood".repeat(20))),
        )
        .await
        .expect("a container");
    world.ended(&id).await.expect("an end");
    let after = memory();
    assert!(after < before + 4096, "the shim grew from {before} to {after} KiB");
    let log = std::fs::metadata(world.directory().join("logs/main.log")).expect("a log").len();
    assert!(log > 15_000_000, "{log} bytes of log");
    let longest =
        std::fs::read(world.directory().join("logs/main.log")).expect("the log").split(|byte| *byte == b'\n').map(<[u8]>::len).max();
    assert!(longest < Some(20_000), "a line of {longest:?} bytes");
}

async fn an_environment_that_the_kernel_refuses_is_an_error_that_says_so(_: &Node, world: &Arc<World>) {
    let sandbox = world.sandbox().await.expect("a sandbox");
    let mut config = world.script("main", "true");
    config.envs.push(v1::KeyValue { key: "HUGE".into(), value: "x".repeat(3 << 20).into() });
    let refused = world.start(&sandbox, config).await.expect_err("no kernel takes 3 MiB in one string");
    assert!(refused.contains("argument list too long"), "{refused}");
    let fine = world.start(&sandbox, world.script("other", "true")).await.expect("the pod goes on");
    assert_eq!(world.ended(&fine).await.expect("an end").exit_code, 0);
}

async fn labels_and_environment_of_megabytes_come_back_as_they_were(_: &Node, world: &Arc<World>) {
    let sandbox = world.sandbox().await.expect("a sandbox");
    let mut config = world.script("main", "env | wc -c");
    for number in 0..20 {
        config.envs.push(v1::KeyValue { key: format!("V{number}"), value: "y".repeat(60_000).into() });
    }
    config.labels.insert("huge".into(), "l".repeat(1 << 20));
    config.annotations.insert("huge".into(), "a".repeat(4 << 20));
    let id = world.start(&sandbox, config).await.expect("a container");
    let status = world.ended(&id).await.expect("an end");
    assert_eq!((status.labels["huge"].len(), status.annotations["huge"].len()), (1 << 20, 4 << 20));
    let said = world.log("main").expect("a log");
    let bytes: usize = said[0].rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a count");
    assert!(bytes > 1_200_000, "{said:?}");
}

async fn a_link_in_the_image_does_not_lead_a_mount_out_of_the_root(node: &Node, world: &Arc<World>) {
    let outside = node.path().join("outside");
    std::fs::create_dir_all(&outside).expect("a folder");
    let image = node.path().join("linked");
    std::fs::create_dir_all(image.join("bin")).expect("a folder");
    std::fs::copy("/bin/busybox", image.join("bin/sh")).expect("busybox");
    for (name, target) in [("up", "../../../../../../../../../../..".to_owned()), ("away", outside.display().to_string())] {
        std::os::unix::fs::symlink(target, image.join(name)).expect("a link");
    }
    node.images.add_builtin("linked", images::ImageConfig::default(), &image).expect("an image");
    for target in [format!("/up{}/made", outside.display()), "/away/made".to_owned(), "/../../../made".to_owned()] {
        let world = World::new(node.subject(), "linked");
        let mut config = world.script("main", "exit 3");
        config.image = Some(v1::ImageSpec { image: "linked".into(), ..Default::default() });
        volume(&mut config, &image, &target);
        // A link that leads nowhere inside is an error that names the mount.
        match world.output(config).await {
            Ok((code, said)) => assert_eq!(code, 3, "{target}: {said:?}"),
            Err(why) => assert!(why.contains(&format!("mount {target}")), "{why}"),
        }
        assert_eq!(std::fs::read_dir(&outside).expect("the folder").count(), 0, "{target} left the root");
        world.clean().await.expect("removal");
    }
    let _ = world;
}

async fn the_kernels_own_files_are_read_only_or_hidden(_: &Node, world: &Arc<World>) {
    // Not every kernel has all of them.
    let there = |path: &&str| std::path::Path::new(path).exists();
    let locked: Vec<&str> = ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"].into_iter().filter(there).collect();
    let masked: Vec<&str> = ["/proc/kcore"].into_iter().filter(there).collect();
    let writes: String = locked.iter().map(|path| format!("echo x > {path}; ")).collect();
    let reads: String = masked.iter().map(|path| format!("wc -c < {path}; ")).collect();
    let script = format!("{writes}{reads}ls /sys/firmware | wc -l; umount /proc/sys; mount -o remount,rw /proc/sys; echo end");
    let mut config = world.script("main", &script);
    security(&mut config).readonly_paths = vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()];
    let (_, said) = ran(world, config).await;
    assert!(!locked.is_empty());
    for path in locked {
        assert!(said.contains(&format!("can't create {path}: Read-only")), "{path} in {said}");
    }
    assert_eq!(said.matches("stdout F 0").count(), masked.len() + 1, "{said}");
    assert_eq!(said.matches("ermission denied").count() + said.matches("not permitted").count(), 2, "{said}");
}

async fn a_process_of_the_host_is_not_seen_nor_signalled(_: &Node, world: &Arc<World>) {
    let script = format!(
        "ls /proc | grep -c '^[0-9]'; kill -9 {} 2>&1; ls /proc/1/root/ >/dev/null && echo own; readlink /proc/1/exe",
        std::process::id()
    );
    let (_, said) = ran(world, world.script("main", &script)).await;
    assert!(said.contains("No such process"), "{said}");
    let count: u32 = said.lines().next().and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("a count");
    assert!(count < 6, "{count} processes: {said}");
    assert!(said.ends_with("/bin/busybox"), "{said}");
}

async fn a_link_for_a_log_is_not_followed_by_the_container(node: &Node, world: &Arc<World>) {
    // The log folder is the kubelet's; a container that gets at its own log through a hostPath can only harm itself.
    let sandbox = world.sandbox().await.expect("a sandbox");
    let mut config = world.script("main", "rm -f /logs/main.log; ln -s /etc/passwd /logs/main.log; echo said; sleep 1000");
    volume(&mut config, &world.directory().join("logs"), "/logs");
    let before = std::fs::read("/etc/passwd").expect("/etc/passwd");
    let id = world.start(&sandbox, config).await.expect("a container");
    for _ in 0..100 {
        if world.directory().join("logs/main.log").symlink_metadata().is_ok_and(|file| file.is_symlink()) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let reopened = node.runtime.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id }).await;
    assert!(reopened.is_err_and(|error| error.message.contains("main.log")), "a link was opened as a log");
    assert_eq!(std::fs::read("/etc/passwd").expect("/etc/passwd"), before);
}
