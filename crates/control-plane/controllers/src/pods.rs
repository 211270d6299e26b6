//! What controllers ask of a pod.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use reconcile::{Cache, ObjectKey};

use crate::selector::{self, Claim, Family};

/// The index of pods by the uid of their controller.
pub(crate) const BY_CONTROLLER: &str = "controller-uid";
/// The index of pods without a controller by namespace.
pub(crate) const ORPHANS: &str = "orphans-by-namespace";
/// The index of pods by node name.
pub(crate) const BY_NODE: &str = "node";

/// The index of pods by the claims that their volumes are.
pub(crate) const BY_CLAIM: &str = "pods-by-claim";

/// Registers the indexes that several controllers read.
pub(crate) fn index(cache: &Cache<Pod>) {
    cache.index(BY_CONTROLLER, |pod| controller_uid(&pod.metadata));
    cache.index(ORPHANS, |pod| orphan_namespace(&pod.metadata));
    cache.index(BY_NODE, |pod| node_name(pod).map(str::to_owned).into_iter().collect());
}

/// Registers [`BY_CLAIM`].
pub(crate) fn index_claims(cache: &Cache<Pod>) {
    cache.index(BY_CLAIM, |pod| claims(pod).map(|key| key.to_string()).collect());
}

/// The claims that a pod's volumes are, its own ephemeral ones included.
pub(crate) fn claims(pod: &Pod) -> impl Iterator<Item = ObjectKey> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(|volume| {
        let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => source.claim_name.clone(),
            (None, Some(_)) => format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name),
            (None, None) => return None,
        };
        Some(ObjectKey::new(pod.metadata.namespace.clone().unwrap_or_default(), name))
    })
}

/// The pods of `owner`, those that it would adopt, and those that it would release.
pub(crate) fn family(cache: &Cache<Pod>, owner: &ObjectMeta, wanted: &meta::LabelSelector) -> Family {
    let mut all = cache.by_index(BY_CONTROLLER, owner.uid.as_deref().unwrap_or_default());
    all.extend(cache.by_index(ORPHANS, owner.namespace.as_deref().unwrap_or_default()));
    let mut family = Family::default();
    for pod in all {
        match selector::claim(owner, wanted, &pod.metadata) {
            Claim::Keep => family.kept.push(pod),
            Claim::Adopt => family.orphans.push(pod),
            Claim::Release => family.strays.push(pod),
            Claim::Leave => {}
        }
    }
    family
}

pub(crate) fn controller_uid(meta: &ObjectMeta) -> Vec<String> {
    reconcile::object::controller_of(meta).map(|owner| owner.uid.clone()).into_iter().collect()
}

pub(crate) fn orphan_namespace(meta: &ObjectMeta) -> Vec<String> {
    let orphan = reconcile::object::controller_of(meta).is_none();
    meta.namespace.iter().filter(|_| orphan).cloned().collect()
}

pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// On its way out, and not ended yet.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && !is_terminal(pod)
}

/// Neither ended nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

pub(crate) fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub(crate) fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    condition(pod.status.as_ref()?, "Ready")
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some_and(|condition| condition.status == "True")
}

/// The pod's conditions with `DisruptionTarget`: whoever judges its failure sees that it was not its own.
pub(crate) fn with_disruption(pod: &Pod, reason: &str, message: &str) -> Vec<PodCondition> {
    let mut conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| condition.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(Time(Timestamp::now())),
        ..PodCondition::default()
    });
    conditions
}

/// When the pod last became ready; `None` where it is not.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = ready_condition(pod).filter(|condition| condition.status == "True")?;
    Some(condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// Ready for at least `min_ready_seconds`.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    let Some(since) = ready_since(pod) else { return false };
    min_ready_seconds <= 0 || now.as_second().saturating_sub(since.as_second()) >= i64::from(min_ready_seconds)
}
