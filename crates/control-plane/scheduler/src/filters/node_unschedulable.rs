use k8s_openapi::api::core::v1::Taint;

use crate::class::Class;
use crate::snapshot::{Details, Row};

/// A cordoned node takes only pods that tolerate its taint.
pub(super) fn why_not(class: &Class, _: &Row, node: &Details) -> Vec<String> {
    let cordoned = node.node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let taint = Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
    if cordoned && !super::tolerates(&class.tolerations, &taint) { super::because("node(s) were unschedulable") } else { Vec::new() }
}
