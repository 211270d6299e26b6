//! The commands.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, outward_address, outward_address_v6};
use crate::{agent, daemon, down, image, install, nodes, rotate, simulate, status, token, toolbox, up, why};

#[derive(Parser)]
#[command(name = "sternpost", version, about = "All of Kubernetes in one binary", after_help = "Start with: sternpost up")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole cluster on this machine; run again, it resumes the same cluster.
    Up(UpArgs),
    /// Stop the cluster and its pods.
    Down {
        /// Also remove everything that the cluster owns: objects, keys, images, volumes, the kubeconfig context.
        #[arg(long)]
        purge: bool,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
    /// Run the control plane and this machine's node in the foreground, as a service does; `agent` joins others to it.
    Server(ServerArgs),
    /// Make this machine a server or an agent of its own accord: the binary, the configuration and a systemd unit.
    Install(install::InstallArgs),
    /// Undo `install`; what the cluster owns stays (`down --purge` removes it).
    Uninstall(install::UninstallArgs),
    /// Run a node of a cluster whose control plane is elsewhere.
    Agent(AgentArgs),
    /// Nodes: the further ones on this machine (`up --nodes`), and taking any out of the cluster.
    #[command(subcommand)]
    Node(nodes::Command),
    /// Tokens that machines join with.
    #[command(subcommand)]
    Token(token::Command),
    /// Exchange keys of the running cluster, with nothing interrupted.
    #[command(subcommand)]
    Rotate(rotate::Command),
    /// Say what runs.
    Status,
    /// Say why a pod has no node, and what would help.
    Why(why::WhyArgs),
    /// Nodes without machines: against a running cluster, or one inside this process.
    Simulate(simulate::SimulateArgs),
    /// Images on this node.
    #[command(subcommand)]
    Image(image::Command),
    /// Print the administrator's kubeconfig.
    Kubeconfig,
    /// Run an applet of the built-in image sternpost.io/toolbox.
    #[command(disable_help_flag = true)]
    Toolbox {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

#[derive(Args)]
pub struct AgentArgs {
    /// The API server, such as https://192.0.2.10:6443
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// From `sternpost token create` (or in STERNPOST_TOKEN); once joined, the node has keys of its own.
    #[arg(long, value_name = "ID.SECRET", requires = "ca_hash")]
    pub token: Option<String>,
    /// What the cluster is known by: the hash of its authority's public key (or in STERNPOST_CA_HASH).
    #[arg(long, value_name = "sha256:HEX")]
    pub ca_hash: Option<String>,
    /// Return once the node is ready; it goes on in the background.
    #[arg(long, short)]
    pub detach: bool,
    #[arg(long, hide = true)]
    pub report_fd: Option<i32>,
}

#[derive(Args)]
struct ServerArgs {
    /// Return once the cluster is ready; it goes on in the background.
    #[arg(long, short)]
    detach: bool,
    #[arg(long, hide = true)]
    report_fd: Option<i32>,
}

#[derive(Args)]
pub struct UpArgs {
    /// So many nodes: this machine, and the others beside it in network namespaces of their own.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=200))]
    pub nodes: Option<u8>,
    /// Return once the cluster is ready; it goes on in the background.
    #[arg(long, short)]
    pub detach: bool,
    /// Leave the user's own kubeconfig alone.
    #[arg(long)]
    pub no_kubeconfig: bool,
    /// Where a detached start reports its progress: an inherited descriptor.
    #[arg(long, hide = true)]
    pub report_fd: Option<i32>,
}

/// Flags over the configuration file.
#[derive(Args)]
struct Settings {
    /// Configuration file [default: /etc/sternpost/config.yaml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State that outlives a reboot [default: /var/lib/sternpost]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// State of this boot [default: /run/sternpost]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Port of the API server [default: 6443]
    #[arg(long, global = true, value_name = "PORT")]
    api_port: Option<u16>,
    /// Address that this node is reached by [default: that of the default route]
    #[arg(long, global = true, value_name = "ADDRESS")]
    node_ip: Option<IpAddr>,
    /// Name of this node [default: the host's name]
    #[arg(long, global = true, value_name = "NAME")]
    node_name: Option<String>,
    /// Know a dead node after a second, and have its pods elsewhere at once
    #[arg(long, global = true)]
    fast_failover: bool,
    /// KubeSchedulerConfiguration for the scheduler
    #[arg(long, global = true, value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
    /// Built-in APIs to switch on or off, such as api/all=true or resource.k8s.io/v1beta1=true [default: what is stable]
    #[arg(long, global = true, value_name = "API=BOOL,…")]
    runtime_config: Option<String>,
    /// Admission plugins to run besides the usual ones
    #[arg(long, global = true, value_name = "PLUGIN,…", value_delimiter = ',')]
    enable_admission_plugins: Vec<String>,
    /// Admission plugins not to run
    #[arg(long, global = true, value_name = "PLUGIN,…", value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
    /// An AdmissionConfiguration with the plugins' settings
    #[arg(long, global = true, value_name = "FILE")]
    admission_control_config_file: Option<PathBuf>,
    /// What is logged, such as info or info,kubelet=debug
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
}

impl Settings {
    fn resolve(self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        config.data_dir = self.data_dir.unwrap_or(config.data_dir);
        config.run_dir = self.run_dir.unwrap_or(config.run_dir);
        config.api_port = self.api_port.unwrap_or(config.api_port);
        config.node_ip = self.node_ip.or(config.node_ip);
        config.node_name = self.node_name.unwrap_or(config.node_name);
        config.fast_failover |= self.fast_failover;
        config.scheduler_config = self.scheduler_config.or(config.scheduler_config);
        config.runtime_config = self.runtime_config.unwrap_or(config.runtime_config);
        config.enable_admission_plugins.extend(self.enable_admission_plugins);
        config.disable_admission_plugins.extend(self.disable_admission_plugins);
        config.admission_control_config_file = self.admission_control_config_file.or(config.admission_control_config_file);
        config.log = self.log.unwrap_or(config.log);
        if config.node_name.is_empty() {
            config.node_name = crate::config::host_name();
        }
        config.complete(outward_address().is_some() && outward_address_v6().is_some());
        Ok(config)
    }
}

/// Runs the command that the arguments name; returns the exit code.
pub fn run() -> i32 {
    let cli = Cli::parse();
    let result = cli.settings.resolve().and_then(|config| match cli.command {
        Command::Up(UpArgs { nodes: Some(count), .. }) if daemon::settled(&config).is_some() => nodes::add(&config, count).map(|()| 0),
        Command::Up(args) if args.detach => daemon::detach(&config),
        Command::Up(args) => up::run(config, &args),
        Command::Server(args) if args.detach => daemon::detach(&config),
        Command::Server(args) => up::run(config, &UpArgs { nodes: None, detach: false, no_kubeconfig: true, report_fd: args.report_fd }),
        Command::Install(args) => install::install(&args),
        Command::Uninstall(args) => install::uninstall(&args),
        Command::Down { purge, dry_run } => down::run(&config, purge, dry_run),
        Command::Agent(args) if args.detach => daemon::detach(&config),
        Command::Agent(args) => agent::run(config, &args),
        Command::Node(command) => nodes::run(&config, command),
        Command::Token(command) => token::run(&config, command),
        Command::Rotate(command) => rotate::run(&config, &command),
        Command::Status => status::run(&config),
        Command::Why(args) => why::run(&config, &args),
        Command::Simulate(args) => simulate::run(&config, &args),
        Command::Image(command) => image::run(&config, command),
        Command::Kubeconfig => {
            print!("{}", std::fs::read_to_string(config.kubeconfig()).map_err(|error| anyhow::anyhow!("no cluster here yet: {error}"))?);
            Ok(0)
        }
        Command::Toolbox { args } => Ok(toolbox::run(args.first().map_or("help", String::as_str), args.get(1..).unwrap_or(&[]))),
    });
    result.unwrap_or_else(|error| {
        // The log that takes it may lie on a full disk, which is no reason to panic.
        let _ = writeln!(std::io::stderr(), "sternpost: {error:#}");
        1
    })
}
