//! Pure: a snapshot and a class give a node, or for every node the reason why not.

use std::collections::BTreeMap;

use crate::class::Class;
use crate::filters;
use crate::scores::{self, Context};
use crate::snapshot::{Slot, Snapshot};

/// Why no node fits: how many nodes gave each reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FitError {
    pub nodes: usize,
    pub reasons: BTreeMap<String, usize>,
    /// The filters that objected: only changes that concern them can help.
    pub filters: Vec<&'static str>,
}

impl std::fmt::Display for FitError {
    /// Upstream's sentence: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

/// The best node for the class. Of equally good ones `tie` picks (any number: the caller's counter or random).
pub fn plan(snapshot: &Snapshot, class: &Class, tie: usize) -> Result<Slot, FitError> {
    let feasible = feasible(snapshot, class)?;
    if let [only] = feasible[..] {
        return Ok(only);
    }
    let totals = totals(snapshot, class, &feasible);
    let best = totals.iter().copied().max().unwrap_or(0);
    let winners: Vec<Slot> = feasible.iter().zip(&totals).filter(|(_, total)| **total == best).map(|(slot, _)| *slot).collect();
    Ok(winners[tie % winners.len()])
}

/// The nodes that pass every filter; never empty.
fn feasible(snapshot: &Snapshot, class: &Class) -> Result<Vec<Slot>, FitError> {
    let prepared = filters::prepare(snapshot, class);
    let mut fitting = Vec::new();
    let mut error = FitError { nodes: snapshot.len(), ..FitError::default() };
    for slot in snapshot.slots() {
        let (row, details) = (&snapshot.rows[slot], &snapshot.details[slot]);
        match filters::objection(&prepared, class, row, details) {
            None => fitting.push(slot),
            Some((filter, reasons)) => {
                reasons.into_iter().for_each(|reason| *error.reasons.entry(reason).or_default() += 1);
                if !error.filters.contains(&filter) {
                    error.filters.push(filter);
                }
            }
        }
    }
    if fitting.is_empty() { Err(error) } else { Ok(fitting) }
}

/// The weighted sum of all scores of each feasible node.
pub fn totals(snapshot: &Snapshot, class: &Class, feasible: &[Slot]) -> Vec<i64> {
    let context = context(snapshot, class);
    let mut totals = vec![0; feasible.len()];
    for score in scores::all() {
        let mut raw: Vec<i64> = feasible.iter().map(|slot| (score.of)(class, &snapshot.details[*slot], &context)).collect();
        scores::normalize(&mut raw, score.normalize);
        totals.iter_mut().zip(raw).for_each(|(total, one)| *total += one * score.weight);
    }
    totals
}

fn context(snapshot: &Snapshot, class: &Class) -> Context {
    let has = |slot: Slot, name: &String| {
        let status = snapshot.details[slot].node.status.as_ref();
        let images = status.and_then(|status| status.images.as_deref()).unwrap_or_default();
        images.iter().any(|image| image.names.iter().flatten().any(|other| other == name))
    };
    let image_nodes = class.images.iter().map(|name| snapshot.slots().filter(|slot| has(*slot, name)).count()).collect();
    Context { nodes: snapshot.len(), image_nodes }
}
