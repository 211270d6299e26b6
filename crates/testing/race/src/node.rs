//! Pods on one node without a control plane: the runtime behind its CRI socket, beside Debian's containerd with runc and with crun.
//!
//! One client asks all of them the same: a sandbox in the host's network, one container of a static busybox, both removed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cri::{RuntimeService, v1};
use serde_json::json;

use crate::Options;
use crate::cluster::Cluster;
use crate::measure::{Spread, quantile, sorted};
use crate::processes::footprint;
use crate::report::{Outcome, number, spread};

#[path = "../../../node/remote/tests/support/containerd.rs"]
pub mod containerd;

/// Pods one after the other in a leg.
const SINGLE: usize = 20;
/// Pods that are there at once for the memory of one.
const IDLE: usize = 30;
const PATIENCE: Duration = Duration::from_secs(60);
/// Files of an image that is unpacked, and the bytes of each: half of it compresses.
const FILES: usize = 2_000;
const FILE_BYTES: usize = 50_000;

/// What one runtime took, in milliseconds.
#[derive(Default)]
struct Taken {
    sandbox: Vec<f64>,
    start: Vec<f64>,
    exit: Vec<f64>,
    removal: Vec<f64>,
    memory_mib: Vec<f64>,
    /// Of an image's files, from an archive.
    unpack_mib_per_second: Vec<f64>,
}

struct Subject {
    name: &'static str,
    runtime: Arc<dyn RuntimeService>,
    /// Files whose processes count for the memory.
    programs: Vec<std::path::PathBuf>,
    /// The command line of a sandbox's own process.
    pause: &'static str,
}

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let cluster = Cluster::new(dir)?;
    cluster.up()?;
    let image = containerd::archive(dir, containerd::IMAGE, &["sh"]);
    cluster.load_image(&image)?;
    let root = containerd::root();
    let (runc_dir, crun_dir) = (dir.join("runc"), dir.join("crun"));
    for dir in [&runc_dir, &crun_dir] {
        std::fs::create_dir_all(dir)?;
    }
    let runc = containerd::Containerd::start(&runc_dir, "runc").await;
    let crun = containerd::Containerd::start(&crun_dir, "crun").await;
    let programs = || vec![root.join("usr/bin/containerd-shim-runc-v2")];
    let subjects = [
        Subject {
            name: "Sternpost",
            runtime: Arc::new(remote::Remote::new(&cluster.cri_socket())),
            programs: vec![cluster.program.clone()],
            pause: "",
        },
        Subject {
            name: "containerd, runc",
            runtime: Arc::new(remote::Remote::new(&runc.socket)),
            programs: programs(),
            pause: "/bin/busybox\0sleep\x001000000",
        },
        Subject {
            name: "containerd, crun",
            runtime: Arc::new(remote::Remote::new(&crun.socket)),
            programs: programs(),
            pause: "/bin/busybox\0sleep\x001000000",
        },
    ];
    let mut taken = [Taken::default(), Taken::default(), Taken::default()];
    // crun refuses hybrid control group layouts: then only runc is the peer.
    let crun_works = pod(&subjects[2], "try", &mut Taken::default()).await.is_ok();
    let count = if crun_works { 3 } else { 2 };
    for round in 0..options.rounds {
        for at in (0..count).chain((0..count).rev()) {
            for number in 0..SINGLE / 2 {
                pod(&subjects[at], &format!("{round}-{number}"), &mut taken[at]).await.with_context(|| subjects[at].name)?;
            }
        }
        for at in 0..count {
            idle(&subjects[at], &mut taken[at]).await.with_context(|| subjects[at].name)?;
        }
        let unpacked = (FILES * FILE_BYTES) as f64 / 1024.0 / 1024.0;
        let archive = large_archive(dir, round)?;
        let begin = Instant::now();
        cluster.load_image(&archive)?;
        taken[0].unpack_mib_per_second.push(unpacked / begin.elapsed().as_secs_f64());
        for (at, peer) in [(1, &runc), (2, &crun)].into_iter().take(count - 1) {
            let begin = Instant::now();
            let imported = std::process::Command::new(root.join("usr/bin/ctr"))
                .arg("--address")
                .arg(&peer.socket)
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(&archive)
                .output()?;
            ensure!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
            taken[at].unpack_mib_per_second.push(unpacked / begin.elapsed().as_secs_f64());
        }
        std::fs::remove_file(archive)?;
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    runc.stop().await;
    crun.stop().await;
    cluster.purge()?;
    Ok(outcome(&subjects[..count], &taken[..count]))
}

fn outcome(subjects: &[Subject], taken: &[Taken]) -> Outcome {
    let percentiles = |values: &[f64]| {
        let values = sorted(values);
        format!("{} / {}", number(quantile(&values, 0.5)), number(quantile(&values, 0.99)))
    };
    let row =
        |what: &str, of: &dyn Fn(&Taken) -> String| std::iter::once(what.to_owned()).chain(taken.iter().map(of)).collect::<Vec<String>>();
    let rows = vec![
        row("run a sandbox, p50 / p99, ms", &|taken| percentiles(&taken.sandbox)),
        row("create and start a container in it, p50 / p99, ms", &|taken| percentiles(&taken.start)),
        row("create to exit of a static `true`, p50 / p99, ms", &|taken| percentiles(&taken.exit)),
        row("stop and remove both, p50 / p99, ms", &|taken| percentiles(&taken.removal)),
        row("an archive's image unpacked, MiB/s", &|taken| spread(&Spread::of(&taken.unpack_mib_per_second))),
        row("memory per pod beyond its own process, PSS, MiB", &|taken| spread(&Spread::of(&taken.memory_mib))),
    ];
    let head = std::iter::once("what").chain(subjects.iter().map(|subject| subject.name)).collect();
    let method = format!(
        "CRI over a Unix socket, one client for all, calls one after the other, {SINGLE} pods a round in each: RunPodSandbox in the host's network \
         namespace, CreateContainer and StartContainer of busybox `true`, until ContainerStatus says that it has exited, then StopPodSandbox and \
         RemovePodSandbox. Memory is what the runtime's processes (and pause processes) have more with {IDLE} pods of `sleep` than without, divided among them. The unpacked image is a docker archive of one layer of {FILES} files of {FILE_BYTES} bytes, another one each round, given to `sternpost image load` and `ctr images import`."
    );
    let figures: serde_json::Value = subjects
        .iter()
        .zip(taken)
        .map(|(subject, taken)| {
            let of = json!({"sandbox_ms": taken.sandbox, "start_ms": taken.start, "exit_ms": taken.exit, "removal_ms": taken.removal, "memory_mib": taken.memory_mib, "unpack_mib_per_second": taken.unpack_mib_per_second});
            (subject.name.to_owned(), of)
        })
        .collect::<serde_json::Map<String, serde_json::Value>>()
        .into();
    Outcome { method, head, rows, figures }
}

/// A docker archive of one layer that no round before had.
fn large_archive(dir: &Path, round: usize) -> anyhow::Result<std::path::PathBuf> {
    use sha2::{Digest, Sha256};
    let mut layer = tar::Builder::new(Vec::new());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ (round as u64 + 1);
    for number in 0..FILES {
        let mut bytes = vec![b'.'; FILE_BYTES];
        for chunk in bytes[..FILE_BYTES / 2].chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        append(&mut layer, &format!("files/{:02}/{number}", number % 50), &bytes)?;
    }
    let layer = layer.into_inner()?;
    let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("localhost/large:{round}");
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["x"]}, "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}});
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let path = dir.join(format!("large-{round}.tar"));
    let mut archive = tar::Builder::new(std::fs::File::create(&path)?);
    append(&mut archive, "layer.tar", &layer)?;
    append(&mut archive, "config.json", config.to_string().as_bytes())?;
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes())?;
    archive.finish()?;
    Ok(path)
}

fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

async fn sandbox(subject: &Subject, name: &str) -> anyhow::Result<(String, v1::PodSandboxConfig)> {
    let namespaces =
        v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, pid: v1::NamespaceMode::Container as i32, ..Default::default() };
    let config = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata { name: name.into(), uid: format!("race-{name}"), namespace: "race".into(), attempt: 0 }),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    Ok((subject.runtime.run_pod_sandbox(request).await?.pod_sandbox_id, config))
}

async fn start(subject: &Subject, sandbox: &str, of: &v1::PodSandboxConfig, command: &[&str]) -> anyhow::Result<String> {
    let namespaces =
        of.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).and_then(|security| security.namespace_options.clone());
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: containerd::IMAGE.into(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        linux: Some(v1::LinuxContainerConfig {
            resources: None,
            security_context: Some(v1::LinuxContainerSecurityContext { namespace_options: namespaces, ..Default::default() }),
        }),
        ..Default::default()
    };
    let request = v1::CreateContainerRequest { pod_sandbox_id: sandbox.into(), config: Some(config), sandbox_config: Some(of.clone()) };
    let id = subject.runtime.create_container(request).await?.container_id;
    subject.runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await?;
    Ok(id)
}

async fn remove(subject: &Subject, sandbox: String) -> anyhow::Result<()> {
    subject.runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await?;
    subject.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await?;
    Ok(())
}

async fn pod(subject: &Subject, name: &str, taken: &mut Taken) -> anyhow::Result<()> {
    let begin = Instant::now();
    let (sandbox, config) = sandbox(subject, name).await?;
    taken.sandbox.push(milliseconds(begin));
    let begin = Instant::now();
    let id = start(subject, &sandbox, &config, &["/bin/busybox", "true"]).await?;
    taken.start.push(milliseconds(begin));
    loop {
        let request = v1::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let status = subject.runtime.container_status(request).await?.status.unwrap_or_default();
        if status.state == v1::ContainerState::ContainerExited as i32 {
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "container {id} does not end");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    taken.exit.push(milliseconds(begin));
    let begin = Instant::now();
    remove(subject, sandbox).await?;
    taken.removal.push(milliseconds(begin));
    Ok(())
}

async fn idle(subject: &Subject, taken: &mut Taken) -> anyhow::Result<()> {
    let before = memory(subject);
    let mut sandboxes = Vec::new();
    for number in 0..IDLE {
        let (sandbox, config) = sandbox(subject, &format!("idle-{number}")).await?;
        start(subject, &sandbox, &config, &["/bin/busybox", "sleep", "3600"]).await?;
        sandboxes.push(sandbox);
    }
    taken.memory_mib.push((memory(subject) - before) / IDLE as f64);
    for sandbox in sandboxes {
        remove(subject, sandbox).await?;
    }
    Ok(())
}

fn memory(subject: &Subject) -> f64 {
    let programs: f64 = subject.programs.iter().map(|program| footprint(program).pss_mib).sum();
    programs + if subject.pause.is_empty() { 0.0 } else { crate::processes::with_command(subject.pause) }
}
