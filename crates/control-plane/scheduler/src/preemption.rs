//! Which pods would have to go for a pod that fits nowhere, and on which node that costs least (upstream's DefaultPreemption).
//!
//! Upstream tries a random tenth of the nodes for each pod. Here the price of each node is remembered with the class's board and asked again
//! only where something changed, so that all nodes are compared.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use meta::selector::LabelSelector;
use reconcile::ObjectKey;

use crate::board::{Board, Domains};
use crate::class::Class;
use crate::filters;
use crate::neighbours::Neighbour;
use crate::plan::{Extra, FitError};
use crate::profile::{Plugin, Profile};
use crate::snapshot::{Resident, Slot, Snapshot, port_taken};

/// A PodDisruptionBudget, as far as preemption respects it.
#[derive(Clone, Debug)]
pub struct Budget {
    pub namespace: String,
    pub selector: LabelSelector,
    /// Pods that may still go.
    pub allowed: i64,
    /// Pods that are on their way out and no longer count.
    pub disrupted: BTreeSet<String>,
}

impl Budget {
    fn covers(&self, pod: &Resident) -> bool {
        let own: &Neighbour = &pod.class.neighbour;
        own.namespace == self.namespace
            && !own.labels.is_empty()
            && !self.selector.is_everything()
            && self.selector.matches_map(&own.labels)
            && !self.disrupted.contains(&pod.key.name)
    }
}

/// What goes so that the pod fits on the node.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub slot: Slot,
    /// The most important first.
    pub victims: Vec<Resident>,
    /// Victims whose budget does not allow it.
    pub violations: usize,
}

/// Upstream's order of preference: fewer violated budgets, a lower highest priority, a lower sum of priorities, fewer pods, and a later
/// start of the oldest of the most important.
type Price = (usize, i32, i64, usize, Reverse<i64>);

/// What is known of each node, for one class and one state of the budgets.
#[derive(Default)]
pub struct Prices {
    budgets: u64,
    /// By slot; `None`: ask. `Some(None)`: nothing helps.
    known: Vec<Option<Option<Price>>>,
}

impl Prices {
    pub fn forget(&mut self, slot: Slot) {
        if let Some(known) = self.known.get_mut(slot) {
            *known = None;
        }
    }
}

/// The budgets, and a number that rises whenever one of them changes.
pub struct Budgets<'a> {
    pub all: &'a [Budget],
    pub generation: u64,
}

/// The best candidate; `Err` says node by node why there is none.
pub(crate) fn find(
    board: &mut Board,
    snapshot: &Snapshot,
    pod: &ObjectKey,
    budgets: &Budgets<'_>,
    extra: Option<Extra<'_>>,
) -> Result<Candidate, FitError> {
    let class = board.class.clone();
    let profile = board.profile.clone();
    // With wishes about neighbours, or with needs of the pod's own, what holds of a node may change with any other.
    let lasting = extra.is_none() && !board.domains.is_active(&class);
    let mut prices = std::mem::take(&mut board.preemption);
    if !lasting || prices.budgets != budgets.generation || prices.known.len() != snapshot.rows.len() {
        prices.known = vec![None; snapshot.rows.len()];
        prices.budgets = budgets.generation;
    }
    let mut best: Option<(Price, Slot)> = None;
    for slot in snapshot.slots() {
        if !board.accepts(slot) {
            continue;
        }
        let price = *prices.known[slot].get_or_insert_with(|| {
            let mut trial = Trial { snapshot, profile: &profile, class: &class, domains: &mut board.domains, pod, extra };
            trial.victims(slot, budgets.all).ok().map(|candidate| price(&candidate))
        });
        if let Some(price) = price
            && best.is_none_or(|(least, _)| price < least)
        {
            best = Some((price, slot));
        }
    }
    if lasting {
        board.preemption = prices;
    }
    let mut trial = Trial { snapshot, profile: &profile, class: &class, domains: &mut board.domains, pod, extra };
    if let Some((_, slot)) = best
        && let Ok(candidate) = trial.victims(slot, budgets.all)
    {
        return Ok(candidate);
    }
    Err(why_not(board, snapshot, pod, budgets, extra))
}

fn why_not(board: &mut Board, snapshot: &Snapshot, pod: &ObjectKey, budgets: &Budgets<'_>, extra: Option<Extra<'_>>) -> FitError {
    let (class, profile) = (board.class.clone(), board.profile.clone());
    let mut error = FitError { nodes: snapshot.len(), ..FitError::default() };
    let mut say = |reason: String| *error.reasons.entry(reason).or_default() += 1;
    for slot in snapshot.slots() {
        let helpless = match board.accepts(slot) {
            false => true,
            true => board.objection(snapshot, slot, Some(pod), extra).is_some_and(|objection| objection.unresolvable),
        };
        if helpless {
            say("Preemption is not helpful for scheduling".into());
            continue;
        }
        let mut trial = Trial { snapshot, profile: &profile, class: &class, domains: &mut board.domains, pod, extra };
        if let Err(reasons) = trial.victims(slot, budgets.all) {
            reasons.into_iter().for_each(&mut say);
        }
    }
    error
}

fn price(candidate: &Candidate) -> Price {
    let highest = candidate.victims.first().map_or(i32::MIN, |pod| pod.class.priority);
    // Shifted above zero, so that more pods cost more whatever their priorities.
    let sum = candidate.victims.iter().map(|pod| i64::from(pod.class.priority) + i64::from(i32::MAX) + 1).sum();
    let oldest = candidate.victims.iter().filter(|pod| pod.class.priority == highest).map(|pod| pod.started).min().unwrap_or(i64::MAX);
    (candidate.violations, highest, sum, candidate.victims.len(), Reverse(oldest))
}

/// A node as it would be without some of its pods.
struct Trial<'a> {
    snapshot: &'a Snapshot,
    profile: &'a Profile,
    class: &'a Arc<Class>,
    domains: &'a mut Domains,
    pod: &'a ObjectKey,
    extra: Option<Extra<'a>>,
}

impl Trial<'_> {
    /// The fewest and least important pods whose going makes room; else the reasons that remain when all less important are gone.
    fn victims(&mut self, slot: Slot, budgets: &[Budget]) -> Result<Candidate, Vec<String>> {
        let node = &self.snapshot.details[slot];
        let mut potential: Vec<&Resident> = node.pods.iter().filter(|pod| pod.class.priority < self.class.priority).collect();
        if potential.is_empty() {
            return Err(vec!["No preemption victims found for incoming pod".into()]);
        }
        potential.sort_by_key(|pod| (Reverse(pod.class.priority), pod.started));
        let mut gone = vec![true; potential.len()];
        if let Some(reasons) = self.objection(slot, &potential, &gone) {
            return Err(reasons);
        }
        let violating = violating(&potential, budgets);
        let (first, second): (Vec<usize>, Vec<usize>) = (0..potential.len()).partition(|at| violating[*at]);
        let mut violations = 0;
        for at in first.into_iter().chain(second) {
            gone[at] = false;
            if self.objection(slot, &potential, &gone).is_some() {
                gone[at] = true;
                violations += usize::from(violating[at]);
            }
        }
        let victims = potential.iter().zip(&gone).filter(|(_, gone)| **gone).map(|(pod, _)| (*pod).clone()).collect();
        Ok(Candidate { slot, victims, violations })
    }

    /// What stands against the class on the node once the pods marked `gone` are.
    fn objection(&mut self, slot: Slot, pods: &[&Resident], gone: &[bool]) -> Option<Vec<String>> {
        let leaving = || pods.iter().zip(gone).filter(|(_, gone)| **gone).map(|(pod, _)| *pod);
        let node = &self.snapshot.details[slot];
        let mut requested = node.requested.clone();
        let mut count = node.pods.len() as i64;
        for pod in leaving() {
            requested.sub(&pod.class.requests);
            count -= 1;
        }
        for other in self.snapshot.nominated(slot, self.class.priority, Some(self.pod)) {
            requested.add(&other.class.requests);
            count += 1;
        }
        let words = |reasons: &[std::borrow::Cow<'static, str>]| reasons.iter().map(ToString::to_string).collect();
        if self.profile.filters.has(Plugin::NodePorts) && !self.class.host_ports.is_empty() {
            let staying = node.pods.iter().filter(|pod| !leaving().any(|gone| gone.key == pod.key));
            if staying.into_iter().any(|pod| port_taken(&pod.class.host_ports, &self.class.host_ports)) {
                return Some(vec!["node(s) didn't have free ports for the requested pod ports".into()]);
            }
        }
        if self.profile.filters.has(Plugin::NodeResourcesFit)
            && let Some(objection) = filters::lacking(self.profile, self.class, node, &requested, count)
        {
            return Some(words(&objection.reasons));
        }
        if let Some(objection) = self.extra.and_then(|extra| extra(slot)) {
            return Some(words(&objection.reasons));
        }
        if !self.domains.is_active(self.class) {
            return None;
        }
        let counted: Vec<Arc<Class>> = leaving().map(|pod| pod.class.clone()).collect();
        // Without them, a look, and with them again: counting is its own inverse.
        self.count(slot, &counted, -1);
        let objection = self.domains.judge(self.snapshot, self.class, self.profile).objection(slot);
        self.count(slot, &counted, 1);
        objection.map(|objection| words(&objection.reasons))
    }

    fn count(&mut self, slot: Slot, classes: &[Arc<Class>], by: i32) {
        classes.iter().for_each(|class| self.domains.count(self.snapshot, self.class, self.profile, slot, class, by));
    }
}

/// Which of the pods no budget lets go, as they would go one after the other.
fn violating(pods: &[&Resident], budgets: &[Budget]) -> Vec<bool> {
    let mut allowed: Vec<i64> = budgets.iter().map(|budget| budget.allowed).collect();
    let mut violates = |pod: &Resident| {
        let mut violated = false;
        for (at, _) in budgets.iter().enumerate().filter(|(_, budget)| budget.covers(pod)) {
            allowed[at] -= 1;
            violated |= allowed[at] < 0;
        }
        violated
    };
    pods.iter().map(|pod| violates(pod)).collect()
}
