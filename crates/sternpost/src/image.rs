//! `sternpost image …`: the images of this node and of the further nodes on this machine (`up --nodes`), each through its own daemon.

use std::path::PathBuf;

use anyhow::Context;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::Method;
use http_body_util::{BodyExt, Empty, StreamBody};
use serde_json::Value;
use tokio::io::AsyncSeekExt;

use crate::config::Config;
use crate::{control, nodes};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Import images from OCI or docker archives (a dash reads standard input).
    Load {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Fetch an image from its registry.
    Pull { image: String },
    /// List images.
    #[command(alias = "ls")]
    List,
    /// Remove an image.
    Rm { image: String },
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<i32> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(act(config, command))
}

async fn act(config: &Config, command: Command) -> anyhow::Result<i32> {
    match command {
        Command::Load { files } => {
            for file in files {
                for (node, names) in load(config, &file).await.with_context(|| file.display().to_string())? {
                    names
                        .as_array()
                        .into_iter()
                        .flatten()
                        .for_each(|name| println!("loaded {} on {node}", name.as_str().unwrap_or_default()));
                }
            }
        }
        Command::Pull { image } => {
            for node in here(config)? {
                let id = control::call(&node, Method::POST, &format!("/images/pull?ref={image}"), empty()).await?;
                println!("pulled {image} ({}) on {}", id.as_str().unwrap_or_default(), node.node_name);
            }
        }
        Command::List => {
            println!("{:<60} {:<20} {:>10}  NODE", "IMAGE", "ID", "SIZE");
            for node in here(config)? {
                print_rows(&control::call(&node, Method::GET, "/images", empty()).await?, &node.node_name);
            }
        }
        Command::Rm { image } => {
            for node in here(config)? {
                control::call(&node, Method::DELETE, &format!("/images?ref={image}"), empty()).await?;
                println!("removed {image} from {}", node.node_name);
            }
        }
    }
    Ok(0)
}

type Sent = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

fn empty() -> Sent {
    Empty::<Bytes>::new().map_err(|never| match never {}).boxed()
}

/// The nodes of this machine that run: the daemon's own first.
fn here(config: &Config) -> anyhow::Result<Vec<Config>> {
    let further = nodes::all(config)?.into_iter().map(nodes::Local::into_config);
    let running = further.filter(|node| control::socket(node).exists());
    Ok(std::iter::once(config.clone()).chain(running).collect())
}

/// Imports `file` into every node, one after the other; standard input is there once, so it is kept until all have it.
async fn load(config: &Config, file: &PathBuf) -> anyhow::Result<Vec<(String, Value)>> {
    let mut kept = None;
    if file.to_str() == Some("-") {
        let mut copy = tokio::fs::File::from_std(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC)?.into());
        tokio::io::copy(&mut tokio::io::stdin(), &mut copy).await.context("read standard input")?;
        kept = Some(copy);
    }
    let mut loaded = Vec::new();
    for node in here(config)? {
        let input = match &mut kept {
            Some(copy) => {
                copy.rewind().await?;
                copy.try_clone().await?
            }
            None => tokio::fs::File::open(file).await?,
        };
        let chunks = tokio_util::io::ReaderStream::with_capacity(input, 256 << 10);
        let body = StreamBody::new(chunks.map_ok(hyper::body::Frame::data)).boxed();
        let names = control::call(&node, Method::POST, "/images/load", body).await.with_context(|| node.node_name.clone())?;
        loaded.push((node.node_name, names));
    }
    Ok(loaded)
}

fn print_rows(images: &Value, node: &str) {
    for image in images.as_array().into_iter().flatten() {
        let id = image["id"].as_str().unwrap_or_default().trim_start_matches("sha256:");
        let size = image["size"].as_u64().unwrap_or(0) as f64 / 1e6;
        for name in image["names"].as_array().into_iter().flatten() {
            println!("{:<60} {:<20} {size:>8.1}MB  {node}", name.as_str().unwrap_or_default(), id.get(..12).unwrap_or(id));
        }
    }
}
