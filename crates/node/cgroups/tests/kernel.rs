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
