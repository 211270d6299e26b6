//! An image from an archive to directories that can be mounted: the store's import, beside containerd's and beside tar.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::Options;
use crate::measure::Spread;
use crate::node::containerd::{self, Containerd};
use crate::report::{Outcome, number, spread};

const METHOD: &str = "\
One docker archive of one gzip-compressed layer: 4,000 files of 4 to 96 KiB in 100 folders, about 200 MB unpacked, a third of it \
compressible. Ours is the store's import in this process (copy, digests, unpack, sync); containerd's is `ctr images import` into its \
overlay snapshotter; tar's is `tar -xzf` of the layer and `sync`. Ours, containerd, containerd, ours in each round; megabytes are those of the \
unpacked layer.";

const FILES: u32 = 4_000;
const NAME: &str = "localhost/race/images:1";

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let (archive, layer, bytes) = archive(dir).context("make the archive")?;
    let containers = dir.join("containerd");
    std::fs::create_dir_all(&containers)?;
    let peer = Containerd::start(&containers, "runc").await;
    let megabytes = bytes as f64 / 1e6;
    let (mut ours, mut theirs, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        ours.push(megabytes / import(dir, &archive)?);
        theirs.push(megabytes / by_containerd(&peer, &archive)?);
        floor.push(megabytes / by_tar(dir, &layer)?);
        theirs.push(megabytes / by_containerd(&peer, &archive)?);
        ours.push(megabytes / import(dir, &archive)?);
    }
    peer.stop().await;
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
    let row = |name: &str, values: &[f64]| vec![name.to_owned(), spread(&Spread::of(values))];
    let rows = vec![
        vec!["megabytes of the unpacked layer".to_owned(), number(megabytes)],
        row("ours, MB/s", &ours),
        row("containerd, MB/s", &theirs),
        row("tar and sync, MB/s", &floor),
        row("ours / containerd", &ratios),
    ];
    let figures = json!({ "megabytes": megabytes, "ours": ours, "containerd": theirs, "tar": floor });
    Ok(Outcome { method: METHOD.into(), head: vec!["what", "median (least–most)"], rows, figures })
}

fn import(dir: &Path, archive: &Path) -> anyhow::Result<f64> {
    let folder = dir.join("store");
    let store = images::Store::open(&folder)?;
    let file = std::fs::File::open(archive)?;
    let begun = Instant::now();
    let imported = store.import(file)?;
    let taken = begun.elapsed().as_secs_f64();
    ensure!(imported.len() == 1, "{imported:?}");
    drop(store);
    std::fs::remove_dir_all(&folder)?;
    Ok(taken)
}

fn by_containerd(peer: &Containerd, archive: &Path) -> anyhow::Result<f64> {
    let ctr = || {
        let mut command = Command::new(containerd::root().join("usr/bin/ctr"));
        command.arg("--address").arg(&peer.socket).args(["--namespace", "race", "images"]);
        command
    };
    let begun = Instant::now();
    run(ctr().arg("import").arg(archive))?;
    let taken = begun.elapsed().as_secs_f64();
    run(ctr().args(["rm", "--sync", NAME]))?;
    Ok(taken)
}

fn by_tar(dir: &Path, layer: &Path) -> anyhow::Result<f64> {
    let folder = dir.join("tar");
    std::fs::create_dir_all(&folder)?;
    let begun = Instant::now();
    run(Command::new("tar").arg("-xzf").arg(layer).arg("-C").arg(&folder))?;
    run(Command::new("sync").arg("-f").arg(&folder))?;
    let taken = begun.elapsed().as_secs_f64();
    std::fs::remove_dir_all(&folder)?;
    Ok(taken)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The archive, its layer beside it, and the bytes of the layer's tar stream.
fn archive(dir: &Path) -> anyhow::Result<(PathBuf, PathBuf, u64)> {
    let mut plain = tar::Builder::new(Vec::new());
    // The same in every run: a linear congruential generator.
    let mut state = 42_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    for number in 0..FILES {
        let size = 4_096 + next() % 94_208;
        let noise: Vec<u8> = (0..size).map(|at| if at % 3 == 0 { b'x' } else { (next() & 0x3f) as u8 }).collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(noise.len() as u64);
        header.set_mode(0o644);
        plain.append_data(&mut header, format!("folder-{}/file-{number}", number % 100), noise.as_slice())?;
    }
    let plain = plain.into_inner()?;
    let diff_id = format!("sha256:{:x}", Sha256::digest(&plain));
    let layer = dir.join("layer.tar.gz");
    let mut gzip = Command::new("gzip").arg("-6").stdin(std::process::Stdio::piped()).stdout(std::fs::File::create(&layer)?).spawn()?;
    gzip.stdin.take().context("a pipe")?.write_all(&plain)?;
    ensure!(gzip.wait()?.success(), "gzip");
    let architecture = images::architecture();
    let config =
        json!({ "architecture": architecture, "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    let path = dir.join("images.tar");
    let mut archive = tar::Builder::new(std::fs::File::create(&path)?);
    for (name, bytes) in
        [("layer.tar", std::fs::read(&layer)?), ("config.json", config.to_string().into()), ("manifest.json", manifest.to_string().into())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    archive.finish()?;
    Ok((path, layer, plain.len() as u64))
}
