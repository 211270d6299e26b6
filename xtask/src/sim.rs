//! `cargo xtask sim`: builds the simulation with optimisation and starts it.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

pub fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    let built = crate::build(&["--release", "-p", "sim", "--bin", "sim"], "sim")?;
    Err(anyhow::Error::new(Command::new(built).args(args).current_dir(crate::root()).exec()).context("start the simulation"))
}
