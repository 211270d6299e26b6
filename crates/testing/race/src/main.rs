//! Races: what Sternpost takes for a thing, beside what the peer takes for it in the same run, and what the machine's own floors are.
//!
//! `cargo xtask race <case>` builds this program and the binary with optimisation and starts it. A case has rounds; a round runs
//! ours, the peer, the peer, ours (A-B-B-A), so that a slow drift of the machine falls on both. What is published is a ratio with its
//! spread. Reading order: [`case`] (the list), [`measure`] (rounds and numbers), [`floor`] (the machine), then a file per case;
//! [`report`] writes `target/race/<case>.json` and the case's table in `docs/benchmarks.md`.

use clap::Parser;

mod admission;
mod api;
mod auth;
mod boot;
mod case;
mod cel;
mod cluster;
mod codec;
mod controllers;
mod etcd;
mod floor;
mod images;
mod machine;
mod measure;
mod mission;
mod network;
mod node;
mod pods;
mod processes;
mod report;
mod scheduler;
mod store;

/// The one that the binary has: API server and store run in this process too.
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

#[derive(Parser)]
#[command(name = "cargo xtask race", about = "Measure, with the peer and the machine's floors in the same run")]
pub struct Options {
    /// store, codec, cel, admission, auth, boot, pods, controllers, api, scheduler, network or mission
    case: String,
    /// Rounds; below five nothing is written to docs/benchmarks.md.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one leg of a throughput case runs, in seconds.
    #[arg(long, default_value_t = 2.0)]
    leg_seconds: f64,
    /// The peer of the cases store and api [default: etcd on PATH, of Debian's etcd-server]
    #[arg(long)]
    etcd: Option<std::path::PathBuf>,
    /// Folder on the disk to measure on [default: target/race]
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// The case api measures this server instead of a cluster of its own.
    #[arg(long)]
    kubeconfig: Option<std::path::PathBuf>,
    /// Only the measurements of the cases api, admission and scheduler, or the part (services, paths, policies, names) of the case network, with one of
    /// these in the name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Pods in the largest list of the case api.
    #[arg(long, default_value_t = 100_000)]
    objects: usize,
    /// The case api without its peer.
    #[arg(long)]
    no_etcd: bool,
    /// Watchers of the case api.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Replicas of the case pods.
    #[arg(long, default_value_t = 100)]
    replicas: usize,
    /// The cases admission, scheduler and controllers begin no further round after so many minutes; the first is always run.
    #[arg(long, default_value_t = 8.0)]
    minutes: f64,
    /// A tenth of the objects of the cases scheduler and network.
    #[arg(long)]
    quick: bool,
}

impl Options {
    /// Whether a measurement of this name is wanted.
    pub fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| what.contains(only.as_str()))
    }

    /// The time for further rounds is used up.
    pub fn is_over(&self, start: std::time::Instant) -> bool {
        start.elapsed().as_secs_f64() > self.minutes * 60.0
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if options.case == api::constant::NAME {
        return tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(api::constant::serve());
    }
    if options.case == admission::flood::NAME {
        return admission::flood::run();
    }
    let case = case::find(&options.case)?;
    let dir = options.dir.clone().unwrap_or_else(|| report::folder().to_path_buf());
    std::fs::create_dir_all(&dir)?;
    let scratch = tempfile::Builder::new().prefix("run-").tempdir_in(&dir)?;
    // As the daemon's.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(apiserver::threads()).enable_all().build()?;
    let floors = floor::measure(scratch.path())?;
    let load = machine::Load::start();
    let outcome = runtime.block_on((case.run)(&options, scratch.path()))?;
    report::publish(&options, case, &floors, &load.stop(), &outcome)
}
