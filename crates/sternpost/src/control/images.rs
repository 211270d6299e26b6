//! The images of this node: what `sternpost image` asks for.

use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use cri::v1::AuthConfig;
use futures_util::TryStreamExt;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyStream;
use hyper::body::{Frame, Incoming};
use images::{Image, Progress, Pull, Reporter};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Answer, Lines, Query};
use crate::node::NodeParts;

/// The header with credentials for a registry, as JSON of CRI's AuthConfig.
pub const CREDENTIALS: &str = "x-registry-auth";
/// Lines that wait to be sent; a slow reader loses steps of progress, never the outcome.
const LINES: usize = 256;

pub async fn act(node: &NodeParts, path: &str, query: &Query, request: Request<Incoming>) -> anyhow::Result<Answer> {
    let store = node.images().clone();
    match (request.method(), path) {
        (&Method::GET, "") => Ok(Answer::Json(json!(store.list().iter().map(describe).collect::<Vec<_>>()))),
        (&Method::GET, "/inspect") => {
            let name = query.one("ref")?;
            let image = store.resolve(name).with_context(|| format!("{name}: no such image"))?;
            let mut shown = describe(&image);
            shown["config"] =
                serde_json::from_slice(&store.document(&image.id).unwrap_or_default()).unwrap_or(json!({ "config": image.config }));
            shown["manifest"] =
                image.manifest.as_ref().and_then(|digest| serde_json::from_slice(&store.document(digest).ok()?).ok()).unwrap_or_default();
            Ok(Answer::Json(shown))
        }
        (&Method::POST, "/load") => Ok(Answer::Json(json!(node.load(reader(request)).await?))),
        (&Method::GET, "/save") => save(node, query.all("ref")).await,
        (&Method::POST, "/tag") => {
            let image = tokio::task::spawn_blocking({
                let (name, new) = (query.one("ref")?.to_owned(), query.one("as")?.to_owned());
                move || store.tag(&name, &new)
            });
            Ok(Answer::Json(describe(&image.await??)))
        }
        (&Method::POST, "/pull") => {
            let (name, auth) = (query.one("ref")?.to_owned(), credentials(request.headers())?);
            Ok(lines(move |report| async move {
                let how = Pull { auth: auth.as_ref(), any_known: false, progress: Some(report) };
                let image = store.pull_with(&name, how).await?;
                Ok(json!({ "id": image.id, "reference": image.reference() }))
            }))
        }
        (&Method::POST, "/push") => {
            let (name, auth) = (query.one("ref")?.to_owned(), credentials(request.headers())?);
            Ok(lines(move |report| async move { Ok(json!({ "digest": store.push(&name, auth.as_ref(), Some(report)).await? })) }))
        }
        (&Method::DELETE, "") => {
            let name = query.one("ref")?.to_owned();
            let known = store.resolve(&name).is_some();
            let removed = tokio::task::spawn_blocking(move || {
                store.remove(&name)?;
                store.unpublish_own(&name)
            });
            removed.await??;
            Ok(Answer::Json(json!({ "known": known })))
        }
        (method, path) => anyhow::bail!("{method} /images{path}: no such call"),
    }
}

fn describe(image: &Image) -> Value {
    json!({
        "id": image.id, "names": image.tags.iter().chain(&image.digests).collect::<Vec<_>>(), "tags": image.tags, "digests": image.digests,
        "size": image.size, "pinned": image.pinned,
    })
}

fn credentials(headers: &HeaderMap) -> anyhow::Result<Option<AuthConfig>> {
    let Some(value) = headers.get(CREDENTIALS) else { return Ok(None) };
    let fields: Value = serde_json::from_slice(value.as_bytes()).context("credentials")?;
    let text = |key: &str| fields[key].as_str().unwrap_or_default().to_owned();
    Ok(Some(AuthConfig {
        username: text("username"),
        password: text("password"),
        identity_token: text("identityToken"),
        registry_token: text("registryToken"),
        ..AuthConfig::default()
    }))
}

/// The request's body as a stream to read.
pub fn reader(request: Request<Incoming>) -> std::pin::Pin<Box<dyn tokio::io::AsyncRead + Send>> {
    let body = BodyStream::new(request.into_body()).try_filter_map(async |frame| Ok(frame.into_data().ok()));
    Box::pin(tokio_util::io::StreamReader::new(body.map_err(std::io::Error::other)))
}

async fn save(node: &NodeParts, names: Vec<String>) -> anyhow::Result<Answer> {
    let store = node.images().clone();
    for name in &names {
        let image = store.resolve(name).with_context(|| format!("{name}: no such image"))?;
        anyhow::ensure!(image.manifest.is_some(), "{name}: it is unpacked only, and cannot be saved");
    }
    let (writer, reader) = tokio::io::duplex(1 << 20);
    tokio::task::spawn_blocking(move || {
        // Whoever reads notices an archive that ends too early.
        if let Err(error) = store.save_archive(&names, tokio_util::io::SyncIoBridge::new(writer)) {
            tracing::warn!(%error, "save images");
        }
    });
    Ok(Answer::Stream(Box::pin(tokio_util::io::ReaderStream::with_capacity(reader, 256 << 10).map_ok(Frame::data))))
}

/// Runs work that tells of its steps: each a line, the last one its result or error.
pub fn lines<F>(work: impl FnOnce(Reporter) -> F) -> Answer
where
    F: Future<Output = anyhow::Result<Value>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel::<Value>(LINES);
    let steps = sender.clone();
    let report: Reporter = Arc::new(move |progress| {
        let _ = steps.try_send(step(&progress));
    });
    let work = work(report);
    tokio::spawn(async move {
        // Whoever hangs up ends it.
        let result = tokio::select! {
            result = work => result,
            () = sender.closed() => return,
        };
        let line = match result {
            Ok(value) => json!({ "result": value }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        let _ = sender.send(line).await;
    });
    Answer::Lines(Lines(receiver))
}

fn step(progress: &Progress) -> Value {
    let short = |digest: &str| digest.trim_start_matches("sha256:").chars().take(12).collect::<String>();
    match progress {
        Progress::Resolved { digest, layers } => json!({ "step": format!("{digest}: {layers} layers") }),
        Progress::Moved { digest, bytes, of } => json!({ "layer": short(digest), "bytes": bytes, "of": of }),
        Progress::Unpacked { digest } => json!({ "step": format!("{}: Pull complete", short(digest)) }),
        Progress::Present { digest } => json!({ "step": format!("{}: Already exists", short(digest)) }),
    }
}

/// A line of text as a part of an answer.
pub fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}
