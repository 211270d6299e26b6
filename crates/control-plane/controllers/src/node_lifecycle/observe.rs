//! The world of one node.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use tokio::time::Instant;

use super::{Controller, LEASE_NAMESPACE, plan};
use crate::pods;

/// What changes while a node's agent lives.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sign {
    renewed: Option<MicroTime>,
    heartbeat: Option<Time>,
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
        let entry: &mut HashMap<String, (Sign, Instant)> = &mut seen;
        let known = entry.entry(name.to_owned()).or_insert_with(|| (sign.clone(), Instant::now()));
        if known.0 != sign {
            *known = (sign, Instant::now());
        }
        known.1.elapsed()
    }
}
