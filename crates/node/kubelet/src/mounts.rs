//! A pod's volumes on this node: made, kept current, and mapped to each container's mounts.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection};
use volumes::payload::{self, Item, Source};
use volumes::{File, Payload};

use crate::config::Config;
use crate::env::{self, Facts};
use crate::objects::Objects;
use crate::{crispec, podspec};

const MODE_DEFAULT: u32 = 0o644;
const TOKEN_SECONDS_DEFAULT: i64 = 3600;
/// Upstream's limit.
const ENV_FILE_BYTES_MAX: u64 = 64 << 10;

/// Where a volume's files are on the node.
pub fn volume_path(config: &Config, pod: &Pod, volume: &Volume) -> PathBuf {
    let uid = podspec::uid(pod);
    if let Some(host) = &volume.host_path {
        return host.path.clone().into();
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

/// What one look at a pod's volumes left: hashes of the payloads that are on the disk, and when a token is due.
#[derive(Debug, Default)]
pub struct Prepared {
    pub payloads: BTreeMap<String, u64>,
    pub refresh_at: Option<Timestamp>,
}

/// Makes or refreshes every volume of `pod`; `known` are the payloads that are already on the disk. An error is the message of a
/// `FailedMount` event.
pub async fn prepare(
    config: &Config,
    objects: &Objects,
    pod: &Pod,
    facts: &Facts,
    known: &BTreeMap<String, u64>,
    now: Timestamp,
) -> Result<Prepared, String> {
    let mut prepared = Prepared::default();
    let mut steps = Vec::new();
    for volume in podspec::spec(pod).volumes.iter().flatten() {
        let failed = |error: String| format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name);
        let path = volume_path(config, pod, volume);
        match payload_of(objects, pod, volume, facts, now, &mut prepared.refresh_at).await.map_err(failed)? {
            Some(payload) => {
                let hash = hash_of(&payload);
                if known.get(&volume.name) != Some(&hash) {
                    steps.push((volume.clone(), path, Some(payload)));
                }
                prepared.payloads.insert(volume.name.clone(), hash);
            }
            // A plain directory is made once and then left to its containers.
            None if known.contains_key(&volume.name) => {
                prepared.payloads.insert(volume.name.clone(), 0);
            }
            None => {
                steps.push((volume.clone(), path, None));
                prepared.payloads.insert(volume.name.clone(), 0);
            }
        }
    }
    if steps.is_empty() {
        return Ok(prepared);
    }
    let security = podspec::spec(pod).security_context.clone().unwrap_or_default();
    let gid = security.fs_group.and_then(|gid| u32::try_from(gid).ok());
    let lazy = security.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
    let work = move || {
        for (volume, path, payload) in &steps {
            make(volume, path, payload.as_ref(), gid, lazy)
                .map_err(|error| format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name))?;
        }
        Ok::<(), String>(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())??;
    Ok(prepared)
}

fn make(volume: &Volume, path: &Path, payload: Option<&Payload>, gid: Option<u32>, lazy: bool) -> Result<(), volumes::Error> {
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
        return volumes::atomic::write(path, payload, gid).map(drop);
    }
    let empty = volume.empty_dir.clone().unwrap_or_default();
    if empty.medium.as_deref() == Some("Memory") {
        let limit = empty.size_limit.as_ref().and_then(podspec::quantity).and_then(|limit| u64::try_from(limit.value()).ok());
        volumes::empty_dir::in_memory(path, limit.filter(|limit| *limit > 0))?;
    } else {
        volumes::empty_dir::on_disk(path)?;
    }
    gid.map_or(Ok(()), |gid| volumes::ownership::set_group(path, gid, lazy))
}

fn hash_of(payload: &Payload) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (path, file) in payload {
        (path, &file.bytes, file.mode, file.uid).hash(&mut hasher);
    }
    hasher.finish().max(1)
}

/// The files of a volume that has any of its own; `None` for directories.
async fn payload_of(
    objects: &Objects,
    pod: &Pod,
    volume: &Volume,
    facts: &Facts,
    now: Timestamp,
    refresh: &mut Option<Timestamp>,
) -> Result<Option<Payload>, String> {
    if let Some(source) = &volume.config_map {
        let projection = projection_of_config_map(source.name.clone(), source.items.clone(), source.optional);
        return projected(objects, pod, &[projection], mode(source.default_mode), facts, now, refresh).await.map(Some);
    }
    if let Some(source) = &volume.secret {
        let mut projection = VolumeProjection::default();
        projection.secret = Some(k8s_openapi::api::core::v1::SecretProjection {
            name: source.secret_name.clone().unwrap_or_default(),
            items: source.items.clone(),
            optional: source.optional,
        });
        return projected(objects, pod, &[projection], mode(source.default_mode), facts, now, refresh).await.map(Some);
    }
    if let Some(source) = &volume.downward_api {
        return downward(pod, source.items.as_deref().unwrap_or_default(), mode(source.default_mode), facts).map(Some);
    }
    if let Some(source) = &volume.projected {
        let sources = source.sources.as_deref().unwrap_or_default();
        return projected(objects, pod, sources, mode(source.default_mode), facts, now, refresh).await.map(Some);
    }
    if volume.empty_dir.is_some() || volume.host_path.is_some() || volume.image.is_some() {
        return Ok(None);
    }
    Err("this type of volume is not supported on this node".into())
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(MODE_DEFAULT)
}

fn projection_of_config_map(name: String, items: Option<Vec<KeyToPath>>, optional: Option<bool>) -> VolumeProjection {
    let config_map = k8s_openapi::api::core::v1::ConfigMapProjection { name, items, optional };
    VolumeProjection { config_map: Some(config_map), ..Default::default() }
}

fn items(list: Option<&Vec<KeyToPath>>) -> Vec<Item> {
    let item = |item: &KeyToPath| Item { key: item.key.clone(), path: item.path.clone(), mode: item.mode.map(|bits| mode(Some(bits))) };
    list.into_iter().flatten().map(item).collect()
}

async fn projected(
    objects: &Objects,
    pod: &Pod,
    sources: &[VolumeProjection],
    mode: u32,
    facts: &Facts,
    now: Timestamp,
    refresh: &mut Option<Timestamp>,
) -> Result<Payload, String> {
    let (uid, namespace) = (podspec::uid(pod), podspec::namespace(pod));
    let mut payload = Payload::new();
    for source in sources {
        if let Some(source) = &source.config_map {
            let optional = source.optional == Some(true);
            let object = objects.config_maps.get(uid, namespace, &source.name).await?;
            let data = match object {
                Some(object) => env::config_map_data(&object),
                None if optional => BTreeMap::new(),
                None => return Err(format!("configmap {:?} not found", source.name)),
            };
            let files = payload::of_keys(Source::ConfigMap, &data, &items(source.items.as_ref()), mode, optional);
            payload.extend(files.map_err(|error| error.to_string())?);
        } else if let Some(source) = &source.secret {
            let optional = source.optional == Some(true);
            let object = objects.secrets.get(uid, namespace, &source.name).await?;
            let data = match object {
                Some(object) => env::secret_data(&object),
                None if optional => BTreeMap::new(),
                None => return Err(format!("secret {:?} not found", source.name)),
            };
            let files = payload::of_keys(Source::Secret, &data, &items(source.items.as_ref()), mode, optional);
            payload.extend(files.map_err(|error| error.to_string())?);
        } else if let Some(source) = &source.downward_api {
            payload.extend(downward(pod, source.items.as_deref().unwrap_or_default(), mode, facts)?);
        } else if let Some(source) = &source.service_account_token {
            let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
            let token = objects.tokens.get(pod, source.audience.as_deref().unwrap_or_default(), seconds, now).await?;
            *refresh = Some(refresh.map_or(token.refresh_at, |at| at.min(token.refresh_at)));
            payload.insert(source.path.clone(), token_file(pod, token.text, mode));
        } else if source.cluster_trust_bundle.is_some() {
            return Err("ClusterTrustBundle projection is not supported in this version".into());
        } else {
            return Err("this source of a projected volume is not supported".into());
        }
    }
    Ok(payload)
}

/// A token is for the pod's user alone where there is one user or a group; without either the mode of the volume stands.
/// Source: `pkg/volume/projected`, `pkg/volume/util.FsUserFrom`. (A group may read besides: the volume's own doing.)
fn token_file(pod: &Pod, text: String, mode: u32) -> File {
    let uid = one_user(pod);
    let grouped = podspec::spec(pod).security_context.as_ref().is_some_and(|security| security.fs_group.is_some());
    File { bytes: text.into_bytes(), mode: if uid.is_some() || grouped { 0o600 } else { mode }, uid }
}

/// The user that all containers run as, if they say so and agree.
fn one_user(pod: &Pod) -> Option<u32> {
    let spec = podspec::spec(pod);
    let general = spec.security_context.as_ref().and_then(|security| security.run_as_user);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = containers.map(|container| container.security_context.as_ref().and_then(|own| own.run_as_user).or(general));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn downward(pod: &Pod, files: &[DownwardAPIVolumeFile], default_mode: u32, facts: &Facts) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for file in files {
        let text = match (&file.field_ref, &file.resource_field_ref) {
            (Some(field), _) => env::pod_field(pod, &field.field_path, facts),
            (_, Some(field)) => env::resource_field(pod, None, field, facts),
            _ => return Err(format!("{} names no field", file.path)),
        };
        let bytes = text.map_err(|error| error.0)?.into_bytes();
        payload.insert(file.path.clone(), File { bytes, mode: file.mode.map_or(default_mode, |bits| mode(Some(bits))), uid: None });
    }
    Ok(payload)
}

/// The files that the kubelet itself gives a container, and its mounts.
pub struct ContainerMounts {
    pub mounts: Vec<v1::Mount>,
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

/// Maps `container`'s volume mounts (`images`: the runtime's references of image volumes by volume), `/etc/hosts` and the termination log. Touches the disk.
pub fn of_container(
    config: &Config,
    pod: &Pod,
    container: &Container,
    attempt: u32,
    env: &[(String, Vec<u8>)],
    ips: &[String],
    images: &BTreeMap<String, String>,
) -> Result<ContainerMounts, String> {
    let directory = config.pod_directory(podspec::uid(pod));
    let (mut mounts, mut held) = (Vec::new(), Vec::new());
    for mount in container.volume_mounts.iter().flatten() {
        let volumes = podspec::spec(pod).volumes.iter().flatten();
        let volume =
            volumes.clone().find(|volume| volume.name == mount.name).ok_or_else(|| format!("volume {:?} not found", mount.name))?;
        let mut host_path = volume_path(config, pod, volume);
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
            readonly: payload || mount.read_only == Some(true),
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
    Ok(ContainerMounts { mounts, message_file, held })
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
    for directory in [config.secret_directory(uid), config.pod_directory(uid)] {
        if let Ok(entries) = std::fs::read_dir(directory.join("volumes/kubernetes.io~empty-dir")) {
            for entry in entries.flatten() {
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
    fn a_token_is_for_the_one_user_of_the_pod_or_for_all() {
        let file = |spec: serde_json::Value| {
            let file = token_file(&pod(spec), "t".into(), 0o644);
            (file.mode, file.uid)
        };
        let container = |user: serde_json::Value| json!({"name": "c", "securityContext": {"runAsUser": user}});
        let cases = [
            (json!({"containers": [container(json!(null))]}), (0o644, None)),
            (json!({"containers": [container(json!(7))]}), (0o600, Some(7))),
            (json!({"containers": [container(json!(7)), container(json!(8))]}), (0o644, None)),
            (json!({"containers": [container(json!(null))], "securityContext": {"runAsUser": 7}}), (0o600, Some(7))),
            (json!({"containers": [container(json!(8))], "securityContext": {"runAsUser": 7}}), (0o600, Some(8))),
            (json!({"containers": [container(json!(null))], "securityContext": {"fsGroup": 7}}), (0o600, None)),
        ];
        for (spec, expected) in cases {
            assert_eq!(file(spec.clone()), expected, "{spec}");
        }
    }

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
        make(volume, &volume_path(&config, &pod, volume), None, None, false).unwrap();
        let env = [("DIR".to_owned(), b"sub".to_vec())];
        let made = of_container(&config, &pod, &podspec::spec(&pod).containers[0], 0, &env, &[], &BTreeMap::new()).unwrap();
        let at = |path: &str| made.mounts.iter().find(|mount| mount.container_path == path).unwrap();
        let leads_to = std::fs::read_link(&at("/data").host_path).unwrap();
        assert_eq!(leads_to, root_path.join("data/pods/u1/volumes/kubernetes.io~empty-dir/v/sub/x"));
        assert!(at("/secret").readonly && !at("/data").readonly);
        assert!(Path::new(&at("/dev/termination-log").host_path).exists() && Path::new(&at("/etc/hosts").host_path).exists());
        remove_pod(&config, "u1").unwrap();
        assert!(!root_path.join("data/pods/u1").exists());
    }
}
