//! `cargo xtask fuzz`: builds the targets of `fuzz/` with libFuzzer's instrumentation and runs them for a while.
//!
//! The crate lies outside the workspace, in cargo-fuzz's layout, so `cargo fuzz run <target>` works as well; this needs no more than the
//! toolchain and a C++ compiler. Inputs that were found to matter are kept under `target/fuzz/corpus`, crashes under `target/fuzz`.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};

/// What `fuzz/Cargo.toml` has.
const TARGETS: [&str; 7] = ["decode", "patch", "apply", "selector", "quantity", "cel", "image"];

/// Coverage at every edge, and the operands of comparisons, as cargo-fuzz asks of the compiler.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions";

/// An input that takes longer counts as a hang.
const INPUT_SECONDS_MAX: u32 = 20;
/// Greatest size of an input: a body of the API with every field filled has less.
const INPUT_BYTES_MAX: usize = 8_000;

pub fn run(target: Option<&str>, seconds: u32) -> anyhow::Result<ExitCode> {
    let wanted: Vec<&str> = TARGETS.into_iter().filter(|name| target.is_none_or(|wanted| wanted == *name)).collect();
    ensure!(!wanted.is_empty(), "no target {:?}; there are {}", target.unwrap_or_default(), TARGETS.join(", "));
    let (crate_dir, out) = (crate::root().join("fuzz"), crate::root().join("target/fuzz"));
    let host = host()?;
    // Named, so that the flags reach neither build scripts nor procedural macros.
    let status = crate::cargo()
        .args(["build", "--release", "--target", &host])
        .current_dir(&crate_dir)
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", &out)
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "the fuzz targets do not build");
    for name in wanted {
        fuzz(&out, &host, name, seconds)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn fuzz(out: &Path, host: &str, name: &str, seconds: u32) -> anyhow::Result<()> {
    let corpus = out.join("corpus").join(name);
    std::fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
    let program = out.join(host).join("release").join(name);
    let words = crate::root().join("fuzz").join(format!("{name}.dict"));
    let status = Command::new(&program)
        .arg(&corpus)
        .args(words.is_file().then(|| format!("-dict={}", words.display())))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={}/{name}-", out.display()))
        .status()
        .with_context(|| program.display().to_string())?;
    ensure!(status.success(), "{name}: a crash; the input is in {}", out.display());
    println!("{name}: {seconds} s without a crash");
    Ok(())
}

fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).context("rustc does not name its host")
}
