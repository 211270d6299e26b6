//! How fast nodes of a zone may be emptied: the more of it is ill, the likelier it is the network, and the slower
//! (upstream: `ComputeZoneState`, `--node-eviction-rate`, `--secondary-node-eviction-rate`, `--unhealthy-zone-threshold`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

use super::plan::is_ready;

/// So much slower is a large zone emptied of which a great part is ill.
const PARTIAL_FACTOR: u32 = 10;
const UNHEALTHY_PERCENT: usize = 55;
/// A zone of so few nodes is not emptied at all while a great part of it is ill.
const LARGE: usize = 50;

/// Between two nodes of a zone, where `usual` is that of a zone in which few are ill; `None`: none is emptied.
fn pause(nodes: usize, ill: usize, usual: Duration) -> Option<Duration> {
    let partial = ill > 2 && ill < nodes && ill * 100 >= nodes * UNHEALTHY_PERCENT;
    match partial {
        false => Some(usual),
        true if nodes > LARGE => Some(usual * PARTIAL_FACTOR),
        true => None,
    }
}

fn zone_of(node: &Node) -> String {
    let label = |name: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(name)).cloned().unwrap_or_default();
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// When the last node of each zone was emptied.
#[derive(Default)]
pub(super) struct Zones(HashMap<String, Instant>);

impl Zones {
    /// True where `node` may be emptied now; that is its zone's turn, then.
    pub fn take_turn(&mut self, node: &Node, all: &[Arc<Node>], usual: Duration, now: Instant) -> bool {
        let zone = zone_of(node);
        let here: Vec<&Arc<Node>> = all.iter().filter(|other| zone_of(other) == zone).collect();
        let ill = here.iter().filter(|other| !is_ready(other)).count();
        let Some(pause) = pause(here.len(), ill, usual) else { return false };
        let due = self.0.get(&zone).is_none_or(|last| now >= *last + pause);
        if due {
            self.0.insert(zone, now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);
    const PAUSE_PARTIAL: Duration = Duration::from_secs(100);

    #[test]
    fn the_more_of_a_zone_is_ill_the_slower_it_is_emptied() {
        let cases = [
            (10, 1, Some(PAUSE)),
            (3, 2, Some(PAUSE)),
            (10, 5, Some(PAUSE)),
            (10, 6, None),
            (100, 60, Some(PAUSE_PARTIAL)),
            (10, 10, Some(PAUSE)),
        ];
        for (nodes, ill, expected) in cases {
            assert_eq!(pause(nodes, ill, PAUSE), expected, "{ill} of {nodes}");
        }
    }

    #[test]
    fn nodes_of_a_zone_take_turns_and_zones_do_not_wait_for_each_other() {
        let node = |name: &str, zone: &str| -> Arc<Node> {
            let labels = json!({"topology.kubernetes.io/zone": zone});
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
        };
        let all = [node("a", "x"), node("b", "x"), node("c", "y")];
        let (mut zones, start) = (Zones::default(), Instant::now());
        let mut turn = |index: usize, seconds: u64| zones.take_turn(&all[index], &all, PAUSE, start + Duration::from_secs(seconds));
        assert!(turn(0, 0) && !turn(1, 5) && turn(2, 5) && turn(1, 10));
    }
}
