//! `sternpost image …`: the images of this node, through the running daemon.

use std::path::PathBuf;

use anyhow::Context;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::Method;
use http_body_util::{BodyExt, Empty, StreamBody};
use serde_json::Value;

use crate::config::Config;
use crate::control;

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
    let empty = || Empty::<Bytes>::new().map_err(|never| match never {}).boxed();
    match command {
        Command::Load { files } => {
            for file in files {
                let names = load(config, &file).await.with_context(|| file.display().to_string())?;
                names.as_array().into_iter().flatten().for_each(|name| println!("loaded {}", name.as_str().unwrap_or_default()));
            }
        }
        Command::Pull { image } => {
            let id = control::call(config, Method::POST, &format!("/images/pull?ref={image}"), empty()).await?;
            println!("pulled {image} ({})", id.as_str().unwrap_or_default());
        }
        Command::List => print_table(&control::call(config, Method::GET, "/images", empty()).await?),
        Command::Rm { image } => {
            control::call(config, Method::DELETE, &format!("/images?ref={image}"), empty()).await?;
            println!("removed {image}");
        }
    }
    Ok(0)
}

async fn load(config: &Config, file: &PathBuf) -> anyhow::Result<Value> {
    let input: Box<dyn tokio::io::AsyncRead + Send + Sync + Unpin> = match file.to_str() {
        Some("-") => Box::new(tokio::io::stdin()),
        _ => Box::new(tokio::fs::File::open(file).await?),
    };
    let chunks = tokio_util::io::ReaderStream::with_capacity(input, 256 << 10);
    let body = StreamBody::new(chunks.map_ok(hyper::body::Frame::data)).boxed();
    control::call(config, Method::POST, "/images/load", body).await
}

fn print_table(images: &Value) {
    println!("{:<60} {:<20} {:>10}", "IMAGE", "ID", "SIZE");
    for image in images.as_array().into_iter().flatten() {
        let id = image["id"].as_str().unwrap_or_default().trim_start_matches("sha256:");
        let size = image["size"].as_u64().unwrap_or(0) as f64 / 1e6;
        for name in image["names"].as_array().into_iter().flatten() {
            println!("{:<60} {:<20} {size:>8.1}MB", name.as_str().unwrap_or_default(), id.get(..12).unwrap_or(id));
        }
    }
}
