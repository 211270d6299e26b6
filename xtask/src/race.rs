//! `cargo xtask race <case>`: builds the measuring program and the binary with optimisation and starts the race.
//!
//! The cases are in `crates/testing/race`: they need the project's own crates in release, which a chore must not.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

pub fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    // The store is raced inside the measuring program; all other cases start the binary.
    let case = args.first().map(String::as_str).unwrap_or_default();
    let own = ["--release", "-p", "race"];
    let racer = crate::build(&own, "race")?;
    let mut race = Command::new(racer);
    race.args(args).current_dir(crate::root());
    if ["api", "boot", "mission", "node", "pods"].contains(&case) && std::env::var_os("STERNPOST_BIN").is_none() {
        race.env("STERNPOST_BIN", crate::build(&["--release", "-p", "sternpost"], "sternpost")?);
    }
    Err(anyhow::Error::new(race.exec()).context("start the race"))
}
