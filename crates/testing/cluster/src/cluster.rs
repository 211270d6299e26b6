//! A cluster of the tests' own: folders, configuration, the commands of the binary, kubectl.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::leaks;
use crate::process::{self, Process};
use crate::run::{Ran, ensure, run, wait_for};

/// What the tests' clusters call their own on this machine. Different from the defaults, so that a real cluster beside them is not touched.
pub mod names {
    pub const CGROUP_ROOT: &str = "stest";
    pub const NFT_TABLE: &str = "stest";
    pub const LINK_PREFIX: &str = "stx";
    /// The first two octets of the ranges below.
    pub const POD_NETWORK: &str = "10.222.";
    pub const SERVICE_NETWORK: &str = "10.223.";
    pub const NODE_NETWORK: &str = "10.221.";
    pub const NODE_CIDR: &str = "10.221.0.0/24";
    pub const POD_CIDR: &str = "10.222.0.0/16";
    pub const SERVICE_CIDR: &str = "10.223.0.0/16";
    pub const API_PORT: u16 = 26443;
    pub const KUBELET_PORT: u16 = 26250;
    pub const DNS_PORT: u16 = 26053;
    pub const REGISTRY_PORT: u16 = 26500;
    pub const REGISTRY_PEER_PORT: u16 = 26501;
}

/// One cluster on this machine: at most one at a time, and gone when this is dropped or the test's process ends, however it ends.
pub struct Cluster {
    /// Holds everything: the binary, `data`, `run`, the configuration.
    dir: PathBuf,
    binary: PathBuf,
    node: String,
    /// Waits for the end of this process, then cleans up; holds the file lock meanwhile.
    watcher: Child,
}

static SHARED: OnceLock<Cluster> = OnceLock::new();

impl Cluster {
    /// The cluster that all tests of one binary share, started by the first of them. Not to be mixed with [`Cluster::fresh`] in one binary.
    pub fn shared() -> &'static Cluster {
        SHARED.get_or_init(|| {
            let cluster = Cluster::fresh();
            cluster.up();
            cluster
        })
    }

    /// Folders and configuration of a cluster that nobody has started yet. Waits until no other test has one.
    pub fn fresh() -> Cluster {
        // SAFETY: geteuid only reads.
        assert!(unsafe { libc::geteuid() } == 0, "these tests start containers: run them as root");
        let lock = lock_machine();
        let dir = tempfile::Builder::new().prefix("stest-").tempdir().expect("a temporary folder").keep();
        let binary = dir.join("sternpost");
        place(&tested_binary(), &binary);
        fs::create_dir(dir.join("home")).expect("make a folder");
        let node = "stest-node".to_owned();
        fs::write(dir.join("config.yaml"), configuration(&dir, &node)).expect("write the configuration");
        fs::write(dir.join("kubelet.yaml"), KUBELET).expect("write the kubelet's configuration");
        let watcher = Command::new(beside_tests("cluster-watcher")).arg(&dir).stdin(Stdio::piped()).stdout(lock).spawn();
        let watcher = watcher.expect("start the watcher that cleans up");
        Cluster { dir, binary, node, watcher }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
    pub fn node(&self) -> &str {
        &self.node
    }
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("admin.kubeconfig")
    }
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", names::API_PORT)
    }

    /// The binary under test with the configuration of this cluster and these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.dir.join("config.yaml")).args(args);
        command.env("HOME", self.dir.join("home")).env_remove("SUDO_USER").current_dir(&self.dir);
        command
    }

    #[track_caller]
    pub fn sternpost(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args), "")
    }

    /// Starts in the background and returns what it said; the node is Ready then.
    #[track_caller]
    pub fn up(&self) -> String {
        self.up_with(&[])
    }

    /// The same with further flags.
    #[track_caller]
    pub fn up_with(&self, flags: &[&str]) -> String {
        let started = self.sternpost(&[&["up", "--no-kubeconfig", "--detach"], flags].concat());
        if !started.succeeded() {
            let log = fs::read_to_string(self.log_file()).unwrap_or_default();
            let from = log.len().saturating_sub(6_000);
            panic!("{started}\n--- the daemon's log:\n{}", log.get(from..).unwrap_or(&log));
        }
        started.ok()
    }

    pub fn log_file(&self) -> PathBuf {
        self.data_dir().join("sternpost.log")
    }

    /// Where a further node of `up --nodes` keeps what is its own.
    pub fn node_data_dir(&self, name: &str) -> PathBuf {
        self.data_dir().join("nodes").join(name)
    }

    /// The daemon's own, and those of the further nodes.
    fn log_files(&self) -> Vec<(String, PathBuf)> {
        let mut all = vec![("the daemon".to_owned(), self.log_file())];
        for node in fs::read_dir(self.data_dir().join("nodes")).into_iter().flatten().flatten() {
            all.push((node.file_name().to_string_lossy().into_owned(), node.path().join("sternpost.log")));
        }
        all.sort();
        all
    }

    /// The running daemon.
    #[track_caller]
    pub fn daemon(&self) -> Process {
        let text = fs::read_to_string(self.dir.join("run/sternpost.pid")).expect("the pid file");
        Process::of(text.trim().parse().expect("a process id")).expect("the daemon runs")
    }

    /// kubectl as the administrator.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(args);
        command.env("HOME", self.dir.join("home")).env_remove("KUBECONFIG").current_dir(&self.dir);
        command
    }

    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> Ran {
        run(&mut self.kubectl_command(args), "")
    }

    /// kubectl with this text as standard input, for `-f -`.
    #[track_caller]
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Ran {
        run(&mut self.kubectl_command(args), input)
    }

    #[track_caller]
    pub fn wait_until_node_is_ready(&self) {
        wait_for("the node is Ready", 60, || {
            let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
            let ran = self.kubectl(&["get", "node", &self.node, "-o", path]);
            ensure(ran.stdout == "True", ran)
        });
    }

    /// Where kubectl and Services reach this node.
    #[track_caller]
    pub fn node_address(&self) -> String {
        let all = self.kubectl(&["get", "node", &self.node, "-o", r#"jsonpath={.status.addresses[?(@.type=="InternalIP")].address}"#]).ok();
        // A node of both families has two; the first is the main one.
        all.split_whitespace().next().unwrap_or_default().to_owned()
    }

    /// Everything that is left of this cluster on the machine, except for the test's own files.
    pub fn traces(&self) -> Vec<String> {
        leaks::traces(&self.dir, &self.binary)
    }

    /// Processes that run this cluster's binary: the daemon and the pods' supervisors.
    pub fn own_processes(&self) -> Vec<Process> {
        process::all().into_iter().filter(|process| process.executable().is_some_and(|path| path.starts_with(&self.binary))).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (whose, file) in self.log_files() {
                let log = fs::read_to_string(file).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- the end of the log of {whose}:");
                lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| eprintln!("{line}"));
            }
        }
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// Takes everything of a cluster down: with the binary's own command, then by force.
pub fn clean_up(dir: &Path) {
    let binary = dir.join("sternpost");
    let mut down = Command::new(&binary);
    down.arg("--config").arg(dir.join("config.yaml")).args(["down", "--purge"]).env("HOME", dir.join("home")).env_remove("SUDO_USER");
    let ended = run(&mut down, "");
    if !ended.succeeded() {
        eprintln!("{ended}");
    }
    leaks::remove(dir, &binary);
    if let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("{}: {error}", dir.display());
    }
}

/// The binary under test: `STERNPOST_BIN`, else the one of the build that made this test.
pub fn tested_binary() -> PathBuf {
    let binary = std::env::var_os("STERNPOST_BIN").map_or_else(|| beside_tests("sternpost"), PathBuf::from);
    assert!(
        binary.is_file(),
        "{} does not exist: run `cargo build -p sternpost` first, or name the binary in STERNPOST_BIN",
        binary.display()
    );
    binary
}

/// A program of the same build: cargo puts tests into `deps` beside the programs.
fn beside_tests(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this program has a path");
    own.ancestors().nth(2).expect("tests lie in target/…/deps").join(name)
}

/// A path of its own for the binary, so that its processes can be told apart from those of other clusters.
fn place(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap_or_else(|error| panic!("copy {}: {error}", from.display()));
    }
}

/// One cluster of the tests per machine, whichever test binary it belongs to.
fn lock_machine() -> File {
    let path = std::env::temp_dir().join("stest.lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path).expect("the lock file");
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("lock the machine");
    file
}

/// How full the machine's disk is must not decide whether images and pods stay.
const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard: {memory.available: 100Mi}\n\
    imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\n";

fn configuration(dir: &Path, node: &str) -> String {
    let (data, run) = (dir.join("data"), dir.join("run"));
    format!(
        "dataDir: {}\nrunDir: {}\nnodeName: {node}\napiPort: {}\nkubeletPort: {}\ndnsPort: {}\npodCidr: {}\nnodeCidr: {}\nserviceCidr: {}\n\
         cgroupRoot: {}\nnftTable: {}\nlinkPrefix: {}\ncontext: stest\nstaticPodPath: {}\n\
         registryPort: {}\nregistryPeerPort: {}\nregistriesFile: {}\nimageVerifierDir: {}\nkubeletConfig: {}\n",
        data.display(),
        run.display(),
        names::API_PORT,
        names::KUBELET_PORT,
        names::DNS_PORT,
        names::POD_CIDR,
        names::NODE_CIDR,
        names::SERVICE_CIDR,
        names::CGROUP_ROOT,
        names::NFT_TABLE,
        names::LINK_PREFIX,
        dir.join("manifests").display(),
        names::REGISTRY_PORT,
        names::REGISTRY_PEER_PORT,
        dir.join("registries.yaml").display(),
        dir.join("verifiers").display(),
        dir.join("kubelet.yaml").display(),
    )
}
