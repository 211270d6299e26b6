//! A CSI driver whose volumes are folders of the host: node and controller in one, in this process.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use cri::{Code, Error};
use csi::v1;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use plugins::registry::{PluginInfo, RegistrationStatusResponse};
use remote::grpc;
use remote::serve::{self, Frames, Services, one, unknown};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

pub const NAME: &str = "csi.stest.local";
/// Upstream's folder of a kubelet, by which a driver knows every path.
const KUBELET: &str = "/var/lib/kubelet";

type Context = BTreeMap<String, String>;

struct Volumes {
    backing: PathBuf,
    kubelet: PathBuf,
    /// Methods with the volume's id and the context that they were called with.
    calls: Mutex<Vec<(String, String, Context)>>,
    /// Bytes that it says are left.
    room: AtomicI64,
}

impl Services for Volumes {
    fn call<'a>(&'a self, service: &'a str, method: &'a str, body: Incoming) -> BoxFuture<'a, Frames> {
        Box::pin(async move {
            match service {
                "pluginregistration.Registration" => self.registration(service, method),
                "csi.v1.Identity" => self.identity(service, method),
                "csi.v1.Controller" => self.controller(service, method, body).await,
                "csi.v1.Node" => self.node(service, method, body).await,
                _ => unknown(service, method),
            }
        })
    }
}

fn can(kinds: &[i32]) -> Vec<v1::ServiceCapability> {
    kinds.iter().map(|kind| v1::ServiceCapability { rpc: Some(v1::Rpc { kind: *kind }) }).collect()
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::internal(error.to_string())
}

impl Volumes {
    fn here(&self, path: &str) -> PathBuf {
        Path::new(path).strip_prefix(KUBELET).map_or_else(|_| path.into(), |rest| self.kubelet.join(rest))
    }

    fn folder(&self, id: &str) -> PathBuf {
        self.backing.join(id)
    }

    fn note(&self, method: &str, id: &str, context: Context) {
        self.calls.lock().expect("calls").push((method.to_owned(), id.to_owned(), context));
    }

    fn registration(&self, service: &str, method: &str) -> Frames {
        match method {
            "GetInfo" => one(Ok(PluginInfo {
                kind: "CSIPlugin".into(),
                name: NAME.into(),
                endpoint: format!("{KUBELET}/plugins/stest/csi.sock"),
                supported_versions: vec!["1.0.0".into()],
            })),
            "NotifyRegistrationStatus" => one(Ok(RegistrationStatusResponse {})),
            _ => unknown(service, method),
        }
    }

    fn identity(&self, service: &str, method: &str) -> Frames {
        match method {
            "GetPluginInfo" => one(Ok(v1::GetPluginInfoResponse { name: NAME.into(), ..Default::default() })),
            "GetPluginCapabilities" => {
                let of = |kind| v1::PluginCapability { service: Some(v1::Rpc { kind }), volume_expansion: None };
                let all = [v1::plugin::CONTROLLER_SERVICE, v1::plugin::VOLUME_ACCESSIBILITY_CONSTRAINTS];
                one(Ok(v1::GetPluginCapabilitiesResponse { capabilities: all.into_iter().map(of).collect() }))
            }
            _ => unknown(service, method),
        }
    }

    async fn controller(&self, service: &str, method: &str, body: Incoming) -> Frames {
        match method {
            "ControllerGetCapabilities" => {
                use v1::controller as can_do;
                let all = [
                    can_do::CREATE_DELETE_VOLUME,
                    can_do::EXPAND_VOLUME,
                    can_do::PUBLISH_UNPUBLISH_VOLUME,
                    can_do::GET_CAPACITY,
                    can_do::CREATE_DELETE_SNAPSHOT,
                    can_do::LIST_SNAPSHOTS,
                    can_do::CLONE_VOLUME,
                ];
                one(Ok(v1::ControllerGetCapabilitiesResponse { capabilities: can(&all) }))
            }
            "GetCapacity" => one(grpc::question(body).await.map(|request: v1::GetCapacityRequest| {
                self.note(method, "", request.accessible_topology.unwrap_or_default().segments);
                let available_capacity = self.room.load(Ordering::Relaxed);
                v1::GetCapacityResponse { available_capacity, ..Default::default() }
            })),
            "CreateSnapshot" => one(grpc::question(body).await.and_then(|request| self.snapshot(request))),
            "DeleteSnapshot" => one(grpc::question(body).await.and_then(|request: v1::DeleteSnapshotRequest| {
                self.note(method, &request.snapshot_id, request.secrets);
                fs::remove_dir_all(self.folder(&request.snapshot_id)).map_err(failed)?;
                Ok(v1::DeleteSnapshotResponse {})
            })),
            "ListSnapshots" => one(grpc::question(body).await.map(|request: v1::ListSnapshotsRequest| {
                self.note(method, &request.snapshot_id, Context::new());
                let snapshot =
                    v1::Snapshot { snapshot_id: request.snapshot_id, size_bytes: 1 << 20, ready_to_use: true, ..Default::default() };
                let there = self.folder(&snapshot.snapshot_id).exists();
                let entries = there.then(|| v1::SnapshotEntry { snapshot: Some(snapshot) }).into_iter().collect();
                v1::ListSnapshotsResponse { entries, next_token: String::new() }
            })),
            "CreateVolume" => one(grpc::question(body).await.and_then(|request| self.create(request))),
            "DeleteVolume" => one(grpc::question(body).await.and_then(|request: v1::DeleteVolumeRequest| {
                self.note(method, &request.volume_id, Context::new());
                fs::remove_dir_all(self.folder(&request.volume_id)).map_err(failed)?;
                Ok(v1::DeleteVolumeResponse {})
            })),
            "ControllerPublishVolume" => one(grpc::question(body).await.map(|request: v1::ControllerPublishVolumeRequest| {
                self.note(method, &request.volume_id, request.volume_context);
                v1::ControllerPublishVolumeResponse { publish_context: [("published".to_owned(), request.node_id)].into() }
            })),
            "ControllerUnpublishVolume" => one(grpc::question(body).await.map(|request: v1::ControllerUnpublishVolumeRequest| {
                self.note(method, &request.volume_id, Context::new());
                v1::ControllerUnpublishVolumeResponse {}
            })),
            "ControllerExpandVolume" => one(grpc::question(body).await.map(|request: v1::ControllerExpandVolumeRequest| {
                self.note(method, &request.volume_id, Context::new());
                let capacity_bytes = request.capacity_range.unwrap_or_default().required_bytes;
                v1::ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: true }
            })),
            _ => unknown(service, method),
        }
    }

    fn create(&self, request: v1::CreateVolumeRequest) -> cri::Result<v1::CreateVolumeResponse> {
        if request.parameters.get("colour").map(String::as_str) != Some("red") || request.accessibility_requirements.is_none() {
            return Err(Error::new(Code::InvalidArgument, format!("unexpected: {request:?}")));
        }
        let id = format!("v-{}", request.name);
        self.note("CreateVolume", &id, request.parameters);
        fs::create_dir_all(self.folder(&id)).map_err(failed)?;
        let source = request.volume_content_source.clone().and_then(|source| source.kind).map(|source| match source {
            v1::ContentSource::Snapshot(snapshot) => snapshot.snapshot_id,
            v1::ContentSource::Volume(volume) => volume.volume_id,
        });
        if let Some(source) = source {
            self.copy(&source, &id)?;
        }
        let topology = request.accessibility_requirements.unwrap_or_default().preferred;
        let capacity_bytes = request.capacity_range.unwrap_or_default().required_bytes;
        let content_source = request.volume_content_source;
        let volume = v1::Volume { capacity_bytes, volume_id: id, accessible_topology: topology, content_source, ..Default::default() };
        Ok(v1::CreateVolumeResponse { volume: Some(volume) })
    }

    /// Ready at the second look.
    fn snapshot(&self, request: v1::CreateSnapshotRequest) -> cri::Result<v1::CreateSnapshotResponse> {
        let id = format!("s-{}", request.name);
        self.note("CreateSnapshot", &id, request.parameters);
        let ready_to_use = self.folder(&id).exists();
        if !ready_to_use {
            fs::create_dir_all(self.folder(&id)).map_err(failed)?;
            self.copy(&request.source_volume_id, &id)?;
        }
        let creation_time = Some(v1::Timestamp { seconds: 1_000_000_000, nanos: 0 });
        let snapshot = v1::Snapshot {
            snapshot_id: id,
            source_volume_id: request.source_volume_id,
            size_bytes: 1 << 20,
            creation_time,
            ready_to_use,
            ..Default::default()
        };
        Ok(v1::CreateSnapshotResponse { snapshot: Some(snapshot) })
    }

    fn copy(&self, from: &str, to: &str) -> cri::Result<()> {
        for entry in fs::read_dir(self.folder(from)).map_err(failed)?.flatten() {
            fs::copy(entry.path(), self.folder(to).join(entry.file_name())).map_err(failed)?;
        }
        Ok(())
    }

    async fn node(&self, service: &str, method: &str, body: Incoming) -> Frames {
        match method {
            "NodeGetInfo" => one(Ok(v1::NodeGetInfoResponse {
                node_id: "stest-1".into(),
                max_volumes_per_node: 7,
                accessible_topology: Some(v1::Topology { segments: [(format!("topology.{NAME}/node"), "stest-1".to_owned())].into() }),
            })),
            "NodeGetCapabilities" => {
                let all = [v1::node::STAGE_UNSTAGE_VOLUME, v1::node::GET_VOLUME_STATS, v1::node::EXPAND_VOLUME];
                one(Ok(v1::NodeGetCapabilitiesResponse { capabilities: can(&all) }))
            }
            "NodeStageVolume" => one(grpc::question(body).await.and_then(|request: v1::NodeStageVolumeRequest| {
                if request.publish_context.get("published").map(String::as_str) != Some("stest-1") {
                    return Err(Error::new(Code::FailedPrecondition, "the volume is not attached"));
                }
                self.note(method, &request.volume_id, request.volume_context);
                mount_bind(self.folder(&request.volume_id), self.here(&request.staging_target_path)).map_err(failed)?;
                Ok(v1::NodeStageVolumeResponse {})
            })),
            "NodeUnstageVolume" => one(grpc::question(body).await.map(|request: v1::NodeUnstageVolumeRequest| {
                self.note(method, &request.volume_id, Context::new());
                let _ = unmount(self.here(&request.staging_target_path), UnmountFlags::DETACH);
                v1::NodeUnstageVolumeResponse {}
            })),
            "NodePublishVolume" => one(grpc::question(body).await.and_then(|request| self.publish(request))),
            "NodeUnpublishVolume" => one(grpc::question(body).await.map(|request: v1::NodeUnpublishVolumeRequest| {
                self.note(method, &request.volume_id, Context::new());
                let target = self.here(&request.target_path);
                let _ = unmount(&target, UnmountFlags::DETACH);
                let _ = fs::remove_dir(&target);
                if request.volume_id.starts_with("csi-") {
                    let _ = fs::remove_dir_all(self.folder(&request.volume_id));
                }
                v1::NodeUnpublishVolumeResponse {}
            })),
            "NodeGetVolumeStats" => one(grpc::question(body).await.map(|request: v1::NodeGetVolumeStatsRequest| {
                self.note(method, &request.volume_id, Context::new());
                let usage = v1::VolumeUsage { available: 2345, total: 12345, used: 10000, unit: v1::BYTES };
                v1::NodeGetVolumeStatsResponse { usage: vec![usage], volume_condition: None }
            })),
            "NodeExpandVolume" => one(grpc::question(body).await.map(|request: v1::NodeExpandVolumeRequest| {
                self.note(method, &request.volume_id, Context::new());
                v1::NodeExpandVolumeResponse { capacity_bytes: request.capacity_range.unwrap_or_default().required_bytes }
            })),
            _ => unknown(service, method),
        }
    }

    fn publish(&self, request: v1::NodePublishVolumeRequest) -> cri::Result<v1::NodePublishVolumeResponse> {
        self.note("NodePublishVolume", &request.volume_id, request.volume_context);
        let target = self.here(&request.target_path);
        let source = match request.staging_target_path.as_str() {
            "" => self.folder(&request.volume_id),
            staged => self.here(staged),
        };
        fs::create_dir_all(&source).and_then(|()| fs::create_dir_all(&target)).map_err(failed)?;
        mount_bind(source, target).map_err(failed)?;
        Ok(v1::NodePublishVolumeResponse {})
    }
}

/// Serves until it is dropped.
pub struct Driver {
    volumes: Arc<Volumes>,
    drain: stdx::Drain,
    sockets: Vec<PathBuf>,
    tokio: Option<tokio::runtime::Runtime>,
}

impl Driver {
    /// Its node's half registers with the kubelet, its controller's with the built-in sidecars; `backing` has the volumes.
    pub fn start(kubelet: &Path, controllers: &Path, backing: &Path) -> Self {
        fs::create_dir_all(backing).expect("the folder of volumes");
        let volumes =
            Arc::new(Volumes { backing: backing.into(), kubelet: kubelet.into(), calls: Mutex::default(), room: AtomicI64::new(1 << 30) });
        let tokio = tokio::runtime::Runtime::new().expect("tokio");
        let drain = stdx::drain();
        let sockets =
            [kubelet.join("plugins/stest/csi.sock"), kubelet.join("plugins_registry/stest-reg.sock"), controllers.join("stest.sock")];
        let _inside = tokio.enter();
        for socket in &sockets {
            let listener = serve::listen(socket).expect("a socket");
            tokio::spawn(serve::serve(volumes.clone(), listener, drain.clone()));
        }
        drop(_inside);
        Self { volumes, drain, sockets: sockets.into(), tokio: Some(tokio) }
    }

    pub fn calls(&self) -> Vec<String> {
        self.volumes.calls.lock().expect("calls").iter().map(|(method, ..)| method.clone()).collect()
    }

    /// What the method was last called with for a volume with that prefix.
    pub fn context(&self, method: &str, prefix: &str) -> Context {
        let calls = self.volumes.calls.lock().expect("calls");
        let found = calls.iter().rfind(|(called, id, _)| called == method && id.starts_with(prefix));
        found.map(|(_, _, context)| context.clone()).unwrap_or_default()
    }

    pub fn has_room_for(&self, bytes: i64) {
        self.volumes.room.store(bytes, Ordering::Relaxed);
    }

    pub fn is_empty(&self) -> bool {
        fs::read_dir(&self.volumes.backing).is_ok_and(|mut left| left.next().is_none())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.drain.stop();
        self.sockets.iter().for_each(|socket| drop(fs::remove_file(socket)));
        if let Some(tokio) = self.tokio.take() {
            tokio.shutdown_background();
        }
    }
}
