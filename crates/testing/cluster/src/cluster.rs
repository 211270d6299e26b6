//! A cluster of the tests' own: folders, configuration, the commands of the binary, kubectl.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::containerd::{self, Containerd};
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
    /// Runs the pods, where it is not the binary itself.
    containerd: OnceLock<Containerd>,
}

/// The folder of the containerd that a cluster may have.
const CONTAINERD: &str = "containerd";

static SHARED: OnceLock<Cluster> = OnceLock::new();

impl Cluster {
    /// The cluster that all tests of one binary share, started by the first of them. Not to be mixed with [`Cluster::fresh`] in one binary.
    pub fn shared() -> &'static Cluster {
        SHARED.get_or_init(|| {
            let cluster = Cluster::fresh();
            if wants_containerd() {
                cluster.use_containerd();
            }
            cluster.up();
            cluster
        })
    }

    /// Starts a containerd of this cluster's own, which runs its pods from the next [`Cluster::up`] on.
    pub fn use_containerd(&self) -> &Containerd {
        let folder = self.dir.join(CONTAINERD);
        fs::create_dir_all(&folder).expect("a folder");
        let started = tokio().block_on(Containerd::start(&folder, "runc"));
        let config = self.dir.join("config.yaml");
        let text = fs::read_to_string(&config).expect("the configuration");
        let more = format!("{text}containerRuntimeEndpoint: unix://{}\n", started.socket.display());
        fs::write(&config, more).expect("write the configuration");
        self.containerd.get_or_init(|| started)
    }

    /// Whether pods run on Debian's containerd instead of the embedded runtime.
    pub fn is_on_containerd(&self) -> bool {
        self.containerd.get().is_some()
    }

    /// Gives an archive's images to the runtime that runs the pods.
    #[track_caller]
    pub fn load_images(&self, archive: &Path) {
        match self.containerd.get() {
            Some(containerd) => containerd.import(archive),
            None => drop(self.sternpost(&["image", "load", &archive.display().to_string()]).ok()),
        }
    }

    /// The image that is made of the binary itself, under the name by which the pods' runtime has it.
    #[track_caller]
    pub fn toolbox(&self) -> &'static str {
        const OWN: &str = "sternpost.io/toolbox";
        const COPY: &str = "stest.local/toolbox:1";
        static COPIED: OnceLock<()> = OnceLock::new();
        if !self.is_on_containerd() {
            return OWN;
        }
        COPIED.get_or_init(|| {
            let archive = self.dir.join("toolbox.tar");
            crate::images::write_executable_archive(&self.binary, "toolbox", &["cat", "hostname", "tar"], &archive, COPY);
            self.load_images(&archive);
        });
        COPY
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
        fs::write(dir.join("providers.yaml"), PROVIDERS).expect("write the credential providers' configuration");
        let watcher = Command::new(beside_tests("cluster-watcher")).arg(&dir).stdin(Stdio::piped()).stdout(lock).spawn();
        let watcher = watcher.expect("start the watcher that cleans up");
        Cluster { dir, binary, node, watcher, containerd: OnceLock::new() }
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
    end_containerd(&dir.join(CONTAINERD));
    leaks::remove(dir, &binary);
    if let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("{}: {error}", dir.display());
    }
}

/// Whether the shared cluster's pods run on containerd: in the test program of that name, and in any with `STERNPOST_TEST_RUNTIME=containerd`.
fn wants_containerd() -> bool {
    let program = std::env::current_exe().expect("this program has a path");
    let is_named = program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("containerd-"));
    is_named || std::env::var_os("STERNPOST_TEST_RUNTIME").is_some_and(|name| name == "containerd")
}

fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("tokio")
}

/// Ends the containerd that was started in this folder, if one was, and its pods before it.
fn end_containerd(folder: &Path) {
    let Ok(id) = fs::read_to_string(folder.join("pid")) else { return };
    let process = id.trim().parse().ok().and_then(Process::of);
    if let Some(process) = process.filter(|process| process.command_line().contains(&*folder.to_string_lossy())) {
        tokio().block_on(containerd::remove_pods(&folder.join("containerd.sock")));
        process.kill();
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

/// For tests to fill.
const PROVIDERS: &str = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: []\n";

fn configuration(dir: &Path, node: &str) -> String {
    let (data, run) = (dir.join("data"), dir.join("run"));
    format!(
        "dataDir: {}\nrunDir: {}\nnodeName: {node}\napiPort: {}\nkubeletPort: {}\ndnsPort: {}\npodCidr: {}\nnodeCidr: {}\nserviceCidr: {}\n\
         cgroupRoot: {}\nnftTable: {}\nlinkPrefix: {}\ncontext: stest\nstaticPodPath: {}\n\
         runtimeHandlers: {{stest-runc: /usr/sbin/runc, stest-lost: /no/such/program}}\nregistryPort: {}\nregistryPeerPort: {}\nregistriesFile: {}\nimageVerifierDir: {}\nkubeletConfig: {}\n\
         imageCredentialProviderConfig: {}\nimageCredentialProviderBinDir: {}\n",
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
        dir.join("providers.yaml").display(),
        dir.join("providers").display(),
    )
}
