//! What a cluster on this machine is made from: flags over the file over the defaults.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

/// The configuration file's default place; a missing file is fine.
pub const FILE: &str = "/etc/sternpost/config.yaml";

/// Every setting, with its default.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// State that outlives the machine's uptime: store, keys, images, pods' volumes.
    pub data_dir: PathBuf,
    /// State of this boot: sockets, process ids, pod supervisors.
    pub run_dir: PathBuf,
    pub api_port: u16,
    pub kubelet_port: u16,
    /// Where cluster DNS listens on the node; the Service `kube-dns` leads there.
    pub dns_port: u16,
    pub pod_cidr: String,
    /// Prefix length of a node's part of `podCidr`.
    pub node_cidr_mask_size: u8,
    /// What the further nodes on this machine (`up --nodes`) and their bridge have their addresses from.
    pub node_cidr: String,
    pub service_cidr: String,
    pub cluster_domain: String,
    /// The host's name in lower case where empty.
    pub node_name: String,
    /// The address of the default route where absent.
    pub node_ip: Option<IpAddr>,
    pub max_pods: u32,
    /// Processes and threads of one pod together.
    pub pod_pids_limit: u64,
    /// Upstream's `KubeletConfiguration` file; what it says comes before the settings of this file.
    pub kubelet_config: Option<PathBuf>,
    /// A folder of pods that run on this node without the API asking for them; empty for none.
    pub static_pod_path: PathBuf,
    /// The socket of another container runtime, such as `unix:///run/containerd/containerd.sock`; empty for the built-in one.
    pub container_runtime_endpoint: String,
    /// Built-in APIs switched on or off, such as `api/beta=true,apps/v1=false`.
    pub runtime_config: String,
    /// Admission plugins beside those that run by default, those of them that do not run, and an AdmissionConfiguration.
    pub enable_admission_plugins: Vec<String>,
    pub disable_admission_plugins: Vec<String>,
    pub admission_control_config_file: Option<PathBuf>,
    /// A `tracing` directive list.
    pub log: String,
    /// The cgroup and nftables name, and the start of interface names: what is ours on this host.
    pub cgroup_root: String,
    pub nft_table: String,
    pub link_prefix: String,
    /// The context's name in the user's kubeconfig.
    pub context: String,
    /// Upstream's `KubeSchedulerConfiguration` file, where the scheduler's defaults do not do.
    pub scheduler_config: Option<PathBuf>,
    /// What the audit trail tells (`audit.k8s.io/v1` Policy); absent: Metadata of everything.
    pub audit_policy: Option<PathBuf>,
    /// The trail's file is renamed at this size, and so many old ones are kept.
    pub audit_log_max_mib: u64,
    pub audit_log_backups: usize,
    /// How long certificates are valid; they are renewed when a sixth of that is left.
    pub certificate_lifetime_seconds: u64,
    /// Static bearer tokens: lines of token,user,uid,"group1,group2".
    pub token_auth_file: Option<PathBuf>,
    /// `EncryptionConfiguration`; absent: Secrets are sealed with a key of this cluster's own.
    pub encryption_config: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/sternpost".into(),
            run_dir: "/run/sternpost".into(),
            api_port: 6443,
            kubelet_port: 10250,
            dns_port: 10053,
            pod_cidr: "10.244.0.0/16".into(),
            node_cidr_mask_size: 21,
            node_cidr: "10.243.0.0/24".into(),
            service_cidr: "10.96.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
            node_name: String::new(),
            node_ip: None,
            max_pods: 1_100,
            pod_pids_limit: 8_192,
            kubelet_config: None,
            static_pod_path: "/etc/sternpost/manifests".into(),
            container_runtime_endpoint: String::new(),
            runtime_config: String::new(),
            enable_admission_plugins: Vec::new(),
            disable_admission_plugins: Vec::new(),
            admission_control_config_file: None,
            log: "info".into(),
            cgroup_root: "sternpost".into(),
            nft_table: "sternpost".into(),
            link_prefix: "sp".into(),
            context: "sternpost".into(),
            scheduler_config: None,
            audit_policy: None,
            audit_log_max_mib: 100,
            audit_log_backups: 3,
            encryption_config: None,
            certificate_lifetime_seconds: 365 * 86_400,
            token_auth_file: None,
        }
    }
}

impl Config {
    /// Reads `file`; without one given, the default place, which may be missing.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let path = file.unwrap_or(Path::new(FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let config: Option<Self> = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(config.unwrap_or_default())
    }

    /// The scheduler's own configuration, read and checked.
    pub fn scheduler(&self) -> anyhow::Result<scheduler::Config> {
        let Some(path) = &self.scheduler_config else { return Ok(scheduler::Config::default()) };
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        scheduler::config::parse(&text).with_context(|| path.display().to_string())
    }

    /// Where the built-in runtime serves CRI, for `crictl` and the like.
    pub fn cri_socket(&self) -> PathBuf {
        self.run_dir.join("cri.sock")
    }
    pub fn pid_file(&self) -> PathBuf {
        self.run_dir.join("sternpost.pid")
    }
    pub fn log_file(&self) -> PathBuf {
        self.data_dir.join("sternpost.log")
    }
    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }
    pub fn pods(&self) -> anyhow::Result<Cidr> {
        Cidr::parse(&self.pod_cidr).context("podCidr")
    }
    /// What nodes get their pods' ranges from.
    pub fn cluster_range(&self) -> anyhow::Result<controllers::ClusterRange> {
        let Cidr { address, prefix } = self.pods()?;
        if self.node_cidr_mask_size < prefix || self.node_cidr_mask_size > if address.is_ipv4() { 30 } else { 126 } {
            bail!("nodeCidrMaskSize {} does not cut podCidr {}", self.node_cidr_mask_size, self.pod_cidr);
        }
        Ok(controllers::ClusterRange { address, prefix, node_prefix: self.node_cidr_mask_size })
    }
    pub fn services(&self) -> anyhow::Result<Cidr> {
        Cidr::parse(&self.service_cidr).context("serviceCidr")
    }
    /// The address of the Service `kubernetes`.
    pub fn api_service_ip(&self) -> anyhow::Result<IpAddr> {
        self.services()?.nth(1)
    }
    /// The address of the Service `kube-dns`.
    pub fn dns_service_ip(&self) -> anyhow::Result<IpAddr> {
        self.services()?.nth(10)
    }
}

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
        let Some((address, prefix)): Option<(IpAddr, u8)> = parsed else { bail!("{text:?} is not an address range such as 10.244.0.0/16") };
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits || !(1..=30).contains(&prefix) && address.is_ipv4() {
            bail!("{text:?}: the prefix must be between 1 and 30");
        }
        Ok(Self { address, prefix })
    }

    /// The address so many after the first.
    pub fn nth(&self, offset: u32) -> anyhow::Result<IpAddr> {
        match self.address {
            IpAddr::V4(first) => Ok(IpAddr::V4((u32::from(first) + offset).into())),
            IpAddr::V6(first) => Ok(IpAddr::V6((u128::from(first) + u128::from(offset)).into())),
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(range), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix);
                u32::from(range) >> shift == u32::from(address) >> shift
            }
            (IpAddr::V6(range), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix);
                u128::from(range).checked_shr(shift) == u128::from(address).checked_shr(shift)
            }
            _ => false,
        }
    }
}

/// The host's name as a node name: lower case.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}

/// The address that the kernel would use towards the outside; nothing is sent.
pub fn outward_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_knows_its_addresses() {
        let range = Cidr::parse("10.96.0.0/16").unwrap();
        assert_eq!(range.nth(10).unwrap(), IpAddr::from([10, 96, 0, 10]));
        assert!(range.contains([10, 96, 255, 1].into()) && !range.contains([10, 97, 0, 1].into()));
        for bad in ["10.96.0.0", "10.96.0.0/33", "10.96.0/16", "", "x/8"] {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_by_name() {
        let dir = std::env::temp_dir().join(format!("sternpost-config-{}", std::process::id()));
        std::fs::write(&dir, "apiPort: 7443\napiPrt: 1\n").unwrap();
        let error = format!("{:#}", Config::load(Some(&dir)).unwrap_err());
        std::fs::remove_file(&dir).unwrap();
        assert!(error.contains("apiPrt"), "{error}");
    }
}
