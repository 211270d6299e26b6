//! What a cluster on this machine is made from: flags over the file over the defaults.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

/// The configuration file's default place; a missing file is fine.
pub const FILE: &str = "/etc/sternpost/config.yaml";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Network {
    Embedded,
    Cni,
}

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
    /// One range, or `range,range` of both IP families.
    pub pod_cidr: String,
    /// Prefix length of a node's part of `podCidr`.
    pub node_cidr_mask_size: u8,
    pub node_cidr_mask_size_ipv6: u8,
    /// Whether ranges of one family get a companion of the other; absent: where the host has addresses of both to the outside.
    pub dual_stack: Option<bool>,
    /// What the further nodes on this machine (`up --nodes`) and their bridge have their addresses from.
    pub node_cidr: String,
    pub service_cidr: String,
    /// Who connects pods: this binary, or CNI plugins.
    pub network: Network,
    /// Where those have their networks and their programs.
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dirs: Vec<PathBuf>,
    pub cluster_domain: String,
    /// The host's name in lower case where empty.
    pub node_name: String,
    /// The address of the default route where absent.
    pub node_ip: Option<IpAddr>,
    /// A dead node is known after a second instead of 50, and its pods are elsewhere at once instead of after five minutes more.
    pub fast_failover: bool,
    pub max_pods: u32,
    /// Processes and threads of one pod together.
    pub pod_pids_limit: u64,
    /// Upstream's `KubeletConfiguration` file; what it says comes before the settings of this file.
    pub kubelet_config: Option<PathBuf>,
    /// A folder of pods that run on this node without the API asking for them; empty for none.
    pub static_pod_path: PathBuf,
    /// The socket of another container runtime, such as `unix:///run/containerd/containerd.sock`; empty for the built-in one.
    pub container_runtime_endpoint: String,
    /// Handlers that a RuntimeClass may name beside the built-in one: programs with runc's command line (`runc: /usr/sbin/runc`).
    pub runtime_handlers: std::collections::BTreeMap<String, PathBuf>,
    /// Where the built-in registry listens on loopback (`localhost:5000/…` names its images on every node), and where it gives other nodes
    /// what they lack; 0 for nowhere.
    pub registry_port: u16,
    pub registry_peer_port: u16,
    /// Mirrors, TLS and credentials of registries in k3s' format; read at every pull, and may be missing.
    pub registries_file: PathBuf,
    /// A folder of programs that judge images before they are fetched, called as containerd calls its image verifiers.
    pub image_verifier_dir: PathBuf,
    /// Upstream's `CredentialProviderConfig`, and the folder of the programs that it names.
    pub image_credential_provider_config: Option<PathBuf>,
    pub image_credential_provider_bin_dir: PathBuf,
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
    /// The kubeconfig of a receiver of the trail beside the file, and how long a first event waits for others.
    pub audit_webhook_config_file: Option<PathBuf>,
    pub audit_webhook_batch_max_wait_seconds: u64,
    /// The trail's file is renamed at this size, and so many old ones are kept.
    pub audit_log_max_mib: u64,
    pub audit_log_backups: usize,
    /// How long certificates are valid; they are renewed when a sixth of that is left.
    pub certificate_lifetime_seconds: u64,
    /// How long the authority that signs them is valid (it is exchanged in time), and how long a new one is trusted before it signs.
    pub authority_lifetime_seconds: u64,
    pub authority_overlap_seconds: u64,
    /// Static bearer tokens: lines of token,user,uid,"group1,group2".
    pub token_auth_file: Option<PathBuf>,
    /// Upstream's `AuthenticationConfiguration`: token issuers, and who may come without credentials. Followed while the cluster runs.
    pub authentication_config: Option<PathBuf>,
    /// One token issuer by upstream's `--oidc-*` flags; not beside `authenticationConfig`.
    pub oidc: Option<Oidc>,
    /// The kubeconfig of a server that knows tokens, how long its answers hold, and the version of its TokenReview.
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    pub authentication_token_webhook_cache_seconds: u64,
    pub authentication_token_webhook_version: String,
    /// Upstream's `AuthorizationConfiguration`: who decides, in which order; absent: Node, then RBAC. Followed while the cluster runs.
    pub authorization_config: Option<PathBuf>,
    /// `EncryptionConfiguration`; absent: Secrets are sealed with a key of this cluster's own.
    pub encryption_config: Option<PathBuf>,
}

/// A token issuer (`--oidc-issuer-url` and its companions).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Oidc {
    pub issuer_url: String,
    pub client_id: String,
    pub ca_file: Option<PathBuf>,
    #[serde(default)]
    pub username_claim: Option<String>,
    /// `-` is none. Absent: the issuer's URL and `#`, but none before an `email`.
    pub username_prefix: Option<String>,
    pub groups_claim: Option<String>,
    #[serde(default)]
    pub groups_prefix: String,
    #[serde(default)]
    pub required_claims: std::collections::BTreeMap<String, String>,
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
            node_cidr_mask_size_ipv6: 64,
            dual_stack: None,
            node_cidr: "10.243.0.0/24".into(),
            service_cidr: "10.96.0.0/16".into(),
            network: Network::Embedded,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cluster_domain: "cluster.local".into(),
            node_name: String::new(),
            node_ip: None,
            fast_failover: false,
            max_pods: 1_100,
            pod_pids_limit: 8_192,
            kubelet_config: None,
            static_pod_path: "/etc/sternpost/manifests".into(),
            container_runtime_endpoint: String::new(),
            runtime_handlers: std::collections::BTreeMap::new(),
            registry_port: 5000,
            registry_peer_port: 5001,
            registries_file: "/etc/sternpost/registries.yaml".into(),
            image_verifier_dir: "/etc/sternpost/image-verifiers".into(),
            image_credential_provider_config: None,
            image_credential_provider_bin_dir: "/etc/sternpost/credential-providers".into(),
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
            audit_webhook_config_file: None,
            audit_webhook_batch_max_wait_seconds: 30,
            audit_log_max_mib: 100,
            audit_log_backups: 3,
            encryption_config: None,
            authentication_config: None,
            oidc: None,
            authentication_token_webhook_config_file: None,
            authentication_token_webhook_cache_seconds: 120,
            authentication_token_webhook_version: "v1".into(),
            authorization_config: None,
            certificate_lifetime_seconds: 365 * 86_400,
            authority_lifetime_seconds: 3_650 * 86_400,
            authority_overlap_seconds: 86_400,
            token_auth_file: None,
        }
    }
}

impl Config {
    /// Reads `file`; without one given, the default place, which may be missing. What lies beside it in a folder of its name that ends in `.d`
    /// (`config.d/*.yaml`) goes over it, file by file in the order of names.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let path = file.unwrap_or(Path::new(FILE));
        let mut settings = match std::fs::read_to_string(path) {
            Ok(text) => parse(&text, path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => serde_json::Map::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        for part in drop_ins(&path.with_extension("d"))? {
            let text = std::fs::read_to_string(&part).with_context(|| part.display().to_string())?;
            let more = parse(&text, &part)?;
            // An unknown setting is told with the file that has it.
            serde_json::from_value::<Self>(more.clone().into()).with_context(|| part.display().to_string())?;
            settings.extend(more);
        }
        serde_json::from_value(settings.into()).with_context(|| path.display().to_string())
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
    /// The pods' ranges, the primary one first.
    pub fn pods(&self) -> anyhow::Result<Vec<Cidr>> {
        Cidr::parse_families(&self.pod_cidr).context("podCidr")
    }
    /// What nodes get their pods' ranges from.
    pub fn cluster_ranges(&self) -> anyhow::Result<Vec<controllers::ClusterRange>> {
        let cut = |Cidr { address, prefix }| {
            let (node_prefix, longest) =
                if address.is_ipv4() { (self.node_cidr_mask_size, 30) } else { (self.node_cidr_mask_size_ipv6, 126) };
            if node_prefix < prefix || node_prefix > longest {
                bail!("nodeCidrMaskSize {node_prefix} does not cut podCidr {address}/{prefix}");
            }
            Ok(controllers::ClusterRange { address, prefix, node_prefix })
        };
        self.pods()?.into_iter().map(cut).collect()
    }
    /// The Services' ranges, the primary one first.
    pub fn services(&self) -> anyhow::Result<Vec<Cidr>> {
        Cidr::parse_families(&self.service_cidr).context("serviceCidr")
    }
    /// What further nodes on this machine are in.
    pub fn nodes(&self) -> anyhow::Result<Vec<Cidr>> {
        Cidr::parse_families(&self.node_cidr).context("nodeCidr")
    }
    fn first_service(&self) -> anyhow::Result<Cidr> {
        self.services()?.first().copied().context("serviceCidr")
    }

    /// Gives IPv4 ranges their IPv6 companions where that is wanted: `10.244.0.0/16` that of `fd00:10:244::/56`.
    pub fn complete(&mut self, host_has_both: bool) {
        if !self.dual_stack.unwrap_or(host_has_both) {
            return;
        }
        for (range, prefix) in [(&mut self.pod_cidr, 56), (&mut self.service_cidr, 112), (&mut self.node_cidr, 64)] {
            if let Ok([Cidr { address: IpAddr::V4(first), .. }]) = Cidr::parse_families(range).as_deref() {
                let [a, b, c, _] = first.octets();
                let third = if prefix == 64 && c > 0 { format!(":{c}") } else { String::new() };
                *range = format!("{range},fd00:{a}:{b}{third}::/{prefix}");
            }
        }
    }
    /// The address of the Service `kubernetes`.
    pub fn api_service_ip(&self) -> anyhow::Result<IpAddr> {
        self.first_service()?.nth(1)
    }
    /// The address of the Service `kube-dns`.
    pub fn dns_service_ip(&self) -> anyhow::Result<IpAddr> {
        self.first_service()?.nth(10)
    }
}

fn parse(text: &str, path: &Path) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    let settings: Option<serde_json::Map<String, serde_json::Value>> =
        serde_saphyr::from_str(text).with_context(|| path.display().to_string())?;
    Ok(settings.unwrap_or_default())
}

fn drop_ins(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.with_context(|| folder.display().to_string())?.path();
                found.extend(path.extension().is_some_and(|end| end == "yaml" || end == "yml").then_some(path));
            }
        }
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    }
    found.sort();
    Ok(found)
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

    /// One range, or two of different families.
    pub fn parse_families(text: &str) -> anyhow::Result<Vec<Self>> {
        let ranges = text.split(',').map(|range| Self::parse(range.trim())).collect::<anyhow::Result<Vec<Self>>>()?;
        match ranges.as_slice() {
            [_] => Ok(ranges),
            [first, second] if first.address.is_ipv4() != second.address.is_ipv4() => Ok(ranges),
            _ => bail!("{text:?}: one range of addresses, or one of each IP family"),
        }
    }

    pub fn pair(&self) -> (IpAddr, u8) {
        (self.address, self.prefix)
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
    outward("0.0.0.0:0", "192.0.2.1:9")
}

/// The same of IPv6.
pub fn outward_address_v6() -> Option<IpAddr> {
    outward("[::]:0", "[2001:db8::1]:9")
}

fn outward(from: &str, to: &str) -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
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
        let mut config = Config { node_cidr: "10.243.2.0/24".into(), ..Config::default() };
        config.complete(false);
        assert_eq!(config.pods().unwrap().len(), 1);
        config.complete(true);
        config.complete(true);
        assert_eq!(
            [&config.pod_cidr, &config.service_cidr, &config.node_cidr],
            ["10.244.0.0/16,fd00:10:244::/56", "10.96.0.0/16,fd00:10:96::/112", "10.243.2.0/24,fd00:10:243:2::/64"]
        );
        assert!(Cidr::parse_families("10.1.0.0/16,10.2.0.0/16").is_err());
        for bad in ["10.96.0.0", "10.96.0.0/33", "10.96.0/16", "", "x/8"] {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_come_from_the_file_and_its_drop_ins_and_an_unknown_one_is_refused_by_name() {
        let dir = std::env::temp_dir().join(format!("sternpost-config-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("config.d")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        let load = || Config::load(Some(&dir.join("config.yaml")));
        write("config.yaml", "apiPort: 7443\nmaxPods: 5\n");
        write("config.d/20-ports.yaml", "apiPort: 9443\n");
        write("config.d/10-ports.yaml", "apiPort: 8443\nnodeIp: 192.0.2.7\n");
        write("config.d/README", "not: settings");
        let config = load().unwrap();
        assert_eq!((config.api_port, config.max_pods, config.node_ip), (9443, 5, Some([192, 0, 2, 7].into())));
        write("config.d/30.yaml", "apiPrt: 1\n");
        let error = format!("{:#}", load().unwrap_err());
        assert!(error.contains("30.yaml") && error.contains("apiPrt"), "{error}");
        std::fs::remove_file(dir.join("config.d/30.yaml")).unwrap();
        write("config.yaml", "apiPort: 7443\nmaxPds: 5\n");
        let error = format!("{:#}", load().unwrap_err());
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(error.contains("maxPds"), "{error}");
    }
}
