//! Volumes of CSI drivers: staged once per node, published once per pod, and taken back in the opposite order.
//!
//! A driver comes by its registration ([`drivers`]); [`mount`] is the way of one volume to its pod. What was done lies on the disk under
//! upstream's names: `vol_data.json` beside each pod's mount names driver and handle, so that a restarted kubelet, or one of
//! another make, can take it back. Work on one volume is one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client::{Client, Patch};
use k8s_openapi::api::core::v1::{LocalObjectReference, Node, PersistentVolumeSpec, SecretReference};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::worker::lock;

pub mod drivers;
pub mod mount;

pub(super) const PLUGIN: &str = "kubernetes.io~csi";
/// How often a volume is looked at while it is here.
const FOLLOW_EVERY: Duration = Duration::from_secs(10);
const DATA: &str = "vol_data.json";

/// A volume of a driver, as its PersistentVolume or its pod says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    pub driver: String,
    /// Empty for a volume that its pod describes itself: its handle is made of the pod.
    pub handle: String,
    pub kind: String,
    pub attributes: BTreeMap<String, String>,
    pub access_modes: Vec<String>,
    pub stage_secret: Option<(String, String)>,
    pub publish_secret: Option<(String, String)>,
    pub expand_secret: Option<(String, String)>,
    pub inline: bool,
    /// Bytes that the volume has been given, and that its claim says it has.
    pub bytes: (u64, u64),
    pub claim: Option<(String, String)>,
}

impl Source {
    pub fn of_persistent(spec: &PersistentVolumeSpec) -> Option<Self> {
        let csi = spec.csi.as_ref()?;
        let secret =
            |reference: &Option<SecretReference>| reference.as_ref().and_then(|it| Some((it.namespace.clone()?, it.name.clone()?)));
        let size = spec.capacity.as_ref().and_then(|capacity| crate::podspec::quantity(capacity.get("storage")?));
        Some(Self {
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            kind: csi.fs_type.clone().unwrap_or_default(),
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            stage_secret: secret(&csi.node_stage_secret_ref),
            publish_secret: secret(&csi.node_publish_secret_ref),
            expand_secret: secret(&csi.node_expand_secret_ref),
            inline: false,
            bytes: (size.map_or(0, |size| u64::try_from(size.value()).unwrap_or(0)), 0),
            claim: None,
        })
    }

    pub fn of_pod(csi: &k8s_openapi::api::core::v1::CSIVolumeSource, namespace: &str) -> Self {
        let secret = |reference: &Option<LocalObjectReference>| reference.as_ref().map(|it| (namespace.to_owned(), it.name.clone()));
        Self {
            driver: csi.driver.clone(),
            kind: csi.fs_type.clone().unwrap_or_default(),
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            publish_secret: secret(&csi.node_publish_secret_ref),
            inline: true,
            ..Self::default()
        }
    }
}

/// What lies beside a published volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Data {
    #[serde(rename = "specVolID")]
    name: String,
    driver_name: String,
    volume_handle: String,
    node_name: String,
    #[serde(rename = "attachmentID")]
    attachment: String,
    volume_lifecycle_mode: String,
    /// Ours: whether the driver staged it.
    staged: bool,
    block: bool,
}

impl Data {
    fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(DATA)).ok()?).ok()
    }

    fn write(&self, directory: &Path) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("save {}: {error}", directory.join(DATA).display());
        fs::create_dir_all(directory).map_err(|error| failed(&error))?;
        let text = serde_json::to_vec(self).map_err(|error| failed(&error))?;
        fs::write(directory.join(DATA), text).map_err(|error| failed(&error))
    }

    /// As nodes and the attach/detach controller call it.
    fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver_name, self.volume_handle)
    }
}

/// All drivers and volumes of one node.
pub struct Csi {
    config: Config,
    client: Client,
    drivers: Mutex<BTreeMap<String, Arc<drivers::Known>>>,
    /// One piece of work per volume at a time.
    volumes: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Attached volumes that pods use or are about to.
    in_use: tokio::sync::Mutex<BTreeSet<String>>,
    /// Writers of the CSINode wait for each other.
    node: tokio::sync::Mutex<()>,
    /// When a pod's volume was last looked at, while it is here.
    looked: Mutex<BTreeMap<(String, String), Instant>>,
}

impl Csi {
    pub fn new(config: Config, client: Client) -> Self {
        let in_use = all_data(&config).into_iter().filter(|(_, data)| !data.attachment.is_empty()).map(|(_, data)| data.unique_name());
        let in_use = tokio::sync::Mutex::new(in_use.collect());
        Self {
            config,
            client,
            drivers: Mutex::default(),
            volumes: Mutex::default(),
            in_use,
            node: tokio::sync::Mutex::default(),
            looked: Mutex::default(),
        }
    }

    /// Is it time to look at a volume that is here?
    pub fn is_due(&self, uid: &str, volume: &str) -> bool {
        let mut looked = lock(&self.looked);
        let last = looked.entry((uid.to_owned(), volume.to_owned())).or_insert_with(Instant::now);
        let due = last.elapsed() >= FOLLOW_EVERY;
        if due {
            *last = Instant::now();
        }
        due
    }

    async fn turn(&self, volume: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = lock(&self.volumes).entry(volume.to_owned()).or_default().clone();
        turn.lock_owned().await
    }

    fn driver(&self, name: &str) -> Result<Arc<drivers::Known>, String> {
        let known = lock(&self.drivers).get(name).cloned();
        known.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    /// The controller must know before anything is mounted, and only after nothing is: it detaches by this.
    async fn report(&self, volume: &str, used: bool) -> Result<(), String> {
        let mut in_use = self.in_use.lock().await;
        let mut next = in_use.clone();
        let changed = if used { next.insert(volume.to_owned()) } else { next.remove(volume) };
        if !changed {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"status": {"volumesInUse": next}}));
        let written = self.client.patch::<Node>(None, &self.config.node_name, &patch, "status").await;
        written.map_err(|error| format!("report volumes in use: {error}"))?;
        *in_use = next;
        Ok(())
    }

    fn staging(&self, data: &Data) -> PathBuf {
        let folder = self.config.data_directory.join("plugins/kubernetes.io/csi");
        match data.block {
            true => folder.join("volumeDevices/staging").join(&data.name),
            false => folder.join(&data.driver_name).join(hex(data.volume_handle.as_bytes())).join("globalmount"),
        }
    }

    /// Where the driver puts it for one pod.
    fn target(&self, data: &Data, uid: &str) -> PathBuf {
        match data.block {
            true => self.config.data_directory.join("plugins/kubernetes.io/csi/volumeDevices/publish").join(&data.name).join(uid),
            false => self.folder(data, uid).join("mount"),
        }
    }

    /// What the pod's own folder has of it.
    fn folder(&self, data: &Data, uid: &str) -> PathBuf {
        let kind = if data.block { "volumeDevices" } else { "volumes" };
        self.config.pod_directory(uid).join(kind).join(PLUGIN).join(&data.name)
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Published volumes of one pod, with their folders.
fn data_of(pod: &Path) -> Vec<(PathBuf, Data)> {
    let folders = ["volumes", "volumeDevices"].map(|kind| pod.join(kind).join(PLUGIN));
    let entries = folders.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), Data::read(&entry.path())?))).collect()
}

fn all_data(config: &Config) -> Vec<(PathBuf, Data)> {
    super::users(config).flat_map(|pod| data_of(&pod)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_is_found_again_on_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::new("node", "192.0.2.1".parse().unwrap());
        config.data_directory = root.path().into();
        let data = Data {
            name: "pv".into(),
            driver_name: "d.example.com".into(),
            volume_handle: "h".into(),
            attachment: "csi-1".into(),
            ..Data::default()
        };
        data.write(&root.path().join("pods/u1/volumes/kubernetes.io~csi/pv")).unwrap();
        let found = all_data(&config);
        assert_eq!(found.iter().map(|(_, data)| data.unique_name()).collect::<Vec<_>>(), ["kubernetes.io/csi/d.example.com^h"]);
        let text = fs::read_to_string(found[0].0.join(DATA)).unwrap();
        for key in ["\"specVolID\":\"pv\"", "\"driverName\"", "\"volumeHandle\"", "\"attachmentID\"", "\"volumeLifecycleMode\""] {
            assert!(text.contains(key), "upstream's kubelet reads {key}: {text}");
        }
    }
}
