//! One volume's way to its pod and back: attached, staged, published; unpublished, unstaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use client::Patch;
use csi::v1::{self, access_mode, node};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, VolumeAttachment};
use serde_json::{Value, json};
use volumes::teardown;

use super::drivers::Known;
use super::{Csi, Data, Source, data_of, hex};
use crate::objects::Tokens;
use crate::podspec;
use crate::storage::source::Wanted;
use crate::storage::{Group, Placed, Trouble};

const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// One volume on its way.
struct Way<'a> {
    pod: &'a Pod,
    wanted: &'a Wanted,
    source: &'a Source,
    spec: CSIDriverSpec,
    known: std::sync::Arc<Known>,
    data: Data,
    publish_context: BTreeMap<String, String>,
}

impl Csi {
    /// Brings a volume here; done again it changes nothing, but for drivers that want to be told again.
    pub async fn set_up(&self, pod: &Pod, wanted: &Wanted, source: &Source, tokens: &Tokens) -> Result<Placed, Trouble> {
        let uid = podspec::uid(pod);
        let failed = |step: &str, why: String| Trouble::from(format!("MountVolume.{step} failed for volume {:?} : {why}", wanted.name));
        let refused = |step: &'static str| move |why: String| failed(step, why);
        let spec = self.spec_of(&source.driver).await.map_err(refused("SetUp"))?;
        let mut data = self.data(pod, wanted, source);
        let _turn = self.turn(&data.unique_name()).await;
        let mut publish_context = BTreeMap::new();
        if !source.inline && spec.as_ref().is_none_or(|spec| spec.attach_required != Some(false)) {
            data.attachment = format!("csi-{}", hex(format!("{}{}{}", source.handle, source.driver, self.config.node_name).as_bytes()));
            self.report(&data.unique_name(), true).await.map_err(refused("WaitForAttach"))?;
            publish_context = self.attached(&data.attachment).await?;
        }
        let missing = |why: String| {
            failed("MountDevice", format!("kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: {why}"))
        };
        let known = self.driver(&source.driver).map_err(missing)?;
        let spec = spec.unwrap_or_default();
        check_inline(source, &spec).map_err(refused("SetUp"))?;
        data.staged = !source.inline && known.capabilities.has(node::STAGE_UNSTAGE_VOLUME);
        // From here on a restarted kubelet takes it back.
        data.write(&self.folder(&data, uid)).map_err(refused("SetUp"))?;
        let way = Way { pod, wanted, source, spec, known, data, publish_context };
        if way.data.staged {
            self.stage(&way).await.map_err(refused("MountDevice"))?;
        }
        self.publish(&way, tokens).await.map_err(refused("SetUp"))?;
        let path = self.target(&way.data, uid);
        if !wanted.block {
            self.own(&way, &path).await.map_err(refused("SetUp"))?;
        }
        self.expand(&way).await.map_err(refused("NodeExpandVolume"))?;
        Ok(Placed {
            path,
            block: wanted.block,
            read_only: wanted.read_only,
            name: wanted.name.clone(),
            claim: wanted.claim.clone(),
            driver: Some((source.driver.clone(), way.data.volume_handle.clone())),
        })
    }

    /// What has to be done with a volume that is here.
    pub async fn follow(&self, pod: &Pod, wanted: &Wanted, source: &Source, tokens: &Tokens) -> Result<(), Trouble> {
        let failed = |why: String| Trouble::from(format!("MountVolume.SetUp failed for volume {:?} : {why}", wanted.name));
        let data = self.data(pod, wanted, source);
        let grown = source.bytes.1 > 0 && source.bytes.0 > source.bytes.1;
        let spec = self.spec_of(&source.driver).await.map_err(failed)?.unwrap_or_default();
        let again = spec.requires_republish == Some(true);
        if !grown && !again {
            return Ok(());
        }
        let _turn = self.turn(&data.unique_name()).await;
        let Some(data) = Data::read(&self.folder(&data, podspec::uid(pod))) else { return Ok(()) };
        let publish_context = match data.attachment.is_empty() {
            true => BTreeMap::new(),
            false => self.attached(&data.attachment).await?,
        };
        let known = self.driver(&source.driver).map_err(failed)?;
        let way = Way { pod, wanted, source, spec, known, data, publish_context };
        if again {
            self.publish(&way, tokens).await.map_err(failed)?;
        }
        self.expand(&way).await.map_err(failed)
    }

    fn data(&self, pod: &Pod, wanted: &Wanted, source: &Source) -> Data {
        let handle = match source.inline {
            true => format!("csi-{}", hex(format!("{}{}", podspec::uid(pod), wanted.name).as_bytes())),
            false => source.handle.clone(),
        };
        Data {
            name: wanted.name.clone(),
            driver_name: source.driver.clone(),
            volume_handle: handle,
            node_name: self.config.node_name.clone(),
            volume_lifecycle_mode: if source.inline { "Ephemeral" } else { "Persistent" }.into(),
            block: wanted.block,
            ..Data::default()
        }
    }

    async fn spec_of(&self, driver: &str) -> Result<Option<CSIDriverSpec>, String> {
        match self.client.get::<CSIDriver>(None, driver).await {
            Ok(found) => Ok(Some(found.spec)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(format!("get CSIDriver {driver}: {error}")),
        }
    }

    /// What the attacher said, once it has attached.
    async fn attached(&self, name: &str) -> Result<BTreeMap<String, String>, Trouble> {
        let waiting = |why: &str| Trouble::Waiting(format!("volume attachment {name}: {why}"));
        let found = self.client.get::<VolumeAttachment>(None, name).await.map_err(|error| waiting(&error.to_string()))?;
        if found.metadata.deletion_timestamp.is_some() {
            return Err(waiting("is being deleted"));
        }
        match found.status {
            Some(status) if status.attached => Ok(status.attachment_metadata.unwrap_or_default()),
            _ => Err(waiting("is not attached yet")),
        }
    }

    async fn secrets(&self, reference: Option<&(String, String)>) -> Result<BTreeMap<String, String>, String> {
        let Some((namespace, name)) = reference else { return Ok(BTreeMap::new()) };
        let secret = self.client.get::<Secret>(Some(namespace), name).await;
        let data = secret.map_err(|error| format!("fetching secret {namespace}/{name}: {error}"))?.data.unwrap_or_default();
        Ok(data.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
    }

    async fn stage(&self, way: &Way<'_>) -> Result<(), String> {
        let path = self.staging(&way.data);
        fs::create_dir_all(&path).map_err(|error| format!("create {}: {error}", path.display()))?;
        if let Some(parent) = path.parent().filter(|_| !way.data.block) {
            way.data.write(parent)?;
        }
        let request = v1::NodeStageVolumeRequest {
            volume_id: way.data.volume_handle.clone(),
            publish_context: way.publish_context.clone(),
            staging_target_path: self.config.to_driver(&path),
            volume_capability: Some(capability(way)),
            secrets: self.secrets(way.source.stage_secret.as_ref()).await?,
            volume_context: way.source.attributes.clone(),
        };
        way.known.driver.node_stage(&request).await.map(drop).map_err(|error| error.to_string())
    }

    async fn publish(&self, way: &Way<'_>, tokens: &Tokens) -> Result<(), String> {
        let target = self.target(&way.data, podspec::uid(way.pod));
        // The driver makes the target itself.
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|error| format!("create {}: {error}", parent.display()))?;
        }
        let mut context = way.source.attributes.clone();
        if way.spec.pod_info_on_mount == Some(true) {
            context.extend(pod_info(way));
        }
        let mut secrets = self.secrets(way.source.publish_secret.as_ref()).await?;
        if let Some(text) = self.tokens(way, tokens).await? {
            let into = if way.spec.service_account_token_in_secrets == Some(true) { &mut secrets } else { &mut context };
            into.insert(TOKENS.into(), text);
        }
        let request = v1::NodePublishVolumeRequest {
            volume_id: way.data.volume_handle.clone(),
            publish_context: way.publish_context.clone(),
            staging_target_path: if way.data.staged { self.config.to_driver(&self.staging(&way.data)) } else { String::new() },
            target_path: self.config.to_driver(&target),
            volume_capability: Some(capability(way)),
            readonly: way.wanted.read_only,
            secrets,
            volume_context: context,
        };
        way.known.driver.node_publish(&request).await.map(drop).map_err(|error| format!("rpc error: {error}"))
    }

    /// Tokens of the pod's service account for the driver's audiences (KEP-2047).
    async fn tokens(&self, way: &Way<'_>, tokens: &Tokens) -> Result<Option<String>, String> {
        let Some(wanted) = way.spec.token_requests.as_ref().filter(|wanted| !wanted.is_empty()) else { return Ok(None) };
        let mut all = serde_json::Map::new();
        for request in wanted {
            let seconds = request.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
            let token = tokens.get(way.pod, &request.audience, seconds, Timestamp::now()).await?;
            let shown = json!({"token": token.text, "expirationTimestamp": meta::time::seconds(token.expires)});
            all.insert(request.audience.clone(), shown);
        }
        Ok(Some(Value::Object(all).to_string()))
    }

    /// `fsGroup`, where the driver leaves it to us.
    async fn own(&self, way: &Way<'_>, path: &Path) -> Result<(), String> {
        let group = Group::of(way.pod);
        if way.wanted.read_only || !owns(way) {
            return Ok(());
        }
        let path = path.to_owned();
        let applied = tokio::task::spawn_blocking(move || group.apply(&path)).await;
        applied
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("applyFSGroup failed for vol {}: {error}", way.data.volume_handle))
    }

    /// A volume that was enlarged is enlarged here, too, and its claim says so.
    async fn expand(&self, way: &Way<'_>) -> Result<(), String> {
        let (given, told) = way.source.bytes;
        let Some((namespace, name)) = way.source.claim.clone().filter(|_| told > 0 && given > told) else { return Ok(()) };
        if way.known.capabilities.has(node::EXPAND_VOLUME) && !way.wanted.read_only {
            let target = self.target(&way.data, podspec::uid(way.pod));
            let request = v1::NodeExpandVolumeRequest {
                volume_id: way.data.volume_handle.clone(),
                volume_path: self.config.to_driver(&target),
                capacity_range: Some(v1::CapacityRange { required_bytes: i64::try_from(given).unwrap_or(i64::MAX), limit_bytes: 0 }),
                staging_target_path: if way.data.staged { self.config.to_driver(&self.staging(&way.data)) } else { String::new() },
                volume_capability: Some(capability(way)),
                secrets: self.secrets(way.source.expand_secret.as_ref()).await?,
            };
            way.known.driver.node_expand(&request).await.map_err(|error| format!("rpc error: {error}"))?;
        }
        let claim = self.client.get::<PersistentVolumeClaim>(Some(&namespace), &name).await.map_err(|error| error.to_string())?;
        let mut conditions = claim.status.and_then(|status| status.conditions).unwrap_or_default();
        conditions.retain(|condition| !matches!(condition.type_.as_str(), "Resizing" | "FileSystemResizePending"));
        let size = meta::Quantity::new(i64::try_from(given).unwrap_or(i64::MAX), meta::quantity::Format::BinarySi).to_string();
        let patch =
            Patch::Merge(json!({"status": {"capacity": {"storage": size}, "conditions": conditions, "allocatedResourceStatuses": null}}));
        let patched = self.client.patch::<PersistentVolumeClaim>(Some(&namespace), &name, &patch, "status").await;
        patched.map(drop).map_err(|error| error.to_string())
    }

    /// Takes back everything of one pod.
    pub async fn tear_down(&self, uid: &str) -> Result<(), String> {
        for (folder, data) in data_of(&self.config.pod_directory(uid)) {
            let _turn = self.turn(&data.unique_name()).await;
            self.unpublish(&data, uid, &folder).await.map_err(|why| {
                format!("UnmountVolume.TearDown failed for volume {:?} : kubernetes.io/csi: Unmounter.TearDownAt failed: {why}", data.name)
            })?;
            let used = super::all_data(&self.config).iter().any(|(_, other)| other.unique_name() == data.unique_name());
            if used {
                continue;
            }
            if data.staged {
                self.unstage(&data).await.map_err(|why| format!("UnmountDevice failed for volume {:?} : {why}", data.name))?;
            }
            if !data.attachment.is_empty() {
                self.report(&data.unique_name(), false).await?;
            }
        }
        Ok(())
    }

    async fn unpublish(&self, data: &Data, uid: &str, folder: &Path) -> Result<(), String> {
        let target = self.target(data, uid);
        let request = v1::NodeUnpublishVolumeRequest { volume_id: data.volume_handle.clone(), target_path: self.config.to_driver(&target) };
        self.driver(&data.driver_name)?.driver.node_unpublish(&request).await.map_err(|error| format!("rpc error: {error}"))?;
        // A driver that was sloppy leaves an empty directory or a mount.
        clear(&target)?;
        teardown::remove(folder).map_err(|error| error.to_string())
    }

    async fn unstage(&self, data: &Data) -> Result<(), String> {
        let path = self.staging(data);
        let request =
            v1::NodeUnstageVolumeRequest { volume_id: data.volume_handle.clone(), staging_target_path: self.config.to_driver(&path) };
        self.driver(&data.driver_name)?.driver.node_unstage(&request).await.map_err(|error| format!("rpc error: {error}"))?;
        clear(&path)?;
        let folder: Option<PathBuf> = path.parent().filter(|_| !data.block).map(Path::to_owned);
        folder.map_or(Ok(()), |folder| teardown::remove(&folder).map_err(|error| error.to_string()))
    }

    /// What a driver says of a volume's use: bytes and inodes available, total, used.
    pub async fn usage(&self, driver: &str, handle: &str, path: &Path) -> Option<Vec<v1::VolumeUsage>> {
        let known = self.driver(driver).ok().filter(|known| known.capabilities.has(node::GET_VOLUME_STATS))?;
        let request =
            v1::NodeGetVolumeStatsRequest { volume_id: handle.into(), volume_path: self.config.to_driver(path), ..Default::default() };
        known.driver.node_stats(&request).await.ok().map(|answer| answer.usage)
    }
}

fn clear(path: &Path) -> Result<(), String> {
    teardown::unmount(path).and_then(|()| teardown::remove(path)).map_err(|error| error.to_string())
}

fn check_inline(source: &Source, spec: &CSIDriverSpec) -> Result<(), String> {
    let modes = spec.volume_lifecycle_modes.clone().filter(|modes| !modes.is_empty()).unwrap_or_else(|| vec!["Persistent".into()]);
    let mode = if source.inline { "Ephemeral" } else { "Persistent" };
    if modes.iter().any(|known| known == mode) {
        return Ok(());
    }
    Err(format!("volume mode {mode:?} not supported by driver {} (only supports {modes:?})", source.driver))
}

fn pod_info(way: &Way<'_>) -> [(String, String); 5] {
    let account = podspec::spec(way.pod).service_account_name.clone().unwrap_or_default();
    let own = |key: &str, value: &str| (format!("csi.storage.k8s.io/{key}"), value.to_owned());
    [
        own("pod.name", podspec::name(way.pod)),
        own("pod.namespace", podspec::namespace(way.pod)),
        own("pod.uid", podspec::uid(way.pod)),
        own("serviceAccount.name", &account),
        own("ephemeral", if way.source.inline { "true" } else { "false" }),
    ]
}

/// Does the kubelet change the group of the volume's files?
fn owns(way: &Way<'_>) -> bool {
    if way.known.capabilities.has(node::VOLUME_MOUNT_GROUP) {
        return false;
    }
    match way.spec.fs_group_policy.as_deref() {
        Some("None") => false,
        Some("File") => true,
        _ => {
            let once = way.source.access_modes.iter().any(|mode| mode.starts_with("ReadWriteOnce"));
            once && !way.source.kind.is_empty()
        }
    }
}

fn capability(way: &Way<'_>) -> v1::VolumeCapability {
    let single = way.known.capabilities.has(node::SINGLE_NODE_MULTI_WRITER);
    let mode = match (way.source.access_modes.first().map(String::as_str), single) {
        (Some("ReadOnlyMany"), _) => access_mode::MULTI_NODE_READER_ONLY,
        (Some("ReadWriteMany"), _) => access_mode::MULTI_NODE_MULTI_WRITER,
        (Some("ReadWriteOncePod"), true) => access_mode::SINGLE_NODE_SINGLE_WRITER,
        (Some("ReadWriteOnce"), true) => access_mode::SINGLE_NODE_MULTI_WRITER,
        _ => access_mode::SINGLE_NODE_WRITER,
    };
    let group = Group::of(way.pod).gid.filter(|_| way.known.capabilities.has(node::VOLUME_MOUNT_GROUP));
    let access = match way.wanted.block {
        true => v1::AccessType::Block(v1::BlockVolume {}),
        false => v1::AccessType::Mount(v1::MountVolume {
            fs_type: way.source.kind.clone(),
            mount_flags: way.wanted.options.clone(),
            volume_mount_group: group.map(|gid| gid.to_string()).unwrap_or_default(),
        }),
    };
    v1::VolumeCapability { access_type: Some(access), access_mode: Some(v1::AccessMode { mode }) }
}
