//! Numbers of rounds: medians, spreads, percentiles, and the closed loop that makes load.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// A value over the rounds of a race.
#[derive(Clone, Copy, Debug, Serialize, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        Self {
            median: quantile(&sorted, 0.5),
            min: sorted.first().copied().unwrap_or(f64::NAN),
            max: sorted.last().copied().unwrap_or(f64::NAN),
        }
    }
}

pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The nearest value of a sorted list; NaN of an empty one.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((q * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

/// What one leg of a throughput race gave.
#[derive(Clone, Debug)]
pub struct Leg {
    pub per_second: f64,
    /// Milliseconds, sorted.
    pub latencies: Vec<f64>,
}

/// A closed loop: `writers` tasks, each with one request under way, until `length` is over. Request numbers count up over all tasks.
pub async fn closed_loop<F, Fut>(writers: usize, length: Duration, request: F) -> anyhow::Result<Leg>
where
    F: Fn(usize, u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send,
{
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let request = request.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < length {
                let sent = Instant::now();
                request(writer, NUMBER.fetch_add(1, Ordering::Relaxed)).await?;
                latencies.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(finished) = tasks.join_next().await {
        latencies.extend(finished??);
    }
    let per_second = latencies.len() as f64 / start.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    Ok(Leg { per_second, latencies })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_between_the_extremes() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!((quantile(&hundred, 0.5), quantile(&hundred, 0.99)), (50.0, 99.0));
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[tokio::test]
    async fn a_closed_loop_keeps_one_request_per_writer_under_way() {
        let leg = closed_loop(3, Duration::from_millis(20), |_, _| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(())
        });
        let leg = leg.await.unwrap();
        assert!(!leg.latencies.is_empty() && leg.per_second > 0.0);
    }
}
