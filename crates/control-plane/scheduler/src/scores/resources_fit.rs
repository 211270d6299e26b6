use super::MAX;
use crate::class::Class;
use crate::profile::{FitStrategy, Profile};
use crate::snapshot::Details;

/// How full the node would be, as the profile's strategy likes it.
pub(super) fn score(profile: &Profile, class: &Class, node: &Details) -> i64 {
    if profile.scores_cpu_and_memory_evenly() {
        let capacity = &node.facts.allocatable;
        let cpu = (capacity.milli_cpu, node.scored.milli_cpu + class.scored.milli_cpu);
        let memory = (capacity.memory, node.scored.memory + class.scored.memory);
        return weighted(&profile.fit_strategy, [(1, cpu.0, cpu.1), (1, memory.0, memory.1)].into_iter());
    }
    let amount = |(name, weight): &(String, i64)| {
        let capacity = node.facts.allocatable.get(name);
        let used = match name.as_str() {
            "cpu" | "memory" => node.scored.get(name) + class.scored.get(name),
            other => node.requested.get(other) + class.requests.get(other),
        };
        // What the pod does not ask for of the uncommon resources does not count (upstream does the same).
        let asked = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || class.requests.get(name) != 0;
        (*weight, if asked { capacity } else { 0 }, used)
    };
    weighted(&profile.fit_strategy, profile.fit_resources.iter().map(amount))
}

/// The weighted mean over (weight, capacity, used); resources that the node lacks do not count.
fn weighted(strategy: &FitStrategy, amounts: impl Iterator<Item = (i64, i64, i64)>) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (weight, capacity, used) in amounts.filter(|(_, capacity, _)| *capacity != 0) {
        let one = match strategy {
            FitStrategy::LeastAllocated => {
                if used > capacity {
                    0
                } else {
                    (capacity - used) * MAX / capacity
                }
            }
            FitStrategy::MostAllocated => used.min(capacity) * MAX / capacity,
            FitStrategy::RequestedToCapacityRatio(shape) => {
                let utilisation = if used > capacity { 100 } else { used * 100 / capacity };
                let one = ratio(shape, utilisation);
                // Upstream leaves out what scores nothing.
                if one == 0 {
                    continue;
                }
                one
            }
        };
        sum += one * weight;
        weights += weight;
    }
    match (weights, strategy) {
        (0, _) => 0,
        (weights, FitStrategy::RequestedToCapacityRatio(_)) => (sum as f64 / weights as f64).round() as i64,
        (weights, _) => sum / weights,
    }
}

/// The broken line through the points.
fn ratio(shape: &[(i64, i64)], at: i64) -> i64 {
    let Some(after) = shape.iter().position(|(utilisation, _)| at <= *utilisation) else {
        return shape.last().map_or(0, |(_, score)| *score);
    };
    let (x1, y1) = shape[after];
    match after.checked_sub(1).map(|before| shape[before]) {
        None => y1,
        Some((x0, y0)) => y0 + (y1 - y0) * (at - x0) / (x1 - x0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strategies_like_empty_full_and_half_full_nodes() {
        let half = FitStrategy::RequestedToCapacityRatio(vec![(0, 0), (50, 100), (100, 0)]);
        let cases = [
            (FitStrategy::LeastAllocated, 25, 75),
            (FitStrategy::LeastAllocated, 110, 0),
            (FitStrategy::MostAllocated, 25, 25),
            (FitStrategy::MostAllocated, 110, 100),
            (half.clone(), 50, 100),
            (half.clone(), 75, 50),
            (half, 100, 0),
        ];
        for (strategy, used, expected) in cases {
            assert_eq!(weighted(&strategy, [(1, 100, used), (5, 0, 7)].into_iter()), expected, "{strategy:?} at {used}");
        }
    }
}
