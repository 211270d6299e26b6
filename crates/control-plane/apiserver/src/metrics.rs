//! The request metrics, under upstream's names.

use std::time::Duration;

use telemetry::prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts};

use crate::context::Context;
use crate::registry::catalog;
use crate::request::RequestInfo;

/// Upstream's labels; the durations have all but the last.
const REQUEST_LABELS: [&str; 9] = ["verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component", "code"];

pub struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    pub audit_dropped: IntCounter,
}

impl Metrics {
    /// Registers with the process's registry; a second server in the process counts for itself only.
    pub fn new() -> Result<Self, telemetry::prometheus::Error> {
        let opts = Opts::new(
            "apiserver_request_total",
            "Counter of apiserver requests broken out for each verb, group, version, resource and HTTP response code.",
        );
        let requests = IntCounterVec::new(opts, &REQUEST_LABELS)?;
        let buckets = vec![
            0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
        ];
        let opts = HistogramOpts::new(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds for each verb, group, version, resource.",
        )
        .buckets(buckets);
        let duration = HistogramVec::new(opts, &REQUEST_LABELS[..REQUEST_LABELS.len() - 1])?;
        let audit_dropped = IntCounter::new("apiserver_audit_error_total", "Counter of audit events that failed to be audited properly.")?;
        let registry = telemetry::registry();
        let _ = registry.register(Box::new(requests.clone()));
        let _ = registry.register(Box::new(duration.clone()));
        let _ = registry.register(Box::new(audit_dropped.clone()));
        Ok(Self { requests, duration, audit_dropped })
    }

    /// Only served resources become labels: a client cannot make new series.
    pub fn observe(&self, context: &Context, code: u16, took: Duration) {
        let info = &context.info;
        let Some(kind) = catalog::find(&info.group, &info.version, &info.resource).filter(|_| info.is_resource && !info.verb.is_empty())
        else {
            return;
        };
        if !info.subresource.is_empty() && kind.subresource(&info.subresource).is_none() {
            return;
        }
        let verb = if info.verb == "update" {
            "PUT".into()
        } else if info.verb == "create" {
            "POST".into()
        } else {
            info.verb.to_ascii_uppercase()
        };
        let dry_run = context.query.text("dryRun").filter(|word| *word == "All").unwrap_or_default();
        let code = code.to_string();
        let labels = [&verb, dry_run, &info.group, &info.version, &info.resource, &info.subresource, scope(info), "apiserver", &code];
        self.requests.with_label_values(&labels).inc();
        // A watch lasts as long as its client likes: that is no latency.
        if info.verb != "watch" {
            self.duration.with_label_values(&labels[..labels.len() - 1]).observe(took.as_secs_f64());
        }
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    match (info.name.is_empty() && info.verb != "create", info.namespace.is_empty()) {
        (false, _) => "resource",
        (true, false) => "namespace",
        (true, true) => "cluster",
    }
}
