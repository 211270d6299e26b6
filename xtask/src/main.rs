//! The project's chores, run as `cargo xtask <chore>`.
//!
//! - `codegen` rewrites the committed fact tables from published Kubernetes data (`--spec DIR`).

use std::path::PathBuf;

use clap::{Parser, Subcommand};

mod codegen;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the Sternpost repository")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
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

fn main() -> anyhow::Result<()> {
    match Cli::parse().chore {
        Chore::Codegen { spec, only } => codegen::run(&spec, only.as_deref()),
    }
}
