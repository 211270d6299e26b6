//! From a pod's volume to what is behind it: its claim, and the volume that the claim is bound to.

use client::Client;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

use super::Trouble;
use super::source::{Source, Wanted};
use crate::podspec;

/// The claim that a volume is, and whether the pod may only read it.
pub fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some((claim.claim_name.clone(), claim.read_only == Some(true)));
    }
    volume.ephemeral.as_ref().map(|_| (format!("{}-{}", podspec::name(pod), volume.name), false))
}

/// Asks the API, which is allowed one object at a time.
pub async fn resolve(client: &Client, pod: &Pod, volume: &Volume) -> Result<Wanted, Trouble> {
    let Some((name, read_only)) = claim_of(pod, volume) else { return inline(volume, podspec::namespace(pod)) };
    let namespace = podspec::namespace(pod);
    let failed = |why: String| {
        Trouble::from(format!(
            "Unable to attach or mount volumes: unmounted volumes=[{0}], unattached volumes=[], failed to process volumes=[{0}]: error processing PVC {namespace}/{name}: {why}",
            volume.name
        ))
    };
    let claim = match client.get::<PersistentVolumeClaim>(Some(namespace), &name).await {
        Ok(claim) => claim,
        // The authorizer may hear of the pod a moment later than we.
        Err(error) if error.is_forbidden() => return Err(Trouble::Waiting(error.to_string())),
        Err(error) => return Err(failed(format!("failed to fetch PVC from API server: {error}"))),
    };
    let volume_name = bound(pod, volume, &claim).map_err(|trouble| match trouble {
        Trouble::Failed(_, why) => failed(why),
        waiting => waiting,
    })?;
    let found = match client.get::<PersistentVolume>(None, &volume_name).await {
        Ok(found) => found,
        Err(error) if error.is_forbidden() => return Err(Trouble::Waiting(error.to_string())),
        Err(error) => return Err(failed(format!("failed to fetch PV {volume_name} from API server: {error}"))),
    };
    wanted(pod, volume, &claim, &found, read_only).map_err(failed)
}

fn inline(volume: &Volume, namespace: &str) -> Result<Wanted, Trouble> {
    let source = Source::of_volume(volume, namespace).ok_or_else(|| Trouble::from(format!("volume {:?} has no source", volume.name)))?;
    let read_only = volume.nfs.as_ref().and_then(|nfs| nfs.read_only).or_else(|| volume.iscsi.as_ref()?.read_only);
    let read_only = read_only.or_else(|| volume.csi.as_ref()?.read_only) == Some(true);
    Ok(Wanted { name: volume.name.clone(), claim: None, source, block: false, read_only, options: Vec::new() })
}

/// The volume's name, if the claim is fit for use.
fn bound(pod: &Pod, volume: &Volume, claim: &PersistentVolumeClaim) -> Result<String, Trouble> {
    let meta = &claim.metadata;
    if volume.ephemeral.is_some() {
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        if owner.map(|owner| owner.uid.as_str()) != Some(podspec::uid(pod)) {
            let (namespace, name) = (podspec::namespace(pod), podspec::name(pod));
            let claim = meta.name.as_deref().unwrap_or_default();
            return Err(format!("PVC {namespace}/{claim} was not created for pod {namespace}/{name} (pod is not owner)").into());
        }
    }
    // It is held for the pods that use it already, and given to no others.
    if meta.deletion_timestamp.is_some() && pod.metadata.creation_timestamp > meta.deletion_timestamp {
        return Err("PVC is being deleted".to_owned().into());
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
    match name.filter(|_| phase == Some("Bound")) {
        Some(name) => Ok(name),
        None => Err(Trouble::Waiting("PVC is not bound".into())),
    }
}

fn wanted(pod: &Pod, volume: &Volume, claim: &PersistentVolumeClaim, found: &PersistentVolume, read_only: bool) -> Result<Wanted, String> {
    let name = found.metadata.name.clone().unwrap_or_default();
    let spec = found.spec.clone().unwrap_or_default();
    let reference = spec.claim_ref.as_ref().and_then(|reference| reference.uid.clone());
    if reference.is_none() || reference != claim.metadata.uid {
        let (has, wants) = (reference.unwrap_or_default(), claim.metadata.uid.clone().unwrap_or_default());
        return Err(format!("PV object {name} has claimRef.UID {has:?} which does not match the expected PVC UID {wants:?}"));
    }
    let block = spec.volume_mode.as_deref() == Some("Block");
    check_mode(pod, &volume.name, block)?;
    let mut source = Source::of_persistent(found, &spec);
    if let Source::Csi(csi) = &mut source {
        let told = claim.status.as_ref().and_then(|status| podspec::quantity(status.capacity.as_ref()?.get("storage")?));
        csi.bytes.1 = told.map_or(0, |told| u64::try_from(told.value()).unwrap_or(0));
        csi.claim = claim.metadata.namespace.clone().zip(claim.metadata.name.clone());
    }
    let read_only = read_only || spec.csi.as_ref().and_then(|csi| csi.read_only) == Some(true);
    Ok(Wanted { source, claim: claim.metadata.name.clone(), block, read_only, options: spec.mount_options.unwrap_or_default(), name })
}

/// A volume is a file system or a device, and containers must take it as what it is.
fn check_mode(pod: &Pod, volume: &str, block: bool) -> Result<(), String> {
    let containers = podspec::containers(pod);
    let mounted = containers.iter().flat_map(|(_, container)| container.volume_mounts.iter().flatten()).any(|mount| mount.name == volume);
    let mapped = containers.iter().flat_map(|(_, container)| container.volume_devices.iter().flatten()).any(|device| device.name == volume);
    match () {
        () if block && mounted => Err(format!("volume {volume} has volumeMode Block, but is specified in volumeMounts")),
        () if !block && mapped => Err(format!("volume {volume} has volumeMode Filesystem, but is specified in volumeDevices")),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::podspec::tests::pod;

    fn claim(phase: &str, more: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "c", "uid": "c-uid"}, "spec": {"volumeName": "pv"}, "status": {"phase": phase}});
        more.as_object().into_iter().flatten().for_each(|(key, value)| claim["metadata"][key] = value.clone());
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn only_a_bound_claim_that_stays_is_used() {
        let pod = pod(json!({"containers": [{"name": "c"}]}));
        let volume = |source: Value| {
            let mut volume = json!({"name": "v"});
            source.as_object().unwrap().iter().for_each(|(key, value)| volume[key] = value.clone());
            serde_json::from_value::<Volume>(volume).unwrap()
        };
        let plain = volume(json!({"persistentVolumeClaim": {"claimName": "c"}}));
        assert_eq!(bound(&pod, &plain, &claim("Bound", json!({}))), Ok("pv".into()));
        assert_eq!(bound(&pod, &plain, &claim("Pending", json!({}))), Err(Trouble::Waiting("PVC is not bound".into())));
        let ephemeral = volume(json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}));
        let owner =
            |uid: &str| json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]});
        assert_eq!(bound(&pod, &ephemeral, &claim("Bound", owner("u1"))), Ok("pv".into()));
        assert!(bound(&pod, &ephemeral, &claim("Bound", owner("u2"))).unwrap_err().message().contains("pod is not owner"));
    }

    #[test]
    fn a_device_is_not_mounted_and_a_file_system_is_no_device() {
        let volume: Volume = serde_json::from_value(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})).unwrap();
        let persistent = |mode: &str, uid: &str| {
            let spec = json!({"volumeMode": mode, "claimRef": {"uid": uid}, "local": {"path": "/x"}, "capacity": {"storage": "1Gi"}});
            let annotations = json!({"pv.kubernetes.io/provisioned-by": super::super::source::LOCAL_PATH});
            serde_json::from_value::<PersistentVolume>(json!({"metadata": {"name": "pv", "annotations": annotations}, "spec": spec}))
                .unwrap()
        };
        let of = |container: Value, mode: &str, uid: &str| {
            let pod = pod(json!({"containers": [container]}));
            wanted(&pod, &volume, &claim("Bound", json!({})), &persistent(mode, uid), false)
        };
        let (mounts, devices) = (
            json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
            json!({"name": "c", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}),
        );
        assert_eq!(of(mounts.clone(), "Block", "c-uid").unwrap_err(), "volume v has volumeMode Block, but is specified in volumeMounts");
        assert_eq!(
            of(devices.clone(), "Filesystem", "c-uid").unwrap_err(),
            "volume v has volumeMode Filesystem, but is specified in volumeDevices"
        );
        assert!(of(devices, "Block", "c-uid").unwrap().block);
        let made = of(mounts.clone(), "Filesystem", "c-uid").unwrap();
        assert_eq!(made.source, Source::Local { path: "/x".into(), kind: "ext4".into(), made_for: Some(1 << 30), filled_from: None });
        assert!(of(mounts, "Filesystem", "another").unwrap_err().contains("claimRef.UID"));
    }
}
