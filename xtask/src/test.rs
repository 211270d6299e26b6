//! `cargo xtask test`: every test of the repository by one command.
//!
//! The binary is built once, by the features that the test run uses as well, and handed to the cluster tests in
//! [`BINARY`]; then one `cargo test` runs everything, so that its own summary and exit code are the last word.
//! Nothing is installed: what is missing on the host is listed, with the Debian package that has it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

/// Where the cluster tests find the binary under test.
const BINARY: &str = "STERNPOST_BIN";

/// A program that tests run, the Debian package that has it, and what it is for.
const TOOLS: &[(&str, &str, &str)] = &[
    ("cc", "gcc", "linking"),
    ("kubectl", "kubectl (Debian 13 and newer)", "the cluster tests"),
    ("busybox", "busybox-static", "images of the runtime and cluster tests"),
    ("docker-registry", "docker-registry", "pulls from a registry"),
    ("tar", "tar", "archives and kubectl cp"),
    ("curl", "curl", "requests to Services from the host"),
    ("ip", "iproute2", "what is left on the host"),
    ("nsenter", "util-linux", "looks from inside a namespace"),
    ("script", "bsdutils", "a terminal for kubectl exec -it"),
    ("diff", "diffutils", "kubectl diff"),
    ("go", "golang-1.26-go (sid)", "the program that uses client-go"),
    ("python3", "python3-venv", "the program that uses the Python client"),
];

pub fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    let missing = missing();
    if !missing.is_empty() {
        eprintln!("the tests cannot run here yet:");
        missing.iter().for_each(|fault| eprintln!("  - {fault}"));
        return Ok(ExitCode::FAILURE);
    }
    let binary = crate::build(&["-p", "sternpost"], "sternpost")?;
    let mut tests = crate::cargo();
    tests.args(["test", "--workspace", "--no-fail-fast"]).args(args).env(BINARY, binary);
    Err(anyhow::Error::new(tests.exec()).context("run cargo test"))
}

/// What the host lacks, all of it at once.
fn missing() -> Vec<String> {
    let mut faults = Vec::new();
    if effective_user() != Some(0) {
        faults.push("not root: containers, namespaces, cgroups and nftables are tested for real".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    for (tool, package, purpose) in TOOLS {
        if !is_there(tool) {
            faults.push(format!("no {tool} on PATH, for {purpose}: Debian package {package}"));
        }
    }
    if is_there("busybox") && !is_static(Path::new("/bin/busybox")) {
        faults.push("/bin/busybox is not statically linked: Debian package busybox-static instead of busybox".to_owned());
    }
    faults
}

fn effective_user() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

/// Whether an ELF file names no dynamic linker; the tests run it in containers that hold nothing else.
fn is_static(program: &Path) -> bool {
    let linker: &[u8] = b"/ld-linux";
    std::fs::read(program).is_ok_and(|bytes| !bytes.get(..4096).unwrap_or(&bytes).windows(linker.len()).any(|window| window == linker))
}
