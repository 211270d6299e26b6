//! How fast nodes of a zone may be emptied: the more of it is ill, the likelier it is the network, and the slower
//! (upstream: `ComputeZoneState`, `--node-eviction-rate`, `--secondary-node-eviction-rate`, `--unhealthy-zone-threshold`).

use std::collections::HashMap;
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

/// The nodes of each zone, counted as they come, change and go: what is asked of all nodes about one in trouble is asked of these.
#[derive(Default)]
pub(super) struct Zones(HashMap<String, Zone>);

#[derive(Default)]
struct Zone {
    nodes: usize,
    ready: usize,
    /// When its last node was emptied.
    emptied: Option<Instant>,
}

impl Zones {
    /// A node as it was and as it is.
    pub fn observe(&mut self, old: Option<&Node>, new: Option<&Node>) {
        if let Some(new) = new {
            let zone = self.0.entry(zone_of(new)).or_default();
            zone.nodes += 1;
            zone.ready += usize::from(is_ready(new));
        }
        let Some(old) = old else { return };
        let name = zone_of(old);
        let Some(zone) = self.0.get_mut(&name) else { return };
        zone.nodes = zone.nodes.saturating_sub(1);
        zone.ready = zone.ready.saturating_sub(usize::from(is_ready(old)));
        if zone.nodes == 0 {
            self.0.remove(&name);
        }
    }

    pub fn is_another_ready(&self, node: &Node) -> bool {
        self.0.values().map(|zone| zone.ready).sum::<usize>() > usize::from(is_ready(node))
    }

    /// True where `node` may be emptied now; that is its zone's turn, then.
    pub fn take_turn(&mut self, node: &Node, usual: Duration, now: Instant) -> bool {
        let Some(zone) = self.0.get_mut(&zone_of(node)) else { return false };
        let Some(pause) = pause(zone.nodes, zone.nodes - zone.ready.min(zone.nodes), usual) else { return false };
        let due = zone.emptied.is_none_or(|last| now >= last + pause);
        if due {
            zone.emptied = Some(now);
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

    fn node(name: &str, zone: &str, ready: &str) -> Node {
        let conditions = json!([{"type": "Ready", "status": ready}]);
        let labels = json!({"topology.kubernetes.io/zone": zone});
        serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "status": {"conditions": conditions}})).unwrap()
    }

    #[test]
    fn nodes_of_a_zone_take_turns_and_zones_do_not_wait_for_each_other() {
        let all = [node("a", "x", "True"), node("b", "x", "True"), node("c", "y", "True")];
        let (mut zones, start) = (Zones::default(), Instant::now());
        all.iter().for_each(|node| zones.observe(None, Some(node)));
        let mut turn = |index: usize, seconds: u64| zones.take_turn(&all[index], PAUSE, start + Duration::from_secs(seconds));
        assert!(turn(0, 0) && !turn(1, 5) && turn(2, 5) && turn(1, 10));
    }

    #[test]
    fn nodes_are_counted_as_they_come_fall_ill_and_go() {
        let (mut zones, well, ill) = (Zones::default(), node("a", "x", "True"), node("a", "x", "Unknown"));
        let other = node("b", "y", "True");
        zones.observe(None, Some(&well));
        assert!(!zones.is_another_ready(&well), "it is the only one");
        zones.observe(None, Some(&other));
        assert!(zones.is_another_ready(&well));
        zones.observe(Some(&other), Some(&node("b", "y", "False")));
        zones.observe(Some(&well), Some(&ill));
        assert!(!zones.is_another_ready(&ill));
        zones.observe(Some(&ill), None);
        zones.observe(Some(&node("b", "y", "False")), None);
        assert!(zones.0.is_empty());
    }
}
