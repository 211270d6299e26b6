//! Under CoreDNS' names.

use std::sync::OnceLock;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use telemetry::prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts};

struct Metrics {
    requests: IntCounterVec,
    responses: IntCounterVec,
    duration: Histogram,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    ignored: IntCounter,
}

fn metrics() -> Option<&'static Metrics> {
    static METRICS: OnceLock<Option<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| make().ok()).as_ref()
}

fn make() -> Result<Metrics, telemetry::prometheus::Error> {
    let buckets = vec![0.00025, 0.001, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096];
    let duration =
        HistogramOpts::new("coredns_dns_request_duration_seconds", "Histogram of the time (in seconds) each request took").buckets(buckets);
    let metrics = Metrics {
        requests: IntCounterVec::new(
            Opts::new("coredns_dns_requests_total", "Counter of DNS requests made per protocol and type"),
            &["proto", "type"],
        )?,
        responses: IntCounterVec::new(Opts::new("coredns_dns_responses_total", "Counter of response status codes"), &["rcode"])?,
        duration: Histogram::with_opts(duration)?,
        cache_hits: IntCounter::new("coredns_cache_hits_total", "The count of cache hits")?,
        cache_misses: IntCounter::new("coredns_cache_misses_total", "The count of cache misses")?,
        ignored: IntCounter::new("sternpost_dns_ignored_packets_total", "Packets that were no DNS questions")?,
    };
    let registry = telemetry::registry();
    registry.register(Box::new(metrics.requests.clone()))?;
    registry.register(Box::new(metrics.responses.clone()))?;
    registry.register(Box::new(metrics.duration.clone()))?;
    registry.register(Box::new(metrics.cache_hits.clone()))?;
    registry.register(Box::new(metrics.cache_misses.clone()))?;
    registry.register(Box::new(metrics.ignored.clone()))?;
    Ok(metrics)
}

pub fn count_request(protocol: &str, kind: RecordType) {
    if let Some(metrics) = metrics() {
        metrics.requests.with_label_values(&[protocol, kind_label(kind)]).inc();
    }
}

pub fn count_response(code: ResponseCode, took: Duration) {
    if let Some(metrics) = metrics() {
        metrics.responses.with_label_values(&[code_label(code)]).inc();
        metrics.duration.observe(took.as_secs_f64());
    }
}

/// Questions that were answered together, counted together: finding a counter costs more than such an answer.
#[derive(Debug, Default)]
pub struct Tally(Vec<(RecordType, ResponseCode, u64)>);

impl Tally {
    pub fn count(&mut self, kind: RecordType, code: ResponseCode) {
        match self.0.iter_mut().find(|(known, said, _)| (*known, *said) == (kind, code)) {
            Some((.., count)) => *count += 1,
            None => self.0.push((kind, code, 1)),
        }
    }

    /// Adds them to the process's metrics, and begins anew.
    pub fn publish(&mut self, protocol: &str, took: Duration) {
        let Some(metrics) = metrics() else { return };
        for (kind, code, count) in self.0.drain(..) {
            metrics.requests.with_label_values(&[protocol, kind_label(kind)]).inc_by(count);
            metrics.responses.with_label_values(&[code_label(code)]).inc_by(count);
            let durations = metrics.duration.local();
            (0..count).for_each(|_| durations.observe(took.as_secs_f64()));
        }
    }
}

/// As upstream: the types people ask for by name, everything else as "other", so that clients cannot make series.
fn kind_label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::SRV => "SRV",
        RecordType::PTR => "PTR",
        RecordType::CNAME => "CNAME",
        RecordType::TXT => "TXT",
        RecordType::SOA => "SOA",
        RecordType::NS => "NS",
        RecordType::MX => "MX",
        RecordType::ANY => "ANY",
        _ => "other",
    }
}

fn code_label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        _ => "other",
    }
}

pub fn count_cache(hit: bool) {
    if let Some(metrics) = metrics() {
        if hit { metrics.cache_hits.inc() } else { metrics.cache_misses.inc() }
    }
}

pub fn count_ignored() {
    if let Some(metrics) = metrics() {
        metrics.ignored.inc();
    }
}
