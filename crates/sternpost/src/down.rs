//! `sternpost down`: stop the daemon, then the pods; with `--purge` remove everything that is ours on this host.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::config::Config;
use crate::kubeconfig::{self, Invoker};
use crate::{daemon, keeper, node, nodes};

/// How long the daemon may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn run(config: &Config, purge: bool, dry_run: bool) -> anyhow::Result<i32> {
    if dry_run {
        return list(config, purge);
    }
    match daemon::running(config) {
        Some(pid) => {
            stop(config, pid)?;
            println!("stopped the daemon (process {pid})");
        }
        None => println!("the daemon was not running"),
    }
    keeper::end(&config.run_dir).context("end the keeper of the DNS sockets")?;
    nodes::down(config, purge)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match runtime.block_on(node::stop_all(config, purge)) {
        Ok(pods) => println!("stopped {pods} pods"),
        // What is to be thrown away need not be readable for that.
        Err(error) if purge => eprintln!("the pods are ended by force, because their state cannot be read: {error:#}"),
        Err(error) => return Err(error),
    }
    if purge {
        cgroups::Root::detect(&config.cgroup_root)?.remove_all()?;
    } else {
        remove_cgroups(config);
    }
    node::remove_network(config)?;
    // Only where we mount: a disk of the user's below the data folder stays.
    for dir in [&node::volumes_dir(config), &config.run_dir] {
        volumes::teardown::unmount_below(dir)?;
        volumes::teardown::unmount(dir)?;
    }
    if purge {
        remove_everything(config)?;
    }
    Ok(0)
}

/// Ends the daemon: SIGTERM, then SIGKILL once it had its time.
fn stop(config: &Config, pid: i32) -> anyhow::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = Pid::from_raw(pid).context("the pid file holds no process id")?;
    let _ = kill_process(pid, Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    while daemon::running(config).is_some() {
        if Instant::now() > deadline {
            println!("the daemon does not end; killing it");
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Removes our control groups, innermost first, in every hierarchy. Groups that still hold processes stay and are named.
fn remove_cgroups(config: &Config) {
    for root in cgroup_roots(config) {
        if let Err(error) = remove_tree(&root) {
            eprintln!("{}: {error}", root.display());
        }
    }
}

fn cgroup_roots(config: &Config) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut roots: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .filter(|(_, right)| right.starts_with("cgroup"))
        .filter_map(|(left, _)| left.split(' ').nth(4))
        .map(|mount| Path::new(mount).join(&config.cgroup_root))
        .filter(|root| root.is_dir())
        .collect();
    roots.sort();
    roots.dedup();
    roots
}

fn remove_tree(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

fn remove_everything(config: &Config) -> anyhow::Result<()> {
    node::unlink_kubelet(config);
    for dir in [&config.run_dir, &config.data_dir] {
        match fs::remove_dir_all(dir) {
            Ok(()) => println!("removed {}", dir.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            // A disk of the user's is mounted there: it stays, empty.
            Err(error)
                if error.kind() == std::io::ErrorKind::ResourceBusy && fs::read_dir(dir).is_ok_and(|mut left| left.next().is_none()) =>
            {
                println!("emptied {}", dir.display());
            }
            Err(error) => return Err(error).with_context(|| dir.display().to_string()),
        }
    }
    let invoker = Invoker::current();
    if kubeconfig::unmerge(config, &invoker)? {
        println!("removed the context {:?} from {}", config.context, invoker.kubeconfig().display());
    }
    Ok(())
}

fn list(config: &Config, purge: bool) -> anyhow::Result<i32> {
    match daemon::running(config) {
        Some(pid) => println!("process {pid} and the pods' processes"),
        None => println!("no daemon runs"),
    }
    println!("nftables table {}", config.nft_table);
    println!("network interfaces {}*", config.link_prefix);
    cgroup_roots(config).iter().for_each(|root| println!("control groups below {}", root.display()));
    if purge {
        println!("{}", config.run_dir.display());
        println!("{}", config.data_dir.display());
        println!("the context {:?} in {}", config.context, Invoker::current().kubeconfig().display());
    }
    Ok(0)
}
