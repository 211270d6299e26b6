//! Under upstream's names.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use telemetry::prometheus::{Gauge, Histogram, HistogramOpts, IntCounter};

struct Metrics {
    duration: Histogram,
    last: Gauge,
    failures: IntCounter,
}

fn metrics() -> Option<&'static Metrics> {
    static METRICS: OnceLock<Option<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| make().ok()).as_ref()
}

fn make() -> Result<Metrics, telemetry::prometheus::Error> {
    let buckets = vec![0.0001, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];
    let duration = HistogramOpts::new("kubeproxy_sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds").buckets(buckets);
    let metrics = Metrics {
        duration: Histogram::with_opts(duration)?,
        last: Gauge::new("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "The last time proxy rules were successfully synced")?,
        failures: IntCounter::new("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "Cumulative proxy nftables sync failures")?,
    };
    let registry = telemetry::registry();
    registry.register(Box::new(metrics.duration.clone()))?;
    registry.register(Box::new(metrics.last.clone()))?;
    registry.register(Box::new(metrics.failures.clone()))?;
    Ok(metrics)
}

pub fn observe_sync(took: Duration, succeeded: bool) {
    let Some(metrics) = metrics() else { return };
    metrics.duration.observe(took.as_secs_f64());
    if succeeded {
        metrics.last.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    } else {
        metrics.failures.inc();
    }
}
