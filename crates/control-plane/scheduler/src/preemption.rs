//! Which pods would have to go for a pod that fits nowhere, and on which node that costs least (upstream's DefaultPreemption).
//!
//! Upstream tries a random tenth of the nodes for each pod. Here the price of each node is remembered with the class's board and asked again
//! only where something changed, so that all nodes are compared.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use meta::selector::LabelSelector;
use reconcile::ObjectKey;

use crate::board::{Board, Domains, Tournament};
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
pub struct Prices {
    budgets: u64,
    /// The cheapest is the largest; `None`: nothing helps.
    by_slot: Tournament<Option<Reverse<Price>>>,
    /// Nodes that changed since they were asked, each once.
    stale: Vec<Slot>,
    is_stale: Vec<bool>,
    /// Why nothing helps anywhere, and of which state of the board that was said.
    hopeless: Option<(u64, FitError)>,
}

impl Default for Prices {
    fn default() -> Self {
        Self::new(0, 0)
    }
}

impl Prices {
    /// Nobody was asked yet.
    fn new(slots: usize, budgets: u64) -> Self {
        let by_slot = Tournament::new(slots, None);
        Self { budgets, by_slot, stale: (0..slots).collect(), is_stale: vec![true; slots], hopeless: None }
    }

    pub fn forget(&mut self, slot: Slot) {
        if let Some(stale) = self.is_stale.get_mut(slot)
            && !std::mem::replace(stale, true)
        {
            self.stale.push(slot);
        }
    }

    fn refresh(&mut self, ask: impl FnMut(Slot) -> Option<Price>) {
        let mut ask = ask;
        for slot in self.stale.drain(..) {
            self.is_stale[slot] = false;
            self.by_slot.set(slot, ask(slot).map(Reverse));
        }
    }
}

/// The budgets, and a number that rises whenever one of them changes.
pub struct Budgets<'a> {
    pub all: &'a [Budget],
    pub generation: u64,
}

/// The pod that needs room.
#[derive(Clone, Copy)]
pub(crate) struct Preemptor<'a> {
    pub pod: &'a ObjectKey,
    /// The only node that it wants.
    pub only: Option<Slot>,
    /// It waits for room somewhere already.
    pub nominated: bool,
    /// Its needs beyond its class's. Whoever goes changes nothing about them.
    pub extra: Option<Extra<'a>>,
}

/// The best candidate; `Err` says node by node why there is none.
pub(crate) fn find(
    board: &mut Board,
    snapshot: &Snapshot,
    preemptor: &Preemptor<'_>,
    budgets: &Budgets<'_>,
) -> Result<Candidate, FitError> {
    let (class, profile) = (board.class.clone(), board.profile.clone());
    let alike = preemptor.extra.is_none() && preemptor.only.is_none() && !preemptor.nominated;
    let mut prices = std::mem::take(&mut board.preemption);
    let of_now = prices.budgets == budgets.generation && prices.is_stale.len() == snapshot.rows.len();
    if let Some((position, why)) = &prices.hopeless
        && *position == board.position()
        && alike
        && of_now
    {
        let why = why.clone();
        board.preemption = prices;
        return Err(why);
    }
    // With wishes about neighbours what holds of a node may change with any other.
    if !of_now || board.domains.is_active(&class) {
        prices = Prices::new(snapshot.rows.len(), budgets.generation);
    }
    let pod = preemptor.pod;
    let accepts = board.accepted().to_vec();
    let mut trial = Trial { snapshot, profile: &profile, class: &class, domains: &mut board.domains, pod, extra: None };
    let candidate = match preemptor.only {
        Some(only) => Some(only).filter(|slot| accepts.get(*slot) == Some(&true)),
        None => {
            prices.refresh(|slot| accepts[slot].then(|| trial.victims(slot, budgets.all).ok()).flatten().as_ref().map(price));
            prices.by_slot.in_order().find(|slot| preemptor.extra.is_none_or(|extra| extra(*slot).is_none()))
        }
    };
    trial.extra = preemptor.extra;
    let found = candidate.and_then(|slot| trial.victims(slot, budgets.all).ok());
    let result = found.ok_or_else(|| why_not(board, snapshot, preemptor, budgets));
    if let (Err(why), true) = (&result, alike) {
        prices.hopeless = Some((board.position(), why.clone()));
    }
    board.preemption = prices;
    result
}

fn why_not(board: &mut Board, snapshot: &Snapshot, preemptor: &Preemptor<'_>, budgets: &Budgets<'_>) -> FitError {
    let (class, profile) = (board.class.clone(), board.profile.clone());
    let Preemptor { pod, extra, only, .. } = *preemptor;
    let mut error = FitError { nodes: snapshot.len(), ..FitError::default() };
    let mut say = |reason: String| *error.reasons.entry(reason).or_default() += 1;
    for slot in snapshot.slots() {
        let helpless = match board.accepts(slot) && only.is_none_or(|only| only == slot) {
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::json;

    use super::*;
    use crate::filters::Objection;
    use crate::plan::Planner;

    fn class(priority: i32, cpu: &str) -> Arc<Class> {
        let spec = json!({ "priority": priority, "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] });
        Arc::new(Class::of(&serde_json::from_value::<Pod>(json!({ "spec": spec })).unwrap()))
    }

    fn snapshot_of(nodes: usize) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for number in 0..nodes {
            let node =
                json!({ "metadata": { "name": format!("node-{number}") }, "status": { "allocatable": { "cpu": "4", "pods": "10" } } });
            snapshot.set_node(&serde_json::from_value::<Node>(node).unwrap());
        }
        snapshot
    }

    #[test]
    fn remembered_prices_choose_as_prices_asked_anew_do() {
        const NODES: usize = 13;
        let mut snapshot = snapshot_of(NODES);
        let kinds = [class(0, "900m"), class(1, "900m"), class(2, "1800m")];
        let wants = class(10, "3");
        let profile = Arc::new(Profile::default());
        let pod = ObjectKey::new("default", "preemptor");
        let none = Budgets { all: &[], generation: 1 };
        let mut remembering = Planner::default();
        let mut random = 7u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        let away = |slot: Slot| (slot % 3 == 0).then(|| Objection::unresolvable(Plugin::VolumeBinding, "away"));
        let mut found = 0;
        for turn in 0..400 {
            let (node, pod_number) = (format!("node-{}", next(NODES)), next(60));
            let key = ObjectKey::new("default", format!("pod-{pod_number}"));
            if snapshot.remove_pod(&node, &key).is_none() {
                let started = next(1000) as i64;
                snapshot.add_pod(&node, Resident { key: Arc::new(key), uid: "u".into(), class: kinds[next(3)].clone(), started });
            }
            for extra in [None, Some(&away as Extra<'_>)] {
                let preemptor = Preemptor { pod: &pod, only: None, nominated: false, extra };
                let said = |planner: &mut Planner| {
                    let board = planner.board(&snapshot, &profile, &wants);
                    let names = |one: Candidate| (one.slot, one.victims.iter().map(|pod| pod.key.name.clone()).collect::<Vec<_>>());
                    find(board, &snapshot, &preemptor, &none).map(names)
                };
                let (kept, anew) = (said(&mut remembering), said(&mut Planner::default()));
                assert_eq!(kept, anew, "turn {turn}");
                found += usize::from(kept.is_ok());
                assert!(extra.is_none() || kept.is_err() || kept.is_ok_and(|(slot, _)| slot % 3 != 0));
            }
        }
        assert!(found > 100, "{found}");
    }
}
