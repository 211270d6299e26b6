use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::{Judged, Objection};
use crate::class::Class;
use crate::profile::Plugin;
use crate::snapshot::Details;

/// A taint with effect NoSchedule or NoExecute that the pod does not tolerate.
pub(super) fn objection(judged: &Judged<'_>) -> Option<Objection> {
    untolerated(judged.class, &judged.snapshot.details[judged.slot])
        .map(|_| Objection::unresolvable(Plugin::TaintToleration, "node(s) had untolerated taint(s)"))
}

pub(crate) fn untolerated<'a>(class: &Class, node: &'a Details) -> Option<&'a Taint> {
    let mut hard = node.facts.taints.iter().filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute");
    hard.find(|taint| !tolerates(&class.tolerations, taint))
}

/// How many PreferNoSchedule taints the pod does not tolerate.
pub(crate) fn soft_taints(class: &Class, node: &Details) -> i64 {
    let soft = node.facts.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerates(&class.tolerations, taint)).count() as i64
}

/// Whether one of the tolerations covers the taint. An empty effect covers all effects, an empty key with Exists all keys; Lt and Gt
/// compare whole numbers (KEP-5471).
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or("");
        let key = toleration.key.as_deref().unwrap_or("");
        let value = toleration.value.as_deref().unwrap_or("");
        let tainted = taint.value.as_deref().unwrap_or("");
        let compare = |holds: fn(&i64, &i64) -> bool| match (tainted.parse(), value.parse()) {
            (Ok(tainted), Ok(limit)) => holds(&tainted, &limit),
            _ => false,
        };
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && match toleration.operator.as_deref().unwrap_or("") {
                "Exists" => true,
                "" | "Equal" => !key.is_empty() && value == tainted,
                "Lt" => compare(i64::lt),
                "Gt" => compare(i64::gt),
                _ => false,
            }
    })
}
