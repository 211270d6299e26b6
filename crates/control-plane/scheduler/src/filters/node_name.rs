use crate::class::Class;
use crate::snapshot::{Details, Row};

/// `spec.nodeName` was asked for.
pub(super) fn why_not(class: &Class, _: &Row, node: &Details) -> Vec<String> {
    match &class.node_name {
        Some(wanted) if *wanted != node.name => super::because("node(s) didn't match the requested node name"),
        _ => Vec::new(),
    }
}
