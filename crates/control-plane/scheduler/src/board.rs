//! What is computed for one class of pods over all nodes, and kept: who passes the filters, the scores, and the best.
//!
//! A [`Board`] catches up with the snapshot by its log: after a bind only that node is judged again, in the time of the logarithm of the
//! number of nodes. Classes whose place depends on other pods' places (affinity to pods, topology spread) keep counts by domain, changed by the
//! same log, and go over the nodes' columns once per pod.

mod domains;
mod refusals;
mod tournament;

use std::sync::Arc;

pub(crate) use domains::Domains;
use domains::Scratch;
use refusals::Refusals;
pub(crate) use tournament::Tournament;

use crate::class::Class;
use crate::filters::{self, Judged, Objection};
use crate::plan::FitError;
use crate::preemption::Prices;
use crate::profile::Profile;
use crate::scores;
use crate::snapshot::{Change, Slot, Snapshot};

/// The total of a node that cannot take the class.
pub(crate) const UNFIT: i64 = i64::MIN;

pub(crate) struct Board {
    pub class: Arc<Class>,
    pub profile: Arc<Profile>,
    /// Up to where the snapshot's log is worked in.
    position: u64,
    layout: u64,
    images: u64,
    /// The node itself accepts the class; there is room for it. By slot, as all columns.
    accepts: Vec<bool>,
    room: Vec<bool>,
    /// Weighted scores that depend on the node alone.
    amounts: Vec<i64>,
    image: Vec<i64>,
    /// Raw scores that are scaled by the largest of any fitting node.
    taints: Vec<i64>,
    affinity: Vec<i64>,
    taints_max: Largest,
    affinity_max: Largest,
    totals: Tournament<i64>,
    pub domains: Domains,
    scratch: Scratch,
    /// What the last search without success said; it holds while nothing changes.
    failure: Option<(u64, Arc<FitError>)>,
    /// What each node says, once somebody wanted to know.
    refusals: Option<Refusals>,
    /// What preemption would cost on each node.
    pub preemption: Prices,
}

impl Board {
    pub fn new(snapshot: &Snapshot, profile: &Arc<Profile>, class: &Arc<Class>) -> Self {
        let mut board = Self {
            class: class.clone(),
            profile: profile.clone(),
            position: 0,
            layout: 0,
            images: 0,
            accepts: Vec::new(),
            room: Vec::new(),
            amounts: Vec::new(),
            image: Vec::new(),
            taints: Vec::new(),
            affinity: Vec::new(),
            taints_max: Largest::default(),
            affinity_max: Largest::default(),
            totals: Tournament::new(0, UNFIT),
            domains: Domains::default(),
            scratch: Scratch::default(),
            failure: None,
            refusals: None,
            preemption: Prices::default(),
        };
        board.rebuild(snapshot);
        board
    }

    /// Works in what changed.
    pub fn catch_up(&mut self, snapshot: &Snapshot) {
        if self.layout != snapshot.layout() {
            return self.rebuild(snapshot);
        }
        let now = snapshot.position();
        if now != self.position {
            let Some(changes) = snapshot.changes_since(self.position) else { return self.rebuild(snapshot) };
            for change in changes {
                let (Change::Node(slot) | Change::Room(slot) | Change::Pod(slot, ..)) = change;
                if self.refusals.as_mut().is_some_and(|refusals| !refusals.forget(*slot)) {
                    self.refusals = None;
                }
                match change {
                    // What a node says of itself may decide whether its pods count.
                    Change::Node(_) if self.class.neighbour.has_spread() => return self.rebuild(snapshot),
                    Change::Node(slot) => {
                        self.preemption.forget(*slot);
                        self.judge_node(snapshot, *slot);
                    }
                    Change::Room(slot) => {
                        self.preemption.forget(*slot);
                        self.judge_room(snapshot, *slot);
                    }
                    Change::Pod(slot, class, count) => {
                        self.preemption.forget(*slot);
                        self.domains.count(snapshot, &self.class, &self.profile, *slot, class, *count);
                        self.judge_room(snapshot, *slot);
                    }
                }
            }
            self.position = now;
        }
        if self.images != snapshot.images() {
            self.judge_images(snapshot);
            self.retotal(snapshot);
        }
        self.scale(snapshot);
    }

    /// The best node. `extra` is asked about the pod's own needs beyond its class's (volumes, devices, extenders).
    pub fn best(&mut self, snapshot: &Snapshot, extra: Option<&dyn Fn(Slot) -> Option<Objection>>) -> Option<Slot> {
        if !self.domains.is_active(&self.class) {
            let best = self.totals.best()?;
            if extra.is_none_or(|extra| extra(best).is_none()) {
                return Some(best);
            }
            // No score is scaled by what fits: who objects changes nobody else's total.
            if let Some(extra) = extra
                && self.taints_max.value() == 0
                && self.affinity_max.value() == 0
            {
                return self.totals.in_order().find(|slot| extra(*slot).is_none());
            }
        }
        self.totals_of_all(snapshot, extra);
        self.scratch.best()
    }

    /// Every fitting node with its total, for whoever wants to see more than the best.
    pub fn ranking(&mut self, snapshot: &Snapshot, extra: Option<&dyn Fn(Slot) -> Option<Objection>>) -> Vec<(Slot, i64)> {
        self.totals_of_all(snapshot, extra);
        self.scratch.ranking()
    }

    /// The first objection to the node; `but` is a pod whose own nomination does not count.
    pub fn objection(
        &self,
        snapshot: &Snapshot,
        slot: Slot,
        but: Option<&reconcile::ObjectKey>,
        extra: Option<&dyn Fn(Slot) -> Option<Objection>>,
    ) -> Option<Objection> {
        let judged = Judged { profile: &self.profile, snapshot, class: &self.class, slot, but };
        filters::objection(&judged)
            .or_else(|| extra.and_then(|extra| extra(slot)))
            .or_else(|| self.domains.objection(snapshot, &self.class, &self.profile, slot))
    }

    /// Why no node fits. Remembered until something changes, where nothing but the class decides.
    pub fn failure(&mut self, snapshot: &Snapshot, extra: Option<&dyn Fn(Slot) -> Option<Objection>>) -> Arc<FitError> {
        if let Some((position, failure)) = &self.failure
            && *position == self.position
            && extra.is_none()
        {
            return failure.clone();
        }
        let failure = match extra.is_none() && !self.domains.is_active(&self.class) {
            true => Arc::new(self.refused(snapshot)),
            false => {
                let objections = snapshot.slots().filter_map(|slot| self.objection(snapshot, slot, None, extra));
                Arc::new(FitError::of(snapshot.len(), objections))
            }
        };
        if extra.is_none() {
            self.failure = Some((self.position, failure.clone()));
        }
        failure
    }

    /// Why no node fits where each node speaks for itself: only those that changed are asked again.
    fn refused(&mut self, snapshot: &Snapshot) -> FitError {
        let mut refusals = self.refusals.take().unwrap_or_else(|| Refusals::new(snapshot.rows.len()));
        let ask = |slot: Slot| if snapshot.rows[slot].present { self.objection(snapshot, slot, None, None) } else { None };
        refusals.refresh(ask);
        let error = refusals.error(snapshot.len());
        self.refusals = Some(refusals);
        error
    }

    /// Up to which change of the snapshot everything here holds.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// By slot: the node itself accepts the class, whoever is on it.
    pub fn accepted(&self) -> &[bool] {
        &self.accepts
    }

    /// The node itself accepts the class, whoever is on it.
    pub fn accepts(&self, slot: Slot) -> bool {
        self.accepts.get(slot) == Some(&true)
    }

    fn totals_of_all(&mut self, snapshot: &Snapshot, extra: Option<&dyn Fn(Slot) -> Option<Objection>>) {
        let scratch = &mut self.scratch;
        scratch.clear();
        let judge = self.domains.is_active(&self.class).then(|| self.domains.judge(snapshot, &self.class, &self.profile));
        scratch.fits.extend(self.totals.values().iter().take(self.accepts.len()).map(|total| *total != UNFIT));
        if let Some(judge) = &judge {
            judge.retain(&mut scratch.fits);
        }
        for (slot, total) in self.totals.values().iter().enumerate().take(scratch.fits.len()) {
            if scratch.fits[slot] && extra.is_none_or(|extra| extra(slot).is_none()) {
                scratch.slots.push(slot);
                scratch.totals.push(*total);
            }
        }
        // Scores that are scaled by the largest of those that fit: of fewer nodes than the kept totals are of.
        if self.taints_max.value() != 0 || self.affinity_max.value() != 0 {
            let largest = |column: &[i64]| scratch.slots.iter().map(|slot| column[*slot]).max().unwrap_or(0);
            let (taints_max, affinity_max) = (largest(&self.taints), largest(&self.affinity));
            let weights = &self.profile.weights;
            for (slot, total) in scratch.slots.iter().zip(&mut scratch.totals) {
                *total = self.amounts[*slot]
                    + self.image[*slot]
                    + weights.taint_toleration * scores::normalized(self.taints[*slot], taints_max, true)
                    + weights.node_affinity * scores::normalized(self.affinity[*slot], affinity_max, false);
            }
        }
        if let Some(judge) = judge {
            judge.score(scratch);
        }
    }

    fn rebuild(&mut self, snapshot: &Snapshot) {
        let nodes = snapshot.rows.len();
        for column in [&mut self.amounts, &mut self.image, &mut self.taints, &mut self.affinity] {
            column.clear();
            column.resize(nodes, 0);
        }
        for column in [&mut self.accepts, &mut self.room] {
            column.clear();
            column.resize(nodes, false);
        }
        (self.taints_max, self.affinity_max) = Default::default();
        self.totals = Tournament::new(nodes, UNFIT);
        for slot in snapshot.slots() {
            self.judge_columns(snapshot, slot);
            self.room[slot] = filters::has_room(&self.profile, snapshot, &self.class, slot, None);
            self.amounts[slot] = scores::amounts(&self.profile, &self.class, &snapshot.details[slot]);
            self.count_largest(slot, 1);
        }
        self.judge_images(snapshot);
        self.domains = Domains::new(snapshot, &self.class, &self.profile);
        self.position = snapshot.position();
        self.layout = snapshot.layout();
        self.failure = None;
        self.refusals = None;
        self.preemption = Prices::default();
        self.retotal(snapshot);
        self.taints_max.changed = false;
        self.affinity_max.changed = false;
    }

    fn judge_columns(&mut self, snapshot: &Snapshot, slot: Slot) {
        let node = &snapshot.details[slot];
        self.accepts[slot] = filters::accepts(&self.profile, snapshot, &self.class, slot);
        self.taints[slot] = if self.profile.weights.taint_toleration == 0 { 0 } else { filters::soft_taints(&self.class, node) };
        self.affinity[slot] =
            if self.profile.weights.node_affinity == 0 { 0 } else { scores::node_affinity(&self.profile, &self.class, node) };
    }

    fn judge_node(&mut self, snapshot: &Snapshot, slot: Slot) {
        self.count_largest(slot, -1);
        self.judge_columns(snapshot, slot);
        self.count_largest(slot, 1);
        self.judge_room(snapshot, slot);
    }

    fn judge_room(&mut self, snapshot: &Snapshot, slot: Slot) {
        let room = filters::has_room(&self.profile, snapshot, &self.class, slot, None);
        if room != self.room[slot] {
            self.count_largest(slot, -1);
            self.room[slot] = room;
            self.count_largest(slot, 1);
        }
        if self.accepts[slot] {
            self.amounts[slot] = scores::amounts(&self.profile, &self.class, &snapshot.details[slot]);
            self.totals.set(slot, self.total(slot));
        } else {
            self.totals.set(slot, UNFIT);
        }
    }

    fn judge_images(&mut self, snapshot: &Snapshot) {
        self.images = snapshot.images();
        let weight = self.profile.weights.image_locality;
        if weight == 0 {
            return;
        }
        let counts = scores::image_counts(snapshot, &self.class);
        if counts.iter().all(|count| *count == 0) {
            return self.image.fill(0);
        }
        for slot in snapshot.slots() {
            self.image[slot] = weight * scores::image_locality(&self.class, &snapshot.details[slot], &counts, snapshot.len());
        }
    }

    /// Totals anew where the scale of a score changed.
    fn scale(&mut self, snapshot: &Snapshot) {
        if self.taints_max.changed || self.affinity_max.changed {
            self.taints_max.changed = false;
            self.affinity_max.changed = false;
            self.retotal(snapshot);
        }
    }

    fn retotal(&mut self, snapshot: &Snapshot) {
        let totals: Vec<i64> =
            (0..self.accepts.len()).map(|slot| if snapshot.rows[slot].present { self.total(slot) } else { UNFIT }).collect();
        self.totals.fill(&totals);
    }

    fn total(&self, slot: Slot) -> i64 {
        if !(self.accepts[slot] && self.room[slot]) {
            return UNFIT;
        }
        let weights = &self.profile.weights;
        self.amounts[slot]
            + self.image[slot]
            + weights.taint_toleration * scores::normalized(self.taints[slot], self.taints_max.value(), true)
            + weights.node_affinity * scores::normalized(self.affinity[slot], self.affinity_max.value(), false)
    }

    fn count_largest(&mut self, slot: Slot, count: isize) {
        if self.accepts[slot] && self.room[slot] {
            self.taints_max.count(self.taints[slot], count);
            self.affinity_max.count(self.affinity[slot], count);
        }
    }
}

/// The largest of a changing multiset of raw scores; 0 of none.
#[derive(Default)]
struct Largest {
    /// How often each value above zero occurs.
    counts: std::collections::BTreeMap<i64, isize>,
    /// The largest is another one than when this was last looked at.
    changed: bool,
}

impl Largest {
    fn value(&self) -> i64 {
        self.counts.last_key_value().map_or(0, |(value, _)| *value)
    }

    fn count(&mut self, value: i64, count: isize) {
        if value <= 0 {
            return;
        }
        let before = self.value();
        let counted = self.counts.entry(value).or_default();
        *counted += count;
        if *counted == 0 {
            self.counts.remove(&value);
        }
        self.changed |= self.value() != before;
    }
}
