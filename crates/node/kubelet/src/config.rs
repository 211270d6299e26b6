//! Everything that the kubelet is told; it reads no file and no flag of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use crate::evict::{Least, Threshold};
use crate::garbage::ImageGc;

/// Upstream's folder of a kubelet, which manifests of plugins have in their `hostPath`s: pods that ask for it get this kubelet's own.
const KUBELET: &str = "/var/lib/kubelet";

/// How one node runs.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    /// The range that this node's pods get their addresses from; written to the Node when it registers.
    pub pod_cidr: Option<String>,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The host's resolver; systemd-resolved's stub file is replaced by its real one, as upstream.
    pub resolv_conf: PathBuf,
    /// Pod directories on disk: `<data_directory>/pods/<uid>`.
    pub data_directory: PathBuf,
    /// Pod directories that hold secrets, on a tmpfs: `<runtime_directory>/pods/<uid>`.
    pub runtime_directory: PathBuf,
    /// Container logs: `<log_directory>/<namespace>_<name>_<uid>/<container>/<restart>.log`.
    pub log_directory: PathBuf,
    /// A log larger than this is rotated; so many files of one container stay, the one in use included; and how often that is looked at.
    pub log_bytes_max: u64,
    pub log_files_max: usize,
    pub log_interval: Duration,
    /// 0 picks a free port.
    pub port: u16,
    /// The server's TLS, which asks for client certificates; absent, nothing is served.
    pub tls: Option<std::sync::Arc<rustls::ServerConfig>>,
    /// Users and groups that may use the server with their client certificate (CN or O).
    pub server_users: Vec<String>,
    /// Replaces what the machine has: `cpu`, `memory`, `ephemeral-storage`, or adds extended resources.
    pub capacity: BTreeMap<String, String>,
    /// Taken off the capacity for the allocatable resources.
    pub reserved: BTreeMap<String, String>,
    pub pods_max: u32,
    /// Processes and threads of one pod together (upstream: podPidsLimit); no limit where absent.
    pub pod_pids_max: Option<u64>,
    pub labels: BTreeMap<String, String>,
    pub control_plane: bool,
    pub version: String,
    pub lease_duration: Duration,
    pub lease_interval: Duration,
    /// How often an unchanged Node status is written all the same.
    pub status_interval: Duration,
    /// Sandboxes and containers that are made at the same time; 0 is twice the processors.
    pub starts_max: usize,
    pub eviction: Eviction,
    pub image_gc: ImageGc,
    /// The node's own credentials for registries, and whose credentials an image on the node asks for.
    pub credentials: crate::credentials::Sources,
    pub pulled_images: crate::pulled::Policy,
    /// A path on the file system of images and writable layers.
    pub image_directory: PathBuf,
    /// Files of pods that run here without the API asking for them.
    pub static_pods: Option<PathBuf>,
    /// Sysctls that pods may set beside the safe ones; a trailing `*` stands for anything.
    pub unsafe_sysctls: Vec<String>,
    /// Containers without a seccomp profile get the runtime's own (KEP-2413).
    pub seccomp_default: bool,
    /// Profiles of `seccompProfile: Localhost`.
    pub seccomp_directory: PathBuf,
    /// Whether pods may use swap (KEP-2400: `LimitedSwap`).
    pub limited_swap: bool,
    /// Whether a container that is out of memory loses one process instead of all (upstream: singleProcessOOMKill); where absent, as control groups
    /// have it: v1 can kill single ones only, v2 kills all.
    pub single_process_oom_kill: Option<bool>,
    pub taints: Vec<Taint>,
    /// Mounts below the data directory are handed on between us and the containers of drivers: it becomes a shared mount.
    pub share_mounts: bool,
    /// Where plugins look for their kubelet: `device-plugins`, `plugins_registry` and `pod-resources` lie in it.
    pub plugin_directory: PathBuf,
    /// Who gets processors and memory for itself.
    pub placement: crate::placement::Policies,
    /// The control group root of all pods, for what they may use together; absent, nobody limits it.
    pub cgroup_root: Option<String>,
    /// What is held to the node's allocatable resources, of `pods`, `system-reserved` and `kube-reserved`; and the groups of the latter two.
    pub enforced: Vec<String>,
    pub system_reserved: Reserved,
    pub kube_reserved: Reserved,
    /// How many of the host's ids a pod with `hostUsers: false` gets (KEP-127).
    pub user_ids_per_pod: u32,
    /// The control group root below which the kubelet itself makes the pods' groups; absent, the runtime does.
    pub pod_cgroups: Option<String>,
    /// What `/configz` shows: the KubeletConfiguration in use.
    pub shown: serde_json::Value,
}

/// What is kept from pods, and for whose control group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    pub group: Option<String>,
    pub amounts: BTreeMap<String, String>,
}

/// When pods go for the node's sake.
#[derive(Clone, Debug)]
pub struct Eviction {
    pub thresholds: Vec<Threshold>,
    /// A condition stays so long after its threshold was last met.
    pub transition: Duration,
    /// The most that a pod gets to end at a soft threshold.
    pub grace_seconds_max: i64,
    pub interval: Duration,
}

impl Default for Eviction {
    /// Upstream's, but for the disk: a tenth of a large disk that others fill too is no reason to stop pods, its last quarter of a gibibyte is.
    fn default() -> Self {
        let hard = |signal: &str, least: Least| Threshold { signal: signal.into(), least, grace: None };
        Self {
            thresholds: vec![
                hard("memory.available", Least::Amount(100 << 20)),
                hard("nodefs.available", Least::Amount(256 << 20)),
                hard("nodefs.inodesFree", Least::Share(0.01)),
                hard("imagefs.available", Least::Amount(256 << 20)),
                hard("imagefs.inodesFree", Least::Share(0.01)),
            ],
            transition: Duration::from_secs(300),
            grace_seconds_max: 0,
            interval: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// A node with the defaults of a single-machine cluster.
    pub fn new(node_name: &str, node_ip: IpAddr) -> Self {
        Self {
            node_name: node_name.into(),
            node_ips: vec![node_ip],
            pod_cidr: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            data_directory: "/var/lib/sternpost/kubelet".into(),
            runtime_directory: "/run/sternpost/kubelet".into(),
            log_directory: "/var/log/pods".into(),
            log_bytes_max: 10 << 20,
            log_files_max: 5,
            log_interval: Duration::from_secs(10),
            port: 10250,
            tls: None,
            server_users: vec!["system:masters".into(), "system:kube-apiserver".into(), "kube-apiserver-kubelet-client".into()],
            capacity: BTreeMap::new(),
            reserved: BTreeMap::new(),
            pods_max: 1100,
            pod_pids_max: None,
            labels: BTreeMap::new(),
            control_plane: false,
            version: concat!("v1.37.0+sternpost-", env!("CARGO_PKG_VERSION")).into(),
            lease_duration: Duration::from_secs(40),
            lease_interval: Duration::from_secs(10),
            status_interval: Duration::from_secs(300),
            starts_max: 0,
            eviction: Eviction::default(),
            image_gc: ImageGc::default(),
            credentials: crate::credentials::Sources {
                docker_files: vec!["/var/lib/kubelet/config.json".into()],
                ..crate::credentials::Sources::default()
            },
            pulled_images: crate::pulled::Policy::default(),
            image_directory: "/var/lib/sternpost".into(),
            static_pods: None,
            unsafe_sysctls: Vec::new(),
            seccomp_default: false,
            seccomp_directory: "/var/lib/kubelet/seccomp".into(),
            limited_swap: false,
            single_process_oom_kill: None,
            taints: Vec::new(),
            share_mounts: false,
            plugin_directory: "/var/lib/kubelet".into(),
            placement: crate::placement::Policies::default(),
            cgroup_root: None,
            enforced: vec!["pods".into()],
            system_reserved: Reserved::default(),
            kube_reserved: Reserved::default(),
            user_ids_per_pod: 65_536,
            pod_cgroups: None,
            shown: serde_json::Value::Null,
        }
    }

    /// Where something is that plugins know below upstream's folder of a kubelet: below ours.
    pub fn from_driver(&self, path: &Path) -> PathBuf {
        path.strip_prefix(KUBELET).map_or_else(|_| path.to_owned(), |rest| self.data_directory.join(rest))
    }

    /// The same the other way round: drivers see our folder where upstream's is.
    pub fn to_driver(&self, path: &Path) -> String {
        let shown = path.strip_prefix(&self.data_directory).map_or_else(|_| path.to_owned(), |rest| Path::new(KUBELET).join(rest));
        shown.display().to_string()
    }

    pub(crate) fn pod_directory(&self, uid: &str) -> PathBuf {
        self.data_directory.join("pods").join(uid)
    }
    pub(crate) fn secret_directory(&self, uid: &str) -> PathBuf {
        self.runtime_directory.join("pods").join(uid)
    }
}
