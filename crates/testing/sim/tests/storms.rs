//! A whole cluster from a seed, through lost requests, cut watches and restarts.
//!
//! `STERNPOST_SEEDS=1000` runs that many; a seed that fails is named and can be run alone with `STERNPOST_SEED=<seed>`.

use futures_util::StreamExt;
use scheduler::profile::{Plugin, Profile};
use sim::scenario::{Plan, expected, run};

const AT_ONCE: usize = 4;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_seed_comes_to_the_state_that_was_asked_for() {
    let seeds = match number("STERNPOST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STERNPOST_SEEDS").unwrap_or(8),
    };
    let one = |seed| async move { (seed, run(&Plan { seed, scheduler: scheduler::Config::default() }).await.unwrap()) };
    let mut runs = futures_util::stream::iter(seeds).map(one).buffer_unordered(AT_ONCE);
    while let Some((seed, outcome)) = runs.next().await {
        assert_eq!(outcome, expected(), "STERNPOST_SEED={seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_does_not_look_for_room_is_caught() {
    let mut profile = Profile::default();
    profile.filters = profile.filters.without(Plugin::NodeResourcesFit);
    profile.weights.resources_fit = -1;
    profile.weights.pod_topology_spread = 0;
    let scheduler = scheduler::Config { profiles: vec![profile], ..scheduler::Config::default() };
    let outcome = run(&Plan { seed: 1, scheduler }).await.unwrap();
    assert!(outcome.faults.iter().any(|fault| fault.contains("has 8 CPU")), "{outcome:?}");
}
