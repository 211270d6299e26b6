//! From a snapshot and a class of pods to a node, or to the reasons why there is none.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use reconcile::ObjectKey;

use crate::board::Board;
use crate::class::Class;
use crate::filters::{self, Judged, Objection};
use crate::profile::{Plugin, Plugins, Profile};
use crate::snapshot::{Slot, Snapshot};

/// Nodes × classes that are kept computed: about 50 bytes each.
const CELLS_MAX: usize = 8 << 20;
/// Classes kept at least and at most.
const BOARDS_MIN: usize = 8;
const BOARDS_MAX: usize = 512;

/// Why a pod fits on no node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FitError {
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<String, usize>,
    /// Said of the pod before any node was looked at.
    pub before: Option<String>,
    /// Who objected.
    pub plugins: Plugins,
    /// What preemption found out.
    pub after: String,
    /// Whether some node objected in a way that preemption could help.
    pub resolvable: bool,
}

impl FitError {
    pub fn of(nodes: usize, objections: impl Iterator<Item = Objection>) -> Self {
        let mut error = Self { nodes, ..Self::default() };
        for objection in objections {
            error.plugins = error.plugins.with(objection.plugin);
            error.resolvable |= !objection.unresolvable;
            objection.reasons.into_iter().for_each(|reason| match error.reasons.get_mut(&*reason) {
                Some(count) => *count += 1,
                None => drop(error.reasons.insert(reason.into_owned(), 1)),
            });
        }
        error
    }

    /// The pod is refused whatever the nodes.
    pub fn refused(nodes: usize, plugin: Plugin, why: impl Into<String>) -> Self {
        Self { nodes, before: Some(why.into()), plugins: plugin.bit(), ..Self::default() }
    }
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 && self.before.is_none() {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available: ", self.nodes)?;
        match &self.before {
            Some(before) => write!(f, "{before}.")?,
            None => {
                let mut reasons: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
                reasons.sort();
                write!(f, "{}.", reasons.join(", "))?;
            }
        }
        if self.after.is_empty() { Ok(()) } else { write!(f, " {}", self.after) }
    }
}

/// Asked about a node for one pod's own needs beyond its class's.
pub type Extra<'a> = &'a dyn Fn(Slot) -> Option<Objection>;

/// One pod to place.
#[derive(Clone, Copy, Default)]
pub struct Request<'a> {
    /// The pod, whose own nomination does not stand in its way.
    pub pod: Option<&'a ObjectKey>,
    /// The only node that it wants.
    pub target: Option<&'a str>,
    /// The node that preemption made room on, tried first.
    pub nominated: Option<&'a str>,
    pub extra: Option<Extra<'a>>,
    /// What is added to a node's score (extenders).
    pub bonus: Option<&'a dyn Fn(Slot) -> i64>,
    /// How good the node's devices are, scaled by the best.
    pub devices: Option<&'a dyn Fn(Slot) -> i64>,
}

/// Keeps what was computed for the classes of late. A class must be registered with the snapshot before ([`Snapshot::register`]).
#[derive(Default)]
pub struct Planner {
    boards: HashMap<u64, (u64, Board)>,
    clock: u64,
}

impl Planner {
    /// The best node for a pod of the class.
    pub fn place(
        &mut self,
        snapshot: &Snapshot,
        profile: &Arc<Profile>,
        class: &Arc<Class>,
        request: &Request<'_>,
    ) -> Result<Slot, Arc<FitError>> {
        if let Some(target) = request.target {
            return self.place_on(snapshot, profile, class, target, request);
        }
        let board = self.board(snapshot, profile, class);
        let nominated = request.nominated.and_then(|name| snapshot.slot(name));
        if let Some(slot) = nominated
            && board.objection(snapshot, slot, request.pod, request.extra).is_none()
        {
            return Ok(slot);
        }
        let best = match (request.bonus, request.devices) {
            (None, None) => board.best(snapshot, request.extra),
            _ => best_of(board.ranking(snapshot, request.extra), request, profile.weights.dynamic_resources),
        };
        match best {
            Some(slot) => Ok(slot),
            None => Err(board.failure(snapshot, request.extra)),
        }
    }

    /// A pod that names its node: only that one is looked at.
    fn place_on(
        &mut self,
        snapshot: &Snapshot,
        profile: &Arc<Profile>,
        class: &Arc<Class>,
        target: &str,
        request: &Request<'_>,
    ) -> Result<Slot, Arc<FitError>> {
        let elsewhere = |objection: Option<Objection>| {
            let reason = "node(s) didn't satisfy plugin(s) [NodeAffinity]";
            let others = snapshot.len().saturating_sub(usize::from(objection.is_some()));
            let mut error = FitError::of(snapshot.len(), objection.into_iter());
            if others > 0 {
                error.reasons.insert(reason.to_owned(), others);
            }
            error.plugins = error.plugins.with(Plugin::NodeAffinity);
            Arc::new(error)
        };
        let Some(slot) = snapshot.slot(target) else { return Err(elsewhere(None)) };
        let judged = Judged { profile, snapshot, class, slot, but: request.pod };
        let objection = filters::objection(&judged).or_else(|| request.extra.and_then(|extra| extra(slot)));
        if objection.is_some() {
            return Err(elsewhere(objection));
        }
        let others_matter = class.neighbour.has_terms() || !class.neighbour.spread.is_empty() || snapshot.has_pods_with_terms();
        if others_matter {
            let objection = self.board(snapshot, profile, class).domains.objection(snapshot, class, profile, slot);
            if objection.is_some() {
                let mut error = FitError::of(snapshot.len(), objection.into_iter());
                error.plugins = error.plugins.with(Plugin::NodeAffinity);
                if snapshot.len() > 1 {
                    error.reasons.insert("node(s) didn't satisfy plugin(s) [NodeAffinity]".into(), snapshot.len() - 1);
                }
                return Err(Arc::new(error));
            }
        }
        Ok(slot)
    }

    /// Every fitting node with its total score.
    pub fn ranking(
        &mut self,
        snapshot: &Snapshot,
        profile: &Arc<Profile>,
        class: &Arc<Class>,
        extra: Option<Extra<'_>>,
    ) -> Vec<(Slot, i64)> {
        self.board(snapshot, profile, class).ranking(snapshot, extra)
    }

    /// The class's board, up to date.
    pub(crate) fn board(&mut self, snapshot: &Snapshot, profile: &Arc<Profile>, class: &Arc<Class>) -> &mut Board {
        self.clock += 1;
        let clock = self.clock;
        if !self.boards.contains_key(&class.id) {
            self.make_room(snapshot.rows.len());
        }
        let (used, board) = self.boards.entry(class.id).or_insert_with(|| (clock, Board::new(snapshot, profile, class)));
        *used = clock;
        board.catch_up(snapshot);
        board
    }

    /// Forgets the board that was used longest ago where there are too many.
    fn make_room(&mut self, nodes: usize) {
        let max = (CELLS_MAX / nodes.max(1)).clamp(BOARDS_MIN, BOARDS_MAX);
        while self.boards.len() >= max {
            let Some(oldest) = self.boards.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| *id) else { return };
            self.boards.remove(&oldest);
        }
    }
}

/// The best with what is the pod's own added; the first among equals.
fn best_of(ranking: Vec<(Slot, i64)>, request: &Request<'_>, weight: i64) -> Option<Slot> {
    let own: Vec<i64> = ranking.iter().map(|(slot, _)| request.devices.map_or(0, |devices| devices(*slot))).collect();
    let most = own.iter().copied().max().unwrap_or(0);
    let total = |((slot, total), own): ((Slot, i64), i64)| {
        let devices = if most > 0 { weight * (100 * own / most) } else { 0 };
        (total + devices + request.bonus.map_or(0, |bonus| bonus(slot)), std::cmp::Reverse(slot))
    };
    ranking.into_iter().zip(own).map(total).max().map(|(_, slot)| slot.0)
}
