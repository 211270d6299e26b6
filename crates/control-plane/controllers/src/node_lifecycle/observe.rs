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

/// When each node was last seen alive, by our own clock.
#[derive(Default)]
pub(super) struct Signs(HashMap<String, Instant>);

impl Signs {
    /// A heartbeat that differs from the one before is a sign of life; what it says of the time is the node's own business.
    pub fn observe_node(&mut self, old: Option<&Node>, new: Option<&Node>, now: Instant) {
        let beat = |node: &Node| plan::condition(node, "Ready").and_then(|condition| condition.last_heartbeat_time.clone());
        let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        match (old, new) {
            (Some(old), Some(new)) if beat(old) == beat(new) => {}
            (_, Some(new)) => drop(self.0.insert(name(new), now)),
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
            *seen = now;
        }
    }

    /// For how long the node has been silent.
    fn silence(&self, name: &str) -> Duration {
        self.0.get(name).map(Instant::elapsed).unwrap_or_default()
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

impl World {
    /// When to look again though nothing changes: at the end of a healthy node's grace, and often at one in trouble.
    pub fn look_after(&self, period: Duration) -> Duration {
        match self.grace.checked_sub(self.silent_for) {
            Some(left) if plan::is_ready(&self.node) => left + MARGIN,
            _ => period,
        }
    }
}

impl Controller {
    pub(super) fn observe(&self, name: &str) -> Option<World> {
        let node = self.nodes.get("", name)?;
        let silent_for = self.signs().silence(name);
        let grace = self.config.node_monitor_grace_period;
        let troubled = silent_for > grace || !plan::is_ready(&node);
        let full_disruption = troubled && !self.zones().is_another_ready(&node);
        let may_empty = troubled
            && !full_disruption
            && !plan::is_emptied(&node)
            && self.zones().take_turn(&node, self.config.node_eviction_pause, Instant::now());
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
}
