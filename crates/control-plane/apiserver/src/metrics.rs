//! The server's metrics, under upstream's names.
//!
//! Source: apiserver `pkg/endpoints/metrics`, `pkg/storage/etcd3/metrics`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use telemetry::prometheus::{self, HistogramOpts, Opts};
use telemetry::striped::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::Inner;
use crate::audit::policy::Level;
use crate::context::Context;
use crate::registry::catalog::Kind;
use crate::request::RequestInfo;

/// Upstream's labels; the durations have all but the last.
const REQUEST_LABELS: [&str; 9] = ["verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component", "code"];
const LONG_LABELS: [&str; 7] = ["verb", "group", "version", "resource", "subresource", "scope", "component"];
const COMPONENT: &str = "apiserver";

pub struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    sizes: HistogramVec,
    /// Of requests that read, and of those that write.
    inflight: [IntGauge; 2],
    long_running: IntGaugeVec,
    watch_events: IntCounterVec,
    watch_sizes: HistogramVec,
    objects: prometheus::IntGaugeVec,
    objects_by_group: prometheus::IntGaugeVec,
    /// Watches that are open now.
    watches: Arc<AtomicI64>,
    /// What was found by its labels once: nine of them cost more to look up than a small object to read.
    series: ArcSwap<HashMap<SeriesKey, Arc<Series>>>,
    pub audit_dropped: IntCounter,
    audit_events: IntCounter,
    audit_levels: [IntCounter; 3],
}

/// What tells series apart: a resource in a version, verb, dry run, subresource, scope, code.
type SeriesKey = (usize, &'static str, bool, &'static str, &'static str, u16);

/// One request of this kind more.
struct Series {
    requests: IntCounter,
    /// A watch lasts as long as its client likes: that is no latency.
    latency: Option<(Histogram, Histogram)>,
}

impl Series {
    fn observe(&self, took: Duration, size: Option<u64>) {
        self.requests.inc();
        if let Some((durations, sizes)) = &self.latency {
            durations.observe(took.as_secs_f64());
            if let Some(size) = size {
                sizes.observe(size as f64);
            }
        }
    }
}

/// Counts something for as long as it lives.
pub struct Counted {
    gauge: IntGauge,
    also: Option<Arc<AtomicI64>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.dec();
        if let Some(also) = &self.also {
            also.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What a watch counts: itself while it is open, and its events.
pub struct Watched {
    events: IntCounter,
    sizes: Histogram,
    _open: Counted,
}

impl Watched {
    /// So many events went out in one piece of so many bytes.
    pub fn sent(&self, events: u64, bytes: usize) {
        self.events.inc_by(events);
        self.sizes.observe(bytes as f64 / events.max(1) as f64);
    }
}

impl Metrics {
    /// Registers with the process's registry; a second server in the process counts for itself only.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = telemetry::registry();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            let _ = registry.register(Box::new(counter.clone()));
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            let _ = registry.register(Box::new(gauge.clone()));
            Ok::<_, prometheus::Error>(gauge)
        };
        let stored = |name: &str, labels: &[&str]| {
            let opts = Opts::new(name, "Number of stored objects at the time of last check split by kind.");
            let gauge = prometheus::IntGaugeVec::new(opts, labels)?;
            let _ = registry.register(Box::new(gauge.clone()));
            Ok::<_, prometheus::Error>(gauge)
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>, labels: &[&str]| {
            let histogram = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?;
            let _ = registry.register(Box::new(histogram.clone()));
            Ok::<_, prometheus::Error>(histogram)
        };
        let seconds = vec![
            0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
        ];
        let build = gauge(
            "kubernetes_build_info",
            "A metric with a constant '1' value labeled by major, minor, git version, platform and compiler.",
            &["major", "minor", "git_version", "compiler", "platform"],
        )?;
        build.with_label_values(&["1", "37", crate::health::KUBERNETES_VERSION, "rustc", &crate::health::platform()]).inc();
        let single = |name: &str, help: &str| counter(name, help, &[]).map(|family| family.with_label_values::<&str>(&[]));
        let audit_dropped = single("apiserver_audit_error_total", "Counter of audit events that failed to be audited properly.")?;
        let audit_events = single("apiserver_audit_event_total", "Counter of audit events generated and sent to the audit backend.")?;
        let levels = counter("apiserver_audit_level_total", "Counter of policy levels for audit events (1 per request).", &["level"])?;
        let inflight = gauge(
            "apiserver_current_inflight_requests",
            "Maximal number of currently used inflight request limit of this apiserver per request kind in last second.",
            &["request_kind"],
        )?;
        Ok(Self {
            requests: counter(
                "apiserver_request_total",
                "Counter of apiserver requests broken out for each verb, group, version, resource and HTTP response code.",
                &REQUEST_LABELS,
            )?,
            duration: histogram(
                "apiserver_request_duration_seconds",
                "Response latency distribution in seconds for each verb, group, version, resource.",
                seconds,
                &REQUEST_LABELS[..REQUEST_LABELS.len() - 1],
            )?,
            sizes: histogram(
                "apiserver_response_sizes",
                "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.",
                vec![1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9],
                &LONG_LABELS,
            )?,
            inflight: ["readOnly", "mutating"].map(|kind| inflight.with_label_values(&[kind])),
            long_running: gauge(
                "apiserver_longrunning_requests",
                "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component.",
                &LONG_LABELS,
            )?,
            watch_events: counter(
                "apiserver_watch_events_total",
                "Number of events sent in watch clients",
                &["group", "version", "resource"],
            )?,
            watch_sizes: histogram(
                "apiserver_watch_events_sizes",
                "Watch event size distribution in bytes",
                vec![1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0, 65_536.0, 131_072.0],
                &["group", "version", "resource"],
            )?,
            objects: stored("apiserver_storage_objects", &["resource"])?,
            objects_by_group: stored("apiserver_resource_objects", &["group", "resource"])?,
            watches: Arc::default(),
            series: ArcSwap::default(),
            audit_levels: ["Metadata", "Request", "RequestResponse"].map(|level| levels.with_label_values(&[level])),
            audit_events,
            audit_dropped,
        })
    }

    /// An event of this level was handed on.
    pub fn audited(&self, level: Level) {
        self.audit_events.inc();
        let at = match level {
            Level::None => return,
            Level::Metadata => 0,
            Level::Request => 1,
            Level::RequestResponse => 2,
        };
        self.audit_levels[at].inc();
    }

    /// A request that is answered at once counts while it runs.
    pub fn inflight(&self, context: &Context) -> Option<Counted> {
        let info = &context.info;
        if info.is_long_running() || !info.is_resource {
            return None;
        }
        let writes = matches!(info.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
        let gauge = self.inflight[usize::from(writes)].clone();
        gauge.inc();
        Some(Counted { gauge, also: None })
    }

    /// Watches that are open now.
    pub fn watches(&self) -> i64 {
        self.watches.load(Ordering::Relaxed)
    }

    /// A watch that begins.
    pub fn watched(&self, context: &Context, kind: &Kind) -> Watched {
        let info = &context.info;
        let labels = [kind.facts.group, kind.facts.version, kind.facts.plural];
        let gauge = self.long_running.with_label_values(&long_labels(info, "WATCH"));
        gauge.inc();
        self.watches.fetch_add(1, Ordering::Relaxed);
        Watched {
            events: self.watch_events.with_label_values(&labels),
            sizes: self.watch_sizes.with_label_values(&labels),
            _open: Counted { gauge, also: Some(self.watches.clone()) },
        }
    }

    /// Only served resources become labels: a client cannot make new series. `size` is the body's, where that is known.
    pub fn observe(&self, server: &Inner, context: &Context, code: u16, took: Duration, size: Option<u64>) {
        let info = &context.info;
        if !info.is_resource || info.verb.is_empty() {
            return;
        }
        let Some(kind) = server.kind(&info.group, &info.version, &info.resource) else { return };
        let subresource = match info.subresource.as_str() {
            "" => "",
            name => match kind.subresource(name) {
                Some(found) => found.name,
                None => return,
            },
        };
        let dry_run = context.query.text("dryRun").is_some_and(|word| word == "All");
        let key = (std::ptr::from_ref(kind.facts) as usize, verb(context), dry_run, subresource, scope(info), code);
        match self.series.load().get(&key) {
            Some(series) => series.observe(took, size),
            None => self.series_of(key, &kind).observe(took, size),
        }
    }

    fn series_of(&self, key: SeriesKey, kind: &Kind) -> Arc<Series> {
        let (_, verb, dry_run, subresource, scope, code) = key;
        let (group, version, resource) = (kind.facts.group, kind.facts.version, kind.facts.plural);
        let dry_run = if dry_run { "All" } else { "" };
        let mut digits = [0_u8; 3];
        let code = three_digits(code, &mut digits);
        let labels = [verb, dry_run, group, version, resource, subresource, scope, COMPONENT, code];
        let latency = || {
            let durations = self.duration.with_label_values(&labels[..labels.len() - 1]);
            (durations, self.sizes.with_label_values(&[verb, group, version, resource, subresource, scope, COMPONENT]))
        };
        let endless = verb == "WATCH" || verb == "CONNECT";
        let series = Arc::new(Series { requests: self.requests.with_label_values(&labels), latency: (!endless).then(latency) });
        self.series.rcu(|known| {
            let mut more = HashMap::clone(known);
            more.insert(key, series.clone());
            more
        });
        series
    }

    /// Everything in the text format; what is only looked at then is counted first.
    pub fn exposition(&self, server: &Inner) -> String {
        for (prefix, count) in server.registry.caches.counts() {
            let Some((group, resource)) = resource_of(&prefix) else { continue };
            let joined = if group.is_empty() { resource.clone() } else { format!("{resource}.{group}") };
            self.objects.with_label_values(&[&joined]).set(count as i64);
            self.objects_by_group.with_label_values(&[&group, &resource]).set(count as i64);
        }
        server.flow.measure(&server.registry.caches);
        telemetry::exposition()
    }
}

/// Group and plural of what is stored below a prefix.
fn resource_of(prefix: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(prefix).ok()?;
    if let Some(kind) = crate::registry::catalog::all().iter().find(|kind| kind.storage.prefix == text && !kind.converts()) {
        return Some((kind.facts.group.to_owned(), kind.facts.plural.to_owned()));
    }
    let (group, plural) = text.strip_prefix("/registry/")?.trim_end_matches('/').split_once('/')?;
    Some((group.to_owned(), plural.to_owned()))
}

fn verb(context: &Context) -> &'static str {
    let info = &context.info;
    if matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy") {
        return "CONNECT";
    }
    let applies = || crate::negotiate::content_type(&context.headers).starts_with("application/apply-patch");
    match info.verb.as_str() {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" => "POST",
        "update" => "PUT",
        "patch" if applies() => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "other",
    }
}

fn long_labels<'a>(info: &'a RequestInfo, verb: &'a str) -> [&'a str; 7] {
    [verb, &info.group, &info.version, &info.resource, &info.subresource, scope(info), COMPONENT]
}

fn three_digits(code: u16, digits: &mut [u8; 3]) -> &str {
    *digits = [b'0' + (code / 100 % 10) as u8, b'0' + (code / 10 % 10) as u8, b'0' + (code % 10) as u8];
    std::str::from_utf8(digits).unwrap_or_default()
}

/// The text format as OpenMetrics 1.0 wants it: a counter's family has no `_total`, its samples have, and the end is marked.
pub fn open_metrics(text: &str) -> String {
    let counters: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(text.len() + 64);
    for line in text.lines() {
        let family = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).and_then(|rest| rest.split(' ').next());
        match family.filter(|family| counters.contains(family)) {
            Some(family) => match family.strip_suffix("_total") {
                Some(short) => out.push_str(&line.replacen(family, short, 1)),
                None => out.push_str(&line.replace(" counter", " unknown")),
            },
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out.push_str("# EOF\n");
    out
}

fn scope(info: &RequestInfo) -> &'static str {
    match (info.name.is_empty() && info.verb != "create", info.namespace.is_empty()) {
        (false, _) => "resource",
        (true, false) => "namespace",
        (true, true) => "cluster",
    }
}
