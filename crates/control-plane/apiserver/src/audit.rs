//! The audit trail at level Metadata, and the request metrics: what is said about every request once it was answered.
//!
//! Lines go to a bounded queue and from there to a file, so that a slow disk never slows requests; lines that find the queue full are
//! counted and reported, not waited for.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use http::Response;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::Inner;
use crate::context::Context;
use crate::reply::Body;

/// Lines waiting for the disk.
const QUEUE: usize = 8_192;

/// The way to the audit file.
pub struct Sink(mpsc::Sender<Value>);

impl Sink {
    /// Opens the file (mode 600, appended to) and starts its writer thread, which ends with the sink.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let (sender, mut lines) = mpsc::channel::<Value>(QUEUE);
        let write = move || {
            let mut out = std::io::BufWriter::new(file);
            while let Some(line) = lines.blocking_recv() {
                let mut next = Some(line);
                while let Some(line) = next {
                    let _ = writeln!(out, "{line}");
                    next = lines.try_recv().ok();
                }
                if let Err(error) = out.flush() {
                    tracing::error!(%error, "audit: the file cannot be written");
                }
            }
        };
        std::thread::Builder::new().name("audit".into()).spawn(write)?;
        Ok(Self(sender))
    }
}

/// Records an answered request.
pub fn finish(server: &Inner, context: &Context, response: &Response<Body>, started: Instant, audit_id: &str) {
    let info = &context.info;
    let code = response.status().as_u16();
    server.metrics.observe(context, code, started.elapsed());
    let Some(sink) = &server.audit else { return };
    if !info.is_resource {
        return;
    }
    if sink.0.try_send(event(context, code, audit_id)).is_err() {
        server.metrics.audit_dropped.inc();
    }
}

fn event(context: &Context, code: u16, audit_id: &str) -> Value {
    let info = &context.info;
    let agent = context.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let now = meta::time::now_micro();
    let annotations: serde_json::Map<String, Value> = context.annotations().into_iter().map(|(key, value)| (key, value.into())).collect();
    json!({
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": audit_id,
        "stage": "ResponseComplete",
        "requestURI": info.path,
        "verb": info.verb,
        "user": context.user,
        "userAgent": agent,
        "objectRef": {
            "resource": info.resource,
            "subresource": info.subresource,
            "namespace": info.namespace,
            "name": info.name,
            "apiGroup": info.group,
            "apiVersion": info.version,
        },
        "responseStatus": {"code": code},
        "stageTimestamp": now,
        "annotations": annotations,
    })
}
