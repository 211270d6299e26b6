//! Builds an image on this node: a line of JSON that says what is wanted, then the folder as a tar stream.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use build::{Builder, Request as Wanted, Runner};
use cri::v1::DnsConfig;
use http::Request;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;

use super::{Answer, Lines, images};
use crate::node::NodeParts;

const HEAD_BYTES_MAX: u64 = 8 << 20;
const LINES: usize = 4096;

/// The first line of a build's request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Head {
    /// The Dockerfile itself; without it `file` of the folder is read.
    pub dockerfile: Option<String>,
    pub file: String,
    pub names: Vec<String>,
    pub target: Option<String>,
    pub arguments: build::Variables,
    pub labels: build::Variables,
    pub no_cache: bool,
    pub pull: bool,
}

/// A folder that goes with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub async fn act(node: &NodeParts, request: Request<Incoming>) -> anyhow::Result<Answer> {
    let mut body = tokio::io::BufReader::with_capacity(256 << 10, images::reader(request));
    let mut line = Vec::new();
    tokio::io::AsyncReadExt::take(&mut body, HEAD_BYTES_MAX).read_until(b'\n', &mut line).await?;
    let head: Head = serde_json::from_slice(&line).context("what is to be built?")?;
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("{error}"))?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let scratch = Scratch(node.builds.join(name));
    let context = scratch.0.join("context");
    std::fs::create_dir_all(&context).with_context(|| context.display().to_string())?;
    let target = context.clone();
    let reader = tokio_util::io::SyncIoBridge::new(Box::pin(body));
    tokio::task::spawn_blocking(move || ::images::unpack_archive(reader, &target)).await?.context("the build's folder")?;
    let dockerfile = match head.dockerfile.clone() {
        Some(text) => text,
        None => in_folder(&context, &head.file)?,
    };
    let wanted = Wanted {
        dockerfile,
        context,
        target: head.target,
        arguments: head.arguments,
        labels: head.labels,
        names: head.names,
        no_cache: head.no_cache,
        pull: head.pull,
    };
    Ok(run(node.clone(), wanted, scratch))
}

fn in_folder(context: &Path, file: &str) -> anyhow::Result<String> {
    let root = std::fs::File::open(context)?;
    let text = oci::in_root::read(&root, file).with_context(|| file.to_owned())?;
    anyhow::ensure!(!text.is_empty(), "{file}: not in the build's folder, or empty");
    Ok(text)
}

fn run(node: NodeParts, wanted: Wanted, scratch: Scratch) -> Answer {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Value>(LINES);
    let lines = sender.clone();
    tokio::spawn(async move {
        let say: build::Say = Arc::new(move |text: &str| {
            // A reader that is slower than the build loses output, never the outcome.
            let _ = lines.try_send(json!({ "step": text }));
        });
        let runner = Runner {
            runtime: node.runtime.clone(),
            containers: node.containers.clone(),
            logs: scratch.0.join("logs"),
            dns: DnsConfig { servers: name_servers(&node.dns), ..DnsConfig::default() },
        };
        let cache = node.builds.with_extension("cache.json");
        let builder = Builder { store: node.images().clone(), runner, cache, scratch: scratch.0.join("work"), say };
        // Not ended when the caller hangs up: a container would be left behind. What was made is in the cache.
        let line = match builder.build(&wanted).await {
            Ok(image) => json!({ "result": { "id": image.id, "names": image.tags } }),
            Err(error) => json!({ "error": format!("{:#}", anyhow::Error::from(error)) }),
        };
        drop(scratch);
        let _ = sender.send(line).await;
    });
    Answer::Lines(Lines(receiver))
}

/// The host's name servers that a container can reach, else the cluster's.
fn name_servers(cluster: &str) -> Vec<String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let all = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(|rest| rest.trim().to_owned());
    let usable: Vec<String> = all.filter(|text| text.parse::<std::net::IpAddr>().is_ok_and(|address| !address.is_loopback())).collect();
    if usable.is_empty() { vec![cluster.to_owned()] } else { usable }
}
