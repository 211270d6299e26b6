//! Seats are lent between levels: every 10 s each level's limit follows its demand, between what it never lends and what it may borrow.
//!
//! Source: KEP-1040 "Dispatching"; `apiserver/pkg/util/flowcontrol/conc_alloc.go`, `updateBorrowingLocked`.

use super::demand::Observed;

/// Bounds of a level's seats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Its share of the server's seats.
    pub nominal: usize,
    /// Without all that it lends.
    pub min: usize,
    /// With all that it may borrow.
    pub max: usize,
}

impl Limits {
    /// `percent`s are of the nominal seats; who names no limit of borrowing may borrow `seats_total`.
    pub fn new(nominal: usize, lendable_percent: u64, borrowing_percent: Option<u64>, seats_total: usize) -> Self {
        let part = |percent: u64| (nominal as f64 * percent as f64 / 100.0).round() as usize;
        let borrowed = borrowing_percent.map_or(seats_total, part);
        Self { nominal, min: nominal.saturating_sub(part(lendable_percent)), max: nominal + borrowed }
    }
}

/// What one level had and could use.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    pub exempt: bool,
    pub limits: Limits,
    pub demand: Observed,
}

impl Want {
    /// What it has at least: its demand, but no more than its own.
    fn floor(&self) -> usize {
        self.limits.min.max(self.limits.nominal.min(self.demand.high))
    }
    /// What it should have.
    pub fn target(&self) -> f64 {
        (self.floor() as f64).max(self.demand.smoothed)
    }
}

/// A target of nothing would get nothing of what is left over (upstream: `MinTarget`).
const TARGET_MIN: f64 = 0.001;

/// Seats of each level for the next while, and the fraction of its target that each gets (0: not even the floors fit).
pub fn divide(wants: &[Want]) -> (Vec<usize>, f64) {
    let total: usize = wants.iter().map(|want| want.limits.nominal).sum();
    let limited = || wants.iter().filter(|want| !want.exempt);
    // Who is exempt takes what it needs; the rest is what remains.
    let exempt: usize = wants.iter().filter(|want| want.exempt).map(|want| want.limits.min.max(want.demand.high)).sum();
    let remaining = total.saturating_sub(exempt);
    let min_sum: usize = limited().map(|want| want.limits.min).sum();
    let floor_sum: usize = limited().map(Want::floor).sum();
    let fair = if remaining > floor_sum { fair_fraction(total as f64, &limited().collect::<Vec<_>>()) } else { 0.0 };
    let seats = |want: &Want| match want.exempt {
        true => want.limits.min.max(want.demand.high),
        false if remaining <= min_sum => want.limits.min,
        false if remaining <= floor_sum => {
            let part = (remaining - min_sum) as f64 / (floor_sum - min_sum).max(1) as f64;
            want.limits.min + ((want.floor() - want.limits.min) as f64 * part).round() as usize
        }
        false => allocated(want, fair).round() as usize,
    };
    (wants.iter().map(seats).collect(), fair)
}

fn allocated(want: &Want, fraction: f64) -> f64 {
    (want.target().max(TARGET_MIN) * fraction).max(want.floor() as f64).min(want.limits.max as f64)
}

/// The one fraction of every target with which all seats are given away. More of it never gives less: halving the interval finds it.
fn fair_fraction(total: f64, wants: &[&Want]) -> f64 {
    let given = |fraction: f64| wants.iter().map(|want| allocated(want, fraction)).sum::<f64>();
    let all = wants.iter().map(|want| want.limits.max as f64 / want.target().max(TARGET_MIN)).fold(0.0, f64::max);
    let (mut low, mut high) = (0.0, all);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if given(middle) < total { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(nominal: usize, lendable: u64, borrowing: Option<u64>, demand: usize) -> Want {
        let demand = Observed { high: demand, average: demand as f64, deviation: 0.0, smoothed: demand as f64 };
        Want { exempt: false, limits: Limits::new(nominal, lendable, borrowing, 100), demand }
    }

    #[test]
    fn seats_go_where_they_are_wanted() {
        let exempt = |demand: usize| Want { exempt: true, limits: Limits::default(), ..want(0, 0, None, demand) };
        let cases = [
            ("idle levels share by what they never lend", vec![want(60, 50, None, 0), want(40, 50, None, 0)], vec![60, 40]),
            ("a busy one borrows what another lends", vec![want(60, 50, None, 100), want(40, 50, None, 0)], vec![80, 20]),
            ("no more than it may", vec![want(60, 50, Some(10), 100), want(40, 50, None, 0)], vec![66, 34]),
            ("who lends nothing keeps its own", vec![want(60, 0, None, 100), want(40, 0, None, 0)], vec![60, 40]),
            ("who wants its own back has it", vec![want(60, 50, None, 100), want(40, 50, None, 40)], vec![60, 40]),
            ("the exempt take from all", vec![exempt(50), want(60, 50, None, 60), want(40, 50, None, 40)], vec![50, 30, 20]),
            ("but never below what is not lent", vec![exempt(90), want(60, 50, None, 60), want(40, 50, None, 40)], vec![90, 30, 20]),
        ];
        for (case, wants, expected) in cases {
            assert_eq!(divide(&wants).0, expected, "{case}");
        }
    }
}
