//! The project's chores, run as `cargo xtask <chore>`.
//!
//! - `test` is the one command that runs every test, those of the whole cluster included.
//! - `tidy` checks what the compiler does not: arrows between crates, stories, links; its checks are also ordinary tests.
//! - `race` measures: ours and the peer in one run; the cases live in the crate `race`.
//! - `sim` runs a whole cluster through storms, from as many seeds as asked for.
//! - `fuzz` throws odd input at the decoders, the patch engines, selectors, quantities, CEL and images.
//! - `conformance` runs upstream's own end-to-end suite against a running cluster.
//! - `codegen` rewrites the committed fact tables from published Kubernetes data (`--spec DIR`).
//!
//! This program is built before anything else on a fresh checkout, so it depends on little.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod codegen;
mod conformance;
mod fuzz;
mod race;
mod sim;
mod test;
mod tidy;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the Sternpost repository")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run every test. Needs root, a kernel that runs containers, and a few Debian packages; says which are missing.
    Test {
        /// Passed on to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Check the repository's own rules.
    Tidy {
        /// Write docs/dependencies.txt instead of comparing it.
        #[arg(long)]
        write: bool,
    },
    /// Measure one case: store, boot, pods, api.
    Race {
        /// The case and its flags; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<String>,
    },
    /// Run a whole cluster through storms, from seeds: `--seeds 1000`, `--planted`.
    Sim {
        /// Its flags; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Throw odd input at decoders, patch engines, selectors and quantities.
    Fuzz {
        /// Only this target: decode, patch, apply, selector, quantity or cel.
        target: Option<String>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Run upstream's end-to-end suite against a cluster; builds it first, with Go.
    Conformance(conformance::Conformance),
    /// Rewrite the committed fact tables from published Kubernetes data.
    Codegen {
        /// Folder with the published data (its README names each file).
        #[arg(long, default_value = "../shared/spec")]
        spec: PathBuf,
        /// Only this table.
        #[arg(long)]
        only: Option<String>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().chore {
        Chore::Test { args } => test::run(&args),
        Chore::Tidy { write } => tidy::run(write),
        Chore::Race { args } => race::run(&args),
        Chore::Sim { args } => sim::run(&args),
        Chore::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Chore::Conformance(wanted) => conformance::run(&wanted),
        Chore::Codegen { spec, only } => codegen::run(&spec, only.as_deref()).map(|()| ExitCode::SUCCESS),
    }
}

/// The checkout that cargo runs us in: a target folder may serve several, so what was compiled in may name another.
fn root() -> &'static Path {
    static ROOT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    ROOT.get_or_init(|| {
        let own = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        own.parent().expect("xtask lies in the workspace").to_owned()
    })
}

/// The cargo that runs us.
fn cargo() -> std::process::Command {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Builds with `args` and returns the path of the executable called `name`.
fn build(args: &[&str], name: &str) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.arg("build").args(args).arg("--message-format=json-render-diagnostics").stderr(std::process::Stdio::inherit());
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "cargo build {}: {}", args.join(" "), output.status);
    let messages = String::from_utf8(output.stdout)?;
    let built = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find_map(|message| {
        let is_ours = message["reason"] == "compiler-artifact" && message["target"]["name"] == name;
        is_ours.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    built.ok_or_else(|| anyhow::anyhow!("cargo build {} made no executable {name:?}", args.join(" ")))
}
