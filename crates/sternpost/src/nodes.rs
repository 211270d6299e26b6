//! Further nodes on this machine: each an agent in a network and a mount namespace of its own, plugged into a bridge, so that there are
//! real links between nodes that can be cut.
//!
//! A node's folder is `<run>/nodes/<name>`: its configuration, and `netns` and `mntns`, where its namespaces are mounted. What outlives the machine's
//! uptime is in `<data>/nodes/<name>`. The agents are processes of their own: they and their pods outlive this daemon.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;

use anyhow::Context;
use auth::pki::NodeKeys;
use clap::Subcommand;
use k8s_openapi::api::core::v1::Node;
use rustix::thread::LinkNameSpaceType;

use crate::config::{Config, outward_address};
use crate::preflight;
use crate::progress::Progress;
use crate::up::{Parts, wait_for_node};
use crate::{certificates, daemon, keeper};

mod drain;
mod loss;
mod namespaces;

/// Nodes that are taken down at the same time.
const AT_ONCE: usize = 16;

/// What can be done to a further node.
#[derive(Subcommand)]
pub enum Command {
    /// The further nodes of this machine.
    List,
    /// As if the machine lost its power: the node's processes and its pods' are killed.
    Stop { name: String },
    /// Start it again.
    Start { name: String },
    /// Pull its network cable, or damage it.
    Cut {
        name: String,
        /// So many of a hundred packets get lost on their way to the node; the cable stays.
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
        loss: Option<u8>,
    },
    /// Plug it in again, and mend it.
    Heal { name: String },
    /// Send a node's pods elsewhere: nothing new is placed on it, and what runs there is evicted. Any node of the cluster.
    Drain(drain::Drain),
    /// Take a node out of the cluster: drained, taken down where it is one of this machine's, and forgotten.
    Remove(drain::Drain),
}

/// One node on this machine.
pub struct Local {
    pub name: String,
    folder: PathBuf,
    config: Config,
    server: String,
}

impl Local {
    /// The settings that its daemon runs with.
    pub fn into_config(self) -> Config {
        self.config
    }
}

/// Brings the nodes two to `count` up, and waits until they are ready.
pub async fn start_all(parts: &Arc<Parts>, count: u8, progress: &mut Progress) -> anyhow::Result<()> {
    let nodes = parts.caches.of::<Node>();
    let mut started = Vec::new();
    for number in 2..=count {
        let name = tokio::task::block_in_place(|| begin(&parts.config, parts.node_ip, number)).with_context(|| format!("node {number}"))?;
        started.push(name);
    }
    for name in &started {
        wait_for_node(&nodes, name).await?;
    }
    if let [first, .., last] = started.as_slice() {
        progress.step("nodes", &format!("{first} to {last} on this machine"));
    } else if let [only] = started.as_slice() {
        progress.step("nodes", &format!("{only} on this machine"));
    }
    Ok(())
}

/// Makes and starts node `number`; its Node says when it is ready.
fn begin(config: &Config, node_ip: IpAddr, number: u8) -> anyhow::Result<String> {
    if let Some(fault) = preflight::node_network_taken(config)? {
        anyhow::bail!(fault);
    }
    let local = Local::make(config, node_ip, number)?;
    local.start().with_context(|| format!("start node {}", local.name))?;
    Ok(local.name)
}

/// Whether so many nodes can have a range of the pods' ranges each; a node without one would never become ready.
pub fn have_room(ranges: &[controllers::ClusterRange], nodes: u8) -> anyhow::Result<()> {
    for controllers::ClusterRange { address, prefix, node_prefix } in ranges {
        let room = 1u32.checked_shl(u32::from(node_prefix - prefix)).unwrap_or(u32::MAX);
        anyhow::ensure!(
            u32::from(nodes) <= room,
            "podCidr {address}/{prefix} cut into ranges of /{node_prefix} is enough for {room} nodes, not for {nodes}: make it larger, or nodeCidrMaskSize longer"
        );
    }
    Ok(())
}

/// Brings a running cluster's further nodes up to `count` nodes in all, and says which are new.
pub fn add(config: &Config, count: u8) -> anyhow::Result<()> {
    have_room(&config.cluster_ranges()?, count)?;
    let node_ip = config.node_ip.or_else(outward_address).context("this host has no address")?;
    let known: BTreeSet<String> = all(config)?.into_iter().map(|local| local.name).collect();
    let mut added = Vec::new();
    for number in 2..=count {
        let name = begin(config, node_ip, number).with_context(|| format!("node {number}"))?;
        if !known.contains(&name) {
            added.push(name);
        }
    }
    match added.as_slice() {
        [] => println!("there are {} further nodes on this machine already", known.len()),
        _ => println!("added {}; `kubectl get nodes` says when they are ready", added.join(", ")),
    }
    Ok(())
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<i32> {
    let find = |name: &str| {
        let all = all(config)?;
        let names: Vec<String> = all.iter().map(|local| local.name.clone()).collect();
        let found = all.into_iter().find(|local| local.name == name);
        found.with_context(|| format!("no further node {name:?} on this machine; there are: {}", names.join(", ")))
    };
    match command {
        Command::List => {
            for local in all(config)? {
                let state = daemon::running(&local.config).map_or("stopped".to_owned(), |pid| format!("process {pid}"));
                println!("{}\t{}\t{state}", local.name, local.config.node_ip.map(|ip| ip.to_string()).unwrap_or_default());
            }
        }
        Command::Stop { name } => find(&name)?.kill()?,
        Command::Start { name } => find(&name)?.start()?,
        Command::Cut { name, loss: None } => find(&name)?.link(false)?,
        Command::Cut { name, loss: Some(percent) } => find(&name)?.lose(Some(percent))?,
        Command::Heal { name } => {
            let local = find(&name)?;
            local.lose(None)?;
            local.link(true)?;
        }
        Command::Drain(drain) => drain::run(config, &drain)?,
        Command::Remove(drain) => {
            drain::run(config, &drain)?;
            if let Some(local) = all(config)?.into_iter().find(|local| local.name == drain.name) {
                local.down(true).with_context(|| format!("take node {} down", drain.name))?;
                fs::remove_dir_all(&local.folder).with_context(|| local.folder.display().to_string())?;
            }
            drain::forget(config, &drain.name)?;
        }
    }
    Ok(0)
}

/// Every node that was made on this machine since it started.
pub fn all(config: &Config) -> anyhow::Result<Vec<Local>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(config.run_dir.join("nodes")).into_iter().flatten().flatten() {
        let folder = entry.path();
        // Made halfway: the next start makes it whole.
        let Ok(server) = fs::read_to_string(folder.join("server")) else { continue };
        let config = Config::load(Some(&folder.join("config.yaml")))?;
        found.push(Local { name: config.node_name.clone(), folder, config, server });
    }
    found.sort_by_key(|local| local.config.node_ip);
    Ok(found)
}

/// Takes the nodes down: their pods, their namespaces, their links. `purge`d, they leave nothing.
pub fn down(config: &Config, purge: bool) -> anyhow::Result<()> {
    let mut failed = None;
    for some in all(config)?.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let ends: Vec<_> = some.iter().map(|local| (local, scope.spawn(|| local.down(purge)))).collect();
            for (local, end) in ends {
                match end.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the thread panicked"))) {
                    Ok(()) => println!("node {} is down", local.name),
                    Err(error) => failed = Some(error.context(format!("node {}", local.name))),
                }
            }
        });
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let nodes = config.run_dir.join("nodes");
    for entry in fs::read_dir(&nodes).into_iter().flatten().flatten() {
        ["netns", "mntns"].iter().for_each(|name| namespaces::release(&entry.path().join(name)));
    }
    cni::segment::delete_link(&bridge(config))?;
    if nodes.exists() { fs::remove_dir_all(&nodes).context("remove the nodes' folder") } else { Ok(()) }
}

pub fn bridge(config: &Config) -> String {
    format!("br-{}", config.link_prefix)
}

impl Local {
    /// Everything that node `number` needs before it can start; what is there stays.
    fn make(host: &Config, node_ip: IpAddr, number: u8) -> anyhow::Result<Self> {
        let name = format!("{}-{number}", host.node_name);
        let ranges = host.nodes()?;
        let nth =
            |number: u32| ranges.iter().map(|range| Ok((range.nth(number)?, range.prefix))).collect::<anyhow::Result<Vec<cni::Cidr>>>();
        let addresses = nth(number.into())?;
        let (address, _) = addresses.first().copied().context("nodeCidr")?;
        let folder = host.run_dir.join("nodes").join(&name);
        let mut config = Config {
            data_dir: host.data_dir.join("nodes").join(&name),
            run_dir: folder.join("run"),
            node_name: name.clone(),
            node_ip: Some(address),
            cgroup_root: format!("{}-{number}", host.cgroup_root),
            ..host.clone()
        };
        // Plugins that hand out addresses need another range on each node.
        let own_cni = config.data_dir.join("cni");
        if own_cni.is_dir() {
            config.cni_conf_dir = own_cni;
        }
        fs::create_dir_all(&config.run_dir)?;
        fs::create_dir_all(&config.data_dir)?;
        let answers_at = [address, IpAddr::from([127, 0, 0, 1])];
        NodeKeys::issue(&host.pki_dir(), &config.pki_dir(), &name, &answers_at, &certificates::lifetimes(host))?;
        fs::write(folder.join("config.yaml"), written(&config))?;
        let server = format!("https://{node_ip}:{}", host.api_port);
        let netns = folder.join("netns");
        if !namespaces::is_kept(&netns) {
            namespaces::keep_network(&netns).with_context(|| netns.display().to_string())?;
        }
        let mut segment = cni::segment::Segment::open(&bridge(host), &nth(1)?)?;
        segment.plug(&link(host, number), File::open(&netns)?.as_fd(), &addresses)?;
        fs::write(folder.join("link"), link(host, number))?;
        fs::write(folder.join("server"), &server)?;
        Ok(Self { name, folder, config, server })
    }

    /// Starts the agent in the node's namespace, in a session of its own; the Node says when it is ready.
    fn start(&self) -> anyhow::Result<()> {
        if daemon::running(&self.config).is_some() {
            return Ok(());
        }
        let mounts = self.mounts();
        if !namespaces::is_kept(&mounts) {
            namespaces::keep_mounts(&mounts).with_context(|| mounts.display().to_string())?;
        }
        let log = OpenOptions::new().create(true).append(true).open(self.config.log_file())?;
        let mut process = self.process(&["agent", "--server", &self.server])?;
        process.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        process.spawn().context("start the agent")?;
        Ok(())
    }

    fn mounts(&self) -> PathBuf {
        self.folder.join("mntns")
    }

    /// This binary with the node's configuration, in the node's namespaces.
    fn process(&self, arguments: &[&str]) -> anyhow::Result<Process> {
        let netns = File::open(self.folder.join("netns")).context("the node's network namespace")?;
        // A node that was stopped has none until it starts.
        let mounts = if namespaces::is_kept(&self.mounts()) { Some(File::open(self.mounts())?) } else { None };
        let mut process = Process::new("/proc/self/exe");
        process.arg0("sternpost").arg("--config").arg(self.folder.join("config.yaml")).args(arguments);
        // SAFETY: only async-signal-safe calls between fork and exec: setsid, and setns on descriptors that the closure owns.
        unsafe {
            process.pre_exec(move || {
                rustix::process::setsid()?;
                rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                if let Some(mounts) = &mounts {
                    rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
                }
                Ok(())
            });
        }
        Ok(process)
    }

    fn kill(&self) -> anyhow::Result<()> {
        if let Some(pid) = daemon::running(&self.config).and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
        keeper::end(&self.config.run_dir).context("end the keeper of the DNS sockets")?;
        cgroups::Root::detect(&self.config.cgroup_root)?.remove_all()?;
        // Mounts do not outlive a power cut either.
        namespaces::release(&self.mounts());
        Ok(())
    }

    fn link(&self, up: bool) -> anyhow::Result<()> {
        let link = fs::read_to_string(self.folder.join("link"))?;
        if cni::segment::set_link(&link, up)? { Ok(()) } else { anyhow::bail!("no link {link}") }
    }

    /// Lets so many of a hundred incoming packets vanish.
    fn lose(&self, percent: Option<u8>) -> anyhow::Result<()> {
        let netns = File::open(self.folder.join("netns")).context("the node's network namespace")?;
        let table = nft::Table::inet(&format!("{}-loss", self.config.nft_table));
        let there = std::thread::spawn(move || -> anyhow::Result<()> {
            rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            loss::set(&table, percent)
        });
        there.join().map_err(|_| anyhow::anyhow!("the thread in the node's namespace panicked"))?
    }

    fn down(&self, purge: bool) -> anyhow::Result<()> {
        let arguments: &[&str] = if purge { &["down", "--purge"] } else { &["down"] };
        let status = self.process(arguments)?.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        anyhow::ensure!(status.success(), "its own down: {status}");
        if let Ok(link) = fs::read_to_string(self.folder.join("link")) {
            cni::segment::delete_link(&link)?;
        }
        ["netns", "mntns"].iter().for_each(|name| namespaces::release(&self.folder.join(name)));
        Ok(())
    }
}

/// At most 15 bytes, and not beginning as pods' links do.
fn link(config: &Config, number: u8) -> String {
    format!("n-{}-{number}", config.link_prefix)
}

/// The settings that an agent reads.
fn written(config: &Config) -> String {
    let text = serde_json::json!({
        "dataDir": config.data_dir, "runDir": config.run_dir, "apiPort": config.api_port, "kubeletPort": config.kubelet_port,
        "dnsPort": config.dns_port, "podCidr": config.pod_cidr, "nodeCidrMaskSize": config.node_cidr_mask_size,
        "nodeCidrMaskSizeIpv6": config.node_cidr_mask_size_ipv6, "dualStack": config.dual_stack, "fastFailover": config.fast_failover, "network": config.network,
        "cniConfDir": config.cni_conf_dir, "cniBinDirs": config.cni_bin_dirs, "nodeCidr": config.node_cidr,
        "serviceCidr": config.service_cidr, "clusterDomain": config.cluster_domain, "nodeName": config.node_name, "nodeIp": config.node_ip,
        "maxPods": config.max_pods, "podPidsLimit": config.pod_pids_limit, "log": config.log, "cgroupRoot": config.cgroup_root,
        "nftTable": config.nft_table, "linkPrefix": config.link_prefix, "context": config.context,
        "registryPort": config.registry_port, "registryPeerPort": config.registry_peer_port, "registriesFile": config.registries_file,
        "imageVerifierDir": config.image_verifier_dir, "runtimeHandlers": config.runtime_handlers, "imageCredentialProviderConfig": config.image_credential_provider_config,
        "imageCredentialProviderBinDir": config.image_credential_provider_bin_dir,
        "kubeletConfig": config.kubelet_config, "staticPodPath": "",
    });
    // JSON is YAML.
    text.to_string()
}
