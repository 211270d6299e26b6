//! `sternpost install`: a server or an agent as a service of systemd. Everything that is written is in one list, and `uninstall` removes it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use clap::{Args, ValueEnum};

const BINARY: &str = "usr/local/bin/sternpost";
const CONFIGURATION: &str = "etc/sternpost/config.yaml";
const JOIN: &str = "etc/sternpost/join.env";
const UNIT: &str = "etc/systemd/system/sternpost.service";
const SERVICE: &str = "sternpost.service";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Server,
    Agent,
}

#[derive(Args)]
pub struct InstallArgs {
    /// The control plane with a node, or a node that joins one.
    #[arg(value_enum, default_value = "server")]
    role: Role,
    /// For an agent: the API server, from the line that `sternpost token create` prints.
    #[arg(long, value_name = "URL", required_if_eq("role", "agent"))]
    server: Option<String>,
    #[arg(long, value_name = "ID.SECRET", requires = "ca_hash")]
    token: Option<String>,
    #[arg(long, value_name = "sha256:HEX")]
    ca_hash: Option<String>,
    /// Install below this folder instead of / (for images); nothing is started.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Only say what would be written.
    #[arg(long)]
    dry_run: bool,
    /// Do not start the service now.
    #[arg(long)]
    no_start: bool,
}

#[derive(Args)]
pub struct UninstallArgs {
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
}

/// One file: where, its content (`None`: this binary), and who may read it.
struct File {
    path: &'static str,
    content: Option<String>,
    mode: u32,
    /// A user's own version stays.
    keep: bool,
}

pub fn install(args: &InstallArgs) -> anyhow::Result<i32> {
    let files = files(args);
    if args.dry_run {
        files.iter().for_each(|file| println!("would write {}", args.root.join(file.path).display()));
        return Ok(0);
    }
    for file in &files {
        let path = args.root.join(file.path);
        if file.keep && path.exists() {
            println!("kept {}", path.display());
            continue;
        }
        write(file, &path).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
    }
    if !systemd_runs(&args.root) {
        println!("systemd does not run here: nothing was started");
        return Ok(0);
    }
    systemctl(&["daemon-reload"])?;
    if args.no_start {
        systemctl(&["enable", SERVICE])?;
    } else {
        systemctl(&["enable", "--now", SERVICE])?;
        println!("started; its log: journalctl -u sternpost");
    }
    Ok(0)
}

pub fn uninstall(args: &UninstallArgs) -> anyhow::Result<i32> {
    let paths = [UNIT, JOIN, BINARY].map(|path| args.root.join(path));
    let there: Vec<&PathBuf> = paths.iter().filter(|path| path.exists()).collect();
    if args.dry_run {
        there.iter().for_each(|path| println!("would remove {}", path.display()));
        return Ok(0);
    }
    if systemd_runs(&args.root) && args.root.join(UNIT).exists() {
        systemctl(&["disable", "--now", SERVICE])?;
    }
    for path in there {
        fs::remove_file(path).with_context(|| path.display().to_string())?;
        println!("removed {}", path.display());
    }
    if systemd_runs(&args.root) {
        systemctl(&["daemon-reload"])?;
    }
    println!("{} and the cluster's data stay", args.root.join(CONFIGURATION).display());
    Ok(0)
}

fn files(args: &InstallArgs) -> Vec<File> {
    let mut files = vec![
        File { path: BINARY, content: None, mode: 0o755, keep: false },
        File { path: CONFIGURATION, content: Some(CONFIGURATION_TEXT.to_owned()), mode: 0o644, keep: true },
        File { path: UNIT, content: Some(unit(args)), mode: 0o644, keep: false },
    ];
    // A token is a secret: not on a command line that everybody sees.
    if let (Some(token), Some(ca_hash)) = (&args.token, &args.ca_hash) {
        let content = format!("STERNPOST_TOKEN={token}\nSTERNPOST_CA_HASH={ca_hash}\n");
        files.push(File { path: JOIN, content: Some(content), mode: 0o600, keep: false });
    }
    files
}

const CONFIGURATION_TEXT: &str =
    "# Settings of this machine: docs/guide/configuration.md lists them all. Files in config.d/*.yaml go over these.\n";

/// Pods are no part of the service: it is stopped and started again under them.
fn unit(args: &InstallArgs) -> String {
    let (role, command) = match (args.role, &args.server) {
        (Role::Agent, Some(server)) => ("agent", format!("agent --server {server}")),
        (Role::Agent, None) => ("agent", "agent".to_owned()),
        (Role::Server, _) => ("server", "server".to_owned()),
    };
    format!(
        "[Unit]\nDescription=Sternpost {role} (Kubernetes)\nWants=network-online.target\n\
         After=network-online.target\n\n[Service]\nType=exec\nEnvironmentFile=-/{JOIN}\nExecStart=/{BINARY} {command}\n\
         KillMode=process\nDelegate=yes\nRestart=always\nRestartSec=1\nLimitNOFILE=1048576\nTasksMax=infinity\nOOMScoreAdjust=-999\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

fn write(file: &File, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // By rename: a binary that runs cannot be written to, and nobody sees half a file or a secret before its mode.
    let fresh = path.with_extension("new");
    fs::write(&fresh, "")?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(file.mode))?;
    match &file.content {
        Some(content) => fs::write(&fresh, content)?,
        None => drop(io::copy(&mut fs::File::open("/proc/self/exe")?, &mut fs::File::create(&fresh)?)?),
    }
    fs::rename(&fresh, path)
}

fn systemd_runs(root: &Path) -> bool {
    root == Path::new("/") && Path::new("/run/systemd/system").is_dir()
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("systemctl").args(arguments).status().context("run systemctl")?;
    anyhow::ensure!(status.success(), "systemctl {}: {status}", arguments.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: InstallArgs,
    }

    #[test]
    fn an_agents_unit_names_its_server_and_hides_its_token_and_uninstall_leaves_the_users_settings() {
        let root = std::env::temp_dir().join(format!("sternpost-install-{}", std::process::id()));
        let words =
            ["install", "agent", "--server", "https://192.0.2.1:6443", "--token", "abcdef.0123", "--ca-hash", "sha256:00", "--root"];
        let line = Line::parse_from(words.iter().map(|word| (*word).into()).chain([root.clone().into_os_string()]));
        fs::create_dir_all(root.join("etc/sternpost")).unwrap();
        fs::write(root.join(CONFIGURATION), "maxPods: 7\n").unwrap();
        install(&line.args).unwrap();
        let unit = fs::read_to_string(root.join(UNIT)).unwrap();
        assert!(
            unit.contains("ExecStart=/usr/local/bin/sternpost agent --server https://192.0.2.1:6443\n") && !unit.contains("abcdef"),
            "{unit}"
        );
        let secret = fs::metadata(root.join(JOIN)).unwrap().permissions().mode() & 0o777;
        assert_eq!((secret, fs::metadata(root.join(BINARY)).unwrap().permissions().mode() & 0o777), (0o600, 0o755));
        uninstall(&UninstallArgs { root: root.clone(), dry_run: false }).unwrap();
        assert_eq!([UNIT, JOIN, BINARY, CONFIGURATION].map(|path| root.join(path).exists()), [false, false, false, true]);
        assert_eq!(fs::read_to_string(root.join(CONFIGURATION)).unwrap(), "maxPods: 7\n");
        fs::remove_dir_all(&root).unwrap();
    }
}
