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
        "/metrics" => Some(metrics(server, context)),
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
        "platform": platform(),
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

/// OpenMetrics for who asks for it, else Prometheus' text format.
fn metrics(server: &Inner, context: &Context) -> Response<Body> {
    let accept = context.headers.get(http::header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let text = server.metrics.exposition(server);
    if accept.contains("application/openmetrics-text") {
        let text = crate::metrics::open_metrics(&text);
        return reply::bytes(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text);
    }
    reply::bytes(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// `linux/amd64`, as Go names it.
pub fn platform() -> String {
    format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" })
}

/// A named check of this server.
struct Check {
    name: &'static str,
    well: fn(&Inner) -> bool,
    /// Where it counts beside `/healthz` and `/readyz`.
    live: bool,
}

/// Upstream's names for what this server has to have done; `etcd` is the store, whichever it is.
const CHECKS: &[Check] = &[
    Check { name: "ping", well: |_| true, live: true },
    Check { name: "log", well: |_| true, live: true },
    Check { name: "etcd", well: |server| server.loaded() && server.registry.store.alive(), live: true },
    Check { name: "etcd-readiness", well: |server| server.loaded() && server.registry.store.alive(), live: false },
    Check { name: "informer-sync", well: Inner::loaded, live: false },
    Check { name: "poststarthook/generic-apiserver-start-informers", well: Inner::loaded, live: true },
    Check { name: "poststarthook/start-system-namespaces-controller", well: Inner::bootstrapped, live: true },
    Check { name: "poststarthook/rbac/bootstrap-roles", well: Inner::bootstrapped, live: true },
    Check { name: "poststarthook/scheduling/bootstrap-system-priority-classes", well: Inner::bootstrapped, live: true },
    Check { name: "poststarthook/bootstrap-controller", well: Inner::bootstrapped, live: true },
    Check { name: "shutdown", well: |server| !server.drain.is_stopping(), live: false },
];

/// The paths of this module.
pub fn paths() -> Vec<String> {
    let fixed = ["/version", "/.well-known/openid-configuration", "/openid/v1/jwks", "/metrics"];
    let mut paths: Vec<String> = fixed.map(str::to_owned).into();
    for endpoint in ["healthz", "livez", "readyz"] {
        paths.push(format!("/{endpoint}"));
        paths.extend(checks(endpoint).map(|check| format!("/{endpoint}/{}", check.name)));
    }
    paths
}

fn checks(endpoint: &str) -> impl Iterator<Item = &'static Check> {
    CHECKS.iter().filter(move |check| match endpoint {
        "livez" => check.live,
        "healthz" => check.live || check.name == "etcd-readiness",
        _ => true,
    })
}

fn health(server: &Inner, context: &Context, endpoint: &str, only: &str) -> Response<Body> {
    let checks: Vec<&Check> = checks(endpoint).collect();
    if !only.is_empty() {
        return match checks.iter().find(|check| check.name == only) {
            None => crate::pipeline::page_not_found(),
            Some(check) if (check.well)(server) => reply::text(StatusCode::OK, "ok"),
            Some(check) => {
                let sentence = format!("internal server error: {} is not ready\n", check.name);
                reply::text(StatusCode::INTERNAL_SERVER_ERROR, sentence)
            }
        };
    }
    let excluded: Vec<&str> = context.query.all("exclude").flat_map(|names| names.split(',')).filter(|name| !name.is_empty()).collect();
    let (mut text, mut all_well) = (String::new(), true);
    for check in &checks {
        let well = (check.well)(server);
        if excluded.contains(&check.name) {
            text.push_str(&format!("[+]{} excluded: ok\n", check.name));
        } else if well {
            text.push_str(&format!("[+]{} ok\n", check.name));
        } else {
            all_well = false;
            text.push_str(&format!("[-]{} failed: reason withheld\n", check.name));
        }
    }
    let unknown: Vec<String> =
        excluded.iter().filter(|name| !checks.iter().any(|check| check.name == **name)).map(|name| format!("{name:?}")).collect();
    if !unknown.is_empty() {
        let names = unknown.join(", ");
        text.push_str(&format!("warn: some health checks cannot be excluded: no matches for {names}\n"));
    }
    match (all_well, context.query.flag_present("verbose")) {
        (true, false) => reply::text(StatusCode::OK, "ok"),
        (true, true) => reply::text(StatusCode::OK, format!("{text}{endpoint} check passed\n")),
        (false, _) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{text}{endpoint} check failed\n")),
    }
}
