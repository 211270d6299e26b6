//! The daemon's local door: a unix socket that only root may open, for what is not the API's business (images on this node).
//!
//! HTTP/1.1: `POST /rotate/<what>` (where the control plane runs), `GET /images`, `POST /images/load` with an archive as body, `POST /images/pull?ref=…`, `DELETE /images?ref=…`. Answers are JSON;
//! a failure is `{"error": "…"}` with status 4xx or 5xx.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use stdx::Drain;
use tokio::net::UnixListener;

use crate::config::Config;
use crate::node::NodeParts;
use crate::up::Parts;

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

async fn answer(about: Served, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let (status, body) = match act(&about, request).await {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, json!({ "error": format!("{error:#}") })),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    Ok(response)
}

async fn act(Served { node, cluster }: &Served, request: Request<Incoming>) -> anyhow::Result<Value> {
    let query = request.uri().query().unwrap_or("").to_owned();
    let reference = || query.strip_prefix("ref=").map(decode).context("which image? (ref=…)");
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/images") => Ok(json!(node.images().list().iter().map(describe).collect::<Vec<_>>())),
        (&Method::POST, "/images/load") => {
            let body = BodyStream::new(request.into_body()).try_filter_map(async |frame| Ok(frame.into_data().ok()));
            let reader = tokio_util::io::StreamReader::new(body.map_err(std::io::Error::other));
            let names = node.load(Box::pin(reader)).await?;
            Ok(json!(names))
        }
        (&Method::POST, "/images/pull") => Ok(json!(node.pull(&reference()?).await?)),
        (&Method::DELETE, "/images") => {
            node.images().remove(&reference()?)?;
            Ok(json!({}))
        }
        (&Method::POST, path) if path.starts_with("/rotate/") => {
            let step = crate::rotate::named(path.trim_start_matches("/rotate/")).context("rotate what?")?;
            let cluster = cluster.as_ref().context("the control plane runs elsewhere")?;
            Ok(json!(cluster.certificates.exchange(&cluster.config, &cluster.server, step).await?))
        }
        (method, path) => anyhow::bail!("{method} {path}: no such call"),
    }
}

fn describe(image: &images::Image) -> Value {
    json!({ "id": image.id, "names": image.tags.iter().chain(&image.digests).collect::<Vec<_>>(), "size": image.size })
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

/// One call to a running daemon.
pub async fn call(
    config: &Config,
    method: Method,
    path: &str,
    body: http_body_util::combinators::BoxBody<Bytes, std::io::Error>,
) -> anyhow::Result<Value> {
    let path_of_socket = socket(config);
    let stream = tokio::net::UnixStream::connect(&path_of_socket)
        .await
        .with_context(|| format!("no daemon answers at {}", path_of_socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("Host", "sternpost").body(body)?;
    let response = sender.send_request(request).await.context("the daemon did not answer")?;
    let failed = !response.status().is_success();
    let answer: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes()).context("an answer that is not JSON")?;
    if failed {
        anyhow::bail!("{}", answer["error"].as_str().unwrap_or("failed"));
    }
    Ok(answer)
}
