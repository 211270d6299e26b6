//! The request metrics, under upstream's names.

use std::time::Duration;

use telemetry::prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts};

use crate::request::RequestInfo;

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
        let requests = IntCounterVec::new(opts, &["verb", "group", "version", "resource", "subresource", "code"])?;
        let buckets = vec![
            0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
        ];
        let opts = HistogramOpts::new(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds for each verb, group, version, resource.",
        )
        .buckets(buckets);
        let duration = HistogramVec::new(opts, &["verb", "group", "version", "resource", "subresource"])?;
        let audit_dropped = IntCounter::new("apiserver_audit_error_total", "Counter of audit events that failed to be audited properly.")?;
        let registry = telemetry::registry();
        let _ = registry.register(Box::new(requests.clone()));
        let _ = registry.register(Box::new(duration.clone()));
        let _ = registry.register(Box::new(audit_dropped.clone()));
        Ok(Self { requests, duration, audit_dropped })
    }

    /// Only served resources become labels: a client cannot make new series.
    pub fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        if !info.is_resource || crate::registry::catalog::find(&info.group, &info.version, &info.resource).is_none() || code == 404 {
            return;
        }
        let verb = info.verb.to_ascii_uppercase();
        let labels = [&verb, &info.group, &info.version, &info.resource, &info.subresource].map(String::as_str);
        let [verb, group, version, resource, subresource] = labels;
        let code = code.to_string();
        self.requests.with_label_values(&[verb, group, version, resource, subresource, &code]).inc();
        self.duration.with_label_values(&labels).observe(took.as_secs_f64());
    }
}
