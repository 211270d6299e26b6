//! `cargo xtask conformance`: upstream's own end-to-end suite against a running cluster.
//!
//! `prepare` builds the suite and stand-ins for its images (`conformance/prepare.py`; Go, Python, debootstrap, some minutes);
//! the images then go into the cluster with `sternpost image load target/conformance/images.tar`. A run reports in the same folder.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use clap::Args;

/// Kubernetes' release whose suite runs.
const VERSION: &str = "v1.36.3";

#[derive(Args)]
pub struct Conformance {
    /// Build the suite and the images' archive, and stop.
    #[arg(long)]
    prepare: bool,
    /// The cluster.
    #[arg(long, required_unless_present = "prepare")]
    kubeconfig: Option<PathBuf>,
    /// Tests whose names match this expression.
    #[arg(long, default_value = r"\[Conformance\]")]
    focus: String,
    /// But not these; the serial ones need a run of their own with `--procs 1`.
    #[arg(long, default_value = r"\[Serial\]|\[Disruptive\]")]
    skip: String,
    /// Tests at the same time.
    #[arg(long, default_value_t = 8)]
    procs: u32,
}

pub fn run(wanted: &Conformance) -> anyhow::Result<ExitCode> {
    let folder = crate::root().join("target/conformance");
    let suite = folder.join("suite.test");
    if wanted.prepare || !suite.exists() {
        let script = crate::root().join("conformance/prepare.py");
        let status = Command::new("python3").arg(script).arg(&folder).arg(VERSION).status().context("start python3")?;
        ensure!(status.success(), "the suite does not build");
    }
    let Some(kubeconfig) = wanted.kubeconfig.as_ref().filter(|_| !wanted.prepare) else { return Ok(ExitCode::SUCCESS) };
    let status = Command::new(folder.join("ginkgo"))
        .arg(format!("--procs={}", wanted.procs))
        .args(["--no-color", "--timeout=2h", "--json-report=report.json"])
        .arg(format!("--output-dir={}", folder.display()))
        .arg(format!("--focus={}", wanted.focus))
        .arg(format!("--skip={}", wanted.skip))
        .arg(suite)
        .args(["--", "--provider=local", "--disable-log-dump"])
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .env("KUBECONFIG", kubeconfig)
        .status()
        .context("start ginkgo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
