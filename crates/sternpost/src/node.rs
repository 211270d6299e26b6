//! The node's half of the daemon: images, runtime, pod network, kubelet, service proxy, DNS; and how all of it is taken down.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use cri::{ImageService, RuntimeService, v1};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use serde_json::json;
use tokio::task::JoinSet;

use crate::certificates::{Certificates, client_authorities};
use crate::components::Components;
use crate::config::{Cidr, Config, Network, outward_address, outward_address_v6};
use crate::names;
use crate::toolbox;
use crate::up::Parts;
use crate::{identity, keeper};

mod liveness;
mod peers;
mod registry;
mod tunnel;

pub use liveness::answers;
pub use peers::internal_address;

/// What a container gets to end by itself when the node is taken down: less than its pod may ask for, for the user waits.
const DOWN_GRACE_SECONDS: i64 = 5;
/// With `fastFailover`: how often a node says that it lives, and how long its silence is believed to be chance.
const FAST_LEASE: Duration = Duration::from_millis(200);
pub const FAST_GRACE: Duration = Duration::from_secs(1);
/// The same for a node whose kubelet can still be called: it is busy, and dead for good only after that long.
pub const FAST_STUCK_GRACE: Duration = Duration::from_secs(15);
/// On which port a node's DNS listens; what has no such label has none.
pub const DNS_PORT_LABEL: &str = "dns.sternpost.io/port";
/// How long DNS questions wait for a daemon that starts to know the Services.
const DNS_PATIENCE: Duration = Duration::from_secs(2);
/// The built-in image.
const TOOLBOX: &str = "sternpost.io/toolbox:latest";

/// What the control socket needs of the node.
#[derive(Clone)]
pub struct NodeParts {
    images: Arc<images::Store>,
    /// For builds: where commands run, and what they need to know of the node.
    pub runtime: Arc<dyn RuntimeService>,
    pub containers: PathBuf,
    pub builds: PathBuf,
    /// The cluster's name server.
    pub dns: String,
}

impl NodeParts {
    pub fn images(&self) -> &Arc<images::Store> {
        &self.images
    }

    /// Imports every image of an archive; returns their names.
    pub async fn load(&self, archive: std::pin::Pin<Box<dyn tokio::io::AsyncRead + Send>>) -> anyhow::Result<Vec<String>> {
        let images = self.images.clone();
        let reader = tokio_util::io::SyncIoBridge::new(archive);
        let loaded = tokio::task::spawn_blocking(move || images.import(reader)).await??;
        Ok(loaded.into_iter().map(|image| image.name.unwrap_or(image.id)).collect())
    }
}

/// Everything below the data and run folders that belongs to the node.
struct Places {
    images: PathBuf,
    builds: PathBuf,
    runtime_data: PathBuf,
    runtime_run: PathBuf,
    network: PathBuf,
    kubelet: PathBuf,
}

impl Places {
    fn of(config: &Config) -> Self {
        Self {
            images: config.data_dir.join("images"),
            builds: config.data_dir.join("builds"),
            runtime_data: config.data_dir.join("containers"),
            runtime_run: config.run_dir.join("pods"),
            network: config.run_dir.join("network"),
            kubelet: config.data_dir.join("kubelet"),
        }
    }
}

/// What a node is made from, whether the API server is in its process or on another machine.
#[derive(Clone)]
pub struct Surroundings {
    pub config: Config,
    pub address: IpAddr,
    /// As `system:node:<name>`.
    pub client: client::Client,
    /// Services, slices, namespaces and nodes; of pods only this node's where the process holds no other component.
    pub caches: reconcile::Caches,
    /// All pods of the cluster; asked for where network policies want to know them.
    pub pods: Arc<dyn Fn() -> reconcile::Cache<Pod> + Send + Sync>,
    pub tls: Arc<rustls::ServerConfig>,
    /// How it shows itself to other nodes.
    pub to_nodes: Arc<rustls::ClientConfig>,
    pub drain: stdx::Drain,
}

/// Starts the node's components.
pub async fn start(around: &Surroundings, components: &mut Components) -> anyhow::Result<NodeParts> {
    let mut settings = kubelet_settings(around)?;
    let node = open(&around.config).await?;
    let runtime = node.runtime.clone();
    let registry = registry::start(around, &node.images, components).await;
    if registry.to_peers {
        settings.kubelet.labels.insert(registry::PORT_LABEL.into(), around.config.registry_peer_port.to_string());
    }
    let images: Arc<dyn ImageService> = Arc::new(images::Service(node.images.clone()));
    remote::Server::start(runtime.clone(), images.clone(), &around.config.cri_socket(), around.drain.clone()).await.context("serve CRI")?;
    let (runtime, images) = match &settings.endpoint {
        Some(endpoint) => {
            let other = Arc::new(remote::Remote::new(&remote::socket_path(endpoint)?));
            (other.clone() as Arc<dyn RuntimeService>, other as Arc<dyn ImageService>)
        }
        None => (runtime, images),
    };
    start_network(around, components)?;
    start_policies(around, components);
    if around.config.network == Network::Embedded {
        peers::start(around, components)?;
    }
    start_dns(around, components)?;
    start_kubelet(around, settings.kubelet, runtime, images, components);
    Ok(node)
}

async fn open(config: &Config) -> anyhow::Result<NodeParts> {
    let places = Places::of(config);
    let images = images::Store::open(&places.images).context("open the image store")?;
    add_toolbox(&images).context("the built-in image")?;
    let network = pod_network(config, &places)?;
    let mut settings = runtime::Config::new(&places.runtime_data, &places.runtime_run, &config.cgroup_root);
    settings.handlers = config.runtime_handlers.clone();
    let runtime = runtime::Runtime::open(settings, images.clone(), Some(network)).await.context("open the runtime")?;
    // What a build that was cut off left behind.
    if places.builds.exists() {
        std::fs::remove_dir_all(&places.builds).context("remove what a build left")?;
    }
    Ok(NodeParts {
        images,
        runtime: Arc::new(runtime),
        containers: places.runtime_data.join("containers"),
        builds: places.builds,
        dns: config.dns_service_ip()?.to_string(),
    })
}

fn pod_network(config: &Config, places: &Places) -> anyhow::Result<Arc<dyn cni::PodNetwork>> {
    if config.network == Network::Cni {
        let folders = cni::Folders {
            configuration: config.cni_conf_dir.clone(),
            programs: config.cni_bin_dirs.clone(),
            state: places.network.clone(),
        };
        return Ok(Arc::new(cni::Plugins::open(folders).context("open the pod network")?));
    }
    let pods = pairs(config.pods()?);
    let first = pods.first().copied().context("podCidr")?;
    let mut settings = cni::Config::new(first, places.network.clone());
    settings.hidden_cidrs = pairs(config.nodes()?);
    settings.cluster_cidrs = [pods, pairs(config.services()?)].concat();
    settings.link_prefix = config.link_prefix.clone();
    settings.table = config.nft_table.clone();
    Ok(Arc::new(cni::Assigned::open(settings, config.data_dir.join("pod-cidr")).context("open the pod network")?))
}

pub fn pairs(ranges: Vec<Cidr>) -> Vec<cni::Cidr> {
    ranges.iter().map(Cidr::pair).collect()
}

/// The built-in image, made of the running binary.
fn add_toolbox(images: &images::Store) -> anyhow::Result<()> {
    let config = images::ImageConfig {
        entrypoint: vec!["/toolbox".into()],
        cmd: vec!["serve".into()],
        env: vec!["PATH=/bin".into()],
        working_dir: "/".into(),
        ..images::ImageConfig::default()
    };
    let links: Vec<&str> = toolbox::links().collect();
    images.add_executable(TOOLBOX, config, Path::new("/proc/self/exe"), "/toolbox", &links)?;
    Ok(())
}

/// How the kubelet runs, and on which runtime if not the built-in one.
struct KubeletSettings {
    kubelet: kubelet::Config,
    endpoint: Option<String>,
}

fn kubelet_settings(around: &Surroundings) -> anyhow::Result<KubeletSettings> {
    let config = &around.config;
    let places = Places::of(config);
    let mut settings = kubelet::Config::new(&config.node_name, around.address);
    // The node has the families that its pods have.
    if config.pods()?.len() > 1 {
        let other = if around.address.is_ipv4() { outward_address_v6() } else { outward_address() };
        settings.node_ips.extend(other);
    }
    settings.labels.insert(DNS_PORT_LABEL.into(), config.dns_port.to_string());
    if config.fast_failover {
        settings.lease_interval = FAST_LEASE;
        settings.lease_duration = FAST_GRACE;
    }
    settings.cluster_dns = vec![config.dns_service_ip()?];
    settings.cluster_domain = config.cluster_domain.clone();
    // Pods of plugins that look where upstream's kubelet is are led here; for programs of the host there is a link.
    settings.plugin_directory = places.kubelet.clone();
    settings.share_mounts = true;
    link_kubelet(config);
    settings.data_directory = places.kubelet;
    settings.image_directory = config.data_dir.clone();
    settings.runtime_directory = config.run_dir.join("kubelet");
    volumes::empty_dir::never_on_disk(&settings.runtime_directory)?;
    settings.log_directory = config.data_dir.join("logs");
    settings.port = config.kubelet_port;
    settings.pods_max = config.max_pods;
    settings.credentials.provider_config = config.image_credential_provider_config.clone();
    settings.credentials.provider_directory = config.image_credential_provider_bin_dir.clone();
    settings.credentials.docker_files.push(config.data_dir.join("kubelet").join("config.json"));
    settings.pod_pids_max = Some(config.pod_pids_limit);
    settings.static_pods = Some(config.static_pod_path.clone()).filter(|path| !path.as_os_str().is_empty());
    settings.tls = Some(around.tls.clone());
    let elsewhere = match &config.kubelet_config {
        Some(path) => kubelet::settings::read(path, &mut settings).context("kubeletConfig")?,
        None => kubelet::settings::Elsewhere::default(),
    };
    let own = Some(config.container_runtime_endpoint.clone()).filter(|endpoint| !endpoint.is_empty());
    let endpoint = elsewhere.runtime_endpoint.or(own);
    // The built-in runtime makes the pods' control groups itself.
    settings.cgroup_root = Some(config.cgroup_root.clone());
    settings.pod_cgroups = endpoint.is_some().then(|| config.cgroup_root.clone());
    Ok(KubeletSettings { kubelet: settings, endpoint })
}

fn start_kubelet(
    around: &Surroundings,
    settings: kubelet::Config,
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    components: &mut Components,
) {
    let (client, drain) = (around.client.named("kubelet"), around.drain.clone());
    components.spawn("kubelet", async move {
        if let Err(error) = kubelet::run(settings, client, runtime, images, drain).await {
            tracing::error!(%error, "the kubelet ended");
        }
    });
}

/// Marks the node as one that holds the control plane; a kubelet may not say so of itself.
pub async fn label(parts: &Parts) -> anyhow::Result<()> {
    let patch = client::Patch::Merge(json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } } }));
    let client = parts.client("system:apiserver", &["system:masters"]);
    client.patch::<Node>(None, &parts.config.node_name, &patch, "").await.context("label the node")?;
    Ok(())
}

fn start_network(around: &Surroundings, components: &mut Components) -> anyhow::Result<()> {
    let config = &around.config;
    let mut settings = proxy::Config::new(&config.node_name, pairs(config.pods()?));
    settings.table = config.nft_table.clone();
    let caches = proxy::Caches {
        services: around.caches.of(),
        slices: around.caches.of(),
        pods: Some(around.caches.of()),
        nodes: Some(around.caches.of()),
    };
    let drain = around.drain.clone();
    components.spawn("service proxy", async move {
        if let Err(error) = proxy::run(settings, caches, drain).await {
            tracing::error!(%error, "the service proxy ended");
        }
    });
    Ok(())
}

fn start_policies(around: &Surroundings, components: &mut Components) {
    let settings = policy::Config { node_name: around.config.node_name.clone(), table: around.config.nft_table.clone() };
    let caches = policy::Caches {
        policies: around.caches.of(),
        namespaces: around.caches.of(),
        nodes: around.caches.of(),
        pods: around.pods.clone(),
        cluster: policy::cluster::Policies::start(&network_client(&around.client), around.drain.clone()),
    };
    let drain = around.drain.clone();
    components.spawn("network policies", async move {
        if let Err(error) = policy::run(settings, caches, drain).await {
            tracing::error!(%error, "network policies ended");
        }
    });
}

/// Who reads what policies speak of: more than a kubelet may see.
pub fn network_client(client: &client::Client) -> client::Client {
    client.as_account("kube-system", "sternpost-network").named("network")
}

fn start_dns(around: &Surroundings, components: &mut Components) -> anyhow::Result<()> {
    let config = &around.config;
    let listen = SocketAddr::new(around.address, config.dns_port);
    let service = config.dns_service_ip()?;
    let mut settings = dns::Config::new(vec![listen], &config.cluster_domain);
    settings.own_addresses = vec![SocketAddr::new(service, 53)];
    settings.clients = dns_clients(around)?;
    settings.homes = dns_homes(around);
    settings.patience = DNS_PATIENCE;
    let (sockets, kept) = dns_sockets(config, &settings)?;
    let server = Arc::new(dns::Server::on(sockets, settings)?);
    let caches = dns::Caches { services: around.caches.of(), slices: around.caches.of(), namespaces: around.caches.of() };
    follow_corefile(around, &server);
    // Names are answered until the process ends, whatever others still finish; after that questions wait in the kept sockets.
    let serving = tokio::spawn(async move {
        server.run(caches, stdx::drain()).await;
        drop(kept);
    });
    let drain = around.drain.clone();
    components.spawn("DNS", async move { drop(drain.run(serving).await) });
    Ok(())
}

/// Those that were kept for us, or new ones, which are kept from now on.
fn dns_sockets(config: &Config, settings: &dns::Config) -> anyhow::Result<(dns::Sockets, Option<keeper::Kept>)> {
    let description = format!("{:?} {}", settings.listen, settings.sockets);
    if let Some((kept, sockets)) = keeper::take_over(&config.run_dir, &description).context("ask the keeper of the DNS sockets")? {
        return Ok((dns::Sockets::take_over(sockets).context("take the DNS sockets over")?, Some(kept)));
    }
    let sockets = dns::Sockets::bind(settings)?;
    let kept = sockets.share().and_then(|shared| keeper::start(&config.run_dir, &description, &shared));
    // Without it DNS is as good, but for the moments of a restart.
    let kept = kept.inspect_err(|error| tracing::warn!(%error, "start the keeper of the DNS sockets")).ok();
    Ok((sockets, kept))
}

/// Pods of this node by their addresses; those on the node's own address have the host's search path.
fn dns_homes(around: &Surroundings) -> dns::Homes {
    const BY_ADDRESS: &str = "dns-client";
    let pods = (around.pods)();
    pods.index(BY_ADDRESS, |pod: &Pod| {
        let on_host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        let status = pod.status.as_ref().filter(|_| !on_host);
        let ips = status.iter().flat_map(|status| status.pod_ips.iter().flatten());
        ips.filter_map(|ip| ip.ip.parse::<IpAddr>().ok()).map(|ip| ip.to_string()).collect()
    });
    dns::Homes(Arc::new(move |client| pods.by_index(BY_ADDRESS, &client.to_string()).first()?.metadata.namespace.clone()))
}

/// Pods, nodes and this host: the port is open on the node's address, and everybody else could only misuse it.
fn dns_clients(around: &Surroundings) -> anyhow::Result<dns::Clients> {
    let inside = [around.config.pods()?, around.config.nodes()?].concat();
    let known: Arc<RwLock<HashSet<IpAddr>>> = Arc::default();
    let (nodes, of_nodes) = (around.caches.of::<Node>(), known.clone());
    let listed = nodes.clone();
    nodes.on_change(move |_, _| {
        let addresses = listed.list();
        let addresses = addresses.iter().flat_map(|node| node.status.iter().flat_map(|status| status.addresses.iter().flatten()));
        let mut all: HashSet<IpAddr> = addresses.filter_map(|address| address.address.parse().ok()).collect();
        all.extend(crate::preflight::host_addresses().into_iter().map(|(_, address)| address));
        *of_nodes.write().unwrap_or_else(PoisonError::into_inner) = all;
    });
    Ok(dns::Clients(Arc::new(move |client| {
        client.is_loopback()
            || inside.iter().any(|range| range.contains(client))
            || known.read().unwrap_or_else(PoisonError::into_inner).contains(&client)
    })))
}

/// The ConfigMap that CoreDNS has its settings in, where somebody makes one.
fn follow_corefile(around: &Surroundings, server: &Arc<dns::Server>) {
    let mut scope = reconcile::Scope::fields("metadata.name=coredns");
    scope.namespace = Some("kube-system".into());
    let cache = reconcile::Cache::<ConfigMap>::start(&network_client(&around.client), scope, around.drain.clone());
    let server = server.clone();
    cache.on_change(move |_, new| {
        let text = new.and_then(|map| map.data.as_ref()?.get("Corefile").map(String::as_str));
        match server.configure(text) {
            Ok(()) => tracing::info!(configured = text.is_some(), "cluster DNS follows the ConfigMap kube-system/coredns"),
            Err(error) => tracing::error!(%error, "the ConfigMap kube-system/coredns is not followed"),
        }
    });
}

/// Removes our nftables table and the ways to other nodes; links go with their namespaces.
pub fn remove_network(config: &Config) -> anyhow::Result<()> {
    cni::Peers::remove(&config.link_prefix, &pairs(config.pods()?))?;
    let mut socket = nft::Socket::netfilter().context("open a netfilter socket")?;
    nft::Table::inet(&config.nft_table).delete(&mut socket).context("remove the nftables table")
}

/// What the API server is told of tokens and of the way to kubelets.
pub fn api_config(config: &Config, certificates: &Certificates, node_ip: IpAddr) -> anyhow::Result<apiserver::Config> {
    let pki = &certificates.pki;
    let mut authenticator = auth::authenticate::Authenticator::default();
    if let Some(path) = &config.token_auth_file {
        authenticator.add_token_file(&read(path)?).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())?;
    }
    let IpAddr::V4(advertise) = node_ip else { anyhow::bail!("the node's address {node_ip} is not IPv4") };
    Ok(apiserver::Config {
        issuer: Some(certificates.issuer.clone()),
        authenticator,
        tls: Some(certificates.api_server.clone()),
        client_authorities: Some(client_authorities(pki)),
        kubelet_client: Some(certificates.kubelet_client.config(&pki.ca)?),
        audit_file: Some(config.data_dir.join("audit.log")),
        audit_policy: config.audit_policy.as_deref().map(read).transpose()?,
        audit_webhook: identity::audit_webhook(config),
        audit_bytes_max: config.audit_log_max_mib << 20,
        audit_backups: config.audit_log_backups,
        encryption: Some(encryption(config)?),
        encryption_file: Some(encryption_file(config)),
        services: service_ranges(config)?,
        advertise,
        port: config.api_port,
        served: served(config)?,
        admission: admission_options(config)?,
        front_proxy: Some(certificates.front_proxy.clone()),
        authentication: identity::authentication(config)?,
        token_webhook: identity::token_webhook(config),
        authorization: config.authorization_config.clone().map(apiserver::Source::File),
        resolver: Some(Arc::new(|host| Box::pin(host_addresses(host)))),
        ..apiserver::Config::default()
    })
}

/// Which of the built-in APIs there are. Leases must be among them: a node says by its own that it lives, controllers and scheduler work only
/// while they hold theirs.
fn served(config: &Config) -> anyhow::Result<schema::resources::Served> {
    let served = schema::resources::Served::parse(&config.runtime_config).context("runtimeConfig")?;
    let leases = schema::resources::find("coordination.k8s.io", "v1", "leases").is_some_and(|leases| served.contains(leases));
    anyhow::ensure!(
        leases,
        "runtimeConfig: nodes, controllers and the scheduler cannot do without coordination.k8s.io/v1 leases: add coordination.k8s.io/v1=true"
    );
    Ok(served)
}

/// For webhooks that are configured with a host's name.
async fn host_addresses(host: String) -> Vec<IpAddr> {
    names::look_up(&host).await.unwrap_or_else(|error| {
        tracing::warn!(host, error, "the name of a webhook's host cannot be looked up");
        Vec::new()
    })
}

/// Which admission plugins run. Pods below the baseline standard are warned about where nobody says anything else.
fn admission_options(config: &Config) -> anyhow::Result<admission::Options> {
    let mut options = admission::Options {
        enable: config.enable_admission_plugins.clone(),
        disable: config.disable_admission_plugins.clone(),
        ..admission::Options::default()
    };
    if config.fast_failover {
        // Without its five minutes' grace a pod leaves a node that is gone at once.
        options.disable.push("DefaultTolerationSeconds".into());
    }
    let warn = serde_json::json!({"defaults": {"warn": "baseline"}, "exemptions": {"namespaces": ["kube-system"]}});
    options.configurations.insert("PodSecurity".into(), warn);
    if let Some(path) = &config.admission_control_config_file {
        options.read(path)?;
    }
    Ok(options)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Where its configuration stands, which may be edited while the cluster runs.
fn encryption_file(config: &Config) -> PathBuf {
    config.encryption_config.clone().unwrap_or_else(|| config.pki_dir().join("encryption-config.json"))
}

/// The configured encryption at rest, or this cluster's own key for Secrets.
fn encryption(config: &Config) -> anyhow::Result<auth::encryption::Encryption> {
    let text = match &config.encryption_config {
        Some(path) => read(path)?,
        None => auth::encryption::Encryption::default_config(&encryption_file(config))?,
    };
    let config: serde_json::Value = serde_saphyr::from_str(&text).context("encryption configuration")?;
    Ok(auth::encryption::Encryption::parse(&config)?)
}

fn service_ranges(config: &Config) -> anyhow::Result<apiserver::Ranges> {
    let network = |range: Cidr| apiserver::Network { first: range.address, prefix: range.prefix };
    Ok(apiserver::Ranges { networks: config.services()?.into_iter().map(network).collect(), ..apiserver::Ranges::default() })
}

/// Upstream's folder of a kubelet.
const UPSTREAM_KUBELET: &str = "/var/lib/kubelet";

/// A link there to the folder of this host's first node, unless something else is there already.
fn link_kubelet(config: &Config) {
    let ours = config.data_dir == Path::new("/var/lib/sternpost");
    if ours && !Path::new(UPSTREAM_KUBELET).is_symlink() {
        // What is there stays: another kubelet's folder is not ours to touch.
        let _ = std::os::unix::fs::symlink(Places::of(config).kubelet, UPSTREAM_KUBELET);
    }
}

/// Takes the link away, where it is ours.
pub fn unlink_kubelet(config: &Config) {
    if std::fs::read_link(UPSTREAM_KUBELET).is_ok_and(|target| target == Places::of(config).kubelet) {
        let _ = std::fs::remove_file(UPSTREAM_KUBELET);
    }
}

/// Where the built-in provisioner has its volumes.
pub fn local_path_dir(config: &Config) -> PathBuf {
    config.data_dir.join("local-path")
}

/// Where pods' volumes lie, and what is mounted for them.
pub fn volumes_dir(config: &Config) -> PathBuf {
    Places::of(config).kubelet
}

/// Stops every pod of this node, for `sternpost down`, when no daemon runs; returns how many there were. `remove`d, they are killed and leave
/// nothing. Otherwise they are asked to end, and their records stay: after the next start they say how they ended, and count a restart.
pub async fn stop_all(config: &Config, remove: bool) -> anyhow::Result<usize> {
    if !config.data_dir.exists() && !config.run_dir.exists() {
        return Ok(0);
    }
    let runtime = open(config).await?.runtime;
    if !remove {
        end_containers(&runtime).await?;
    }
    let sandboxes = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.items;
    let count = sandboxes.iter().filter(|sandbox| sandbox.state == v1::PodSandboxState::SandboxReady as i32).count();
    let mut stops = JoinSet::new();
    for sandbox in sandboxes {
        let runtime = runtime.clone();
        stops.spawn(async move {
            let id = sandbox.id;
            runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
            if remove {
                runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
            }
            Ok::<_, cri::Error>(())
        });
    }
    while let Some(stopped) = stops.join_next().await {
        stopped?.context("stop a pod")?;
    }
    Ok(count)
}

/// Asks every container to end, and kills what has not after a while.
async fn end_containers(runtime: &Arc<dyn RuntimeService>) -> anyhow::Result<()> {
    let containers = runtime.list_containers(v1::ListContainersRequest::default()).await?.containers;
    let mut stops = JoinSet::new();
    for container in containers.into_iter().filter(|container| container.state == v1::ContainerState::ContainerRunning as i32) {
        let runtime = runtime.clone();
        let request = v1::StopContainerRequest { container_id: container.id, timeout: DOWN_GRACE_SECONDS };
        stops.spawn(async move { runtime.stop_container(request).await });
    }
    while let Some(stopped) = stops.join_next().await {
        stopped?.context("stop a container")?;
    }
    Ok(())
}
