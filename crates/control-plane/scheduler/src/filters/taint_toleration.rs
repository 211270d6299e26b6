use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::class::Class;
use crate::snapshot::{Details, Row};

/// The first taint with effect NoSchedule or NoExecute that the pod does not tolerate.
pub(super) fn why_not(class: &Class, _: &Row, node: &Details) -> Vec<String> {
    let taints = node.node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut hard = taints.filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute");
    match hard.find(|taint| !tolerates(&class.tolerations, taint)) {
        Some(_) => super::because("node(s) had untolerated taint(s)"),
        None => Vec::new(),
    }
}

/// Whether one of the tolerations covers the taint. An empty effect covers all effects, an empty key with Exists all keys.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or("");
        let key = toleration.key.as_deref().unwrap_or("");
        let exists = toleration.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists || toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""))
    })
}
