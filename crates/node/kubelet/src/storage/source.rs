//! What a volume is, as pods and PersistentVolumes say it in almost the same words.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, Volume};
use volumes::mounting::{self, FileSystem};

/// Set by whoever made a volume; ours are made on the disk when they are first used.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub const LOCAL_PATH: &str = "sternpost.io/local-path";
/// On volumes, set by the built-in provisioner.
const FILLED_FROM: &str = "sternpost.io/local-path-source";
const FILE_SYSTEM_DEFAULT: &str = "ext4";
/// Where `mount.nfs` and such are.
const HELPERS: [&str; 2] = ["/sbin", "/usr/sbin"];
/// How long a disk may take to appear after a login.
const DISK_WITHIN: Duration = Duration::from_secs(10);

/// One volume and how its pod wants it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The PersistentVolume's name, or the volume's own in its pod.
    pub name: String,
    pub claim: Option<String>,
    pub source: Source,
    pub block: bool,
    pub read_only: bool,
    /// Mount options.
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    HostPath {
        path: PathBuf,
        kind: String,
    },
    Local {
        path: PathBuf,
        /// The file system of a device.
        kind: String,
        /// Made by the built-in provisioner, for so many bytes.
        made_for: Option<u64>,
        /// It begins as a copy of this directory.
        filled_from: Option<PathBuf>,
    },
    /// `server:/path`.
    Network {
        source: String,
        kind: String,
    },
    Iscsi(Box<Iscsi>),
    Csi(Box<super::csi::Source>),
    Unsupported(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iscsi {
    pub portal: String,
    pub name: String,
    pub lun: i32,
    pub interface: String,
    pub kind: String,
}

impl Iscsi {
    fn new(portal: &str, name: &str, lun: i32, interface: Option<&String>, kind: Option<&String>) -> Self {
        let portal = if portal.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) && portal.contains(':') {
            portal.to_owned()
        } else {
            format!("{portal}:3260")
        };
        Self {
            portal,
            name: name.to_owned(),
            lun,
            interface: interface.cloned().unwrap_or_else(|| "default".into()),
            kind: kind.cloned().unwrap_or_else(|| FILE_SYSTEM_DEFAULT.into()),
        }
    }
}

impl Source {
    /// The source of a volume that its pod describes itself; `None` for kinds that are the pod's own. (`hostPath` of a pod is a plain path.)
    pub fn of_volume(volume: &Volume, namespace: &str) -> Option<Self> {
        if let Some(csi) = &volume.csi {
            return Some(Self::Csi(Box::new(super::csi::Source::of_pod(csi, namespace))));
        }
        if let Some(nfs) = &volume.nfs {
            return Some(Self::Network { source: format!("{}:{}", nfs.server, nfs.path), kind: "nfs".into() });
        }
        if let Some(iscsi) = &volume.iscsi {
            let target = Iscsi::new(&iscsi.target_portal, &iscsi.iqn, iscsi.lun, iscsi.iscsi_interface.as_ref(), iscsi.fs_type.as_ref());
            return Some(Self::Iscsi(Box::new(target)));
        }
        let kinds = [
            (volume.aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
            (volume.azure_disk.is_some(), "azureDisk"),
            (volume.azure_file.is_some(), "azureFile"),
            (volume.cephfs.is_some(), "cephfs"),
            (volume.cinder.is_some(), "cinder"),
            (volume.fc.is_some(), "fc"),
            (volume.flex_volume.is_some(), "flexVolume"),
            (volume.flocker.is_some(), "flocker"),
            (volume.gce_persistent_disk.is_some(), "gcePersistentDisk"),
            (volume.git_repo.is_some(), "gitRepo"),
            (volume.glusterfs.is_some(), "glusterfs"),
            (volume.photon_persistent_disk.is_some(), "photonPersistentDisk"),
            (volume.portworx_volume.is_some(), "portworxVolume"),
            (volume.quobyte.is_some(), "quobyte"),
            (volume.rbd.is_some(), "rbd"),
            (volume.scale_io.is_some(), "scaleIO"),
            (volume.storageos.is_some(), "storageos"),
            (volume.vsphere_volume.is_some(), "vsphereVolume"),
        ];
        kinds.into_iter().find(|(there, _)| *there).map(|(_, kind)| Self::Unsupported(kind))
    }

    pub fn of_persistent(volume: &PersistentVolume, spec: &PersistentVolumeSpec) -> Self {
        if let Some(host) = &spec.host_path {
            return Self::HostPath { path: host.path.clone().into(), kind: host.type_.clone().unwrap_or_default() };
        }
        if let Some(local) = &spec.local {
            let kind = local.fs_type.clone().unwrap_or_else(|| FILE_SYSTEM_DEFAULT.into());
            let (made_for, filled_from) = (made_for(volume, spec), filled_from(volume));
            return Self::Local { path: local.path.clone().into(), kind, made_for, filled_from };
        }
        if let Some(nfs) = &spec.nfs {
            return Self::Network { source: format!("{}:{}", nfs.server, nfs.path), kind: "nfs".into() };
        }
        if let Some(iscsi) = &spec.iscsi {
            let target = Iscsi::new(&iscsi.target_portal, &iscsi.iqn, iscsi.lun, iscsi.iscsi_interface.as_ref(), iscsi.fs_type.as_ref());
            return Self::Iscsi(Box::new(target));
        }
        match super::csi::Source::of_persistent(spec) {
            Some(source) => Self::Csi(Box::new(source)),
            None => Self::Unsupported("of a former in-tree driver"),
        }
    }
}

/// Bytes that the built-in provisioner promised.
pub fn made_for(volume: &PersistentVolume, spec: &PersistentVolumeSpec) -> Option<u64> {
    let by = volume.metadata.annotations.as_ref()?.get(PROVISIONED_BY)?;
    let size = spec.capacity.as_ref()?.get("storage").and_then(crate::podspec::quantity)?;
    (by == LOCAL_PATH).then(|| u64::try_from(size.value()).unwrap_or(0))
}

/// The directory of this node that the built-in provisioner promised a copy of.
pub fn filled_from(volume: &PersistentVolume) -> Option<PathBuf> {
    let annotations = volume.metadata.annotations.as_ref()?;
    let ours = annotations.get(PROVISIONED_BY).is_some_and(|by| by == LOCAL_PATH);
    annotations.get(FILLED_FROM).filter(|_| ours).map(PathBuf::from)
}

/// By the file system's own helper where the host has one (it knows names and versions), else by the kernel alone.
pub fn mount_network(wanted: &FileSystem, target: &Path) -> Result<(), volumes::Error> {
    let helper = HELPERS.iter().map(|folder| Path::new(folder).join(format!("mount.{}", wanted.kind))).find(|helper| helper.exists());
    let Some(helper) = helper else { return mount_plain(wanted, target) };
    std::fs::create_dir_all(target).map_err(|source| volumes::Error::Io { step: "create directory", path: target.into(), source })?;
    if volumes::empty_dir::is_mount_point(target)? {
        return Ok(());
    }
    let mut command = Command::new(&helper);
    command.arg(&wanted.source).arg(target);
    let options: Vec<&str> = wanted.options.iter().map(String::as_str).chain(wanted.read_only.then_some("ro")).collect();
    if !options.is_empty() {
        command.args(["-o", &options.join(",")]);
    }
    run(&mut command)
}

/// The kernel itself takes addresses only, and no version on its own.
fn mount_plain(wanted: &FileSystem, target: &Path) -> Result<(), volumes::Error> {
    let host = wanted.source.rsplit_once(":/").map_or("", |(host, _)| host).trim_matches(['[', ']']);
    let mut plain = wanted.clone();
    if let Ok(address) = host.parse::<IpAddr>() {
        plain.options.push(format!("addr={address}"));
    }
    if !plain.options.iter().any(|option| option.contains("vers=")) {
        plain.options.push("vers=4.2".into());
    }
    mounting::file_system(&plain, target)
}

fn run(command: &mut Command) -> Result<(), volumes::Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let ran = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => volumes::Error::Refused(format!("exec: {program:?}: executable file not found in $PATH")),
        _ => volumes::Error::Refused(format!("{program}: {error}")),
    })?;
    if ran.status.success() {
        return Ok(());
    }
    Err(volumes::Error::Refused(format!("{program}: {}: {}", ran.status, String::from_utf8_lossy(&ran.stderr).trim())))
}

/// Logs in to an iSCSI target by the host's own `iscsiadm`; the disk that appears.
pub fn log_in(target: &Iscsi) -> Result<PathBuf, volumes::Error> {
    let disk = PathBuf::from(format!("/dev/disk/by-path/ip-{}-iscsi-{}-lun-{}", target.portal, target.name, target.lun));
    if disk.exists() {
        return Ok(disk);
    }
    let node = ["-m", "node", "-p", &target.portal, "-T", &target.name, "-I", &target.interface];
    run(Command::new("iscsiadm").args([
        "-m",
        "discoverydb",
        "-t",
        "sendtargets",
        "-p",
        &target.portal,
        "-I",
        &target.interface,
        "--discover",
    ]))?;
    run(Command::new("iscsiadm").args(node).arg("--login"))?;
    let deadline = Instant::now() + DISK_WITHIN;
    while !disk.exists() {
        if Instant::now() > deadline {
            return Err(volumes::Error::Refused(format!("could not attach disk: Timeout after {DISK_WITHIN:?}: {}", disk.display())));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_of_a_driver_that_is_gone_is_named() {
        let source = |volume: serde_json::Value| Source::of_volume(&serde_json::from_value(volume).unwrap(), "default");
        assert_eq!(source(json!({"name": "v", "rbd": {"image": "i", "monitors": []}})), Some(Source::Unsupported("rbd")));
        assert_eq!(source(json!({"name": "v", "emptyDir": {}})), None);
        let nfs = source(json!({"name": "v", "nfs": {"server": "10.0.0.1", "path": "/x"}}));
        assert_eq!(nfs, Some(Source::Network { source: "10.0.0.1:/x".into(), kind: "nfs".into() }));
    }

    #[test]
    fn an_iscsi_portal_has_a_port() {
        for (given, portal) in [("10.0.0.1", "10.0.0.1:3260"), ("10.0.0.1:860", "10.0.0.1:860")] {
            assert_eq!(Iscsi::new(given, "iqn", 0, None, None).portal, portal);
        }
    }
}
