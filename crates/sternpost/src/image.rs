//! `sternpost image …`: the images of this node and of the further nodes on this machine (`up --nodes`), each through its own daemon.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty, StreamBody};
use serde_json::{Value, json};
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
    Pull {
        image: String,
        #[command(flatten)]
        credentials: Credentials,
    },
    /// Send an image to the registry in its name.
    Push {
        image: String,
        #[command(flatten)]
        credentials: Credentials,
    },
    /// List images.
    #[command(alias = "ls")]
    List {
        /// Ids only.
        #[arg(short, long)]
        quiet: bool,
        /// Print JSON.
        #[arg(short, long, value_parser = ["json"])]
        output: Option<String>,
    },
    /// Write images to an archive that this command's `load`, docker and skopeo read.
    Save {
        #[arg(required = true)]
        images: Vec<String>,
        /// The archive; standard output without it.
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Remove images.
    #[command(alias = "remove")]
    Rm {
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Give an image one more name.
    Tag { image: String, name: String },
    /// Print what is known of an image as JSON.
    Inspect {
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Build an image from a folder with a Dockerfile.
    Build(crate::build::Arguments),
}

/// Who asks the registry.
#[derive(clap::Args)]
pub struct Credentials {
    /// User and password; without it what `docker login` left for the registry.
    #[arg(long, value_name = "USER:PASSWORD")]
    creds: Option<String>,
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<i32> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(act(config, command))
}

async fn act(config: &Config, command: Command) -> anyhow::Result<i32> {
    match command {
        Command::Load { files } => load_all(config, &files).await?,
        Command::Pull { image, credentials } => {
            let request = Request::builder().method(Method::POST).uri(format!("/images/pull?ref={}", encoded(&image)));
            let request = with_credentials(request, &image, &credentials)?;
            for node in here(config)? {
                let result = control::follow(&node, copy_of(&request)?, empty(), show).await?;
                println!("pulled {image} ({}) on {}", result["id"].as_str().unwrap_or_default(), node.node_name);
            }
        }
        Command::Push { image, credentials } => {
            let request = Request::builder().method(Method::POST).uri(format!("/images/push?ref={}", encoded(&image)));
            let result = control::follow(config, with_credentials(request, &image, &credentials)?, empty(), show).await?;
            println!("pushed {image} ({})", result["digest"].as_str().unwrap_or_default());
        }
        Command::List { quiet, output } => list(config, quiet, output.is_some()).await?,
        Command::Save { images, output } => save(config, &images, output.as_deref()).await?,
        Command::Rm { images } => {
            for image in images {
                remove(config, &image).await?;
            }
        }
        Command::Tag { image, name } => {
            let mut tagged = Err(anyhow::anyhow!("{image}: no such image"));
            for node in here(config)? {
                let path = format!("/images/tag?ref={}&as={}", encoded(&image), encoded(&name));
                let answer = control::call(&node, Method::POST, &path, empty()).await;
                // A node without the image has nothing to name.
                if answer.is_ok() || tagged.is_err() {
                    tagged = answer;
                }
            }
            tagged?;
        }
        Command::Inspect { images } => {
            let mut all = Vec::new();
            for image in images {
                all.push(control::call(config, Method::GET, &format!("/images/inspect?ref={}", encoded(&image)), empty()).await?);
            }
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Command::Build(arguments) => crate::build::run(config, &arguments).await?,
    }
    Ok(0)
}

pub type Sent = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

pub fn empty() -> Sent {
    Empty::<Bytes>::new().map_err(|never| match never {}).boxed()
}

/// Percent-encodes one value of a query.
pub fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            all.push(char::from(byte));
        } else {
            all.push_str(&format!("%{byte:02X}"));
        }
        all
    })
}

/// One step on standard error; on a terminal, transfers overwrite their line.
pub fn show(line: &Value) {
    let mut to = std::io::stderr();
    if let Some(step) = line["step"].as_str() {
        let _ = writeln!(to, "{step}");
    } else if let (Some(layer), true) = (line["layer"].as_str(), to.is_terminal()) {
        let megabytes = |key: &str| line[key].as_f64().unwrap_or(0.0) / 1e6;
        let _ = write!(to, "\r{layer}: {:.1} of {:.1} MB\x1b[K\r", megabytes("bytes"), megabytes("of"));
    }
}

/// The nodes of this machine that run: the daemon's own first.
pub fn here(config: &Config) -> anyhow::Result<Vec<Config>> {
    let further = nodes::all(config)?.into_iter().map(nodes::Local::into_config);
    let running = further.filter(|node| control::socket(node).exists());
    Ok(std::iter::once(config.clone()).chain(running).collect())
}

fn copy_of(request: &http::request::Builder) -> anyhow::Result<http::request::Builder> {
    let (method, uri, headers) = (request.method_ref(), request.uri_ref(), request.headers_ref());
    let mut copy = Request::builder().method(method.cloned().unwrap_or_default()).uri(uri.cloned().unwrap_or_default());
    if let (Some(to), Some(from)) = (copy.headers_mut(), headers) {
        to.clone_from(from);
    }
    Ok(copy)
}

fn with_credentials(request: http::request::Builder, image: &str, given: &Credentials) -> anyhow::Result<http::request::Builder> {
    let found = match &given.creds {
        Some(text) => {
            let (user, password) = text.split_once(':').context("--creds USER:PASSWORD")?;
            Some(json!({ "username": user, "password": password }))
        }
        None => docker_login(image),
    };
    Ok(match found {
        Some(found) => request.header(control::images::CREDENTIALS, found.to_string()),
        None => request,
    })
}

/// What `docker login` has left for the image's registry. Programs that keep credentials elsewhere are not asked.
fn docker_login(image: &str) -> Option<Value> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    let file: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()?;
    let registry = images::Reference::parse(image).ok()?.registry;
    let key = if registry == "docker.io" { "https://index.docker.io/v1/" } else { &registry };
    let entry = file["auths"].get(key)?;
    if let Some(token) = entry["identitytoken"].as_str().filter(|token| !token.is_empty()) {
        return Some(json!({ "identityToken": token }));
    }
    let both = base64::engine::general_purpose::STANDARD.decode(entry["auth"].as_str()?).ok()?;
    let both = String::from_utf8(both).ok()?;
    let (user, password) = both.split_once(':')?;
    Some(json!({ "username": user, "password": password }))
}

async fn load_all(config: &Config, files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        for (node, names) in load(config, file).await.with_context(|| file.display().to_string())? {
            let names = names.as_array().into_iter().flatten();
            names.for_each(|name| println!("loaded {} on {node}", name.as_str().unwrap_or_default()));
        }
    }
    Ok(())
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
        let names = control::call(&node, Method::POST, "/images/load", body_of(input)).await.with_context(|| node.node_name.clone())?;
        loaded.push((node.node_name, names));
    }
    Ok(loaded)
}

/// Everything that can be read, as a request's body.
pub fn body_of(input: impl tokio::io::AsyncRead + Send + Sync + 'static) -> Sent {
    let chunks = tokio_util::io::ReaderStream::with_capacity(input, 256 << 10);
    BodyExt::boxed(StreamBody::new(chunks.map_ok(hyper::body::Frame::data)))
}

async fn save(config: &Config, images: &[String], output: Option<&Path>) -> anyhow::Result<()> {
    let names: Vec<String> = images.iter().map(|image| format!("ref={}", encoded(image))).collect();
    let path = format!("/images/save?{}", names.join("&"));
    match output {
        Some(output) => {
            let partial = output.with_extension("partial");
            let mut file = tokio::fs::File::create(&partial).await.with_context(|| partial.display().to_string())?;
            let saved = control::copy(config, &path, &mut file).await;
            if saved.is_err() {
                let _ = std::fs::remove_file(&partial);
            }
            saved?;
            std::fs::rename(&partial, output).with_context(|| output.display().to_string())?;
        }
        None if std::io::stdout().is_terminal() => anyhow::bail!("an archive is not for a terminal: use --output or redirect it"),
        None => drop(control::copy(config, &path, &mut tokio::io::stdout()).await?),
    }
    Ok(())
}

async fn remove(config: &Config, image: &str) -> anyhow::Result<()> {
    let mut known = false;
    for node in here(config)? {
        let answer = control::call(&node, Method::DELETE, &format!("/images?ref={}", encoded(image)), empty()).await?;
        if answer["known"] == true {
            println!("removed {image} from {}", node.node_name);
            known = true;
        }
    }
    anyhow::ensure!(known, "{image}: no such image");
    Ok(())
}

async fn list(config: &Config, quiet: bool, json: bool) -> anyhow::Result<()> {
    let mut all = Vec::new();
    if !quiet && !json {
        println!("{:<60} {:<20} {:>10}  NODE", "IMAGE", "ID", "SIZE");
    }
    for node in here(config)? {
        let images = control::call(&node, Method::GET, "/images", empty()).await?;
        match (quiet, json) {
            (true, _) => images.as_array().into_iter().flatten().for_each(|image| println!("{}", image["id"].as_str().unwrap_or_default())),
            (false, true) => all.push(json!({ "node": node.node_name, "images": images })),
            (false, false) => print_rows(&images, &node.node_name),
        }
    }
    if json && !quiet {
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    Ok(())
}

fn print_rows(images: &Value, node: &str) {
    for image in images.as_array().into_iter().flatten() {
        let id = image["id"].as_str().unwrap_or_default().trim_start_matches("sha256:");
        let size = image["size"].as_u64().unwrap_or(0) as f64 / 1e6;
        let names: Vec<&str> =
            ["tags", "digests"].iter().flat_map(|key| image[*key].as_array().into_iter().flatten()).filter_map(Value::as_str).collect();
        let tagged = image["tags"].as_array().is_some_and(|tags| !tags.is_empty());
        // An image without a name is what a build or a newer image of its name has left.
        let rows = match (names.is_empty(), tagged) {
            (true, _) => vec!["<none>"],
            (false, true) => names.into_iter().filter(|name| !name.contains('@')).collect(),
            (false, false) => names,
        };
        for name in rows {
            println!("{name:<60} {:<20} {size:>8.1}MB  {node}", id.get(..12).unwrap_or(id));
        }
    }
}
