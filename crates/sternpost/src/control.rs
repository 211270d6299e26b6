//! The daemon's local door: a unix socket that only root may open, for what is not the API's business (images on this node).
//!
//! HTTP/1.1: `POST /rotate/<what>` (where the control plane runs), `GET /images` and the rest of [`images`], `POST /build`. Answers are JSON, or
//! lines of JSON where something takes its time, the last one with the `result` or the `error`; a failure before that is `{"error": "…"}` with
//! status 4xx or 5xx.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use futures_util::Stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use stdx::Drain;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::node::NodeParts;
use crate::up::Parts;

pub mod build;
pub mod images;

type Sent = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;
type Frames = Pin<Box<dyn Stream<Item = std::io::Result<Frame<Bytes>>> + Send + Sync>>;

/// What a call is answered with.
pub enum Answer {
    Json(Value),
    Lines(Lines),
    Stream(Frames),
}

/// Steps of something that takes its time, then its outcome.
pub struct Lines(pub mpsc::Receiver<Value>);

/// The fields of a query; one may stand there several times.
pub struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        Self(text.split('&').filter_map(|field| field.split_once('=')).map(|(key, value)| (key.to_owned(), decode(value))).collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub fn one(&self, key: &str) -> anyhow::Result<&str> {
        self.get(key).with_context(|| format!("no {key}= given"))
    }

    pub fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
    }
}

pub fn socket(config: &Config) -> PathBuf {
    config.run_dir.join("control.sock")
}

/// What the calls are about.
#[derive(Clone)]
pub struct Served {
    pub node: NodeParts,
    /// Absent where only a node runs.
    pub cluster: Option<Arc<Parts>>,
}

/// Serves until the daemon stops.
pub async fn serve(config: Config, drain: Drain, served: Served) {
    let path = socket(&config);
    let _ = std::fs::remove_file(&path);
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(path = %path.display(), %error, "no control socket"),
    };
    let _ = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600));
    while let Some(Ok((stream, _))) = drain.run(listener.accept()).await {
        let about = served.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(about.clone(), request));
            let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            if let Err(error) = served {
                tracing::debug!(%error, "control connection");
            }
        });
    }
    let _ = std::fs::remove_file(&path);
}

async fn answer(about: Served, request: Request<Incoming>) -> Result<Response<Sent>, std::convert::Infallible> {
    let whole = |status: StatusCode, body: &Value| {
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed());
        *response.status_mut() = status;
        response
    };
    Ok(match act(&about, request).await {
        Ok(Answer::Json(body)) => whole(StatusCode::OK, &body),
        Ok(Answer::Stream(frames)) => Response::new(BodyExt::boxed(StreamBody::new(frames))),
        Ok(Answer::Lines(lines)) => {
            let frames = futures_util::stream::unfold(lines.0, |mut lines| async {
                let line = lines.recv().await?;
                Some((Ok(Frame::data(images::line(&line))), lines))
            });
            Response::new(BodyExt::boxed(StreamBody::new(frames)))
        }
        Err(error) => whole(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "error": format!("{error:#}") })),
    })
}

async fn act(Served { node, cluster }: &Served, request: Request<Incoming>) -> anyhow::Result<Answer> {
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let path = request.uri().path().to_owned();
    if let Some(rest) = path.strip_prefix("/images") {
        return images::act(node, rest, &query, request).await;
    }
    if path == "/build" && request.method() == Method::POST {
        return build::act(node, request).await;
    }
    match (request.method(), path.strip_prefix("/rotate/")) {
        (&Method::POST, Some(what)) => {
            let step = crate::rotate::named(what).context("rotate what?")?;
            let cluster = cluster.as_ref().context("the control plane runs elsewhere")?;
            Ok(Answer::Json(json!(cluster.certificates.exchange(&cluster.config, &cluster.server, step).await?)))
        }
        (method, _) => anyhow::bail!("{method} {path}: no such call"),
    }
}

/// Percent-decoding of one query value.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%')
            .then(|| tail.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()))
            .flatten();
        match hex {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A request to a running daemon; its answer's head.
async fn send(config: &Config, request: http::request::Builder, body: Sent) -> anyhow::Result<Response<Incoming>> {
    let path_of_socket = socket(config);
    let stream = tokio::net::UnixStream::connect(&path_of_socket)
        .await
        .with_context(|| format!("no daemon answers at {}", path_of_socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request.header("Host", "sternpost").body(body)?).await.context("the daemon did not answer")?;
    if response.status().is_success() {
        return Ok(response);
    }
    let answer: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes()).context("an answer that is not JSON")?;
    anyhow::bail!("{}", answer["error"].as_str().unwrap_or("failed"))
}

/// One call to a running daemon.
pub async fn call(config: &Config, method: Method, path: &str, body: Sent) -> anyhow::Result<Value> {
    let response = send(config, Request::builder().method(method).uri(path), body).await?;
    serde_json::from_slice(&response.into_body().collect().await?.to_bytes()).context("an answer that is not JSON")
}

/// A call that takes its time: `step` sees each line, the result is returned.
pub async fn follow(config: &Config, request: http::request::Builder, body: Sent, mut step: impl FnMut(&Value)) -> anyhow::Result<Value> {
    let mut answer = send(config, request, body).await?.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = answer.frame().await {
        pending.extend_from_slice(frame.context("the daemon broke off")?.data_ref().map_or(&[], |data| data.as_ref()));
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let value: Value = serde_json::from_slice(&line).context("a line that is not JSON")?;
            if let Some(error) = value["error"].as_str() {
                anyhow::bail!("{error}");
            }
            match value.get("result") {
                Some(result) => return Ok(result.clone()),
                None => step(&value),
            }
        }
    }
    anyhow::bail!("the daemon ended before it was done")
}

/// A call that is answered with a stream of bytes, which go to `to`.
pub async fn copy(config: &Config, path: &str, to: &mut (dyn tokio::io::AsyncWrite + Unpin + Send)) -> anyhow::Result<u64> {
    use tokio::io::AsyncWriteExt;
    let empty = Full::new(Bytes::new()).map_err(|never| match never {}).boxed();
    let mut answer = send(config, Request::builder().uri(path), empty).await?.into_body();
    let mut written = 0;
    while let Some(frame) = answer.frame().await {
        let frame = frame.context("the daemon broke off")?;
        if let Some(data) = frame.data_ref() {
            to.write_all(data).await?;
            written += data.len() as u64;
        }
    }
    to.flush().await?;
    Ok(written)
}
