use crate::class::Class;
use crate::snapshot::{Details, Row};

/// No two pods on a node may hold the same host port.
pub(super) fn why_not(class: &Class, _: &Row, node: &Details) -> Vec<String> {
    let taken = class.host_ports.iter().any(|port| node.ports.iter().any(|other| port.conflicts(other)));
    if taken { super::because("node(s) didn't have free ports for the requested pod ports") } else { Vec::new() }
}
