//! `cargo xtask sim`: a whole cluster from each of many seeds, through storms; and, with `--planted`, that a scheduler which does not look for
//! room is caught.

use std::time::Instant;

use clap::Parser;
use futures_util::StreamExt;
use scheduler::profile::{Plugin, Profile};
use sim::scenario::{Outcome, Plan, expected, run};

#[derive(Parser)]
#[command(name = "cargo xtask sim", about = "Run the cluster through storms, from seeds")]
struct Options {
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Clusters at the same time; each sleeps most of its time.
    #[arg(long, default_value_t = 16)]
    at_once: usize,
    /// A scheduler with a bug: succeeds if every seed finds it.
    #[arg(long)]
    planted: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let scheduler = if options.planted { broken() } else { scheduler::Config::default() };
    let started = Instant::now();
    let one = |seed| {
        let plan = Plan { seed, scheduler: scheduler.clone() };
        tokio::spawn(async move { (seed, run(&plan).await) })
    };
    let seeds = options.first..options.first + options.seeds;
    let mut runs = futures_util::stream::iter(seeds).map(one).buffer_unordered(options.at_once.max(1));
    let (mut done, mut failed) = (0, Vec::new());
    while let Some(ended) = runs.next().await {
        let (seed, outcome) = ended?;
        done += 1;
        let caught = |outcome: &Outcome| outcome.faults.iter().any(|fault| fault.contains(" CPU and gives "));
        let good = outcome.as_ref().is_ok_and(|outcome| if options.planted { caught(outcome) } else { *outcome == expected() });
        if !good {
            eprintln!("seed {seed}: {outcome:?}");
            failed.push(seed);
        }
        if done % 50 == 0 {
            eprintln!("{done} seeds in {:.0} s, {} failed", started.elapsed().as_secs_f64(), failed.len());
        }
    }
    let what = if options.planted { "found the planted bug" } else { "came to the state that was asked for" };
    println!("{} of {done} seeds {what}, in {:.0} s", done - failed.len(), started.elapsed().as_secs_f64());
    anyhow::ensure!(failed.is_empty(), "seeds that failed: {failed:?}");
    Ok(())
}

/// Looks at no resources, and prefers full nodes.
fn broken() -> scheduler::Config {
    let mut profile = Profile::default();
    profile.filters = profile.filters.without(Plugin::NodeResourcesFit);
    profile.weights.resources_fit = -1;
    profile.weights.pod_topology_spread = 0;
    scheduler::Config { profiles: vec![profile], ..scheduler::Config::default() }
}
