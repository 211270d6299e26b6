//! Other people's clients: each creates, watches, patches, applies and deletes ten kinds of objects and more, by its own means.
//!
//! The programs lie in `clients/` of this crate. What they need is fetched by the usual clients of their languages' registries (`go`, `pip`,
//! `npm`) into a folder outside the checkout, once: `STERNPOST_CLIENTS`, else one below `/var/tmp`.

mod kubectl;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cluster::run::Running;
use cluster::{Cluster, Namespace};

/// How long a registry and a compiler may take together.
const PREPARE: Duration = Duration::from_secs(420);
/// How long a program may take.
const RUN: Duration = Duration::from_secs(150);

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// Where what was fetched and built is kept.
fn kept(language: &str) -> PathBuf {
    let folder = std::env::var_os("STERNPOST_CLIENTS").map_or_else(|| PathBuf::from("/var/tmp/sternpost-clients"), PathBuf::from);
    let folder = folder.join(language);
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}

/// Runs a command that may fetch and compile.
#[track_caller]
fn prepare(command: &mut Command) {
    Running::start(command).end_within(PREPARE).ok();
}

/// Runs a client's program in a namespace of its own.
#[track_caller]
fn tour(topic: &str, command: &mut Command) {
    let ns = Namespace::new(topic);
    command.env("KUBECONFIG", Cluster::shared().kubeconfig()).env("NAMESPACE", &ns.name).env("HOME", Cluster::shared().dir().join("home"));
    let said = Running::start(command).end_within(RUN).ok();
    println!("{said}");
}

/// Debian's kubectl of another suite, unpacked beside the system.
fn debian_kubectl(suite: &str) -> PathBuf {
    let folder = kept("kubectl").join(suite);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.ci/debian");
    prepare(Command::new(script).arg(suite).arg(&folder).args(["usr/bin/kubectl", "kubectl"]));
    folder.join("usr/bin/kubectl")
}

#[test]
fn the_older_kubectl_does_all_that_needs_no_node() {
    kubectl::tour(&debian_kubectl("trixie"), "1.32", "kubectl-old");
}

#[test]
fn the_newest_kubectl_does_all_that_needs_no_node() {
    kubectl::tour(&debian_kubectl("sid"), "1.36", "kubectl-new");
}

#[test]
fn client_go_works_in_protobuf_with_informers_and_elections() {
    let program = kept("go").join("clients");
    prepare(Command::new("go").args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".").current_dir(sources().join("go")));
    tour("client-go", &mut Command::new(program));
}

#[test]
fn kube_rs_works_with_streaming_lists_and_a_reflector() {
    let target = kept("rust");
    // The workspace's own settings of a build are not this program's.
    let cargo = |verb: &str| {
        let mut command = Command::new("cargo");
        command.args([verb, "--locked", "--quiet", "--target-dir"]).arg(&target).current_dir(sources().join("rust"));
        for name in ["CARGO_TARGET_DIR", "CARGO_UNSTABLE_FEATURE_UNIFICATION", "CARGO_RESOLVER_FEATURE_UNIFICATION", "RUSTFLAGS"] {
            command.env_remove(name);
        }
        command
    };
    prepare(&mut cargo("build"));
    let mut run = cargo("run");
    // HOME becomes another one; cargo and rustup stay where they are.
    let home = std::env::var("HOME").unwrap_or_default();
    for (name, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        run.env(name, std::env::var(name).unwrap_or_else(|_| format!("{home}/{folder}")));
    }
    tour("kube-rs", &mut run);
}

#[test]
fn the_javascript_client_works_with_informers_and_exec() {
    // Modules are looked up beside the program.
    let folder = kept("javascript");
    let changed = |name: &str| fs::read(sources().join("javascript").join(name)).ok() != fs::read(folder.join(name)).ok();
    let copy = |name: &str| {
        fs::copy(sources().join("javascript").join(name), folder.join(name)).expect("copy");
    };
    if changed("package-lock.json") || !folder.join("node_modules").exists() {
        copy("package.json");
        copy("package-lock.json");
        prepare(Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder));
    }
    copy("tour.js");
    tour("javascript", Command::new("node").arg(folder.join("tour.js")));
}

#[test]
fn the_python_client_works() {
    let environment = kept("python");
    let wanted = sources().join("python/requirements.txt");
    let (python, stamp) = (environment.join("bin/python"), environment.join("requirements.txt"));
    if fs::read(&wanted).ok() != fs::read(&stamp).ok() {
        prepare(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment));
        prepare(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&wanted));
        fs::copy(&wanted, &stamp).expect("note what is installed");
    }
    tour("python", Command::new(python).arg(sources().join("python/tour.py")));
}
