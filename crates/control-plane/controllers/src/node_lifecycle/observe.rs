//! The world of one node.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use tokio::time::Instant;

use super::{Controller, LEASE_NAMESPACE, plan};
use crate::pods;

/// After so much of its grace a silent node is asked whether it is there; it has the rest to answer.
const ASKED_AT: f64 = 0.6;

/// What changes while a node's agent lives.
#[derive(Clone, Debug, PartialEq)]
struct Sign {
    renewed: Option<MicroTime>,
    heartbeat: Option<Time>,
}

pub(super) struct Seen {
    sign: Sign,
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
}

impl Controller {
    pub(super) fn observe(&self, name: &str) -> Option<World> {
        let Some(node) = self.nodes.get("", name) else {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            return None;
        };
        let silent_for = self.silence(name, &node);
        let grace = self.config.node_monitor_grace_period;
        let troubled = silent_for > grace || !plan::is_ready(&node);
        let full_disruption = troubled && !self.is_another_ready(name);
        let may_empty = troubled && !full_disruption && !plan::is_emptied(&node) && self.take_turn(&node);
        Some(World {
            silent_for,
            grace,
            full_disruption,
            may_empty,
            pods: self.pods.by_index(pods::BY_NODE, name),
            node,
            now: Timestamp::now(),
        })
    }

    fn take_turn(&self, node: &Node) -> bool {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner).take_turn(
            node,
            &self.nodes.list(),
            self.config.node_eviction_pause,
            Instant::now(),
        )
    }

    /// Only asked about a node in trouble: a healthy cluster never looks at all of its nodes.
    fn is_another_ready(&self, name: &str) -> bool {
        self.nodes.list().iter().any(|other| other.metadata.name.as_deref() != Some(name) && plan::is_ready(other))
    }

    fn silence(&self, name: &str, node: &Node) -> Duration {
        let lease = self.leases.get(LEASE_NAMESPACE, name);
        let sign = Sign {
            renewed: lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone()),
            heartbeat: plan::condition(node, "Ready").and_then(|condition| condition.last_heartbeat_time.clone()),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.entry(name.to_owned()).or_insert_with(|| Seen { sign: sign.clone(), at: Instant::now(), answered: None });
        if known.sign != sign {
            *known = Seen { sign, at: Instant::now(), answered: None };
        }
        known.silence(self.config.node_stuck_grace_period, Instant::now())
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
        if answers && let Some(known) = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get_mut(name) {
            known.answered = Some(Instant::now());
        }
        true
    }

    fn is_stuck(&self, name: &str) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(name).is_some_and(|known| known.at.elapsed() >= self.config.node_stuck_grace_period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_sign_of_life_until_the_node_counts_as_stuck() {
        let (start, seconds) = (Instant::now(), Duration::from_secs);
        let silence = |answered: Option<u64>, now: u64| {
            let seen = Seen { sign: Sign { renewed: None, heartbeat: None }, at: start, answered: answered.map(|at| start + seconds(at)) };
            seen.silence(seconds(15), start + seconds(now)).as_secs()
        };
        for (answered, now, expected) in [(None, 8, 8), (Some(7), 8, 1), (Some(7), 14, 7), (Some(14), 15, 15), (Some(14), 16, 16)] {
            assert_eq!(silence(answered, now), expected, "answered {answered:?}, now {now}");
        }
    }
}
