//! What knowing, deciding and telling cost: GETs of a user who is authenticated, authorized by RBAC and audited, beside the same GETs of anybody,
//! whom everything is allowed and of whom nothing is told; and RBAC's decision alone.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use apiserver::{Config, Server, Source};
use auth::UserInfo;
use auth::authorize::Attributes;
use auth::pki::{Names, Pki};
use auth::rbac::Policy;
use client::kubeconfig::Access;
use http_body_util::{BodyExt, Full};
use serde_json::json;

use crate::Options;
use crate::api::requests::{Leg, Make, always, closed_loop};
use crate::api::wire::{Call, Protocol, Remote};
use crate::measure::{Spread, quantile};
use crate::report::{Outcome, number, spread};

const METHOD: &str = "\
Two servers of the same build on a store in memory, over TLS 1.3 on the loopback. One knows its client by a certificate, decides by RBAC among 10,000 bindings, and \
writes an audit line (Metadata) per request; the other lets anybody in (AlwaysAllow, no certificate, no audit). GET of a ConfigMap of 1 KiB, a connection per \
client, one request under way each; clients and servers share the processors. A round is with, without, without, with. “in process” is one thread that calls the server without \
sockets: nothing of a client or of TLS is in it, and a bearer token is the credential. The decisions are RBAC's alone, with its reason.";
const HEAD: [&str; 6] = ["what", "clients", "with, a second", "without", "lost", "p99 ms: with / without"];
const BINDINGS: usize = 10_000;
const DECISIONS: usize = 200_000;
const CALLS: usize = 20_000;
const MAP: &str = "/api/v1/namespaces/default/configmaps/one";
const USER: &str = "user7";
const TOKEN: &str = "token-of-user7";

/// A server and how its client comes.
struct Side {
    server: Server,
    remote: Remote,
    drain: stdx::Drain,
}

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let with = Side::start(&dir.join("with"), true).await.context("the server that knows and tells")?;
    let without = Side::start(&dir.join("without"), false).await.context("the server that does not")?;
    let (mut rows, mut figures) = (Vec::new(), Vec::new());
    for clients in [1, 64] {
        let [known, anybody] = sides(options, [&with.remote, &without.remote], clients).await?;
        let [ours, free] = [&known, &anybody].map(|legs| Spread::of(&legs.iter().map(|leg| leg.per_second).collect::<Vec<_>>()));
        let p99 =
            |legs: &[Leg]| quantile(&crate::measure::sorted(&legs.iter().flat_map(|leg| leg.latencies.clone()).collect::<Vec<_>>()), 0.99);
        let waits = format!("{} / {}", number(p99(&known)), number(p99(&anybody)));
        let lost = 1.0 - ours.median / free.median;
        eprintln!("GET × {clients}: {:.0} with, {:.0} without: {:.1} % lost", ours.median, free.median, lost * 100.0);
        rows.push(vec!["GET one".into(), clients.to_string(), spread(&ours), spread(&free), format!("{:.1} %", lost * 100.0), waits]);
        figures.push(json!({"what": "GET one", "clients": clients, "with": ours, "without": free, "lost": lost}));
    }
    let inside = in_process(options, [&with.server, &without.server]).await?;
    let micros = inside.map(|spread| 1e6 / spread.median);
    eprintln!("in process: {:.2} µs with, {:.2} µs without", micros[0], micros[1]);
    let more = format!("{:.2} µs more", micros[0] - micros[1]);
    rows.push(vec!["GET one, in process".into(), "1".into(), spread(&inside[0]), spread(&inside[1]), more, "–".into()]);
    figures.push(json!({"what": "in process", "with": inside[0], "without": inside[1], "micros": micros}));
    for (what, micros) in decisions(options) {
        eprintln!("RBAC, {what}: {:.2} µs", micros.median);
        rows.push(vec![
            format!("RBAC decision among {BINDINGS} bindings, {what}: µs"),
            "1".into(),
            spread(&micros),
            "–".into(),
            "–".into(),
            "–".into(),
        ]);
        figures.push(json!({"what": what, "micros": micros}));
    }
    with.drain.stop();
    without.drain.stop();
    Ok(Outcome { method: METHOD.into(), head: HEAD.into(), rows, figures: figures.into() })
}

/// With, without, without, with, as many times as there are rounds.
async fn sides(options: &Options, remotes: [&Remote; 2], clients: usize) -> anyhow::Result<[Vec<Leg>; 2]> {
    let mut legs = [Vec::new(), Vec::new()];
    let length = Duration::from_secs_f64(options.leg_seconds / 2.0);
    let make: Make = always(Call::get(MAP));
    for _ in 0..options.rounds {
        for at in [0, 1, 1, 0] {
            let askers = remotes[at].askers(Protocol::Http1, clients).await?;
            legs[at].push(closed_loop(askers, length, u64::MAX, &make).await?);
        }
    }
    Ok(legs)
}

/// Requests a second of one caller without sockets.
async fn in_process(options: &Options, servers: [&Server; 2]) -> anyhow::Result<[Spread; 2]> {
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..options.rounds {
        for at in [0, 1, 1, 0] {
            let start = Instant::now();
            for _ in 0..CALLS {
                let mut request = http::Request::get(MAP);
                if at == 0 {
                    request = request.header("authorization", format!("Bearer {TOKEN}"));
                }
                let body = Full::new(bytes::Bytes::new()).map_err(|never| match never {}).boxed();
                let response = servers[at].handle(request.body(body)?, None).await;
                ensure!(response.status() == 200, "status {}", response.status());
                black_box(response.into_body().collect().await?);
            }
            found[at].push(CALLS as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok([Spread::of(&found[0]), Spread::of(&found[1])])
}

impl Side {
    async fn start(dir: &Path, knows: bool) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let names = Names {
            api_hosts: Vec::new(),
            api_addresses: Vec::new(),
            cluster_domain: "cluster.local".into(),
            node_name: "race".into(),
            node_addresses: Vec::new(),
        };
        let pki = Pki::open(&dir.join("pki"), &names)?;
        let tls = auth::tls::Server::new(&pki.api_server, &pki.ca)?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let allow = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
            "authorizers": [{"type": "AlwaysAllow", "name": "anybody"}]});
        let mut config = Config { tls: Some(tls.clone()), ..Config::default() };
        match knows {
            true => {
                config.audit_file = Some(dir.join("audit.log"));
                config.authenticator.add_token(TOKEN, UserInfo::authenticated(USER, &["group7"]));
            }
            false => config.authorization = Some(Source::Text(allow.to_string())),
        }
        let server = Server::new(config, Arc::new(store::memory::Memory::new()))?;
        server.bootstrap().await?;
        fill(&server, if knows { BINDINGS } else { 0 }).await?;
        let drain = stdx::drain();
        let (serving, stop, tls) = (server.clone(), drain.clone(), tls.config()?);
        tokio::spawn(async move { serving.serve(listener, Some(tls), stop).await });
        let identity = knows.then(|| identity(&pki, USER)).transpose()?;
        let access = Access { server: format!("https://{address}"), ca: Some(pki.ca.into_bytes()), identity, ..Access::default() };
        Ok(Self { server, remote: Remote::of(access)?, drain })
    }
}

/// A certificate of the user, as the cluster's signer makes it, and its key: PEM.
pub fn identity(pki: &Pki, user: &str) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let (pair, request) = auth::csr::make(user, &["group7"], &[])?;
    let signer = auth::csr::Signer::new(&pki.issuing, &pki.ca_key)?;
    let request = auth::csr::Request::parse(request.as_bytes())?;
    let certificate = signer.sign(&request, &["digital signature", "client auth"], 86_400)?;
    Ok((certificate.into_bytes(), pair.key.into_bytes()))
}

/// The ConfigMap, and so many bindings, of which the user has a few.
async fn fill(server: &Server, bindings: usize) -> anyhow::Result<()> {
    let groups = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]}]);
    post(server, "/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "one"}, "data": {"settings": "x".repeat(800)}}))
        .await?;
    post(server, &format!("{groups}/namespaces/default/roles"), json!({"metadata": {"name": "reader"}, "rules": rules})).await?;
    for at in 0..bindings {
        let subjects = json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": format!("user{}", at % 1_000)}]);
        let role = json!({"kind": "Role", "apiGroup": "rbac.authorization.k8s.io", "name": "reader"});
        let binding = json!({"metadata": {"name": format!("b{at}")}, "roleRef": role, "subjects": subjects});
        post(server, &format!("{groups}/namespaces/default/rolebindings"), binding).await?;
    }
    Ok(())
}

async fn post(server: &Server, path: &str, object: serde_json::Value) -> anyhow::Result<()> {
    let body = Full::new(bytes::Bytes::from(object.to_string())).map_err(|never| match never {}).boxed();
    let request = http::Request::post(path).header("content-type", "application/json").body(body)?;
    let response = server.handle(request, Some(UserInfo::authenticated("race", &["system:masters"]))).await;
    ensure!(response.status() == 201, "{path}: {}", response.status());
    Ok(())
}

/// Microseconds of a decision that allows and of one that refuses.
fn decisions(options: &Options) -> [(&'static str, Spread); 2] {
    let policy = policy();
    let user = |at: usize| UserInfo::authenticated(&format!("user{}", at % 1_000), &[&format!("group{}", at % 100)]);
    let users: Vec<UserInfo> = (0..1_000).map(user).collect();
    let namespaces: Vec<String> = (0..500).map(|at| format!("ns{at}")).collect();
    [("allowed", "list"), ("refused", "delete")].map(|(what, verb)| {
        let batch = || {
            let start = Instant::now();
            for at in 0..DECISIONS {
                let asked =
                    Attributes { is_resource: true, verb, resource: "secrets", namespace: &namespaces[at % 500], ..Attributes::default() };
                black_box(policy.reason(&users[at % 1_000], &asked));
            }
            start.elapsed().as_secs_f64() * 1e6 / DECISIONS as f64
        };
        (what, Spread::of(&(0..options.rounds).map(|_| batch()).collect::<Vec<_>>()))
    })
}

/// 10,000 bindings in 500 namespaces, to 1,000 users and 100 groups.
fn policy() -> Policy {
    let mut policy = Policy::default();
    for at in 0..BINDINGS {
        let (namespace, name) = (format!("ns{}", at % 500), format!("b{at}"));
        let rule = |resource: &str| json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": [resource]});
        let rules: Vec<_> = ["pods", "services", "configmaps", "secrets"].map(rule).into();
        policy.set_role(&namespace, &name, Some(&json!({"rules": rules})));
        let subjects =
            json!([{"kind": "User", "name": format!("user{}", at % 1_000)}, {"kind": "Group", "name": format!("group{}", at % 100)}]);
        policy.set_binding(&namespace, &name, Some(&json!({"roleRef": {"kind": "Role", "name": name}, "subjects": subjects})));
    }
    policy
}
