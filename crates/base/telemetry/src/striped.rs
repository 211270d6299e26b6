//! Metrics that many threads count at once.
//!
//! A request counts some forty things. With one number for each, the threads that serve pass its cache line to and fro, which takes longer than
//! reading a small object. Here every thread counts in a stripe of its own; whoever looks adds the stripes up. Names and methods are those of
//! [`prometheus`], into whose registry the families go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use prometheus::core::{Collector, Desc, Describer};
use prometheus::proto::{self, MetricType};
use prometheus::{Error, HistogramOpts, Opts};

/// Threads beyond this share stripes.
const STRIPES: usize = 8;

/// The calling thread's.
fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    }
    MINE.try_with(|mine| *mine).unwrap_or(0)
}

/// Some numbers, in as many copies as threads have counted.
#[derive(Debug)]
struct Tally {
    width: usize,
    stripes: [OnceLock<Box<[AtomicU64]>>; STRIPES],
}

impl Tally {
    fn new(width: usize) -> Arc<Self> {
        Arc::new(Self { width, stripes: Default::default() })
    }

    fn mine(&self) -> &[AtomicU64] {
        self.stripes[stripe()].get_or_init(|| (0..self.width).map(|_| AtomicU64::new(0)).collect())
    }

    /// Of every stripe the number at a place.
    fn all(&self, at: usize) -> impl Iterator<Item = u64> {
        self.stripes.iter().filter_map(OnceLock::get).map(move |numbers| numbers[at].load(Ordering::Relaxed))
    }

    /// Wraps around, so that what one thread added another may take away.
    fn sum(&self, at: usize) -> u64 {
        self.all(at).fold(0, u64::wrapping_add)
    }
}

/// What a family consists of.
trait Member: Clone + Send + Sync {
    const KIND: MetricType;
    fn new(buckets: &Arc<[f64]>) -> Self;
    fn write(&self, metric: &mut proto::Metric);
}

/// Members by their labels' values.
struct Family<T> {
    desc: Desc,
    buckets: Arc<[f64]>,
    members: RwLock<HashMap<Vec<String>, T>>,
}

impl<T: Member> Family<T> {
    fn new(opts: &Opts, buckets: Vec<f64>, labels: &[&str]) -> Result<Arc<Self>, Error> {
        let opts = labels.iter().fold(opts.clone(), |opts, label| opts.variable_label(*label));
        Ok(Arc::new(Self { desc: opts.describe()?, buckets: buckets.into(), members: RwLock::default() }))
    }

    fn with_label_values<V: AsRef<str>>(&self, values: &[V]) -> T {
        debug_assert_eq!(values.len(), self.desc.variable_labels.len(), "{}", self.desc.fq_name);
        let values: Vec<String> = values.iter().map(|value| value.as_ref().to_owned()).collect();
        if let Some(member) = self.members.read().unwrap_or_else(PoisonError::into_inner).get(&values) {
            return member.clone();
        }
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members.entry(values).or_insert_with(|| T::new(&self.buckets)).clone()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let label = |(name, value): (&String, &String)| {
            let mut label = proto::LabelPair::default();
            label.set_name(name.clone());
            label.set_value(value.clone());
            label
        };
        let metric = |(values, member): (&Vec<String>, &T)| {
            let mut labels: Vec<_> = self.desc.variable_labels.iter().zip(values).map(label).collect();
            labels.sort_by(|a, b| a.name().cmp(b.name()));
            let mut metric = proto::Metric::from_label(labels);
            member.write(&mut metric);
            metric
        };
        let mut family = proto::MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(T::KIND);
        family.set_metric(self.members.read().unwrap_or_else(PoisonError::into_inner).iter().map(metric).collect());
        vec![family]
    }
}

/// A number that only grows.
#[derive(Clone, Debug)]
pub struct IntCounter(Arc<Tally>);

impl IntCounter {
    pub fn inc(&self) {
        self.inc_by(1);
    }
    pub fn inc_by(&self, more: u64) {
        self.0.mine()[0].fetch_add(more, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.sum(0)
    }
}

impl Member for IntCounter {
    const KIND: MetricType = MetricType::COUNTER;
    fn new(_: &Arc<[f64]>) -> Self {
        Self(Tally::new(1))
    }
    fn write(&self, metric: &mut proto::Metric) {
        let mut counter = proto::Counter::default();
        counter.set_value(self.get() as f64);
        metric.set_counter(counter);
    }
}

/// A number of what there is now.
#[derive(Clone, Debug)]
pub struct IntGauge(Arc<Tally>);

impl IntGauge {
    pub fn inc(&self) {
        self.add(1);
    }
    pub fn dec(&self) {
        self.sub(1);
    }
    pub fn add(&self, more: i64) {
        self.0.mine()[0].fetch_add(more as u64, Ordering::Relaxed);
    }
    pub fn sub(&self, less: i64) {
        self.0.mine()[0].fetch_sub(less as u64, Ordering::Relaxed);
    }
    pub fn get(&self) -> i64 {
        self.0.sum(0) as i64
    }
}

impl Member for IntGauge {
    const KIND: MetricType = MetricType::GAUGE;
    fn new(_: &Arc<[f64]>) -> Self {
        Self(Tally::new(1))
    }
    fn write(&self, metric: &mut proto::Metric) {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(self.get() as f64);
        metric.set_gauge(gauge);
    }
}

/// How values are distributed: how many are in each bucket and, after the buckets, beyond all of them and the sum (as the bits of an f64).
#[derive(Clone, Debug)]
pub struct Histogram {
    tally: Arc<Tally>,
    /// The largest value of each, ascending.
    buckets: Arc<[f64]>,
}

impl Histogram {
    pub fn observe(&self, value: f64) {
        let numbers = self.tally.mine();
        // Most values are small.
        let at = self.buckets.iter().position(|bound| value <= *bound).unwrap_or(self.buckets.len());
        numbers[at].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        let _ = numbers[self.buckets.len() + 1].fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
    pub fn get_sample_count(&self) -> u64 {
        (0..=self.buckets.len()).map(|at| self.tally.sum(at)).sum()
    }
    pub fn get_sample_sum(&self) -> f64 {
        self.tally.all(self.buckets.len() + 1).map(f64::from_bits).sum()
    }
}

impl Member for Histogram {
    const KIND: MetricType = MetricType::HISTOGRAM;
    fn new(buckets: &Arc<[f64]>) -> Self {
        Self { tally: Tally::new(buckets.len() + 2), buckets: buckets.clone() }
    }
    fn write(&self, metric: &mut proto::Metric) {
        let mut below = 0;
        let bucket = |(at, bound): (usize, &f64)| {
            below += self.tally.sum(at);
            let mut bucket = proto::Bucket::default();
            bucket.set_cumulative_count(below);
            bucket.set_upper_bound(*bound);
            bucket
        };
        let buckets = self.buckets.iter().enumerate().map(bucket).collect();
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        // Of the same look as the buckets: a count below them would be nonsense.
        histogram.set_sample_count(below + self.tally.sum(self.buckets.len()));
        histogram.set_sample_sum(self.get_sample_sum());
        metric.set_histogram(histogram);
    }
}

/// Makes the family type of a member.
macro_rules! family {
    ($(#[$doc:meta])* $family:ident of $member:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $family(Arc<Family<$member>>);

        impl $family {
            /// The member with these values, in the order of the family's labels; made where there is none yet.
            pub fn with_label_values<V: AsRef<str>>(&self, values: &[V]) -> $member {
                self.0.with_label_values(values)
            }
        }

        impl std::fmt::Debug for $family {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($family)).field(&self.0.desc.fq_name).finish()
            }
        }

        impl Collector for $family {
            fn desc(&self) -> Vec<&Desc> {
                vec![&self.0.desc]
            }
            fn collect(&self) -> Vec<proto::MetricFamily> {
                self.0.collect()
            }
        }
    };
}

family!(
    /// Counters by labels.
    IntCounterVec of IntCounter
);
family!(
    /// Gauges by labels.
    IntGaugeVec of IntGauge
);
family!(
    /// Histograms by labels.
    HistogramVec of Histogram
);

impl IntCounterVec {
    pub fn new(opts: Opts, labels: &[&str]) -> Result<Self, Error> {
        Family::new(&opts, Vec::new(), labels).map(Self)
    }
}

impl IntGaugeVec {
    pub fn new(opts: Opts, labels: &[&str]) -> Result<Self, Error> {
        Family::new(&opts, Vec::new(), labels).map(Self)
    }
}

impl HistogramVec {
    pub fn new(opts: HistogramOpts, labels: &[&str]) -> Result<Self, Error> {
        Family::new(&opts.common_opts, opts.buckets, labels).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_counted_is_told_as_one_in_the_format_of_prometheus() {
        let asked = IntCounterVec::new(Opts::new("asked_total", "Requests."), &["verb", "code"]).unwrap();
        let open = IntGaugeVec::new(Opts::new("open", "Open now.").namespace("a").subsystem("b"), &[]).unwrap();
        let took = HistogramVec::new(HistogramOpts::new("took_seconds", "Time.").buckets(vec![0.5, 2.0]), &["verb"]).unwrap();
        let (counter, gauge, histogram) =
            (asked.with_label_values(&["get", "200"]), open.with_label_values::<&str>(&[]), took.with_label_values(&["get"]));
        // More threads than stripes; what one opens another closes.
        std::thread::scope(|scope| {
            for number in 0..2 * STRIPES {
                let (counter, gauge, histogram) = (&counter, &gauge, &histogram);
                scope.spawn(move || {
                    counter.inc_by(3);
                    if number % 2 == 0 {
                        gauge.add(2)
                    } else {
                        gauge.dec()
                    }
                    histogram.observe([0.25, 0.5, 1.0, 4.0][number % 4]);
                });
            }
        });
        asked.with_label_values(&["list", "200"]).inc();
        let registry = prometheus::Registry::new();
        registry.register(Box::new(asked)).unwrap();
        registry.register(Box::new(open)).unwrap();
        registry.register(Box::new(took)).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let wanted = "\
# HELP a_b_open Open now.
# TYPE a_b_open gauge
a_b_open 8
# HELP asked_total Requests.
# TYPE asked_total counter
asked_total{code=\"200\",verb=\"get\"} 48
asked_total{code=\"200\",verb=\"list\"} 1
# HELP took_seconds Time.
# TYPE took_seconds histogram
took_seconds_bucket{verb=\"get\",le=\"0.5\"} 8
took_seconds_bucket{verb=\"get\",le=\"2\"} 12
took_seconds_bucket{verb=\"get\",le=\"+Inf\"} 16
took_seconds_sum{verb=\"get\"} 23
took_seconds_count{verb=\"get\"} 16
";
        assert_eq!(text, wanted);
        assert_eq!((histogram.get_sample_count(), counter.get(), gauge.get()), (16, 48, 8));
    }
}
