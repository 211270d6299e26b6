//! Who owns a volume claim under the set's retention policy (KEP-1847).

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

/// Whether claims go with the set, and whether they go with a pod that is scaled away.
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |word: Option<&String>| word.map(String::as_str) == Some("Delete");
    (deletes(policy.and_then(|policy| policy.when_deleted.as_ref())), deletes(policy.and_then(|policy| policy.when_scaled.as_ref())))
}

/// The owner references that `claim` shall have; `None` where it has them. `condemned` is the pod that uses it, where that is about to be
/// scaled away.
pub(super) fn owners(set: &StatefulSet, claim: &PersistentVolumeClaim, pod: Option<&Pod>, condemned: bool) -> Option<Vec<OwnerReference>> {
    let (when_deleted, when_scaled) = policy(set);
    let current = claim.metadata.owner_references.clone().unwrap_or_default();
    let mut next = current.clone();
    let set_uid = set.metadata.uid.as_deref().unwrap_or_default();
    let pod_uid = pod.and_then(|pod| pod.metadata.uid.as_deref());
    // With both policies the pod takes over while it is condemned, so that the claim goes with whichever is first.
    let by_set = when_deleted && !(when_scaled && condemned);
    let by_pod = when_scaled && condemned;
    next.retain(|owner| owner.uid != set_uid && Some(owner.uid.as_str()) != pod_uid && !is_former_pod(set, owner));
    if by_set {
        next.push(reference("apps/v1", "StatefulSet", set.metadata.name.as_deref().unwrap_or_default(), set_uid, true));
    }
    if let (true, Some(uid), Some(pod)) = (by_pod, pod_uid, pod) {
        next.push(reference("v1", "Pod", pod.metadata.name.as_deref().unwrap_or_default(), uid, false));
    }
    let key = |owners: &[OwnerReference]| {
        let mut uids: Vec<String> = owners.iter().map(|owner| owner.uid.clone()).collect();
        uids.sort();
        uids
    };
    (key(&next) != key(&current)).then_some(next)
}

/// A pod of the set that once used the claim.
fn is_former_pod(set: &StatefulSet, owner: &OwnerReference) -> bool {
    let prefix = owner.name.rsplit_once('-').map(|(prefix, _)| prefix);
    owner.kind == "Pod" && owner.api_version == "v1" && prefix == set.metadata.name.as_deref()
}

fn reference(api_version: &str, kind: &str, name: &str, uid: &str, controller: bool) -> OwnerReference {
    OwnerReference {
        api_version: api_version.into(),
        kind: kind.into(),
        name: name.into(),
        uid: uid.into(),
        controller: controller.then_some(true),
        block_owner_deletion: controller.then_some(true),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_belongs_to_the_set_to_a_condemned_pod_or_to_nobody() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "db-1", "uid": "p"}})).unwrap();
        let kinds = |deleted: &str, scaled: &str, condemned: bool, before: &[(&str, &str)]| {
            let policy = json!({"whenDeleted": deleted, "whenScaled": scaled});
            let set = json!({"metadata": {"name": "db", "uid": "s"}, "spec": {"serviceName": "", "selector": {}, "template": {}, "persistentVolumeClaimRetentionPolicy": policy}});
            let owners: Vec<_> = before.iter().map(|(kind, uid)| json!({"apiVersion": if *kind == "Pod" { "v1" } else { "apps/v1" }, "kind": kind, "name": "db-1", "uid": uid})).collect();
            let claim = serde_json::from_value(json!({"metadata": {"name": "data-db-1", "ownerReferences": owners}})).unwrap();
            owners_of(&serde_json::from_value(set).unwrap(), &claim, &pod, condemned)
        };
        fn owners_of(set: &StatefulSet, claim: &PersistentVolumeClaim, pod: &Pod, condemned: bool) -> Option<String> {
            owners(set, claim, Some(pod), condemned).map(|owners| owners.into_iter().map(|owner| owner.uid).collect::<Vec<_>>().join(","))
        }
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(kinds("Retain", "Retain", false, &[]), None);
        assert_eq!(kinds("Retain", "Retain", false, &[("StatefulSet", "s")]), text(""));
        assert_eq!(kinds("Delete", "Retain", false, &[]), text("s"));
        assert_eq!(kinds("Delete", "Retain", true, &[("StatefulSet", "s")]), None);
        assert_eq!(kinds("Delete", "Delete", true, &[("StatefulSet", "s")]), text("p"));
        assert_eq!(kinds("Retain", "Delete", true, &[("Widget", "w")]), text("w,p"));
        assert_eq!(kinds("Retain", "Delete", false, &[("Pod", "p")]), text(""), "scaled up again before the pod was gone");
    }
}
