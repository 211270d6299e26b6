//! The scheduler's metrics, under upstream's names.

use std::sync::OnceLock;

use telemetry::prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts};

pub struct Metrics {
    /// By `profile` and `result` (scheduled, unschedulable, error).
    pub attempts: IntCounterVec,
    /// Seconds, by `profile` and `result`.
    pub attempt_duration: HistogramVec,
    /// Seconds from a pod's arrival in the queue to its binding, by `attempts`.
    pub sli_duration: HistogramVec,
    pub algorithm_duration: Histogram,
    /// Tries that a scheduled pod took.
    pub pod_attempts: Histogram,
    /// By `queue` (active, backoff, unschedulable, gated).
    pub pending: IntGaugeVec,
    /// By `plugin` and `profile`.
    pub unschedulable: IntGaugeVec,
    /// By `type` (nodes, pods, assumed_pods).
    pub cache_size: IntGaugeVec,
    pub preemption_attempts: IntCounter,
    pub preemption_victims: Histogram,
    /// By `event` and `queue`.
    pub incoming: IntCounterVec,
}

pub fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let metrics = Metrics::new().unwrap_or_else(|error| unreachable!("the names of the scheduler's metrics are valid: {error}"));
        metrics.register();
        metrics
    })
}

impl Metrics {
    fn new() -> Result<Self, telemetry::prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let gauges = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let times = || (0..15).map(|power| 0.001 * 2f64.powi(power)).collect::<Vec<_>>();
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| HistogramOpts::new(name, help).buckets(buckets);
        Ok(Self {
            attempts: counters(
                "scheduler_schedule_attempts_total",
                "Number of attempts to schedule pods, by the result.",
                &["profile", "result"],
            )?,
            attempt_duration: HistogramVec::new(
                histogram(
                    "scheduler_scheduling_attempt_duration_seconds",
                    "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
                    times(),
                ),
                &["profile", "result"],
            )?,
            sli_duration: HistogramVec::new(
                histogram(
                    "scheduler_pod_scheduling_sli_duration_seconds",
                    "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue.",
                    (0..20).map(|power| 0.01 * 2f64.powi(power)).collect(),
                ),
                &["attempts"],
            )?,
            algorithm_duration: Histogram::with_opts(histogram(
                "scheduler_scheduling_algorithm_duration_seconds",
                "Scheduling algorithm latency in seconds",
                times(),
            ))?,
            pod_attempts: Histogram::with_opts(histogram(
                "scheduler_pod_scheduling_attempts",
                "Number of attempts to successfully schedule a pod.",
                (0..5).map(|power| 2f64.powi(power)).collect(),
            ))?,
            pending: gauges("scheduler_pending_pods", "Number of pending pods, by the queue type.", &["queue"])?,
            unschedulable: gauges(
                "scheduler_unschedulable_pods",
                "The number of unschedulable pods broken down by plugin name.",
                &["plugin", "profile"],
            )?,
            cache_size: gauges(
                "scheduler_cache_size",
                "Number of nodes, pods, and assumed (bound) pods in the scheduler cache.",
                &["type"],
            )?,
            preemption_attempts: IntCounter::new(
                "scheduler_preemption_attempts_total",
                "Total preemption attempts in the cluster till now",
            )?,
            preemption_victims: Histogram::with_opts(histogram(
                "scheduler_preemption_victims",
                "Number of selected preemption victims",
                (0..7).map(|power| 2f64.powi(power)).collect(),
            ))?,
            incoming: counters(
                "scheduler_queue_incoming_pods_total",
                "Number of pods added to scheduling queues by event and queue type.",
                &["event", "queue"],
            )?,
        })
    }

    /// Registering twice in one process (tests) keeps the first.
    fn register(&self) {
        let registry = telemetry::registry();
        let all: [Box<dyn telemetry::prometheus::core::Collector>; 11] = [
            Box::new(self.attempts.clone()),
            Box::new(self.attempt_duration.clone()),
            Box::new(self.sli_duration.clone()),
            Box::new(self.algorithm_duration.clone()),
            Box::new(self.pod_attempts.clone()),
            Box::new(self.pending.clone()),
            Box::new(self.unschedulable.clone()),
            Box::new(self.cache_size.clone()),
            Box::new(self.preemption_attempts.clone()),
            Box::new(self.preemption_victims.clone()),
            Box::new(self.incoming.clone()),
        ];
        all.into_iter().for_each(|collector| drop(registry.register(collector)));
    }
}
