//! `sternpost image build`: the folder goes to the daemon as a tar stream, without what `.dockerignore` leaves out.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use build::ignore::Ignore;
use http::{Method, Request};

use crate::config::Config;
use crate::control::build::Head;
use crate::{control, image};

#[derive(clap::Args)]
pub struct Arguments {
    /// The folder, or a dash for a tar stream on standard input.
    folder: PathBuf,
    /// A name for the image; may be given several times.
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,
    /// The Dockerfile; `Dockerfile` in the folder without it.
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// The stage to build; the last one without it.
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// A value for an ARG; without `=` it is this shell's variable.
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    arguments: Vec<String>,
    /// A label for the image.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Run every step.
    #[arg(long)]
    no_cache: bool,
    /// Ask registries for newer bases.
    #[arg(long)]
    pull: bool,
    /// Print only the image's id.
    #[arg(short, long)]
    quiet: bool,
}

pub async fn run(config: &Config, arguments: &Arguments) -> anyhow::Result<()> {
    let from_stdin = arguments.folder.to_str() == Some("-");
    let mut head = Head {
        names: arguments.tags.clone(),
        target: arguments.target.clone(),
        arguments: pairs(&arguments.arguments, |name| std::env::var(name).ok())?,
        labels: pairs(&arguments.labels, |_| Some(String::new()))?,
        no_cache: arguments.no_cache,
        pull: arguments.pull,
        file: "Dockerfile".into(),
        dockerfile: None,
    };
    if from_stdin {
        head.file = arguments.file.as_ref().map_or(head.file, |file| file.display().to_string());
    } else {
        let file = arguments.file.clone().unwrap_or_else(|| arguments.folder.join("Dockerfile"));
        head.dockerfile = Some(std::fs::read_to_string(&file).with_context(|| file.display().to_string())?);
    }
    let mut first = serde_json::to_vec(&head)?;
    first.push(b'\n');
    let body = if from_stdin { stdin_after(first) } else { folder_after(first, &arguments.folder)? };
    let request = Request::builder().method(Method::POST).uri("/build");
    let quiet = arguments.quiet;
    let result = control::follow(config, request, body, |line| {
        if !quiet {
            image::show(line)
        }
    })
    .await?;
    let id = result["id"].as_str().unwrap_or_default();
    match quiet {
        true => println!("{id}"),
        false => {
            let names = result["names"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
            println!("built {id}");
            names.for_each(|name| println!("named {name}"));
        }
    }
    Ok(())
}

fn pairs(given: &[String], otherwise: impl Fn(&str) -> Option<String>) -> anyhow::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for text in given {
        match text.split_once('=') {
            Some((name, value)) => drop(found.insert(name.to_owned(), value.to_owned())),
            None => found.extend(otherwise(text).map(|value| (text.clone(), value))),
        }
    }
    anyhow::ensure!(!found.contains_key(""), "a value without a name");
    Ok(found)
}

fn stdin_after(first: Vec<u8>) -> image::Sent {
    use tokio::io::AsyncReadExt;
    image::body_of(std::io::Cursor::new(first).chain(tokio::io::stdin()))
}

/// Walks the folder on a thread of its own, while the daemon reads.
fn folder_after(first: Vec<u8>, folder: &Path) -> anyhow::Result<image::Sent> {
    anyhow::ensure!(folder.is_dir(), "{}: not a folder", folder.display());
    let ignore = Ignore::parse(&std::fs::read_to_string(folder.join(".dockerignore")).unwrap_or_default());
    let (mut to, from) = std::os::unix::net::UnixStream::pair().context("a pipe to the daemon")?;
    from.set_nonblocking(true)?;
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        let written = to.write_all(&first).and_then(|()| {
            let mut archive = tar::Builder::new(std::io::BufWriter::with_capacity(256 << 10, to));
            append(&mut archive, &folder, "", &ignore)?;
            archive.into_inner()?.flush()
        });
        // The daemon misses the end and says so; the reason is here.
        if let Err(error) = written {
            eprintln!("the build's folder: {error}");
        }
    });
    Ok(image::body_of(tokio::net::UnixStream::from_std(from)?))
}

fn append(archive: &mut tar::Builder<impl Write>, root: &Path, relative: &str, ignore: &Ignore) -> std::io::Result<()> {
    let mut names: Vec<_> = std::fs::read_dir(root.join(relative))?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?;
    names.sort();
    for name in names {
        let name = name.to_str().ok_or_else(|| std::io::Error::other(format!("{name:?}: the name is not UTF-8")))?;
        let path = if relative.is_empty() { name.to_owned() } else { format!("{relative}/{name}") };
        let whole = root.join(&path);
        let metadata = std::fs::symlink_metadata(&whole)?;
        let ignored = ignore.ignores(&path);
        if ignored && !(metadata.is_dir() && ignore.has_exceptions()) {
            continue;
        }
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&metadata);
        // Who made the folder is nobody in the image.
        header.set_uid(0);
        header.set_gid(0);
        if metadata.is_dir() {
            if !ignored {
                archive.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            append(archive, root, &path, ignore)?;
        } else if metadata.is_symlink() {
            header.set_size(0);
            archive.append_link(&mut header, &path, std::fs::read_link(&whole)?)?;
        } else if metadata.is_file() {
            use std::io::Read;
            header.set_size(metadata.size());
            let file = std::fs::File::open(&whole)?;
            // A file that shrinks meanwhile must not spoil what follows.
            archive.append_data(&mut header, &path, file.chain(std::io::repeat(0)).take(metadata.size()))?;
        }
    }
    Ok(())
}
