//! Admission's metrics, under upstream's names and labels (apiserver `pkg/admission/metrics`).

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use telemetry::prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};

use crate::{Attributes, Operation};

struct Metrics {
    step: HistogramVec,
    webhook: HistogramVec,
    requests: IntCounterVec,
    rejections: IntCounterVec,
    fail_open: IntCounterVec,
    exclusions: IntCounterVec,
    policies: IntCounterVec,
}

impl Metrics {
    fn new() -> Result<Self, telemetry::prometheus::Error> {
        let histogram = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
        };
        let counter = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let made = Self {
            step: histogram(
                "apiserver_admission_step_admission_duration_seconds",
                "Admission sub-step latency in seconds, broken out for each operation and API resource and step type (validate or admit).",
                &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5],
                &["type", "operation", "rejected"],
            )?,
            webhook: histogram(
                "apiserver_admission_webhook_admission_duration_seconds",
                "Admission webhook latency in seconds, identified by name and broken out for each operation and API resource and type.",
                &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0],
                &["name", "type", "operation", "rejected"],
            )?,
            requests: counter(
                "apiserver_admission_webhook_request_total",
                "Admission webhook request total, identified by name and broken out for each admission type and operation.",
                &["name", "type", "operation", "code", "rejected"],
            )?,
            rejections: counter(
                "apiserver_admission_webhook_rejection_count",
                "Admission webhook rejection count, identified by name and broken out for each admission type and operation.",
                &["name", "type", "operation", "error_type", "rejection_code"],
            )?,
            fail_open: counter(
                "apiserver_admission_webhook_fail_open_count",
                "Admission webhook fail open count, identified by name and broken out for each admission type.",
                &["name", "type"],
            )?,
            exclusions: counter(
                "apiserver_admission_match_condition_exclusions_total",
                "Admission match condition evaluation exclusions count, identified by name of resource containing the match condition.",
                &["name", "kind", "type", "operation"],
            )?,
            policies: counter(
                "apiserver_validating_admission_policy_check_total",
                "Validation admission policy check total, labeled by policy and further identified by binding and enforcement action taken.",
                &["policy", "policy_binding", "error_type", "enforcement_action"],
            )?,
        };
        let registry = telemetry::registry();
        for histogram in [&made.step, &made.webhook] {
            let _ = registry.register(Box::new(histogram.clone()));
        }
        for counter in [&made.requests, &made.rejections, &made.fail_open, &made.exclusions, &made.policies] {
            let _ = registry.register(Box::new(counter.clone()));
        }
        Ok(made)
    }
}

/// `None` only where a metric's own definition is wrong.
fn metrics() -> Option<&'static Metrics> {
    static METRICS: OnceLock<Option<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::new().ok()).as_ref()
}

fn word(flag: bool) -> &'static str {
    if flag { "true" } else { "false" }
}

/// One pass of the chain, being timed.
pub struct Step {
    kind: &'static str,
    operation: &'static str,
    started: Instant,
}

impl Step {
    pub fn begin(kind: &'static str, attributes: &Attributes) -> Self {
        Self { kind, operation: attributes.operation.word(), started: Instant::now() }
    }
    pub fn end(self, rejected: bool) {
        if let Some(metrics) = metrics() {
            let took = self.started.elapsed().as_secs_f64();
            metrics.step.with_label_values(&[self.kind, self.operation, word(rejected)]).observe(took);
        }
    }
}

/// A write that passed both steps as one before it, without being asked again.
pub fn repeated(operation: Operation) {
    if let Some(metrics) = metrics() {
        for kind in ["admit", "validate"] {
            metrics.step.with_label_values(&[kind, operation.word(), word(false)]).observe(0.0);
        }
    }
}

/// What a call of a webhook came to.
pub struct Call<'a> {
    pub name: &'a str,
    /// `admit` or `validating`.
    pub kind: &'static str,
    pub operation: &'static str,
}

impl Call<'_> {
    pub fn done(&self, took: Duration, rejected: bool, code: u16) {
        let Some(metrics) = metrics() else { return };
        let (code, rejected) = (code.to_string(), word(rejected));
        metrics.webhook.with_label_values(&[self.name, self.kind, self.operation, rejected]).observe(took.as_secs_f64());
        metrics.requests.with_label_values(&[self.name, self.kind, self.operation, code.as_str(), rejected]).inc();
    }
    /// `error`: `calling_webhook_error`, `apiserver_internal_error` or `no_error`.
    pub fn rejected(&self, error: &str, code: u16) {
        if let Some(metrics) = metrics() {
            // Upstream keeps the number of series small this way.
            let code = if code > 600 { 600 } else { code }.to_string();
            metrics.rejections.with_label_values(&[self.name, self.kind, self.operation, error, code.as_str()]).inc();
        }
    }
    pub fn failed_open(&self) {
        if let Some(metrics) = metrics() {
            metrics.fail_open.with_label_values(&[self.name, self.kind]).inc();
        }
    }
    /// A match condition said no.
    pub fn excluded(&self) {
        if let Some(metrics) = metrics() {
            metrics.exclusions.with_label_values(&[self.name, "webhook", self.kind, self.operation]).inc();
        }
    }
}

/// A policy was evaluated; `action` is `allow`, `deny`, `warn` or `audit`.
pub fn policy(policy: &str, binding: &str, action: &str, error: &str) {
    if let Some(metrics) = metrics() {
        metrics.policies.with_label_values(&[policy, binding, error, action]).inc();
    }
}
