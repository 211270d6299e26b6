//! What the gate costs: policies, webhooks and mutation on a create; and what one tenant's flood does to another.

pub mod flood;
#[path = "../../../control-plane/apiserver/tests/harness/https.rs"]
mod https;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use apiserver::{Config, Server};
use auth::UserInfo;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::Options;
use crate::admission::flood::Told;
use crate::measure::{Spread, quantile};
use crate::report::{Outcome, spread};

const METHOD: &str = "\
API server on a store in memory, in this process. Creates: requests without sockets but the webhook's (TLS 1.3 on the loopback, answered in \
this process too), one after the other, a ConfigMap of 1 KB, all variants in turn in each round; the floor is the create that nobody judges. \
Flood: over HTTPS with client certificates and audit; each tenant is a process of its own on the same processors as the server. One has 4 \
connections, each asks for a single object and rests 1 ms, first alone, then while the other has 200 requests under way, on as many connections \
or (HTTP/2) 16 a connection; its lists select 500 objects by a label. The flood's process has the lowest priority (nice 19), but in the last row, so \
that what is measured is the server and not how the kernel divides processors between clients. Elsewhere: the same flood, but to another process, \
which answers a constant: what that costs the tenant is the kernel's doing, and no server's.";

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const STORED: usize = 500;

async fn send(server: &Server, user: &UserInfo, method: &str, path: &str, body: &Value) -> u16 {
    // As a client on a socket would: without it, who is answered at once never lets others run.
    tokio::task::yield_now().await;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
    let Ok(request) = Request::builder().method(method).uri(path).header("content-type", "application/json").body(body) else { return 0 };
    let (parts, mut body) = server.handle(request, Some(user.clone())).await.into_parts();
    while let Some(Ok(_)) = body.frame().await {}
    parts.status.as_u16()
}

fn admin() -> UserInfo {
    UserInfo::authenticated("admin", &["system:masters"])
}

async fn server() -> anyhow::Result<Server> {
    let server = Server::new(Config::default(), Arc::new(store::memory::Memory::new()))?;
    server.bootstrap().await?;
    Ok(server)
}

async fn make(server: &Server, path: &str, object: Value) -> anyhow::Result<()> {
    let code = send(server, &admin(), "POST", path, &object).await;
    ensure!(code == 201, "POST {path}: {code}");
    Ok(())
}

fn rules() -> Value {
    json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}])
}

/// A policy of this kind (`validating`, `mutating`), bound to everything.
async fn policy(server: &Server, kind: &str, more: Value) -> anyhow::Result<()> {
    let mut spec = json!({"matchConstraints": {"resourceRules": rules()}});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    make(server, &format!("{GROUP}/{kind}admissionpolicies"), json!({"metadata": {"name": "p"}, "spec": spec})).await?;
    let mut binding = json!({"policyName": "p"});
    if kind == "validating" {
        binding["validationActions"] = json!(["Deny"]);
    }
    make(server, &format!("{GROUP}/{kind}admissionpolicybindings"), json!({"metadata": {"name": "b"}, "spec": binding})).await
}

async fn webhook(server: &Server, kind: &str, hook: &https::Https) -> anyhow::Result<()> {
    let hook = json!({
        "name": "w.example.com", "rules": rules(), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://localhost:{}/", hook.port), "caBundle": hook.bundle()},
    });
    make(server, &format!("{GROUP}/{kind}webhookconfigurations"), json!({"metadata": {"name": "w"}, "webhooks": [hook]})).await
}

/// Each with the server that it is measured on; the first is the floor.
async fn variants(hook: &https::Https) -> anyhow::Result<Vec<(&'static str, Server)>> {
    let rule = "object.data.all(key, size(key) < 100) && object.metadata.name.startsWith('m')";
    let patch = "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'by': request.userInfo.username}}]";
    let made = vec![
        ("nobody judges", server().await?),
        ("validating policy", server().await?),
        ("mutating policy", server().await?),
        ("validating webhook", server().await?),
        ("mutating webhook", server().await?),
    ];
    policy(&made[1].1, "validating", json!({"validations": [{"expression": rule}]})).await?;
    let mutation = json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}]);
    policy(&made[2].1, "mutating", json!({"mutations": mutation, "reinvocationPolicy": "Never"})).await?;
    webhook(&made[3].1, "validating", hook).await?;
    webhook(&made[4].1, "mutating", hook).await?;
    // Admission follows its objects through the watch cache.
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(made)
}

/// Microseconds of each create, sorted.
async fn creates(server: &Server, length: Duration) -> anyhow::Result<Vec<f64>> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < length {
        let name = format!("m-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let object = json!({"metadata": {"name": name}, "data": {"settings": "x".repeat(800)}});
        let asked = Instant::now();
        make(server, MAPS, object).await?;
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let hook = https::Https::start(&[], |seen| {
        let response = json!({"uid": seen.body["request"]["uid"], "allowed": true});
        https::Reply::Json(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
    })
    .await;
    let (variants, shared) = (variants(&hook).await?, flood::Shared::start(dir).await?);
    let length = Duration::from_secs_f64(options.leg_seconds);
    let mut found: Vec<(String, Vec<f64>)> = Vec::new();
    let mut note = |name: String, value: f64| match found.iter_mut().find(|(known, _)| *known == name) {
        Some((_, values)) => values.push(value),
        None => found.push((name, vec![value])),
    };
    let start = Instant::now();
    for round in 0..options.rounds {
        if round > 0 && options.is_over(start) {
            break;
        }
        let mut order: Vec<&(&str, Server)> = variants.iter().filter(|(name, _)| options.wants(&format!("create, {name}"))).collect();
        // A-B-C, C-B-A: what the machine does meanwhile hits all alike.
        if round % 2 == 1 {
            order.reverse();
        }
        for (name, server) in order {
            let times = creates(server, length).await?;
            note(format!("create, {name}: p50, µs"), quantile(&times, 0.5));
            note(format!("create, {name}: p99, µs"), quantile(&times, 0.99));
        }
        for manner in flood::MANNERS.into_iter().filter(|manner| options.wants(&format!("flood, {}", manner.name))) {
            let leg = shared.flooded(manner, length).await?;
            let mut note = |what: &str, value: f64| note(format!("flood, {}: {what}", manner.name), value);
            for (name, told) in [("alone", &leg.alone), ("while it is elsewhere", &leg.elsewhere), ("beside it", &leg.beside)] {
                note(&format!("tenant {name}, p50, µs"), told.p50 * 1e3);
                note(&format!("tenant {name}, p99, µs"), told.p99 * 1e3);
            }
            note("tenant's p99 beside it / alone", leg.beside.p99 / leg.alone.p99);
            note("tenant's p99 while it is elsewhere / alone", leg.elsewhere.p99 / leg.alone.p99);
            note("requests/s of it", leg.flood.per_second);
            let Told { per_second, p50, p99, .. } = leg.flood;
            let p99s = (leg.alone.p99, leg.elsewhere.p99, leg.beside.p99);
            eprintln!("{}: p99 alone, elsewhere, beside {p99s:.2?} ms; flood {per_second:.0}/s {p50:.1} {p99:.1} ms", manner.name);
        }
    }
    shared.drain.stop();
    found.sort_by_key(|(name, _)| name.split(':').next().map(str::to_owned));
    let rows = found.iter().map(|(name, values)| vec![name.clone(), spread(&Spread::of(values))]).collect();
    let figures = found.iter().map(|(name, values)| (name.clone(), json!({"values": values, "spread": Spread::of(values)})));
    let figures = figures.collect::<serde_json::Map<_, _>>().into();
    Ok(Outcome { method: METHOD.into(), head: vec!["what", "median (least–most)"], rows, figures })
}
