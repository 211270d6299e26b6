//! What is counted of flows, under upstream's names (`apiserver_flowcontrol_…`).
//!
//! Source: `apiserver/pkg/util/flowcontrol/metrics`.

use std::sync::Arc;
use std::time::Duration;

use telemetry::prometheus::{self, Error, Gauge, GaugeVec, HistogramOpts, Opts, core::Collector};
use telemetry::striped::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

const BOTH: [&str; 2] = ["priority_level", "flow_schema"];
const SECONDS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

/// The families.
#[derive(Clone)]
pub struct Families {
    rejected: IntCounterVec,
    dispatched: IntCounterVec,
    executing: IntGaugeVec,
    executing_seats: IntGaugeVec,
    queued: IntGaugeVec,
    queued_seats: IntGaugeVec,
    waited: HistogramVec,
    took: HistogramVec,
    seats: HistogramVec,
    /// Nominal, lower, upper, current.
    limits: [prometheus::IntGaugeVec; 4],
    /// High mark, average, deviation, smoothed, target.
    demand: [GaugeVec; 5],
    fair: Gauge,
}

/// Registers with the process's registry; a second server in the process counts for itself only.
fn registered<C: Collector + Clone + 'static>(made: Result<C, Error>) -> Result<C, Error> {
    let made = made?;
    let _ = telemetry::registry().register(Box::new(made.clone()));
    Ok(made)
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("apiserver").subsystem("flowcontrol")
}

fn histogram(name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> Result<HistogramVec, Error> {
    let options = HistogramOpts { common_opts: opts(name, help), buckets: buckets.to_vec() };
    registered(HistogramVec::new(options, labels))
}

impl Families {
    pub fn new() -> Result<Self, Error> {
        let gauge = |name: &str, help: &str| registered(IntGaugeVec::new(opts(name, help), &BOTH));
        let limit = |name: &str, help: &str| registered(prometheus::IntGaugeVec::new(opts(name, help), &BOTH[..1]));
        let demand = |name: &str, help: &str| registered(GaugeVec::new(opts(name, help), &BOTH[..1]));
        let with = |more: &'static str| [BOTH[0], BOTH[1], more];
        Ok(Self {
            rejected: registered(IntCounterVec::new(
                opts("rejected_requests_total", "Number of requests rejected by API Priority and Fairness subsystem"),
                &with("reason"),
            ))?,
            dispatched: registered(IntCounterVec::new(
                opts("dispatched_requests_total", "Number of requests executed by API Priority and Fairness subsystem"),
                &BOTH,
            ))?,
            executing: gauge("current_executing_requests", "Number of requests being executed")?,
            executing_seats: gauge("current_executing_seats", "Seats occupied by the requests being executed")?,
            queued: gauge("current_inqueue_requests", "Number of requests pending in queues")?,
            queued_seats: gauge("current_inqueue_seats", "Number of seats that requests pending in queues want")?,
            waited: histogram("request_wait_duration_seconds", "Time a request spent waiting in its queue", &SECONDS, &with("execute"))?,
            took: histogram(
                "request_execution_seconds",
                "Duration of a request's execution (of a watch: of its beginning)",
                &SECONDS,
                &with("type"),
            )?,
            seats: histogram(
                "work_estimated_seats",
                "Number of seats estimated for requests",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0],
                &BOTH,
            )?,
            limits: [
                limit("nominal_limit_seats", "Nominal number of execution seats configured for each priority level")?,
                limit("lower_limit_seats", "Configured lower bound on number of execution seats available to each priority level")?,
                limit("upper_limit_seats", "Configured upper bound on number of execution seats available to each priority level")?,
                limit("current_limit_seats", "Current derived number of execution seats available to each priority level")?,
            ],
            demand: [
                demand("demand_seats_high_watermark", "High watermark, over last adjustment period, of demand_seats")?,
                demand("demand_seats_average", "Time-weighted average, over last adjustment period, of demand_seats")?,
                demand("demand_seats_stdev", "Time-weighted standard deviation, over last adjustment period, of demand_seats")?,
                demand("demand_seats_smoothed", "Smoothed seat demands")?,
                demand("target_seats", "Seat allocation targets")?,
            ],
            fair: registered(Gauge::with_opts(opts(
                "seat_fair_frac",
                "Fair fraction of server's concurrency to allocate to each priority level that can use it",
            )))?,
        })
    }

    /// The metrics of one schema's requests in its level.
    pub fn of(&self, level: &str, schema: &str) -> Arc<Counted> {
        let both = [level, schema];
        let histogram = |family: &HistogramVec, more: &str| family.with_label_values(&[level, schema, more]);
        Arc::new(Counted {
            rejected: self.rejected.clone(),
            names: [level.to_owned(), schema.to_owned()],
            dispatched: self.dispatched.with_label_values(&both),
            executing: self.executing.with_label_values(&both),
            executing_seats: self.executing_seats.with_label_values(&both),
            queued: self.queued.with_label_values(&both),
            queued_seats: self.queued_seats.with_label_values(&both),
            waited: [histogram(&self.waited, "false"), histogram(&self.waited, "true")],
            took: [histogram(&self.took, "regular"), histogram(&self.took, "watch")],
            seats: self.seats.with_label_values(&both),
        })
    }

    pub fn set_limits(&self, level: &str, limits: &super::borrow::Limits, current: usize) {
        for (gauge, seats) in self.limits.iter().zip([limits.nominal, limits.min, limits.max, current]) {
            gauge.with_label_values(&[level]).set(i64::try_from(seats).unwrap_or(i64::MAX));
        }
    }

    pub fn set_demand(&self, level: &str, want: &super::borrow::Want) {
        let seen = want.demand;
        for (gauge, seats) in self.demand.iter().zip([seen.high as f64, seen.average, seen.deviation, seen.smoothed, want.target()]) {
            gauge.with_label_values(&[level]).set(seats);
        }
    }

    pub fn set_fair(&self, fraction: f64) {
        self.fair.set(fraction);
    }

    /// A level that is gone has no limits any more.
    pub fn forget(&self, level: &str) {
        self.limits.iter().for_each(|gauge| drop(gauge.remove_label_values(&[level])));
        self.demand.iter().for_each(|gauge| drop(gauge.remove_label_values(&[level])));
    }
}

/// What the requests of one schema in its level count.
#[derive(Debug)]
pub struct Counted {
    rejected: IntCounterVec,
    names: [String; 2],
    dispatched: IntCounter,
    executing: IntGauge,
    executing_seats: IntGauge,
    queued: IntGauge,
    queued_seats: IntGauge,
    /// Not executed, executed.
    waited: [Histogram; 2],
    /// Regular, watch.
    took: [Histogram; 2],
    seats: Histogram,
}

fn signed(seats: usize) -> i64 {
    i64::try_from(seats).unwrap_or(i64::MAX)
}

impl Counted {
    pub fn schema(&self) -> &str {
        &self.names[1]
    }
    pub fn rejected(&self, why: &str) {
        let [level, schema] = &self.names;
        self.rejected.with_label_values(&[level.as_str(), schema.as_str(), why]).inc();
    }
    pub fn estimated(&self, seats: usize) {
        self.seats.observe(seats as f64);
    }
    pub fn starts(&self, seats: usize) {
        self.dispatched.inc();
        self.executing.inc();
        self.executing_seats.add(signed(seats));
    }
    pub fn left(&self, seats: usize, took: Duration, is_watch: bool) {
        self.executing.dec();
        self.executing_seats.sub(signed(seats));
        self.took[usize::from(is_watch)].observe(took.as_secs_f64());
    }
    pub fn waits(&self, seats: usize) {
        self.queued.inc();
        self.queued_seats.add(signed(seats));
    }
    pub fn waited(&self, seats: usize, time: Duration, served: bool) {
        self.queued.dec();
        self.queued_seats.sub(signed(seats));
        self.waited[usize::from(served)].observe(time.as_secs_f64());
    }

    /// For tests: nobody reads it.
    #[cfg(test)]
    pub fn nowhere() -> Arc<Self> {
        Families::new().expect("families").of("level", "schema")
    }
}
