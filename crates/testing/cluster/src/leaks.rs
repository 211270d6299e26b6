//! What a cluster leaves on the machine, as the kernel tells it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cluster::names;
use crate::process;

/// Every trace of the tests' cluster in `dir` with this binary: one line each, none on a clean machine.
pub fn traces(dir: &Path, binary: &Path) -> Vec<String> {
    let mut found = Vec::new();
    processes(dir, binary, &mut found);
    mounts(dir, &mut found);
    cgroups(&mut found);
    links(&mut found);
    tables(&mut found);
    for name in ["data", "run"] {
        let left = dir.join(name);
        if left.exists() {
            found.push(format!("folder {}", left.display()));
        }
    }
    found
}

/// What the pods of the cluster in `dir` have of this machine: supervisors, mounts, control groups, links, and files below its folders. The
/// cluster itself may run.
pub fn of_pods(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in process::all() {
        if process.executable().is_some_and(|path| path.starts_with(dir)) && process.command_line().split(' ').nth(1) == Some("shim") {
            found.push(format!("process {}", process.id));
        }
    }
    mounts(dir, &mut found);
    links(&mut found);
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        if let Some(mount) = left.split(' ').nth(4).filter(|_| right.starts_with("cgroup")) {
            groups_below(&Path::new(mount).join(names::CGROUP_ROOT), &mut found);
        }
    }
    for folder in ["run/pods/sandboxes", "run/network", "run/kubelet/pods", "data/kubelet/pods", "data/containers/containers", "data/logs"]
    {
        let entries = fs::read_dir(dir.join(folder)).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| format!("file {}", entry.path().display())));
    }
    // The last address that was given, not one that is in use; the group of all supervisors, which the first of them makes.
    found.retain(|trace| !trace.ends_with("run/network/last") && !trace.ends_with("/shims"));
    found
}

fn groups_below(group: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(format!("cgroup {}", entry.path().display()));
            groups_below(&entry.path(), found);
        }
    }
}

/// The daemon and supervisors run our copy of the binary; what runs inside containers is found by its control group.
fn processes(dir: &Path, binary: &Path, found: &mut Vec<String>) {
    for process in process::all() {
        let executable = process.executable().unwrap_or_default();
        let ours = executable.starts_with(dir) || executable.starts_with(binary);
        let contained = process.cgroups().iter().any(|(_, path)| path.trim_start_matches('/').split('/').next().is_some_and(is_our_group));
        if ours || contained {
            found.push(format!("process {} {}", process.id, process.command_line()));
        }
    }
}

/// Mounts below our folders, network namespaces kept by a mount included, in every mount namespace there is.
fn mounts(dir: &Path, found: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    let text = dir.to_string_lossy().into_owned();
    for process in process::all() {
        let Some(namespace) = process.namespace("mnt") else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", process.id)).unwrap_or_default();
        found.extend(table.lines().filter(|line| line.contains(&text)).map(|line| format!("mount {line}")));
    }
}

fn cgroups(found: &mut Vec<String>) {
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4) else { continue };
        if !right.starts_with("cgroup") {
            continue;
        }
        for group in fs::read_dir(mount).into_iter().flatten().flatten() {
            if group.file_name().to_str().is_some_and(is_our_group) {
                found.push(format!("cgroup {}", group.path().display()));
            }
        }
    }
}

/// Ours, or that of a further node, which has its number after it.
fn is_our_group(name: &str) -> bool {
    let rest = name.strip_prefix(names::CGROUP_ROOT);
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(|number| number.parse::<u8>().is_ok()))
}

/// Links by our prefix, and routes into our ranges by whatever link.
fn links(found: &mut Vec<String>) {
    let text = |args: &[&str]| {
        let output = Command::new("ip").args(args).output().expect("the tests need ip");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for line in text(&["-o", "link"]).lines() {
        let name = line.split_whitespace().nth(1).unwrap_or_default();
        // Pods' links; the tunnel to other nodes, the bridge between those on this machine, and their links.
        let ours =
            ["", "vx-", "br-", "n-"].iter().any(|kind| name.strip_prefix(kind).is_some_and(|rest| rest.starts_with(names::LINK_PREFIX)));
        if ours {
            found.push(format!("link {name}"));
        }
    }
    let routes = text(&["route", "show", "table", "all"]) + &text(&["rule"]);
    let ours = [names::POD_NETWORK, names::SERVICE_NETWORK, names::NODE_NETWORK];
    found.extend(routes.lines().filter(|line| ours.iter().any(|network| line.contains(network))).map(|line| format!("route {line}")));
}

fn tables(found: &mut Vec<String>) {
    let mut socket = nft::Socket::netfilter().expect("netfilter netlink");
    let table = nft::Table::inet(names::NFT_TABLE);
    if table.exists(&mut socket).expect("ask for the table") {
        found.push(format!("nftables table {}", names::NFT_TABLE));
    }
}

/// Removes by force whatever [`traces`] finds. For cleaning up after a failure; a cluster that works leaves nothing for it.
pub fn remove(dir: &Path, binary: &Path) {
    for _ in 0..3 {
        let traces = traces(dir, binary);
        for trace in &traces {
            eprintln!("left behind, removed by the tests: {trace}");
            let words: Vec<&str> = trace.split(' ').collect();
            match words.as_slice() {
                ["process", id, ..] => end(id),
                ["mount", _, _, _, _, target, ..] => drop(rustix::mount::unmount(*target, rustix::mount::UnmountFlags::DETACH)),
                ["link", name] => {
                    let name = name.trim_end_matches(':').split('@').next().unwrap_or_default();
                    let _ = Command::new("ip").args(["link", "delete", name]).output();
                }
                ["cgroup", path] => remove_group(Path::new(path)),
                ["nftables", ..] => {
                    let mut socket = nft::Socket::netfilter().expect("netfilter netlink");
                    let _ = nft::Table::inet(names::NFT_TABLE).delete(&mut socket);
                }
                _ => {}
            }
        }
        if traces.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

fn end(id: &str) {
    if let Ok(id) = id.parse::<i32>()
        && id > 1
    {
        // SAFETY: kill takes plain numbers.
        unsafe { libc::kill(id, libc::SIGKILL) };
    }
}

fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
