use k8s_openapi::api::core::v1::Toleration;

use super::Context;
use crate::class::Class;
use crate::filters::tolerates;
use crate::snapshot::Details;

/// How many PreferNoSchedule taints the pod does not tolerate (fewer is better).
pub(super) fn score(class: &Class, node: &Details, _: &Context) -> i64 {
    let soft = |toleration: &&Toleration| matches!(toleration.effect.as_deref(), None | Some("" | "PreferNoSchedule"));
    let tolerations: Vec<Toleration> = class.tolerations.iter().filter(soft).cloned().collect();
    let taints = node.node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "PreferNoSchedule" && !tolerates(&tolerations, taint)).count() as i64
}
