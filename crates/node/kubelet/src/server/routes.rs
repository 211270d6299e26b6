//! Paths and what answers them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::v1;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use streaming::{Command, Reply, Wanted};
use tokio::sync::mpsc;

use super::containers::{has_container, why_no_log};
use super::query::Query;
use super::{Body, Server, text};
use crate::crispec;
use crate::logs::{Options, Reader};

/// How often a followed log is looked at.
const FOLLOW_PERIOD: Duration = Duration::from_millis(100);
/// Chunks of a log that may wait for a slow reader.
const LOG_BACKLOG: usize = 16;
/// How long `/run` may take.
const RUN_TIMEOUT_SECONDS: i64 = 120;

pub(super) async fn route(server: Arc<Server>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().trim_matches('/').to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    let query = Query::parse(request.uri().query());
    let get = request.method() == Method::GET;
    let stream = get || request.method() == Method::POST;
    match parts.as_slice() {
        ["pods"] if get => pods(&server),
        ["runningpods"] if get => running_pods(&server).await,
        ["containerLogs", namespace, pod, container] if get => logs(server.clone(), (namespace, pod, container), &query).await,
        ["exec", namespace, pod, rest @ ..] if stream => {
            let command = query.all("command").map(str::to_owned).collect();
            remote(server.clone(), request, (namespace, pod, rest), &query, Command::Exec(command)).await
        }
        ["attach", namespace, pod, rest @ ..] if stream => {
            remote(server.clone(), request, (namespace, pod, rest), &query, Command::Attach).await
        }
        ["portForward", namespace, pod, ..] if stream => port_forward(server.clone(), request, namespace, pod).await,
        ["run", namespace, pod, rest @ ..] if !get => run(&server, (namespace, pod, rest), &query).await,
        ["stats", "summary"] if get => super::stats::summary(&server).await,
        ["metrics"] if get => super::metrics::kubelet(&server).await,
        ["metrics", "resource"] if get => super::metrics::resource(&server).await,
        ["metrics", "cadvisor"] if get => super::metrics::cadvisor(&server).await,
        ["metrics", "probes"] if get => super::metrics::probes(&server),
        ["checkpoint", namespace, pod, container] if !get => {
            let message =
                format!("checkpointing of {namespace}/{pod}/{container} failed: the container runtime cannot checkpoint containers");
            text(StatusCode::NOT_IMPLEMENTED, message)
        }
        ["configz"] if get => super::json(&json!({ "kubeletconfig": server.config })),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn pods(server: &Server) -> Response<Body> {
    let items: Vec<serde_json::Value> = server.pods.list().iter().filter_map(|pod| serde_json::to_value(&**pod).ok()).collect();
    super::json(&json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

/// The pods as the runtime knows them, whatever the API says.
async fn running_pods(server: &Server) -> Response<Body> {
    let running = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning as i32 };
    let filter = v1::ContainerFilter { state: Some(running), ..Default::default() };
    let containers = match server.runtime.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await {
        Ok(answer) => answer.containers,
        Err(error) => return failed(&error),
    };
    let mut pods: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    for container in containers {
        let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
        let uid = label(crispec::LABEL_UID);
        let metadata = json!({"name": label(crispec::LABEL_POD), "namespace": label(crispec::LABEL_NAMESPACE), "uid": uid});
        let pod = pods.entry(uid).or_insert_with(|| json!({"metadata": metadata, "spec": {"containers": []}, "status": {}}));
        if let Some(list) = pod["spec"]["containers"].as_array_mut() {
            let image = container.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
            list.push(json!({"name": label(crispec::LABEL_CONTAINER), "image": image, "resources": {}}));
        }
    }
    let items: Vec<serde_json::Value> = pods.into_values().collect();
    super::json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// The pod, or the answer that there is none.
fn find_pod(server: &Server, namespace: &str, name: &str) -> Result<Arc<Pod>, Box<Response<Body>>> {
    server.pods.get(namespace, name).ok_or_else(|| Box::new(text(StatusCode::NOT_FOUND, "pod does not exist")))
}

fn bad(message: impl Into<Bytes>) -> Response<Body> {
    text(StatusCode::BAD_REQUEST, message)
}

pub(super) fn failed(error: &cri::Error) -> Response<Body> {
    let status = if error.is_not_found() { StatusCode::NOT_FOUND } else { StatusCode::INTERNAL_SERVER_ERROR };
    text(status, error.to_string())
}

fn log_options(query: &Query) -> Result<Options, String> {
    let since_time = query.get("sinceTime").filter(|text| !text.is_empty());
    let since_time = since_time.map(|text| text.parse::<Timestamp>().map_err(|error| error.to_string())).transpose()?;
    let since_seconds = query.number("sinceSeconds")?;
    let ago = |seconds: u64| Timestamp::now().checked_sub(SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX))).ok();
    let stream = match query.get("stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some("stdout".to_owned()),
        Some("Stderr") => Some("stderr".to_owned()),
        Some(other) => return Err(format!("invalid stream {other:?}")),
    };
    Ok(Options {
        tail_lines: query.number("tailLines")?,
        since: since_time.or_else(|| since_seconds.and_then(ago)),
        timestamps: query.flag("timestamps"),
        limit_bytes: query.number("limitBytes")?,
        stream,
        follow: query.flag("follow"),
    })
}

async fn logs(server: Arc<Server>, target: (&str, &str, &str), query: &Query) -> Response<Body> {
    let (namespace, pod, container) = target;
    let pod = match find_pod(&server, namespace, pod) {
        Ok(pod) => pod,
        Err(response) => return *response,
    };
    if !has_container(&pod, container) {
        return bad(format!("container {container} is not valid for pod {}", pod.metadata.name.as_deref().unwrap_or_default()));
    }
    let options = match log_options(query) {
        Ok(options) => options,
        Err(message) => return bad(message),
    };
    let status = match server.find_container(&pod, container, query.flag("previous")).await {
        Ok(Some(status)) if !status.log_path.is_empty() => status,
        Ok(_) => return bad(why_no_log(&pod, container, query.flag("previous"))),
        Err(error) => return failed(&error),
    };
    let path = PathBuf::from(&status.log_path);
    let opened = tokio::task::spawn_blocking(move || Reader::open(&path, options)).await;
    let reader = match opened {
        Ok(Ok(reader)) => reader,
        Ok(Err(error)) => {
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("failed to open log file {:?}: {error}", status.log_path));
        }
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let (sender, receiver) = mpsc::channel(LOG_BACKLOG);
    let follow = query.flag("follow").then_some((server, status.id));
    tokio::spawn(pump(reader, sender, follow));
    let frames =
        futures_util::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?.map(Frame::data), receiver)) });
    let mut response = Response::new(StreamBody::new(frames).boxed());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

/// Sends the log to its end; followed, until the container has ended and everything of it is sent.
async fn pump(mut reader: Reader, sender: mpsc::Sender<io::Result<Bytes>>, follow: Option<(Arc<Server>, String)>) {
    let mut ended = follow.is_none();
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let chunk = reader.read();
            (reader, chunk)
        });
        let Ok((back, chunk)) = read.await else { return };
        reader = back;
        match chunk {
            Ok(Some(chunk)) => {
                if sender.send(Ok(chunk)).await.is_err() {
                    return;
                }
            }
            Ok(None) if ended || reader.is_exhausted() => return,
            Ok(None) => {
                tokio::select! {
                    () = tokio::time::sleep(FOLLOW_PERIOD) => {}
                    () = sender.closed() => return,
                }
                if let Some((server, id)) = &follow {
                    ended = !is_running(server, id).await;
                }
            }
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                return;
            }
        }
    }
}

async fn is_running(server: &Server, id: &str) -> bool {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let status = server.runtime.container_status(request).await.ok().and_then(|answer| answer.status);
    status.is_some_and(|status| status.state == v1::ContainerState::ContainerRunning as i32)
}

/// The path's end is `<container>` or `<uid>/<container>`.
fn container_of<'a>(rest: &[&'a str]) -> Option<&'a str> {
    match rest {
        [container] | [_, container] => Some(container),
        _ => None,
    }
}

async fn running_container(server: &Server, (namespace, pod, rest): (&str, &str, &[&str])) -> Result<String, Box<Response<Body>>> {
    let pod = find_pod(server, namespace, pod)?;
    let Some(name) = container_of(rest) else { return Err(Box::new(text(StatusCode::NOT_FOUND, "404 page not found\n"))) };
    let found = server.find_container(&pod, name, false).await.map_err(|error| Box::new(failed(&error)))?;
    match found {
        Some(status) if status.state == v1::ContainerState::ContainerRunning as i32 => Ok(status.id),
        _ => Err(Box::new(text(StatusCode::NOT_FOUND, format!("container not found ({name:?})")))),
    }
}

async fn remote(
    server: Arc<Server>,
    mut request: Request<Incoming>,
    target: (&str, &str, &[&str]),
    query: &Query,
    command: Command,
) -> Response<Body> {
    let wanted = match Wanted::from_query(query.pairs()) {
        Ok(wanted) => wanted,
        Err(message) => return bad(message),
    };
    if command == Command::Exec(Vec::new()) {
        return bad("you must specify at least one command for the container");
    }
    let id = match running_container(&server, target).await {
        Ok(id) => id,
        Err(response) => return *response,
    };
    let runtime = server.runtime.clone();
    let reply = match command.clone() {
        Command::Exec(cmd) => streaming::remote_command(&mut request, wanted, command, move || async move {
            let Wanted { stdin, stdout, stderr, tty } = wanted;
            runtime.exec(v1::ExecRequest { container_id: id, cmd, tty, stdin, stdout, stderr }).await
        }),
        Command::Attach => streaming::remote_command(&mut request, wanted, command, move || async move {
            let Wanted { stdin, stdout, stderr, tty } = wanted;
            runtime.attach(v1::AttachRequest { container_id: id, stdin, tty, stdout, stderr }).await
        }),
    };
    upgrade(reply)
}

async fn port_forward(server: Arc<Server>, mut request: Request<Incoming>, namespace: &str, name: &str) -> Response<Body> {
    let pod = match find_pod(&server, namespace, name) {
        Ok(pod) => pod,
        Err(response) => return *response,
    };
    let sandbox = match server.find_sandbox(&pod).await {
        Ok(Some(sandbox)) => sandbox,
        Ok(None) => return text(StatusCode::NOT_FOUND, format!("pod {name:?} has no running sandbox")),
        Err(error) => return failed(&error),
    };
    let target = format!("pod {name}_{namespace}, uid {}", pod.metadata.uid.as_deref().unwrap_or_default());
    let runtime = server.runtime.clone();
    let connect = move |port| -> futures_util::future::BoxFuture<'static, cri::Result<cri::streams::Forward>> {
        let (runtime, sandbox) = (runtime.clone(), sandbox.clone());
        Box::pin(async move { runtime.port_forward(sandbox, port).await })
    };
    upgrade(streaming::port_forward(&mut request, target, Arc::new(connect)))
}

fn upgrade((response, task): Reply) -> Response<Body> {
    if let Some(task) = task {
        tokio::spawn(task);
    }
    response.map(|body| body.map_err(|never| match never {}).boxed())
}

async fn run(server: &Server, target: (&str, &str, &[&str]), query: &Query) -> Response<Body> {
    let id = match running_container(server, target).await {
        Ok(id) => id,
        Err(response) => return *response,
    };
    let cmd = query.all("cmd").flat_map(|text| text.split(' ')).map(str::to_owned).collect();
    match server.runtime.exec_sync(v1::ExecSyncRequest { container_id: id, cmd, timeout: RUN_TIMEOUT_SECONDS }).await {
        Ok(answer) => text(StatusCode::OK, [answer.stdout, answer.stderr].concat()),
        Err(error) => failed(&error),
    }
}
