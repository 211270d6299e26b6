//! Exponential back-off with jitter, as a value that owns no clock.

use std::time::Duration;

/// Waits that double from `first` up to `max`, each with up to a fifth of random extra so that many do not retry together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }
    /// The wait after one more failure.
    pub fn next_wait(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(self.failures.min(31)).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        let wait = doubled.min(self.max);
        wait + wait.mul_f64(random_fraction() / 5.0)
    }
    pub fn failures(&self) -> u32 {
        self.failures
    }
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Uniform in [0, 1).
fn random_fraction() -> f64 {
    let mut bytes = [0u8; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over_after_reset() {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        let waits: Vec<u64> = (0..7).map(|_| backoff.next_wait().as_secs()).collect();
        for (wait, base) in waits.iter().zip([10, 20, 40, 80, 160, 300, 300]) {
            assert!((base..=base + base / 5).contains(wait), "{wait} for {base}");
        }
        backoff.reset();
        assert!(backoff.next_wait() < Duration::from_secs(13));
    }
}
