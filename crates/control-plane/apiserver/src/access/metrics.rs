//! What is counted about who asks and whether they may, under upstream's names.
//!
//! Source: apiserver `pkg/endpoints/filters/metrics.go`, `plugin/pkg/authorizer/webhook/metrics`, `pkg/authorization/metrics`,
//! `pkg/server/options/{authentication,authorization,encryption}config/metrics`, `plugin/pkg/authenticator/token/oidc/metrics.go`,
//! `pkg/authentication/token/cache/stats.go`.

use std::sync::OnceLock;
use std::time::Duration;

use auth::authorize::Decision;
use sha2::{Digest, Sha256};
use telemetry::prometheus::{Error, GaugeVec, HistogramOpts, Opts, exponential_buckets};
use telemetry::striped::{Histogram, HistogramVec, IntCounter, IntCounterVec};

/// Our own name in labels that tell servers apart: there is one.
const SERVER: &str = "apiserver";

pub struct Metrics {
    /// Of `success`, `failure` and `error`.
    authenticated: [(IntCounter, Histogram); 3],
    /// Of administrators, of the server itself, of everybody else.
    users: [IntCounter; 3],
    /// Of `allowed`, `denied` and `no-opinion`.
    authorized: [(IntCounter, Histogram); 3],
    decisions: IntCounterVec,
    /// What Node and RBAC allow, found once.
    allowed: [IntCounter; 2],
    webhook_evaluations: IntCounterVec,
    webhook_duration: HistogramVec,
    webhook_fail_open: IntCounterVec,
    jwt: HistogramVec,
    cache_requests: IntCounterVec,
    cache_fetches: IntCounterVec,
    reloads: [(IntCounterVec, GaugeVec); 3],
}

/// The process's; a second server in the process counts in the same.
pub fn metrics() -> Option<&'static Metrics> {
    static METRICS: OnceLock<Option<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::new().inspect_err(|error| tracing::error!(%error, "metrics of access")).ok()).as_ref()
}

impl Metrics {
    fn new() -> Result<Self, Error> {
        let registry = telemetry::registry();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>, labels: &[&str]| {
            let made = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let reload = |what: &str| {
            let (help, last) = (
                format!("Total number of automatic reloads of {what} configuration split by status and apiserver identity."),
                format!("Timestamp of the last automatic reload of {what} configuration split by status and apiserver identity."),
            );
            let prefix = format!("apiserver_{what}_config_controller_automatic_reload");
            let labels = ["status", "apiserver_id_hash"];
            let stamp = GaugeVec::new(Opts::new(format!("{prefix}_last_timestamp_seconds"), last), &labels)?;
            registry.register(Box::new(stamp.clone()))?;
            Ok::<_, Error>((counter(&format!("{prefix}s_total"), &help, &labels)?, stamp))
        };
        let milliseconds = || exponential_buckets(0.001, 2.0, 15);
        let attempts = counter("authentication_attempts", "Counter of authenticated attempts.", &["result"])?;
        let durations = histogram(
            "authentication_duration_seconds",
            "Authentication duration in seconds broken out by result.",
            milliseconds()?,
            &["result"],
        )?;
        let users = counter("authenticated_user_requests", "Counter of authenticated requests broken out by username.", &["username"])?;
        let asked = counter(
            "authorization_attempts_total",
            "Counter of authorization attempts broken down by result. It can be either 'allowed', 'denied', 'no-opinion' or 'error'.",
            &["result"],
        )?;
        let took = histogram(
            "authorization_duration_seconds",
            "Authorization duration in seconds broken out by result.",
            milliseconds()?,
            &["result"],
        )?;
        let decisions = counter(
            "apiserver_authorization_decisions_total",
            "Total number of terminal decisions made by an authorizer split by authorizer type, name, and decision.",
            &["type", "name", "decision"],
        )?;
        let both = |counters: &IntCounterVec, histograms: &HistogramVec, label: &str| {
            (counters.with_label_values(&[label]), histograms.with_label_values(&[label]))
        };
        Ok(Self {
            authenticated: ["success", "failure", "error"].map(|label| both(&attempts, &durations, label)),
            users: ["admin", "apiserver", "other"].map(|name| users.with_label_values(&[name])),
            authorized: ["allowed", "denied", "no-opinion"].map(|label| both(&asked, &took, label)),
            allowed: [("Node", "node"), ("RBAC", "rbac")].map(|(kind, name)| decisions.with_label_values(&[kind, name, "allowed"])),
            decisions,
            webhook_evaluations: counter(
                "apiserver_authorization_webhook_evaluations_total",
                "Round-trips to authorization webhooks.",
                &["name", "result"],
            )?,
            webhook_duration: histogram(
                "apiserver_authorization_webhook_duration_seconds",
                "Request latency in seconds.",
                telemetry::prometheus::DEFAULT_BUCKETS.to_vec(),
                &["name", "result"],
            )?,
            webhook_fail_open: counter(
                "apiserver_authorization_webhook_evaluations_fail_open_total",
                "NoOpinion results due to webhook timeout or error.",
                &["name", "result"],
            )?,
            jwt: histogram(
                "apiserver_authentication_jwt_authenticator_latency_seconds",
                "Latency of jwt authentication operations in seconds. This is the time spent authenticating a token for cache miss only (i.e. \
                 when the token is not found in the cache).",
                vec![0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
                &["result", "jwt_issuer_hash"],
            )?,
            cache_requests: counter("authentication_token_cache_request_total", "Requests of the token cache by status.", &["status"])?,
            cache_fetches: counter("authentication_token_cache_fetch_total", "Fetches for the token cache by status.", &["status"])?,
            reloads: [reload("authentication")?, reload("authorization")?, reload("encryption")?],
        })
    }

    /// A request's credentials were looked at. `None`: they were none of anybody's.
    pub fn authenticated(&self, user: Option<&str>, took: Duration) {
        let (count, time) = &self.authenticated[usize::from(user.is_none())];
        count.inc();
        time.observe(took.as_secs_f64());
        match user {
            None => {}
            Some("admin" | "kube_proxy" | "kube-admin" | "system:admin" | "kubernetes-admin") => self.users[0].inc(),
            Some("system:apiserver") => self.users[1].inc(),
            Some(_) => self.users[2].inc(),
        }
    }

    pub fn authorized(&self, decision: &Decision, took: Duration) {
        let at = match decision {
            Decision::Allow(_) => 0,
            Decision::Deny(_) => 1,
            Decision::NoOpinion(_) => 2,
        };
        let (count, time) = &self.authorized[at];
        count.inc();
        time.observe(took.as_secs_f64());
    }

    /// The Node authorizer (0) or RBAC (1) allowed something.
    pub fn allowed(&self, by: usize) {
        if let Some(counter) = self.allowed.get(by) {
            counter.inc();
        }
    }

    /// A webhook said what counts.
    pub fn decided(&self, name: &str, decision: &Decision) {
        let word = match decision {
            Decision::Allow(_) => "allowed",
            Decision::Deny(_) => "denied",
            Decision::NoOpinion(_) => return,
        };
        self.decisions.with_label_values(&["Webhook", name, word]).inc();
    }

    /// A webhook authorizer was asked: `success`, `timeout` or `error`. `opens`: its failure leaves the decision to others.
    pub fn webhook(&self, name: &str, failure: Option<&str>, opens: bool, took: Duration) {
        let result = match failure {
            None => "success",
            Some(why) if why.contains("deadline exceeded") => "timeout",
            Some(_) => "error",
        };
        self.webhook_evaluations.with_label_values(&[name, result]).inc();
        self.webhook_duration.with_label_values(&[name, result]).observe(took.as_secs_f64());
        if failure.is_some() && opens {
            self.webhook_fail_open.with_label_values(&[name, result]).inc();
        }
    }

    /// A token of a configured issuer was looked at.
    pub fn jwt(&self, issuer: &str, good: bool, took: Duration) {
        let result = if good { "success" } else { "failure" };
        self.jwt.with_label_values(&[result, &hash(issuer)]).observe(took.as_secs_f64());
    }

    /// A token for the webhook was known already, or asked for: whether that went well.
    pub fn cached(&self, fetched: Option<bool>) {
        match fetched {
            None => self.cache_requests.with_label_values(&["hit"]).inc(),
            Some(good) => {
                self.cache_requests.with_label_values(&["miss"]).inc();
                self.cache_fetches.with_label_values(&[if good { "ok" } else { "error" }]).inc();
            }
        }
    }

    /// A file of this configuration was read again.
    pub fn reloaded(&self, what: &str, good: bool) {
        let Some(at) = ["authentication", "authorization", "encryption at rest"].iter().position(|known| *known == what) else { return };
        let labels = [if good { "success" } else { "failure" }, &hash(SERVER)];
        let (count, stamp) = &self.reloads[at];
        count.with_label_values(&labels).inc();
        stamp.with_label_values(&labels).set(jiff::Timestamp::now().as_second() as f64);
    }
}

/// As upstream's labels have names that may tell too much: `sha256:…`.
fn hash(name: &str) -> String {
    let digest = Sha256::digest(name);
    digest.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}
