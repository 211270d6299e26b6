//! What the gate costs: policies, webhooks and mutation on a create; and what one tenant's flood does to another.

#[path = "../../../control-plane/apiserver/tests/harness/https.rs"]
mod https;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use apiserver::{Config, Server};
use auth::UserInfo;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::Options;
use crate::measure::{Leg, Spread, closed_loop, quantile};
use crate::report::{Outcome, spread};

const METHOD: &str = "\
API server on a store in memory, in this process, requests without sockets but the webhook's (TLS 1.3 on the loopback, answered in this process \
too). Creates: one after the other, a ConfigMap of 1 KB, all variants in turn in each round; the floor is the create that nobody judges. \
Flood: one tenant reads single objects with 4 clients, first alone, then while another keeps 200 requests under way, every other one a list of \
500 objects by a label; both are users of the level global-default, so that only fair queuing is between them. All clients run in this \
process too, on the same threads.";

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const TENANT_CLIENTS: usize = 4;
const FLOOD_CLIENTS: usize = 200;
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

/// A server with objects to read and two tenants who may.
async fn shared() -> anyhow::Result<Server> {
    let server = server().await?;
    for number in 0..STORED {
        make(&server, MAPS, json!({"metadata": {"name": format!("m-{number}")}, "data": {"settings": "x".repeat(800)}})).await?;
    }
    let group = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]);
    make(&server, &format!("{group}/clusterroles"), json!({"metadata": {"name": "reader"}, "rules": rules})).await?;
    let subjects = ["tenant", "flood"].map(|name| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}));
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"});
    let binding = json!({"metadata": {"name": "readers"}, "roleRef": role, "subjects": subjects});
    make(&server, &format!("{group}/clusterrolebindings"), binding).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(server)
}

/// One object; a flood lists all of them by a label, every other time.
async fn read(server: &Server, user: &UserInfo, number: u64) -> anyhow::Result<()> {
    let path = match user.username.as_str() {
        "flood" if number.is_multiple_of(2) => format!("{MAPS}?labelSelector=app=none"),
        _ => format!("{MAPS}/m-{}", number % STORED as u64),
    };
    let code = send(server, user, "GET", &path, &Value::Null).await;
    ensure!(code == 200 || code == 429, "GET {path}: {code}");
    Ok(())
}

async fn tenant(server: &Server, length: Duration) -> anyhow::Result<Leg> {
    let (server, user) = (server.clone(), UserInfo::authenticated("tenant", &[]));
    closed_loop(TENANT_CLIENTS, length, move |_, number| {
        let (server, user) = (server.clone(), user.clone());
        async move { read(&server, &user, number).await }
    })
    .await
}

/// The tenant's legs alone and beside the flood, and what the flood got through.
async fn flooded(server: &Server, length: Duration) -> anyhow::Result<(Leg, Leg, f64)> {
    let idle = tenant(server, length).await?;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..FLOOD_CLIENTS {
        let (server, stop, done) = (server.clone(), stop.clone(), done.clone());
        let user = UserInfo::authenticated("flood", &[]);
        flood.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let number = done.fetch_add(1, Ordering::Relaxed);
                read(&server, &user, number).await?;
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (before, started) = (done.load(Ordering::Relaxed), Instant::now());
    let busy = tenant(server, length).await?;
    let rate = (done.load(Ordering::Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = flood.join_next().await {
        ended??;
    }
    Ok((idle, busy, rate))
}

pub async fn race(options: &Options, _dir: &Path) -> anyhow::Result<Outcome> {
    let hook = https::Https::start(&[], |seen| {
        let response = json!({"uid": seen.body["request"]["uid"], "allowed": true});
        https::Reply::Json(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
    })
    .await;
    let (variants, shared) = (variants(&hook).await?, shared().await?);
    let length = Duration::from_secs_f64(options.leg_seconds);
    let mut found: Vec<(String, Vec<f64>)> = Vec::new();
    let mut note = |name: String, value: f64| match found.iter_mut().find(|(known, _)| *known == name) {
        Some((_, values)) => values.push(value),
        None => found.push((name, vec![value])),
    };
    for round in 0..options.rounds {
        let mut order: Vec<&(&str, Server)> = variants.iter().collect();
        // A-B-C, C-B-A: what the machine does meanwhile hits all alike.
        if round % 2 == 1 {
            order.reverse();
        }
        for (name, server) in order {
            let times = creates(server, length).await?;
            note(format!("create, {name}: p50, µs"), quantile(&times, 0.5));
            note(format!("create, {name}: p99, µs"), quantile(&times, 0.99));
        }
        let (idle, busy, rate) = flooded(&shared, length).await?;
        for (name, leg) in [("alone", &idle), ("beside a flood", &busy)] {
            note(format!("tenant {name}: p50, µs"), quantile(&leg.latencies, 0.5) * 1e3);
            note(format!("tenant {name}: p99, µs"), quantile(&leg.latencies, 0.99) * 1e3);
        }
        note("tenant's p99 beside a flood / alone".into(), quantile(&busy.latencies, 0.99) / quantile(&idle.latencies, 0.99));
        note("flood: requests/s".into(), rate);
    }
    found.sort_by_key(|(name, _)| name.split(':').next().map(str::to_owned));
    let rows = found.iter().map(|(name, values)| vec![name.clone(), spread(&Spread::of(values))]).collect();
    let figures = found.iter().map(|(name, values)| (name.clone(), json!({"values": values, "spread": Spread::of(values)})));
    let figures = figures.collect::<serde_json::Map<_, _>>().into();
    Ok(Outcome { method: METHOD.into(), head: vec!["what", "median (least–most)"], rows, figures })
}
