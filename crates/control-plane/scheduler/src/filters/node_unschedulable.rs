use k8s_openapi::api::core::v1::Taint;

use super::{Judged, Objection};
use crate::profile::Plugin;

/// The node is cordoned, and the pod does not tolerate that.
pub(super) fn objection(judged: &Judged<'_>) -> Option<Objection> {
    if !judged.snapshot.details[judged.slot].facts.unschedulable {
        return None;
    }
    let cordoned = Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
    let tolerated = super::tolerates(&judged.class.tolerations, &cordoned);
    (!tolerated).then(|| Objection::unresolvable(Plugin::NodeUnschedulable, "node(s) were unschedulable"))
}
