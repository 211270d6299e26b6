//! What makes a pod of a StatefulSet itself: its number, and all that follows from it.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};

use crate::{act, history};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default())
}

/// The number in a pod's name; `None` for a name that is not of this set's form.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let (owner, number) = pod.metadata.name.as_deref()?.rsplit_once('-')?;
    let number = number.parse().ok().filter(|number: &i32| *number >= 0)?;
    (Some(owner) == set.metadata.name.as_deref()).then_some(number)
}

fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", template.metadata.name.as_deref().unwrap_or_default())
}

/// The claims that the pod of this number uses.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let pod = pod_name(set, ordinal);
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(template, &pod));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(set.spec.selector.match_labels.clone().unwrap_or_default());
        claim.status = None;
        claim
    };
    set.spec.volume_claim_templates.iter().flatten().map(claim).collect()
}

/// The pod of this number, of the template of revision `revision`.
pub(super) fn pod(set: &StatefulSet, ordinal: i32, template: PodTemplateSpec, revision: &str) -> Pod {
    let name = pod_name(set, ordinal);
    let mut pod = act::pod_from(template, set.metadata.namespace.clone(), "", act::controller_ref(set));
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), name.clone());
    labels.insert(POD_INDEX.into(), ordinal.to_string());
    labels.insert(history::HASH_LABEL.into(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = set.spec.service_name.clone();
    let templates = set.spec.volume_claim_templates.as_deref().unwrap_or_default();
    let volumes = spec.volumes.get_or_insert_default();
    volumes.retain(|volume| !templates.iter().any(|template| template.metadata.name.as_ref() == Some(&volume.name)));
    volumes.extend(templates.iter().map(|template| Volume {
        name: template.metadata.name.clone().unwrap_or_default(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name: claim_name(template, &name), read_only: None }),
        ..Volume::default()
    }));
    pod
}

pub(super) fn revision(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(history::HASH_LABEL)).map_or("", String::as_str)
}
