//! How many seats a level could have used lately: in use and waited for, weighed by time.
//!
//! Source: `apiserver/pkg/util/flowcontrol/fairqueuing/integrator.go`, `seatDemandStats`.

use std::time::Instant;

/// Half of the past is forgotten in 5 minutes of adjustments, 10 s each.
const SMOOTHING: f64 = 0.977;

/// Integrates the demand since it was last asked.
#[derive(Debug)]
pub struct Demand {
    seats: usize,
    since: Instant,
    /// Seat-seconds, and their squares.
    sum: f64,
    squares: f64,
    seconds: f64,
    high: usize,
    smoothed: f64,
}

/// The demand between two adjustments, in seats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    pub high: usize,
    pub average: f64,
    pub deviation: f64,
    /// Follows rises at once and falls slowly.
    pub smoothed: f64,
}

impl Demand {
    pub fn new(now: Instant) -> Self {
        Self { seats: 0, since: now, sum: 0.0, squares: 0.0, seconds: 0.0, high: 0, smoothed: 0.0 }
    }

    /// From now on it is so many seats.
    pub fn set(&mut self, seats: usize, now: Instant) {
        self.advance(now);
        self.seats = seats;
        self.high = self.high.max(seats);
    }

    fn advance(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        let seats = self.seats as f64;
        self.sum += seats * seconds;
        self.squares += seats * seats * seconds;
        self.seconds += seconds;
        self.since = now;
    }

    /// What was seen since the last call.
    pub fn take(&mut self, now: Instant) -> Observed {
        self.advance(now);
        let mut seen = Observed { high: self.high, smoothed: self.smoothed, ..Observed::default() };
        if self.seconds > 0.0 {
            seen.average = self.sum / self.seconds;
            seen.deviation = (self.squares / self.seconds - seen.average * seen.average).max(0.0).sqrt();
            let envelope = seen.average + seen.deviation;
            seen.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
        }
        *self = Self { seats: self.seats, high: self.seats, smoothed: seen.smoothed, ..Self::new(now) };
        seen
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn demand_is_weighed_by_time_and_fades_slowly() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut demand = Demand::new(start);
        demand.set(8, at(0));
        demand.set(0, at(5));
        let first = demand.take(at(10));
        assert_eq!((first.high, first.average, first.deviation, first.smoothed), (8, 4.0, 4.0, 8.0));
        let second = demand.take(at(20));
        assert_eq!((second.high, second.average), (0, 0.0));
        assert!((second.smoothed - 8.0 * SMOOTHING).abs() < 1e-9, "{second:?}");
        demand.set(3, at(20));
        assert_eq!(demand.take(at(20)).high, 3, "without time passing only the high mark is known");
    }
}
