//! When a volume of the built-in provisioner goes.

use k8s_openapi::api::core::v1::PersistentVolume;

use super::{DATA_REMOVED, FINALIZER, NODE_LABEL};

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Take the finalizer away.
    pub release: bool,
    pub delete: bool,
}

pub(super) fn node_of(volume: &PersistentVolume) -> Option<&str> {
    volume.metadata.labels.as_ref()?.get(NODE_LABEL).map(String::as_str)
}

/// `node`: the node that has the data exists.
pub(super) fn plan(volume: &PersistentVolume, node: bool) -> Plan {
    let status = volume.status.clone().unwrap_or_default();
    let deletes = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    let released = status.phase.as_deref() == Some("Released");
    let leaving = volume.metadata.deletion_timestamp.is_some();
    // A node that is gone took the data with it.
    let removed = status.reason.as_deref() == Some(DATA_REMOVED) || !node;
    let over = if deletes { released && removed } else { leaving && status.phase.as_deref() != Some("Bound") };
    let held = volume.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER);
    Plan { release: over && held, delete: over && deletes && !leaving }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_outlives_its_data_and_a_retained_volume_goes_when_it_is_told_to() {
        let of = |policy: &str, phase: &str, reason: &str, leaving: bool, node: bool| {
            let time = leaving.then_some("2026-01-01T00:00:00Z");
            let volume = json!({
                "metadata": {"name": "v", "finalizers": [FINALIZER], "deletionTimestamp": time},
                "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase, "reason": reason},
            });
            let plan = plan(&serde_json::from_value(volume).unwrap(), node);
            (plan.release, plan.delete)
        };
        let cases = [
            ("Delete", "Bound", "", false, true, (false, false)),
            ("Delete", "Released", "", false, true, (false, false)),
            ("Delete", "Released", DATA_REMOVED, false, true, (true, true)),
            ("Delete", "Released", "", false, false, (true, true)),
            ("Delete", "Bound", "", true, true, (false, false)),
            ("Delete", "Released", DATA_REMOVED, true, true, (true, false)),
            ("Retain", "Released", "", false, true, (false, false)),
            ("Retain", "Released", "", true, true, (true, false)),
            ("Retain", "Bound", "", true, true, (false, false)),
        ];
        for (policy, phase, reason, leaving, node, expected) in cases {
            assert_eq!(of(policy, phase, reason, leaving, node), expected, "{policy} {phase} {reason} {leaving} {node}");
        }
    }
}
