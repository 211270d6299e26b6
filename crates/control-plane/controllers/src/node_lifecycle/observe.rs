//! The world of one node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::time::Instant;

use super::{Controller, plan};
use crate::pods;

/// Past the end of a grace: then it is over for sure.
const MARGIN: Duration = Duration::from_millis(1);

/// After so much of its grace a silent node is asked whether it is there; it has the rest to answer.
const ASKED_AT: f64 = 0.6;

/// When each node was last seen alive, by our own clock.
#[derive(Default)]
pub(super) struct Signs(HashMap<String, Seen>);

#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    /// When it last answered the probe.
    answered: Option<Instant>,
}

impl Seen {
    /// An answer counts as a sign of life, until the node has been `stuck` for so long.
    fn silence(&self, stuck: Duration, now: Instant) -> Duration {
        let silence = now.duration_since(self.at);
        match self.answered {
            Some(answered) if silence < stuck => silence.min(now.duration_since(answered)),
            _ => silence,
        }
    }
}

impl Signs {
    /// A heartbeat that differs from the one before is a sign of life; what it says of the time is the node's own business.
    pub fn observe_node(&mut self, old: Option<&Node>, new: Option<&Node>, now: Instant) {
        let beat = |node: &Node| plan::condition(node, "Ready").and_then(|condition| condition.last_heartbeat_time.clone());
        let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        match (old, new) {
            (Some(old), Some(new)) if beat(old) == beat(new) => {}
            (_, Some(new)) => drop(self.0.insert(name(new), Seen { at: now, answered: None })),
            (Some(old), None) => drop(self.0.remove(&name(old))),
            (None, None) => {}
        }
    }

    pub fn observe_lease(&mut self, old: Option<&Lease>, new: &Lease, now: Instant) {
        let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let name = new.metadata.name.as_deref().unwrap_or_default();
        if let Some(seen) = self.0.get_mut(name)
            && old.and_then(renewed) != renewed(new)
        {
            *seen = Seen { at: now, answered: None };
        }
    }

    fn of(&self, name: &str) -> Option<Seen> {
        self.0.get(name).copied()
    }
}

pub(super) struct World {
    pub node: Arc<Node>,
    /// For how long we have seen no sign of life.
    pub silent_for: Duration,
    pub grace: Duration,
    /// No node of the cluster is ready.
    pub full_disruption: bool,
    /// It may be emptied now: its zone's turn has come.
    pub may_empty: bool,
    pub pods: Vec<Arc<Pod>>,
    pub now: Timestamp,
    /// When to look again though nothing changes.
    pub look_again: Duration,
}

impl Controller {
    pub(super) fn observe(&self, name: &str) -> Option<World> {
        let node = self.nodes.get("", name)?;
        let (grace, now) = (self.config.node_monitor_grace_period, Instant::now());
        let seen = self.signs().of(name).unwrap_or(Seen { at: now, answered: None });
        let silent_for = seen.silence(self.config.node_stuck_grace_period, now);
        let troubled = silent_for > grace || !plan::is_ready(&node);
        let full_disruption = troubled && !self.zones().is_another_ready(&node);
        let may_empty =
            troubled && !full_disruption && !plan::is_emptied(&node) && self.zones().take_turn(&node, self.config.node_eviction_pause, now);
        Some(World {
            silent_for,
            grace,
            full_disruption,
            may_empty,
            pods: self.pods.by_index(pods::BY_NODE, name),
            node,
            now: Timestamp::now(),
            look_again: if troubled { self.config.node_monitor_period } else { self.look_again(now.duration_since(seen.at)) },
        })
    }

    /// A healthy node is looked at when its grace would end, or when it would be asked; one that is being asked as often as one in trouble.
    fn look_again(&self, silence: Duration) -> Duration {
        let grace = self.config.node_monitor_grace_period;
        let next = if self.config.node_probe.is_some() { grace.mul_f64(ASKED_AT) } else { grace };
        next.checked_sub(silence).map_or(self.config.node_monitor_period, |left| left + MARGIN)
    }

    /// Asks a node that will be taken for dead soon whether it is there; false where nothing had to be asked. What is known afterwards may have changed.
    pub(super) async fn is_asked(&self, world: &World) -> bool {
        let Some(probe) = &self.config.node_probe else { return false };
        let soon = world.grace.mul_f64(ASKED_AT);
        let name = world.node.metadata.name.as_deref().unwrap_or_default();
        if world.silent_for < soon || !plan::is_ready(&world.node) || self.is_stuck(name) {
            return false;
        }
        let answers = tokio::time::timeout(world.grace - soon, probe.ask(world.node.clone())).await.unwrap_or(false);
        if answers && let Some(known) = self.signs().0.get_mut(name) {
            known.answered = Some(Instant::now());
        }
        true
    }

    fn is_stuck(&self, name: &str) -> bool {
        self.signs().of(name).is_some_and(|known| known.at.elapsed() >= self.config.node_stuck_grace_period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_sign_of_life_until_the_node_counts_as_stuck() {
        let (start, seconds) = (Instant::now(), Duration::from_secs);
        let silence = |answered: Option<u64>, now: u64| {
            let seen = Seen { at: start, answered: answered.map(|at| start + seconds(at)) };
            seen.silence(seconds(15), start + seconds(now)).as_secs()
        };
        for (answered, now, expected) in [(None, 8, 8), (Some(7), 8, 1), (Some(7), 14, 7), (Some(14), 15, 15), (Some(14), 16, 16)] {
            assert_eq!(silence(answered, now), expected, "answered {answered:?}, now {now}");
        }
    }
}
