//! Volumes that are more than a directory of the kubelet's own: claims, local disks, network file systems, CSI drivers.
//!
//! [`source`] says what a volume is, whoever speaks of it: the pod itself or the PersistentVolume behind its claim ([`claims`]).
//! [`Storage::set_up`] brings it here and is repeated until it is; [`Storage::tear_down`] takes away what a pod had, by what lies on the
//! disk alone: the folders have upstream's layout and tell a restarted kubelet everything.
//!
//! A pod's folder `pods/<uid>` holds, per volume, `volumes/kubernetes.io~<plugin>/<name>` or, for block devices,
//! `volumeDevices/kubernetes.io~<plugin>/<name>`: a mount, or a link that leads to what the pod uses. What several pods share is below
//! `plugins/kubernetes.io`, and is given back by the last of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::Client;
use k8s_openapi::api::core::v1::{Pod, Volume};
use reconcile::{ObjectKey, Queue};
use volumes::{local_path, loop_device, mounting, ownership, teardown};

use crate::config::Config;
use crate::objects::Tokens;
use crate::podspec;

pub mod claims;
pub mod csi;
pub mod local;
pub mod source;
pub mod usage;

use csi::Csi;
use source::{Source, Wanted};

const LOCAL_PLUGIN: &str = "kubernetes.io~local-volume";

/// A volume that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// A directory or file, or the device of a block volume.
    pub path: PathBuf,
    pub block: bool,
    pub read_only: bool,
    /// The PersistentVolume's name, or the volume's own in its pod.
    pub name: String,
    /// The claim, for metrics: `kubectl` and dashboards look for a volume by it.
    pub claim: Option<String>,
    /// Driver and handle of a CSI volume.
    pub driver: Option<(String, String)>,
}

/// Why a volume is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Reason and message of an event.
    Failed(&'static str, String),
    /// Somebody else has to do something first; nobody needs to hear of it yet.
    Waiting(String),
}

impl Trouble {
    pub fn message(&self) -> &str {
        match self {
            Self::Failed(_, message) | Self::Waiting(message) => message,
        }
    }
}

impl From<String> for Trouble {
    fn from(message: String) -> Self {
        Self::Failed("FailedMount", message)
    }
}

/// Is this volume brought here by [`Storage`]?
pub fn is_stored(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() || Source::of_volume(volume, "").is_some()
}

/// The way to all volumes of one node.
pub struct Storage {
    config: Config,
    client: Client,
    pub csi: Arc<Csi>,
    /// Volumes of the built-in provisioner that are to be looked at.
    local: Queue<ObjectKey>,
}

impl Storage {
    pub fn new(config: Config, client: Client) -> Self {
        let csi = Arc::new(Csi::new(config.clone(), client.clone()));
        Self { config, client, csi, local: Queue::new() }
    }

    /// Brings one volume of the pod here; done again it changes nothing.
    pub async fn set_up(&self, pod: &Pod, volume: &Volume, tokens: &Tokens) -> Result<Placed, Trouble> {
        let wanted = claims::resolve(&self.client, pod, volume).await?;
        if let Source::Csi(source) = &wanted.source {
            return self.csi.set_up(pod, &wanted, source, tokens).await;
        }
        if let Source::Local { path, filled_from: Some(_), .. } = &wanted.source
            && !path.exists()
        {
            self.local.add(ObjectKey::new("", &wanted.name));
            return Err(Trouble::Waiting(format!("volume {:?} is being filled from its data source", wanted.name)));
        }
        let (config, uid) = (self.config.clone(), podspec::uid(pod).to_owned());
        let group = Group::of(pod);
        let failed = |wanted: &Wanted, message: String| match wanted.block {
            true => Trouble::Failed("FailedMapVolume", format!("MapVolume.MapPodDevice failed for volume {:?} : {message}", wanted.name)),
            false => Trouble::Failed("FailedMount", format!("MountVolume.SetUp failed for volume {:?} : {message}", wanted.name)),
        };
        let name = wanted.clone();
        let work = move || place(&config, &uid, &wanted, group);
        let placed = tokio::task::spawn_blocking(work).await.map_err(|error| Trouble::from(error.to_string()))?;
        let placed = placed.map_err(|error| failed(&name, error.to_string()))?;
        if matches!(name.source, Source::Local { made_for: Some(_), .. }) {
            // It may have grown while nobody used it.
            self.local.add(ObjectKey::new("", &name.name));
        }
        Ok(placed)
    }

    /// A volume that is here may have grown, or its driver wants to be told again.
    pub async fn follow(&self, pod: &Pod, volume: &Volume, tokens: &Tokens) -> Result<(), Trouble> {
        if !self.csi.is_due(podspec::uid(pod), &volume.name) {
            return Ok(());
        }
        let wanted = claims::resolve(&self.client, pod, volume).await?;
        match &wanted.source {
            Source::Csi(source) => self.csi.follow(pod, &wanted, source, tokens).await,
            _ => Ok(()),
        }
    }

    /// Takes away everything that the pod had; what others share with it stays.
    pub async fn tear_down(&self, uid: &str) -> Result<(), String> {
        self.csi.tear_down(uid).await?;
        let (config, uid) = (self.config.clone(), uid.to_owned());
        let work = move || remove(&config, &uid);
        tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Does a pod of this node use the volume?
    pub fn is_used(&self, name: &str) -> bool {
        let there =
            |pod: PathBuf| ["volumes", "volumeDevices"].iter().any(|folder| pod.join(folder).join(LOCAL_PLUGIN).join(name).is_symlink());
        users(&self.config).any(there)
    }

    /// Does something of the pod's volumes lie on this node?
    pub fn has_any(&self, uid: &str) -> bool {
        let directory = self.config.pod_directory(uid);
        let stored = |entry: fs::DirEntry| !OWN_KINDS.iter().any(|own| entry.file_name() == *own);
        let volumes = fs::read_dir(directory.join("volumes")).into_iter().flatten().flatten().any(stored);
        volumes || directory.join("volumeDevices").exists()
    }
}

/// Folders of kinds that are a pod's own and go with its folder.
const OWN_KINDS: &[&str] = &[
    "kubernetes.io~empty-dir",
    "kubernetes.io~configmap",
    "kubernetes.io~downward-api",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
];

/// `fsGroup` and its policy.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    gid: Option<u32>,
    on_root_mismatch: bool,
}

impl Group {
    fn of(pod: &Pod) -> Self {
        let security = podspec::spec(pod).security_context.clone().unwrap_or_default();
        Self {
            gid: security.fs_group.and_then(|gid| u32::try_from(gid).ok()),
            on_root_mismatch: security.fs_group_change_policy.as_deref() == Some("OnRootMismatch"),
        }
    }

    fn apply(self, path: &Path) -> Result<(), volumes::Error> {
        match self.gid {
            Some(gid) if path.is_dir() => ownership::set_group(path, gid, self.on_root_mismatch),
            _ => Ok(()),
        }
    }
}

fn place(config: &Config, uid: &str, wanted: &Wanted, group: Group) -> Result<Placed, volumes::Error> {
    let placed = |path: PathBuf| Placed {
        path,
        block: wanted.block,
        read_only: wanted.read_only,
        name: wanted.name.clone(),
        claim: wanted.claim.clone(),
        driver: None,
    };
    let own = |plugin: &str| config.pod_directory(uid).join("volumes").join(plugin).join(&wanted.name);
    match &wanted.source {
        Source::HostPath { path, kind } => {
            volumes::host_path::prepare(path, kind)?;
            Ok(placed(path.clone()))
        }
        Source::Local { path, kind, made_for, .. } => {
            if let Some(bytes) = made_for {
                local_path::make(path, *bytes, wanted.block)?;
            }
            let found = match wanted.block {
                true => block_device(path)?,
                false => local_directory(config, wanted, path, kind)?,
            };
            link(config, uid, wanted, &found)?;
            if !wanted.block && !wanted.read_only {
                group.apply(&found)?;
            }
            Ok(placed(found))
        }
        Source::Network { source, kind } => {
            let target = own(&format!("kubernetes.io~{kind}"));
            let file_system = mounting::FileSystem {
                source: source.clone(),
                kind: kind.clone(),
                options: wanted.options.clone(),
                read_only: wanted.read_only,
            };
            source::mount_network(&file_system, &target)?;
            Ok(placed(target))
        }
        Source::Iscsi(target) => {
            let device = source::log_in(target)?;
            if wanted.block {
                link(config, uid, wanted, &device)?;
                return Ok(placed(device));
            }
            let directory = own("kubernetes.io~iscsi");
            let file_system = mounting::FileSystem {
                source: device.display().to_string(),
                kind: target.kind.clone(),
                options: wanted.options.clone(),
                read_only: wanted.read_only,
            };
            mounting::device(&file_system, &directory)?;
            group.apply(&directory)?;
            Ok(placed(directory))
        }
        Source::Csi(source) => Err(volumes::Error::Refused(format!("volume of the CSI driver {}", source.driver))),
        Source::Unsupported(what) => Err(volumes::Error::Refused(format!("volumes of type {what} are not supported by this node"))),
    }
}

/// The directory of a local volume; a device is mounted once for all pods.
fn local_directory(config: &Config, wanted: &Wanted, path: &Path, kind: &str) -> Result<PathBuf, volumes::Error> {
    use std::os::unix::fs::FileTypeExt;
    let found = fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => volumes::Error::Refused(format!("path {:?} does not exist", path.display().to_string())),
        _ => volumes::Error::Io { step: "stat", path: path.into(), source: error },
    })?;
    if found.is_dir() {
        return Ok(path.to_owned());
    }
    if !found.file_type().is_block_device() {
        return Err(volumes::Error::Refused("only directory and block device are supported".into()));
    }
    let target = local_mounts(config).join(&wanted.name);
    let file_system = mounting::FileSystem {
        source: path.display().to_string(),
        kind: kind.to_owned(),
        options: wanted.options.clone(),
        read_only: false,
    };
    mounting::device(&file_system, &target)?;
    Ok(target)
}

fn local_mounts(config: &Config) -> PathBuf {
    config.data_directory.join("plugins/kubernetes.io/local-volume/mounts")
}

/// The device itself, or a loop device of a file.
fn block_device(path: &Path) -> Result<PathBuf, volumes::Error> {
    use std::os::unix::fs::FileTypeExt;
    let path = if path.is_dir() { path.join(local_path::IMAGE) } else { path.to_owned() };
    let found = fs::metadata(&path).map_err(|source| volumes::Error::Io { step: "stat", path: path.clone(), source })?;
    if found.file_type().is_block_device() {
        return Ok(path);
    }
    if !found.is_file() {
        return Err(volumes::Error::Refused(format!("{} is no block device", path.display())));
    }
    loop_device::attach(&path)
}

/// Notes in the pod's folder what it uses.
fn link(config: &Config, uid: &str, wanted: &Wanted, target: &Path) -> Result<(), volumes::Error> {
    let folder = if wanted.block { "volumeDevices" } else { "volumes" };
    let link = config.pod_directory(uid).join(folder).join(LOCAL_PLUGIN).join(&wanted.name);
    let failed = |step: &'static str| {
        let path = link.clone();
        move |source: std::io::Error| volumes::Error::Io { step, path, source }
    };
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent).map_err(failed("create directory"))?;
    }
    if fs::read_link(&link).is_ok_and(|known| known == target) {
        return Ok(());
    }
    teardown::remove(&link)?;
    std::os::unix::fs::symlink(target, &link).map_err(failed("link"))
}

/// What lies in the pod's folder is unmounted and unlinked; then goes what nobody else links to.
fn remove(config: &Config, uid: &str) -> Result<(), volumes::Error> {
    let directory = config.pod_directory(uid);
    let links = links_of(&directory);
    for folder in ["volumes", "volumeDevices"] {
        for entry in fs::read_dir(directory.join(folder)).into_iter().flatten().flatten() {
            if folder == "volumes" && OWN_KINDS.iter().any(|own| entry.file_name() == *own) {
                continue;
            }
            teardown::unmount_below(&entry.path())?;
            teardown::remove(&entry.path())?;
        }
    }
    let shared = local_mounts(config);
    for target in links {
        if users(config).any(|other| links_of(&other).contains(&target)) {
            continue;
        }
        if target.starts_with(&shared) {
            teardown::unmount(&target)?;
            teardown::remove(&target)?;
        } else if let Some(file) = loop_file(&target) {
            loop_device::detach(&file)?;
        }
    }
    Ok(())
}

/// The folders of all pods.
fn users(config: &Config) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(config.data_directory.join("pods")).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// What the links of a pod's folder lead to.
fn links_of(directory: &Path) -> Vec<PathBuf> {
    let folders = ["volumes", "volumeDevices"].map(|folder| directory.join(folder).join(LOCAL_PLUGIN));
    let entries = folders.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

/// The file behind a loop device that holds a volume of ours.
fn loop_file(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?.to_str()?;
    let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(PathBuf::from(backing.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &Path) -> Config {
        let mut config = Config::new("node", "192.0.2.1".parse().unwrap());
        config.data_directory = root.join("kubelet");
        config
    }

    fn wanted(path: &Path, block: bool) -> Wanted {
        Wanted {
            name: "pv".into(),
            claim: Some("claim".into()),
            source: Source::Local { path: path.into(), kind: "ext4".into(), made_for: Some(1 << 20), filled_from: None },
            block,
            read_only: false,
            options: Vec::new(),
        }
    }

    #[test]
    fn a_local_volume_keeps_its_files_when_its_pod_goes() {
        let root = tempfile::tempdir().unwrap();
        let (config, path) = (config(root.path()), root.path().join("data/pv"));
        let placed = place(&config, "u1", &wanted(&path, false), Group::default()).unwrap();
        assert_eq!((placed.path.as_path(), placed.block), (path.as_path(), false));
        fs::write(path.join("file"), "kept").unwrap();
        let link = config.pod_directory("u1").join("volumes/kubernetes.io~local-volume/pv");
        assert_eq!(fs::read_link(&link).unwrap(), path);
        remove(&config, "u1").unwrap();
        assert!(!link.exists() && path.join("file").exists());
    }

    #[test]
    fn a_path_that_is_not_there_is_said_in_upstreams_words() {
        let root = tempfile::tempdir().unwrap();
        let mut missing = wanted(&root.path().join("none"), false);
        missing.source = Source::Local { path: "/does/not/exist".into(), kind: "ext4".into(), made_for: None, filled_from: None };
        let error = place(&config(root.path()), "u1", &missing, Group::default()).unwrap_err();
        assert_eq!(error.to_string(), "path \"/does/not/exist\" does not exist");
    }

    #[test]
    fn a_block_volume_is_a_device_until_its_last_pod_goes() {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (config, path) = (config(root.path()), root.path().join("data/pv"));
        let first = place(&config, "u1", &wanted(&path, true), Group::default()).unwrap();
        let second = place(&config, "u2", &wanted(&path, true), Group::default()).unwrap();
        assert_eq!(first, second);
        let image = fs::canonicalize(path.join(local_path::IMAGE)).unwrap();
        remove(&config, "u1").unwrap();
        assert_eq!(loop_device::find(&image), Some(first.path));
        remove(&config, "u2").unwrap();
        assert_eq!(loop_device::find(&image), None);
    }
}
