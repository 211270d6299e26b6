//! A pod's volumes on this node: made, kept current, and mapped to each container's mounts.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use volumes::Payload;

use crate::config::Config;
use crate::env;
use crate::projections::Look;
use crate::storage::{self, Placed, Storage, Trouble};
use crate::{amounts, crispec, podspec};

/// Upstream's limit.
const ENV_FILE_BYTES_MAX: u64 = 64 << 10;

/// Where a volume's files are on the node.
pub fn volume_path(config: &Config, pod: &Pod, volume: &Volume) -> PathBuf {
    let uid = podspec::uid(pod);
    if let Some(host) = &volume.host_path {
        return config.from_driver(Path::new(&host.path));
    }
    let (base, plugin) = match volume {
        Volume { secret: Some(_), .. } => (config.secret_directory(uid), "secret"),
        Volume { projected: Some(_), .. } => (config.secret_directory(uid), "projected"),
        Volume { config_map: Some(_), .. } => (config.pod_directory(uid), "configmap"),
        Volume { downward_api: Some(_), .. } => (config.pod_directory(uid), "downward-api"),
        _ => (config.pod_directory(uid), "empty-dir"),
    };
    base.join("volumes").join(format!("kubernetes.io~{plugin}")).join(&volume.name)
}

/// What one look at a pod's volumes left: hashes of the payloads that are on the disk, where claims and their like are, and when a token
/// or certificate is due.
#[derive(Debug, Default)]
pub struct Prepared {
    pub payloads: BTreeMap<String, u64>,
    pub placed: BTreeMap<String, Placed>,
    pub refresh_at: Option<Timestamp>,
}

/// Makes or refreshes every volume of `pod`; `known` is what an earlier look left.
pub async fn prepare(
    config: &Config,
    storage: &Storage,
    look: &mut Look<'_>,
    known: (&BTreeMap<String, u64>, &BTreeMap<String, Placed>),
) -> Result<Prepared, Trouble> {
    let pod = look.pod;
    let mut prepared = Prepared::default();
    let mut steps = Vec::new();
    for volume in podspec::spec(pod).volumes.iter().flatten() {
        if storage::is_stored(volume) {
            let placed = match known.1.get(&volume.name) {
                Some(placed) => {
                    if placed.driver.is_some() {
                        storage.follow(pod, volume, &look.objects.tokens).await?;
                    }
                    placed.clone()
                }
                None => storage.set_up(pod, volume, &look.objects.tokens).await?,
            };
            prepared.placed.insert(volume.name.clone(), placed);
            continue;
        }
        let failed = |error: String| Trouble::from(format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name));
        let path = volume_path(config, pod, volume);
        match look.files(volume).await.map_err(failed)? {
            Some(payload) => {
                let hash = hash_of(&payload);
                if known.0.get(&volume.name) != Some(&hash) {
                    steps.push((volume.clone(), path, Some(payload)));
                }
                prepared.payloads.insert(volume.name.clone(), hash);
            }
            // A plain directory is made once and then left to its containers.
            None if known.0.contains_key(&volume.name) => {
                prepared.payloads.insert(volume.name.clone(), 0);
            }
            None => {
                steps.push((volume.clone(), path, None));
                prepared.payloads.insert(volume.name.clone(), 0);
            }
        }
    }
    prepared.refresh_at = look.refresh;
    if steps.is_empty() {
        return Ok(prepared);
    }
    let owned = Ownership::of(pod, look.facts.allocatable_memory_bytes);
    let work = move || {
        for (volume, path, payload) in &steps {
            make(volume, path, payload.as_ref(), &owned)
                .map_err(|error| format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name))?;
        }
        Ok::<(), String>(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())??;
    Ok(prepared)
}

/// What of a pod its plain directories depend on.
#[derive(Default)]
struct Ownership {
    gid: Option<u32>,
    on_root_mismatch: bool,
    /// A tmpfs is no larger than what its pod may use of memory (KEP-1967).
    memory_bytes_max: Option<u64>,
    /// The one size of huge pages that the pod asks for.
    page_size: Option<String>,
}

impl Ownership {
    fn of(pod: &Pod, allocatable: i64) -> Self {
        let security = podspec::spec(pod).security_context.clone().unwrap_or_default();
        let memory = [amounts::pod_limit(pod, "memory").unwrap_or(0), allocatable];
        let asked = amounts::names(pod);
        let mut sizes = asked.iter().filter_map(|name| name.strip_prefix("hugepages-"));
        Self {
            gid: security.fs_group.and_then(|gid| u32::try_from(gid).ok()),
            on_root_mismatch: security.fs_group_change_policy.as_deref() == Some("OnRootMismatch"),
            memory_bytes_max: memory.into_iter().filter(|bytes| *bytes > 0).min().and_then(|bytes| u64::try_from(bytes).ok()),
            page_size: sizes.next().map(str::to_owned).filter(|_| sizes.next().is_none()),
        }
    }
}

fn hash_of(payload: &Payload) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (path, file) in payload {
        (path, &file.bytes, file.mode, file.uid).hash(&mut hasher);
    }
    hasher.finish().max(1)
}

fn make(volume: &Volume, path: &Path, payload: Option<&Payload>, owned: &Ownership) -> Result<(), volumes::Error> {
    if volume.image.is_some() {
        // The runtime makes it of the image's layers.
        return Ok(());
    }
    if let Some(host) = &volume.host_path {
        return volumes::host_path::prepare(path, host.type_.as_deref().unwrap_or_default());
    }
    if let Some(parent) = path.parent() {
        let made = std::fs::create_dir_all(parent);
        made.map_err(|source| volumes::Error::Io { step: "create directory", path: parent.into(), source })?;
    }
    if let Some(payload) = payload {
        return volumes::atomic::write(path, payload, owned.gid).map(drop);
    }
    let empty = volume.empty_dir.clone().unwrap_or_default();
    match empty.medium.as_deref().unwrap_or_default() {
        "" => volumes::empty_dir::on_disk(path)?,
        "Memory" => {
            let limit = empty.size_limit.as_ref().and_then(podspec::quantity).and_then(|limit| u64::try_from(limit.value()).ok());
            volumes::empty_dir::in_memory(path, limit.into_iter().filter(|limit| *limit > 0).chain(owned.memory_bytes_max).min())?;
        }
        medium => {
            let size = medium.strip_prefix("HugePages-").map(str::to_owned).or_else(|| owned.page_size.clone());
            let none = "the pod asks for no huge pages, or for several sizes: the volume's medium must name one";
            volumes::empty_dir::in_huge_pages(path, &size.ok_or_else(|| volumes::Error::Refused(none.into()))?)?;
        }
    }
    owned.gid.map_or(Ok(()), |gid| volumes::ownership::set_group(path, gid, owned.on_root_mismatch))
}

/// The files that the kubelet itself gives a container, and its mounts.
pub struct ContainerMounts {
    pub mounts: Vec<v1::Mount>,
    /// Block volumes.
    pub devices: Vec<v1::Device>,
    pub message_file: PathBuf,
    /// What `subPath`s lead to, held until the container runs: the mounts name these descriptors, so that whoever swaps a directory for
    /// a link in the meantime is too late.
    pub held: Vec<OwnedFd>,
}

/// An env file of a volume (KEP-3721). Links do not lead out of the volume.
pub fn env_file(config: &Config, pod: &Pod, volume: &str, path: &str) -> Result<BTreeMap<String, String>, String> {
    let volume = podspec::spec(pod).volumes.iter().flatten().find(|known| known.name == volume).ok_or("there is no such volume")?;
    let file = volumes::subpath::open(&volume_path(config, pod, volume), path).map_err(|error| error.to_string())?;
    let shown = format!("/proc/self/fd/{}", file.as_raw_fd());
    let metadata = std::fs::metadata(&shown).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > ENV_FILE_BYTES_MAX {
        return Err(format!("it is no file of at most {ENV_FILE_BYTES_MAX} bytes"));
    }
    env::parse_file(&std::fs::read_to_string(&shown).map_err(|error| error.to_string())?)
}

/// What a container's mounts depend on beside its pod.
pub struct Inside<'a> {
    pub attempt: u32,
    pub env: &'a [(String, Vec<u8>)],
    pub ips: &'a [String],
    /// The runtime's references of image volumes by volume.
    pub images: &'a BTreeMap<String, String>,
    /// Claims and their like by volume.
    pub placed: &'a BTreeMap<String, Placed>,
}

/// Maps `container`'s volumes, `/etc/hosts` and the termination log. Touches the disk.
pub fn of_container(config: &Config, pod: &Pod, container: &Container, inside: &Inside<'_>) -> Result<ContainerMounts, String> {
    let directory = config.pod_directory(podspec::uid(pod));
    let Inside { attempt, env, ips, images, placed } = *inside;
    let (mut mounts, mut held) = (Vec::new(), Vec::new());
    for mount in container.volume_mounts.iter().flatten() {
        let volumes = podspec::spec(pod).volumes.iter().flatten();
        let volume =
            volumes.clone().find(|volume| volume.name == mount.name).ok_or_else(|| format!("volume {:?} not found", mount.name))?;
        let stored = placed.get(&volume.name);
        if stored.is_none() && storage::is_stored(volume) {
            return Err(format!("volume {:?} is not mounted", volume.name));
        }
        let mut host_path = stored.map_or_else(|| volume_path(config, pod, volume), |stored| stored.path.clone());
        let lookup = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        let sub = match (mount.sub_path.as_deref(), mount.sub_path_expr.as_deref()) {
            (_, Some(expression)) if !expression.is_empty() => env::expand(expression, lookup),
            (Some(sub), _) => sub.to_owned(),
            _ => String::new(),
        };
        let slash = if mount.mount_path.starts_with('/') { "" } else { "/" };
        if volume.image.is_some() {
            let image = images.get(&volume.name).cloned().unwrap_or_default();
            mounts.push(v1::Mount {
                container_path: format!("{slash}{}", mount.mount_path),
                image: Some(v1::ImageSpec { image, ..Default::default() }),
                image_sub_path: sub,
                readonly: true,
                ..Default::default()
            });
            continue;
        }
        if mount.mount_propagation.as_deref() == Some("Bidirectional") {
            check_shared(&host_path)?;
        }
        if !sub.is_empty() {
            let resolved = volumes::subpath::resolve(&host_path, &sub);
            let found = resolved.map_err(|error| {
                format!("failed to prepare subPath for volumeMount {:?} of container {:?}: {error}", mount.name, container.name)
            })?;
            host_path = format!("/proc/{}/fd/{}", std::process::id(), found.as_raw_fd()).into();
            held.push(found);
        }
        let payload = volume.secret.is_some() || volume.config_map.is_some() || volume.projected.is_some() || volume.downward_api.is_some();
        mounts.push(v1::Mount {
            container_path: format!("{slash}{}", mount.mount_path),
            host_path: host_path.display().to_string(),
            readonly: payload || mount.read_only == Some(true) || stored.is_some_and(|stored| stored.read_only),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
                Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
                _ => v1::MountPropagation::PropagationPrivate,
            } as i32,
            recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"))
                && mount.read_only == Some(true),
            ..Default::default()
        });
    }
    if !mounts.iter().any(|mount| mount.container_path == "/etc/hosts") {
        let path = directory.join("etc-hosts");
        write(&path, hosts_file(config, pod, ips).as_bytes(), 0o644)?;
        mounts.push(plain_mount("/etc/hosts", &path));
    }
    let message_file = directory.join("containers").join(&container.name).join(attempt.to_string());
    write(&message_file, b"", 0o666)?;
    mounts.push(plain_mount(crispec::message_path(container), &message_file));
    let devices = devices(container, placed)?;
    Ok(ContainerMounts { mounts, devices, message_file, held })
}

/// What a container mounts there would be seen by nobody else otherwise.
fn check_shared(path: &Path) -> Result<(), String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let resolved = std::fs::canonicalize(path).map_err(|error| format!("resolve {}: {error}", path.display()))?;
    match volumes::mounting::is_shared(&table, &resolved) {
        true => Ok(()),
        false => Err(format!("path {:?} is mounted on a mount that is not a shared mount", path.display().to_string())),
    }
}

/// Block volumes as devices of the container.
fn devices(container: &Container, placed: &BTreeMap<String, Placed>) -> Result<Vec<v1::Device>, String> {
    let device = |device: &k8s_openapi::api::core::v1::VolumeDevice| match placed.get(&device.name).filter(|stored| stored.block) {
        Some(stored) => Ok(v1::Device {
            container_path: device.device_path.clone(),
            host_path: stored.path.display().to_string(),
            permissions: if stored.read_only { "r" } else { "mrw" }.into(),
        }),
        None => Err(format!("volume {:?} is not mapped", device.name)),
    };
    container.volume_devices.iter().flatten().map(device).collect()
}

fn plain_mount(container_path: &str, host_path: &Path) -> v1::Mount {
    v1::Mount { container_path: container_path.into(), host_path: host_path.display().to_string(), ..Default::default() }
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |error: std::io::Error| format!("write {}: {error}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    // Written in place: other containers of the pod have this very file mounted.
    std::fs::write(path, bytes).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Upstream's managed hosts file, byte for byte.
fn hosts_file(config: &Config, pod: &Pod, ips: &[String]) -> String {
    let spec = podspec::spec(pod);
    let mut text = if spec.host_network == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{}", std::fs::read_to_string("/etc/hosts").unwrap_or_default())
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let names = match crispec::fully_qualified(pod, config) {
            Some(full) => format!("{full}\t{}", crispec::hostname(pod)),
            None => crispec::hostname(pod),
        };
        ips.iter().for_each(|ip| text.push_str(&format!("{ip}\t{names}\n")));
        text
    };
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t")));
        }
    }
    text
}

/// Removes all that pod `uid` left on the disk, its volumes included. What is mounted below is unmounted only where it is ours.
pub fn remove_pod(config: &Config, uid: &str) -> Result<(), volumes::Error> {
    remove_volumes(config, uid)?;
    [config.secret_directory(uid), config.pod_directory(uid)].iter().try_for_each(|directory| volumes::teardown::remove(directory))
}

/// Removes the volumes that are the pod's own; nothing there is success.
pub fn remove_volumes(config: &Config, uid: &str) -> Result<(), volumes::Error> {
    for directory in [config.secret_directory(uid), config.pod_directory(uid)].map(|directory| directory.join("volumes")) {
        if let Ok(entries) = std::fs::read_dir(directory.join("kubernetes.io~empty-dir")) {
            for entry in entries.flatten() {
                // A container with Bidirectional propagation may have mounted something inside.
                volumes::teardown::unmount_below(&entry.path())?;
                volumes::teardown::unmount(&entry.path())?;
            }
        }
        volumes::teardown::remove(&directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::podspec::tests::pod;

    #[test]
    fn hosts_file_names_the_pod_and_its_aliases() {
        let config = Config::new("node", "192.0.2.1".parse().unwrap());
        let pod =
            pod(json!({"containers": [], "hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts_file(&config, &pod, &["10.244.0.2".into()]);
        assert!(
            text.ends_with("10.244.0.2\th.s.default.svc.cluster.local\th\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"),
            "{text}"
        );
    }

    #[test]
    fn mounts_point_at_volumes_sub_paths_and_the_kubelets_own_files() {
        let root = tempfile::tempdir().unwrap();
        let root_path = root.path().canonicalize().unwrap();
        let mut config = Config::new("node", "192.0.2.1".parse().unwrap());
        config.data_directory = root_path.join("data");
        config.runtime_directory = root_path.join("run");
        let pod = pod(
            json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x"}}], "containers": [{"name": "c", "volumeMounts": [
            {"name": "v", "mountPath": "/data", "subPathExpr": "$(DIR)/x"}, {"name": "s", "mountPath": "/secret"}]}]}),
        );
        let volume = &podspec::spec(&pod).volumes.as_ref().unwrap()[0];
        make(volume, &volume_path(&config, &pod, volume), None, &Ownership::default()).unwrap();
        let env = [("DIR".to_owned(), b"sub".to_vec())];
        let none = BTreeMap::new();
        let inside = Inside { attempt: 0, env: &env, ips: &[], images: &none, placed: &BTreeMap::new() };
        let made = of_container(&config, &pod, &podspec::spec(&pod).containers[0], &inside).unwrap();
        let at = |path: &str| made.mounts.iter().find(|mount| mount.container_path == path).unwrap();
        let leads_to = std::fs::read_link(&at("/data").host_path).unwrap();
        assert_eq!(leads_to, root_path.join("data/pods/u1/volumes/kubernetes.io~empty-dir/v/sub/x"));
        assert!(at("/secret").readonly && !at("/data").readonly);
        assert!(Path::new(&at("/dev/termination-log").host_path).exists() && Path::new(&at("/etc/hosts").host_path).exists());
        remove_pod(&config, "u1").unwrap();
        assert!(!root_path.join("data/pods/u1").exists());
    }
}
