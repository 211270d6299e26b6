//! How long the node's policies take, and whether the kernel takes them.

use std::sync::OnceLock;
use std::time::Duration;

use telemetry::prometheus::{Histogram, HistogramOpts, IntCounter};

struct Metrics {
    duration: Histogram,
    failures: IntCounter,
}

fn metrics() -> Option<&'static Metrics> {
    static METRICS: OnceLock<Option<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| make().ok()).as_ref()
}

fn make() -> Result<Metrics, telemetry::prometheus::Error> {
    let buckets = vec![0.0001, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];
    let duration =
        HistogramOpts::new("sternpost_network_policy_sync_duration_seconds", "Planning and programming the node's network policies");
    let metrics = Metrics {
        duration: Histogram::with_opts(duration.buckets(buckets))?,
        failures: IntCounter::new("sternpost_network_policy_sync_failures_total", "Batches of network policies that the kernel refused")?,
    };
    let registry = telemetry::registry();
    registry.register(Box::new(metrics.duration.clone()))?;
    registry.register(Box::new(metrics.failures.clone()))?;
    Ok(metrics)
}

pub fn observe(took: Duration, succeeded: bool) {
    let Some(metrics) = metrics() else { return };
    metrics.duration.observe(took.as_secs_f64());
    if !succeeded {
        metrics.failures.inc();
    }
}
