//! A cluster of our own on this machine, under names, ports and addresses that no other cluster here uses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::{Client, Https};

use crate::machine;
use crate::processes::footprint;

const CONFIG: &str = "\
apiPort: 38643
kubeletPort: 38250
dnsPort: 38053
podCidr: 10.248.0.0/14
serviceCidr: 10.252.0.0/16
nodeCidr: 10.253.0.0/24
cgroupRoot: sternpost-race
nftTable: sternpost-race
linkPrefix: sr
maxPods: 6000
nodeCidrMaskSize: 19
context: sternpost-race
log: warn
";

/// How full the machine's disk is decides nothing: neither are pods evicted for it nor images collected.
const KUBELET: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
evictionHard: {memory.available: 100Mi}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
";

/// Purged when dropped.
pub struct Cluster {
    pub program: PathBuf,
    dir: PathBuf,
    run: PathBuf,
}

/// On a tmpfs, as `/run` is where systemd runs; a place of its own below `dir` where this machine has none.
fn run_folder(dir: &Path) -> PathBuf {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let memory = Path::new("/dev/shm");
    match rustix::fs::statfs(memory) {
        Ok(status) if status.f_type as i64 == TMPFS_MAGIC => memory.join(format!("sternpost-race-{}", std::process::id())),
        _ => dir.join("run"),
    }
}

impl Cluster {
    /// Nothing runs yet. The binary is the one in STERNPOST_BIN.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let program = std::env::var_os("STERNPOST_BIN").context("STERNPOST_BIN names no binary; use `cargo xtask race`")?;
        let kubelet = std::path::absolute(dir.join("kubelet.yaml"))?;
        std::fs::write(&kubelet, KUBELET)?;
        std::fs::write(dir.join("config.yaml"), format!("{CONFIG}kubeletConfig: {}\n", kubelet.display()))?;
        Ok(Self { program: program.into(), dir: dir.to_path_buf(), run: run_folder(dir) })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.dir.join("config.yaml"));
        command.arg("--data-dir").arg(self.dir.join("data")).arg("--run-dir").arg(&self.run);
        command.args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<Output> {
        let output = self.command(args).output().with_context(|| format!("run {}", self.program.display()))?;
        let said = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "sternpost {}: {}\n{}", args.join(" "), output.status, said());
        Ok(output)
    }

    /// Starts it; the time from exec to the return of `up --detach`, which is after its node became Ready.
    pub fn up(&self) -> anyhow::Result<Duration> {
        self.up_with(&[])
    }

    /// The same with further flags.
    pub fn up_with(&self, flags: &[&str]) -> anyhow::Result<Duration> {
        let start = Instant::now();
        self.run(&[&["up", "--detach", "--no-kubeconfig"], flags].concat())?;
        let taken = start.elapsed();
        self.run(&["status"])?;
        Ok(taken)
    }

    pub fn down(&self) -> anyhow::Result<()> {
        machine::count_as_own(footprint(&self.program).cpu_seconds);
        self.run(&["down"]).map(drop)
    }

    pub fn purge(&self) -> anyhow::Result<()> {
        machine::count_as_own(footprint(&self.program).cpu_seconds);
        self.run(&["down", "--purge"]).map(drop)
    }

    /// The further nodes' names.
    pub fn further(&self) -> anyhow::Result<Vec<String>> {
        let listed = String::from_utf8(self.run(&["node", "list"])?.stdout)?;
        Ok(listed.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect())
    }

    /// A further node loses its power.
    pub fn stop_node(&self, name: &str) -> anyhow::Result<()> {
        self.run(&["node", "stop", name]).map(drop)
    }

    /// Imports an archive of images.
    pub fn load_image(&self, archive: &Path) -> anyhow::Result<()> {
        self.run(&["image", "load", &archive.display().to_string()]).map(drop)
    }

    pub fn cri_socket(&self) -> PathBuf {
        self.run.join("cri.sock")
    }

    /// The administrator's.
    pub fn kubeconfig(&self) -> anyhow::Result<PathBuf> {
        let kubeconfig = self.dir.join("admin.kubeconfig");
        std::fs::write(&kubeconfig, self.run(&["kubeconfig"])?.stdout)?;
        Ok(kubeconfig)
    }

    /// A connection of its own as administrator.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(Arc::new(Https::from_kubeconfig(&self.kubeconfig()?, None)?)).named("race"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.dir.join("data").exists()
            && let Err(error) = self.purge()
        {
            eprintln!("the cluster of the race is still there: {error:#}");
        }
    }
}
