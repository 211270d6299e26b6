//! Against the running kernel: needs root and at least one hierarchy.

use std::process::{Command, Stdio};

use cgroups::{Limits, Root};

fn root(name: &str) -> Root {
    Root::detect(&format!("sternpost-test-{name}-{}", std::process::id())).expect("a control group hierarchy")
}

#[test]
fn a_killed_group_has_no_processes_and_can_be_removed() {
    let root = root("kill");
    let mut group = root.create("pod/one").unwrap();
    group
        .set(&Limits { memory: Some(64 << 20), pids: Some(16), cpu_shares: Some(512), cpu_quota: Some(50_000), ..Limits::default() })
        .unwrap();
    let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
    group.add(child.id() as i32).unwrap();
    assert_eq!(group.processes(), [child.id() as i32]);
    assert_eq!(group.stats().processes, Some(1));
    assert_eq!(group.stats().memory_limit, Some(64 << 20));
    group.kill().unwrap();
    child.wait().unwrap();
    root.remove_all().unwrap();
    assert_eq!(root.walk(), Vec::<String>::new());
    assert!(!root.open("pod").unwrap().exists());
}

#[test]
fn limits_can_grow_and_shrink() {
    let root = root("resize");
    let mut group = root.create("pod").unwrap();
    for megabytes in [64, 256, 32] {
        group
            .set(&Limits {
                memory: Some(megabytes << 20),
                cpu_quota: Some(megabytes * 1000),
                cpu_period: Some(50_000),
                ..Limits::default()
            })
            .unwrap();
        assert_eq!(group.stats().memory_limit, Some((megabytes << 20) as u64));
    }
    group.set(&Limits { memory: Some(-1), ..Limits::default() }).unwrap();
    assert_eq!(group.stats().memory_limit, None);
    root.remove_all().unwrap();
}

#[test]
fn a_value_the_kernel_refuses_is_an_error_that_names_the_file() {
    let root = root("refuse");
    let mut group = root.create("pod").unwrap();
    let error = group.set(&Limits { cpuset_cpus: Some("4000-5000".into()), ..Limits::default() }).unwrap_err();
    assert!(error.to_string().contains("cpuset.cpus"), "{error}");
    root.remove_all().unwrap();
}

#[test]
fn devices_that_are_not_allowed_are_closed_on_the_unified_hierarchy_too() {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let unified: Vec<_> = cgroups::parse_mountinfo(&table).into_iter().filter(|h| h.unified).collect();
    let root = Root::with(unified, &format!("sternpost-test-devices-{}", std::process::id())).expect("a unified hierarchy");
    let mut group = root.create("pod").unwrap();
    let allow = |minor, access: &str| cgroups::DeviceRule { kind: 'c', major: Some(1), minor: Some(minor), access: access.into() };
    group.set(&Limits { devices: Some(vec![allow(3, "rwm"), allow(5, "r")]), ..Limits::default() }).unwrap();
    let script = "read go; head -c1 /dev/zero && echo -n a; echo x > /dev/null && echo -n b; head -c1 /dev/urandom || echo -n c; (: > /dev/zero) || echo d";
    let mut child =
        Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    group.add(child.id() as i32).unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    assert_eq!(String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout), "\0abcd\n");
    root.remove_all().unwrap();
}
