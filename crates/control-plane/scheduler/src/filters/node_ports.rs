use super::{Judged, Objection};
use crate::profile::Plugin;
use crate::snapshot::port_taken;

/// No two pods on a node may hold the same host port.
pub(super) fn objection(judged: &Judged<'_>) -> Option<Objection> {
    let wanted = &judged.class.host_ports;
    if wanted.is_empty() {
        return None;
    }
    let row = &judged.snapshot.rows[judged.slot];
    let taken = port_taken(&judged.snapshot.details[judged.slot].ports, wanted)
        || row.nominated
            && judged
                .snapshot
                .nominated(judged.slot, judged.class.priority, judged.but)
                .any(|other| port_taken(&other.class.host_ports, wanted));
    taken.then(|| Objection::resolvable(Plugin::NodePorts, "node(s) didn't have free ports for the requested pod ports"))
}
