//! `/healthz`, `/livez`, `/readyz`, `/version`, `/metrics`, and the token issuer's documents.

use auth::tokens::Issuer;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::Inner;
use crate::context::Context;
use crate::negotiate::Format;
use crate::reply::{self, Body};

/// The API version that is served.
pub const KUBERNETES_VERSION: &str = "v1.37.0";

/// `None` where the path is none of these.
pub fn respond(server: &Inner, context: &Context) -> Option<Response<Body>> {
    let path = context.info.path.trim_end_matches('/');
    match path {
        "/version" => Some(version()),
        "/.well-known/openid-configuration" => Some(issuer(server, |issuer| issuer.configuration(), "application/json")),
        "/openid/v1/jwks" => Some(issuer(server, |issuer| issuer.key_set(), "application/jwk-set+json")),
        "/metrics" => Some(reply::bytes(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", telemetry::exposition())),
        _ => {
            let (endpoint, check) = path.strip_prefix('/')?.split_once('/').unwrap_or((path.strip_prefix('/')?, ""));
            matches!(endpoint, "healthz" | "livez" | "readyz").then(|| health(server, context, endpoint, check))
        }
    }
}

fn version() -> Response<Body> {
    let version = json!({
        "major": "1",
        "minor": "37",
        "gitVersion": format!("{KUBERNETES_VERSION}+sternpost-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
    });
    reply::value(StatusCode::OK, &version, Format { pretty: true, ..Format::JSON })
}

/// What others need to check our service account tokens.
fn issuer(server: &Inner, document: fn(&Issuer) -> Value, content_type: &'static str) -> Response<Body> {
    match &server.access.issuer {
        Some(issuer) => reply::bytes(StatusCode::OK, content_type, document(issuer).to_string()),
        None => crate::pipeline::page_not_found(),
    }
}

fn health(server: &Inner, context: &Context, endpoint: &str, only: &str) -> Response<Body> {
    let mut checks = vec![("ping", true), ("log", true), ("etcd", server.loaded())];
    if endpoint == "readyz" {
        checks.push(("informer-sync", server.loaded()));
        checks.push(("shutdown", !server.drain.is_stopping()));
    }
    checks.push(("poststarthook/rbac/bootstrap-roles", server.bootstrapped()));
    let excluded: Vec<&str> = context.query.all("exclude").collect();
    if !only.is_empty() && !checks.iter().any(|(name, _)| *name == only) {
        return crate::pipeline::page_not_found();
    }
    checks.retain(|(name, _)| (only.is_empty() || *name == only) && !excluded.contains(name));
    let well = checks.iter().all(|(_, well)| *well);
    let code = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    if well && !context.query.flag_present("verbose") {
        return reply::text(code, "ok");
    }
    let mut text = String::new();
    for (name, well) in &checks {
        let line = if *well { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") };
        text.push_str(&line);
    }
    text.push_str(&format!("{endpoint} check {}\n", if well { "passed" } else { "failed" }));
    reply::text(code, text)
}
